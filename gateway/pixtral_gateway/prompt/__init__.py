"""Encodes conversations to token ids, and reads tool calls and thoughts from generated text."""
