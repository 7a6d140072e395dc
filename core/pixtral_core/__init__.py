"""The parts that the tiers share. It imports no tier."""
