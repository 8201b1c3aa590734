"""Pictures of runs: read from their folders, without torch."""
