"""``edgemoe setup``: make the graphics card of this machine usable, or give the reason why it is not."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import home
from ..errors import ConfigError
from ..setup import cards, installed
from ..setup.build import KINDS, Order, Result, compiled, locked
from ..setup.cards import Card, NvidiaDriver
from ..setup.programs import Missing, SetupFailed
from ..setup.toolchain import rocm_root
from ..text.console import show_progress, talk
from . import FAILED, OK

SCHEMA = "edgemoe.setup.v1"
# Disk space for sources, compiler, libraries and objects of a build, as measured.
ROOM_BYTES = {"cuda": 6 << 30, "rocm": 4 << 30, "vulkan": 2 << 30, "rpc": 1 << 30}
# Seconds between two lines of progress if stderr is no terminal.
REPORT_S = 60.0


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    setup = commands.add_parser(
        "setup", help="make the graphics card usable (takes minutes; for NVIDIA an hour on two cores)"
    )
    setup.add_argument("--backend", choices=KINDS, help="backend to build, in place of the one that suits the card")
    setup.add_argument(
        "--architecture",
        metavar="N",
        help="graphics processor to compile for, such as 89 or gfx1100, in place of the installed cards",
    )
    setup.add_argument("--remove", action="store_true", help="delete the backends that this command built")
    setup.add_argument("--json", action="store_true", help="print JSON for programs")
    setup.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    setup.set_defaults(command=lambda parsed, _: _setup(parsed))


def _setup(parsed: argparse.Namespace) -> int:
    if parsed.remove:
        return _report(parsed, {"ok": True, "said": _remove(parsed.backend)})
    if not parsed.backend and "metal" in installed.of_package():
        return _report(parsed, {"ok": True, "said": "Metal is part of this llama-cpp-python: nothing to do."})
    driver = cards.nvidia_driver()
    found = cards.find(driver=driver)
    for card in found:
        _describe(card)
    about = {"cards": [asdict(card) for card in found]}
    backend = parsed.backend or _suitable(found)
    if not backend:
        return _report(parsed, {"ok": False, **about, "said": _nothing_to_use(found)})
    started = time.monotonic()
    library = _made(backend, _architectures(parsed, backend, found), driver)
    usable, sentences = _usable(backend)
    return _report(
        parsed,
        {
            "ok": bool(usable) or bool(parsed.backend and not sentences),
            **about,
            "backend": backend,
            "library": library,
            "devices": usable,
            "seconds": round(time.monotonic() - started, 1),
            "said": _outcome(backend, usable, sentences),
        },
    )


def _report(parsed: argparse.Namespace, content: dict[str, Any]) -> int:
    print(json.dumps({"schema": SCHEMA, **content}, indent=1) if parsed.json else content["said"])
    return OK if content["ok"] else FAILED


def _describe(card: Card) -> None:
    number = card.architecture
    about = f" (compute capability {number[:-1]}.{number[-1]})" if card.vendor == "nvidia" and number else ""
    talk(f"found: {card.name}{about}")
    if card.integrated:
        talk("note: it shares the processor's memory, so it is seldom faster than the processor")
    if card.problem:
        talk(f"note: {card.problem}: {card.cure}")


def _suitable(found: list[Card]) -> str:
    """Choose the backend for the first discrete card that programs can use; empty without such a card."""
    card = next((card for card in found if not card.integrated and not card.problem), None)
    if card is None:
        return ""
    if card.vendor == "nvidia":
        return "cuda"
    return "rocm" if card.vendor == "amd" and card.architecture and rocm_root() else "vulkan"


def _nothing_to_use(found: list[Card]) -> str:
    if not found:
        return "There is no graphics card that ggml can use: EdgeMoE computes on the processor."
    if all(card.integrated for card in found):
        return "The only graphics card is the processor's own: edgemoe setup --backend vulkan makes it usable."
    return "No graphics card can be used yet: see the notes above."


def _architectures(parsed: argparse.Namespace, backend: str, found: list[Card]) -> tuple[str, ...]:
    """List the processors to compile for.

    Raises:
        ConfigError: no card reports its processor, and --architecture does not name one.
    """
    if backend in ("vulkan", "rpc"):
        if parsed.architecture:
            raise ConfigError(f"--architecture does not go with {backend}", "it is for cuda and rocm")
        return ()
    if parsed.architecture:
        return (parsed.architecture,)
    vendor = {"cuda": "nvidia", "rocm": "amd"}[backend]
    known = sorted({card.architecture for card in found if card.vendor == vendor and card.architecture})
    if not known:
        hint = "--architecture names it: 89 for an RTX 40, 120 for an RTX 50, gfx1100 for an RX 7900"
        raise ConfigError(f"this machine has no card that names its processor, and {backend} is compiled for one", hint)
    return tuple(known)


def _made(backend: str, architectures: tuple[str, ...], driver: NvidiaDriver) -> str:
    """Return the path of the backend's library, and build a missing one. Empty if llama-cpp-python contains it."""
    if backend in installed.of_package():
        return ""
    for old in installed.built():
        if old.kind == backend and old.current and set(architectures) <= set(old.architectures):
            return str(old.path)
    if sys.platform == "win32":
        hint = "install a llama-cpp-python that was built for the card: the README says how"
        raise Missing("edgemoe setup builds on Linux and macOS only", hint)
    work = home("data") / "setup"
    _check_room(work, backend)
    talk(f"building the {backend} backend of llama-cpp-python {installed.version()}; a stopped build can continue")
    result = compiled(Order(backend, architectures, work, driver), _progress())
    show_progress(1.0, "")
    return str(_installed(backend, architectures, result, work))


