"""What each process stands on: settings, gRPC server, errors, metrics, logs, traces, drain."""
