"""The command `minirlhf`: one file for each subcommand."""
