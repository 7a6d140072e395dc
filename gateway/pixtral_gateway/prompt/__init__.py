"""From a conversation to token ids, and from generated text to tool calls."""
