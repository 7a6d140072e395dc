"""Every contact with the inside of vLLM, in a file of its own."""
