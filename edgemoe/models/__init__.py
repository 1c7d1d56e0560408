"""Which model a name means, where its bytes are, and what its header says."""
