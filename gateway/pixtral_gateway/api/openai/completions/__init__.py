"""OpenAI's completions: a model goes on from a prompt as it stands."""
