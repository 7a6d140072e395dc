"""How a completion is generated, as the tiers tell each other: sampling and log-probabilities."""
