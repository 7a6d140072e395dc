"""What the tiers share. It knows no tier."""
