"""One answer for commands and chat: its request, its pieces, its record and its receipt."""
