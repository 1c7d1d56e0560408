"""One answer as commands and chat see it: its request, its pieces, its record and its receipt."""
