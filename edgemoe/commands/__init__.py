"""Subcommands of the command line that are more than a chat: each module adds its own and prints its results."""
