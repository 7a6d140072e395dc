"""Facts of a completion that the tiers send each other: sampling and log-probabilities."""
