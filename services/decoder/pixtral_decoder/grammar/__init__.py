"""Checks of grammars and schemas before the engine compiles them."""
