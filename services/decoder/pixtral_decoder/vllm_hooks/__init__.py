"""Every contact with the inside of vLLM, one file each."""
