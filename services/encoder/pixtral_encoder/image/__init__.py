"""From an image file to the vision tower's input."""
