"""One page."""

from __future__ import annotations

from typing import Any


def page(profile: dict[str, Any]) -> str:
    """HTML."""
    return str(profile["version"])
