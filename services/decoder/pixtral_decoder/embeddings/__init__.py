"""Image embeddings in the decoder: where they come from and where they are kept."""
