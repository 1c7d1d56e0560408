"""The command line: ``main`` parses; each other module is a command that prints its results."""

# What every command says of MODEL; edgemoe.models.find finds it.
MODEL = "a GGUF file, a name that edgemoe list shows, ORG/REPO:QUANT, or 'demo'"

OK, FAILED, USAGE, NOT_FOUND, DOES_NOT_FIT, INTERRUPTED = 0, 1, 2, 3, 4, 130
