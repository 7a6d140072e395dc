"""Pixtral's vision tower."""
