"""The benchmarks of Pixtral-12B's model card, asked of a running server."""
