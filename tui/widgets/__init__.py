"""Widgets of the terminal chat, one in a file."""