def _installed(backend: str, architectures: tuple[str, ...], result: Result, work: Path) -> Path:
    """Put a compiled backend in its place and delete sources, tools and objects."""
    made = installed.Backend(backend, installed.version(), architectures, result.library.name)
    path = installed.add(made, [result.library, *result.bundled])
    installed.remove_folder(work)
    return path


def _check_room(work: Path, backend: str) -> None:
    import shutil

    there = next(path for path in (work, *work.parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, ROOM_BYTES[backend]
    if free < needed and not work.exists():
        text = f"the build needs {needed >> 30} GiB of disk, {free / 2**30:.1f} GiB are free at {there}"
        raise SetupFailed(text, "free some, or let EDGEMOE_HOME name a folder on another disk")


def _progress() -> Callable[[float, str], None]:
    """Show progress as a bar on a terminal, else as a line each minute."""
    if sys.stderr.isatty():
        return show_progress
    last_at, last_step = 0.0, ""

    def report(share: float, step: str) -> None:
        nonlocal last_at, last_step
        now = time.monotonic()
        if (not share and step != last_step) or now - last_at > REPORT_S:
            talk(f"{share:4.0%}  {step}")
            last_at, last_step = now, step

    return report


def _usable(backend: str) -> tuple[list[str], tuple[str, ...]]:
    """List the devices of the backend, and sentences about failures to load it."""
    from ..engine import devices, host

    prefix = {"cuda": "CUDA", "vulkan": "Vulkan", "rocm": "ROCm", "rpc": "RPC"}[backend]
    return [name for name in devices() if name.startswith(prefix)], host.load_backends()


def _outcome(backend: str, usable: list[str], sentences: tuple[str, ...]) -> str:
    if usable:
        return f"{', '.join(usable)} is ready: edgemoe demo uses it."
    if backend == "rpc":
        return "RPC is ready: edgemoe rpc-server lends a device, --rpc HOST:PORT uses it on another machine."
    return " ".join([f"The {backend} backend is built and loads, and it finds no card.", *sentences])


def _remove(backend: str | None) -> str:
    """Delete the backends and the folder of an unfinished build."""
    work = home("data") / "setup"
    if work.exists():
        with locked(work / "lock"):
            installed.remove_folder(work)
    gone = [kind for kind in ([backend] if backend else KINDS) if installed.remove(kind)]
    return f"Removed: {', '.join(gone)}." if gone else "There was nothing to remove."
