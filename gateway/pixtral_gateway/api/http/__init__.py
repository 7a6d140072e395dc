"""The HTTP server under every HTTP API: bounds, bodies, middleware, event streams."""
