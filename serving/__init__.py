"""The chassis that each process stands on: settings, gRPC server, errors, metrics, drain."""
