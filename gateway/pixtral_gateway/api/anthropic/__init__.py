"""Anthropic's Messages API, on the same pipeline as the other APIs."""
