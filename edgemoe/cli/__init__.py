"""The command line: ``main`` parses the arguments; each other module is a command that prints its results."""

# Help text for MODEL in every command. edgemoe.models.find finds the file.
MODEL = "a GGUF file, a name of the catalogue (see edgemoe list), ORG/REPO:QUANT, or 'demo'"

OK, FAILED, USAGE, NOT_FOUND, DOES_NOT_FIT, INTERRUPTED = 0, 1, 2, 3, 4, 130
