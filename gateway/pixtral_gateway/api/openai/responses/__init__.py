"""OpenAI's Responses: input items in, output items and their events out. Stores no response."""
