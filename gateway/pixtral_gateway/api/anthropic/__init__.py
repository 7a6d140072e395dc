"""Anthropic's Messages API, over the same request path."""
