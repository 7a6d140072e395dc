"""The parts that the tiers share. It knows no tier."""
