"""OpenAI's Responses: takes input items, returns output items or events, stores no response."""
