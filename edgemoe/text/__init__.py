"""Format words, figures and tables for a terminal. Commands and chat share this package; it has no terminal code."""
