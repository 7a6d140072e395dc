"""Helpers for asyncio: single flight, gathering, deadlines, daemon threads."""
