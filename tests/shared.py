"""The folder of real data beside the checkout. The data are no part of the project."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("EDGEMOE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def template(name: str) -> str:
    """Read a real chat template. Without the folder the test is skipped."""
    path = FOLDER / "templates" / name
    if not path.is_file():
        pytest.skip(f"{path} is missing: EDGEMOE_SHARED_DATA names the folder of real data")
    return path.read_text(encoding="utf-8")


def outputs() -> list[dict[str, Any]]:
    """Read outputs of real models, each with its right reading; empty without the folder."""
    path = FOLDER / "templates" / "outputs.jsonl"
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.is_file() else []
