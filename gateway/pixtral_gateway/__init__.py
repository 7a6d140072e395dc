"""The only door: conversations in, streamed answers out."""
