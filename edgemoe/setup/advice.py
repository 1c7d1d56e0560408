"""Names ``edgemoe setup`` when a card lies idle. Looks at files only, so that a first screen can ask."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from .cards import ROOT, present
from .installed import Backend, built, of_package, version

COMMAND = "edgemoe setup"


def advice(root: Path = ROOT) -> str:
    """Say in one sentence that a card lies idle and which command ends that; empty when there is nothing to do.

    Args:
        root: folder below which /sys lies.
    """
    try:
        there, backends = of_package(), [backend for backend in built() if backend.kind != "rpc"]
        outdated = [backend for backend in backends if not backend.current]
    except PackageNotFoundError:
        return ""
    if any(kind != "rpc" for kind in there) or len(outdated) < len(backends):
        return ""
    if outdated:
        return rebuild(outdated[0])
    cards = present(root) if sys.platform == "linux" else []
    return f"{cards[0].name} lies idle: {COMMAND} makes it usable." if cards else ""


def rebuild(backend: Backend) -> str:
    """Say that ``backend`` does not belong to the llama-cpp-python that is installed."""
    was = f"The {backend.kind} backend was built for llama-cpp-python {backend.version}"
    return f"{was}, and {version()} is installed: {COMMAND} --backend {backend.kind} builds it again."
