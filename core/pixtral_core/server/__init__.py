"""A process of a tier: its gRPC server, its life from start to drain, its workers."""
