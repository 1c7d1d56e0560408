"""The terminal chat. Importing this package loads no terminal code; :mod:`edgemoe.tui.app` does."""

from edgemoe.config import set_default

# Textual draws at multiples of a frame, and leaves one out after a drawing that took longer than that: at its usual 60
# a second a key that comes meanwhile waits up to 33 ms more.
set_default("TEXTUAL_FPS", "240")
