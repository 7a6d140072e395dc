"""The vLLM engine behind a plain class."""
