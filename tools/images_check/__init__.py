"""Builds the three images and runs every container of the overlays and of compose."""
