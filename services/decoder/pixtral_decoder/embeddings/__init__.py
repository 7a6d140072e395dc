"""Image embeddings in the decoder: their sources and their caches."""
