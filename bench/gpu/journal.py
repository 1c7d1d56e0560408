"""Keep the measurements, one line per repetition, so that a later run continues after the last one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Journal:
    """Append to a file of JSON lines.

    Each entry has a ``kind`` (``sample``, ``opened``, ``parity``, ``machine``, ``soak``, ``failed``) and figures.
    A last line that was cut off by a kill is dropped.
    """

    def __init__(self, path: Path) -> None:
        """Read the lines of earlier runs."""
        self._path = path
        self.entries: list[Entry] = []
        if path.exists():
            text = path.read_text()
            if text and not text.endswith("\n"):
                path.write_text(text := text[: text.rfind("\n") + 1])
            self.entries = [json.loads(line) for line in text.splitlines()]

    def add(self, kind: str, **figures: Any) -> Entry:
        """Append an entry. It is on the disk when this method returns."""
        entry = {"kind": kind, **figures}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
        self.entries.append(entry)
        return entry

    def of(self, kind: str, **matching: Any) -> list[Entry]:
        """Find the entries of a kind that have these figures."""
        wanted = matching.items()
        return [e for e in self.entries if e["kind"] == kind and all(e.get(k) == v for k, v in wanted)]

    def repetitions(self, cell: str, contenders: Sequence[str]) -> int:
        """Count the complete repetitions of a cell, which every contender has."""
        done = [{e["repetition"] for e in self.of("sample", cell=cell, contender=name)} for name in contenders]
        return len(set.intersection(*done)) if done else 0
