"""OpenAI's HTTP API, on the same pipeline as gRPC."""
