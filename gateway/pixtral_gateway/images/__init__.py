"""The images of a request: read, fetched by URL, uploaded, or named by their SHA-256."""
