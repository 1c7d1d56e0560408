"""The terminal chat. Importing this package loads no terminal code; :mod:`edgemoe.tui.app` does."""

import os

# Textual draws at multiples of a frame, and leaves one out after a drawing that took longer than that: at its usual 60
# a second a key that comes meanwhile waits up to 33 ms more.
os.environ.setdefault("TEXTUAL_FPS", "240")
