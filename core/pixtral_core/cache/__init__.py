"""The cache of image embeddings: keys, wire format, Redis store, LRU."""
