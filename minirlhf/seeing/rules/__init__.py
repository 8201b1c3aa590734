"""The doctor's rules: small pure functions of the recorded series of a run."""
