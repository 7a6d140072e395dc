"""Request logs, traces and metrics."""
