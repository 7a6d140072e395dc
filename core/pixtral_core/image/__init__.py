"""What a file says of its image before any pixel is decoded."""
