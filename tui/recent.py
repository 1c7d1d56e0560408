"""Model files that were opened before, newest first, in one JSON file."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

KEPT = 30


class Recent:
    """The list. It is a convenience: errors of its file are passed over."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self._path = path

    def files(self) -> list[Path]:
        """List the files that are still there."""
        try:
            names = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        paths = [Path(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []
        return [path for path in paths if path.is_file()]

    def add(self, file: Path) -> None:
        """``file`` was opened."""
        first = file.absolute()
        names = [str(first), *(str(path) for path in self.files() if path != first)][:KEPT]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(names), encoding="utf-8")
            os.replace(fresh, self._path)
