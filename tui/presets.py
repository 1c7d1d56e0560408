"""The user's settings for each model, system prompt and sampling, kept in one JSON file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgemoe.answer import sampling
from edgemoe.answer.effort import LEVELS

SAVE = "--save"  # at the end of /set and /system


@dataclass(frozen=True)
class Preset:
    """Of one model: ``system`` prompt, ``sampling`` keywords, and how much it shall ``think``; empty for none."""

    system: str = ""
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    think: str = ""


class Presets:
    """The file of all presets. One that is damaged counts as empty until it is written again."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self._path = path

    def of(self, model: str) -> Preset:
        """The preset of ``model``, an empty one when there is none."""
        raw = self._read().get(model)
        if not isinstance(raw, dict):
            return Preset()
        system, kept, think = raw.get("system"), raw.get("sampling"), raw.get("think")
        values: dict[str, float | int] = {}
        for name, value in kept.items() if isinstance(kept, dict) else ():
            with contextlib.suppress(ValueError):  # a hand-written value that is none
                values = sampling.change(values, f"{name} {value}")
        return Preset(system if isinstance(system, str) else "", values, think if think in LEVELS else "")

    def save(self, model: str, preset: Preset) -> None:
        """Keep ``preset`` for ``model``.

        Raises:
            OSError: it was not written; the file stays as before.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({**self._read(), model: asdict(preset)}, indent=2), encoding="utf-8")
        os.replace(fresh, self._path)

    def _read(self) -> dict[str, Any]:
        try:
            presets = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return presets if isinstance(presets, dict) else {}


def asks_to_save(text: str) -> tuple[str, bool]:
    """``text`` without a ``--save`` at its end, and whether there was one."""
    rest = text.rstrip()
    if rest == SAVE or rest.endswith(f" {SAVE}"):
        return rest[: -len(SAVE)].rstrip(), True
    return text, False
