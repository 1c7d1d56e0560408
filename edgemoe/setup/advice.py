"""Names ``edgemoe setup`` when a card lies idle. It looks at files only, so a first screen need not wait."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from .cards import ROOT, present
from .installed import Backend, built, of_package, version

COMMAND = "edgemoe setup"


def advice(root: Path = ROOT) -> str:
    """Name the command that makes an idle card usable or rebuilds an outdated backend; empty if neither is needed.

    Args:
        root: folder that holds /sys.
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
    """Say that ``backend`` belongs to another llama-cpp-python, and name the command that rebuilds it."""
    was = f"The {backend.kind} backend was built for llama-cpp-python {backend.version}"
    return f"{was}, and {version()} is installed: {COMMAND} --backend {backend.kind} builds it again."
