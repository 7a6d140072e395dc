"""The decoder: prompt tokens and image embeddings to text, by vLLM."""
