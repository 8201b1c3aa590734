"""The command `minirlhf`, one file a command."""
