"""The HTTP server that all HTTP APIs share: bounds, bodies, middleware, event streams."""
