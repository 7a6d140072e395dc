"""Facts about an image that can be read from its file without decoding a pixel."""
