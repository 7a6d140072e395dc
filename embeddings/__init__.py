"""What passes between the tiers: an image embedding's key, its wire form and its store."""
