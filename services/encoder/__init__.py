"""The encoder tier: images to embeddings."""
