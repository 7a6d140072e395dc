"""The three tiers and their autoscaler as a discrete-event simulation."""
