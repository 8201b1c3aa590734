"""The over-optimisation lab: the true reward against learned rewards, by the distance from the first policy."""
