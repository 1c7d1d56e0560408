"""The terminal chat. Importing this package loads no terminal code; :mod:`tui.app` does."""
