"""Subcommands of the command line that are more than a chat: each module adds its own and prints its results."""

# What every command says of MODEL; edgemoe.models finds it.
MODEL = "a GGUF file, a name that edgemoe list shows, ORG/REPO:QUANT, or 'demo'"
