"""The theme that the user chose last, in a file of one line."""

from __future__ import annotations

import contextlib
from pathlib import Path


class Look:
    """The file. It is a convenience: its errors are passed over."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self._path = path

    def read(self) -> str:
        """Return the theme's name, empty where none is kept."""
        try:
            return self._path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""

    def write(self, theme: str) -> None:
        """Keep the name ``theme``."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(f"{theme}\n", encoding="utf-8")
