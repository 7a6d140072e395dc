"""The model as its checkpoint describes it: vision tower, image grid, fingerprint."""
