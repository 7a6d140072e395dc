"""Checks of a request before any work is done for it."""
