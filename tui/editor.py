"""A text in the user's own editor."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

from edgemoe.config import editor


def edited(text: str) -> str:
    """Let the user edit ``text`` and return it, as it was where the editor reports a failure.

    Raises:
        OSError: the editor did not start.
    """
    with tempfile.TemporaryDirectory(prefix="edgemoe-") as folder:
        file = Path(folder) / "prompt.md"
        file.write_text(text, encoding="utf-8")
        ended = subprocess.run([*shlex.split(editor()), str(file)], check=False)
        return text if ended.returncode else file.read_text(encoding="utf-8").rstrip("\n")
