"""The small checkpoints that the project's tests, demo and benchmarks run on."""
