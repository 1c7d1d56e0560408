"""Find the model that a name means, its files, and the facts in its header."""
