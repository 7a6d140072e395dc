"""OpenAI's completions: a model continues a prompt that no template changes."""
