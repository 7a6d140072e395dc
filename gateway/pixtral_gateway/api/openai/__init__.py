"""OpenAI's HTTP API beside gRPC, over the same request path."""
