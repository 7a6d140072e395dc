"""OpenAI's Responses: input items in, output items and their events out. Nothing is kept."""
