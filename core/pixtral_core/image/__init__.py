"""The facts that a file gives of its image before any pixel is decoded."""
