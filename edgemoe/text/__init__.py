"""Words, figures and tables as a terminal shows them: shared by commands and chat, without terminal code."""
