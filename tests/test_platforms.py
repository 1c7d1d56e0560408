"""Our modules work without the modules that other systems lack. The systems are simulated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# This program imports all our modules. They find no module that only POSIX has, and a replacement of Windows' msvcrt.
WITHOUT = """
import builtins, importlib, pkgutil, sys, types
plain = builtins.__import__
def refusing(name, globals=None, *rest, **named):
    ours = (globals or {}).get("__name__", "").startswith("edgemoe")
    if ours and name == "msvcrt":
        return msvcrt
    if ours and name in ("fcntl", "grp", "pwd", "pty", "resource", "termios", "tty"):
        raise ModuleNotFoundError(name)
    return plain(name, globals, *rest, **named)
builtins.__import__ = refusing
locked = []
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK = 2
def locking(number, mode, count):
    if locked:
        raise PermissionError("taken")
    locked.append(number)
msvcrt.locking = locking
import edgemoe
sys.platform = "win32"
from edgemoe import locks
sys.platform = "linux"  # its shared libraries are here
for module in pkgutil.walk_packages(edgemoe.__path__, "edgemoe."):
    if not module.name.endswith(("__main__", "edgemoe_core")):
        importlib.import_module(module.name)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_imports_posix_modules() -> None:
    run("")


def test_locks_without_fcntl(tmp_path: Path) -> None:
    code = f"""
import threading
locks._ASK_AGAIN_SECONDS = 0.01
with open({str(tmp_path / "lock")!r}, "ab") as file:
    locks.lock(file)
    try:
        locks.lock(file, wait=False)
    except OSError:
        print("held")
    threading.Timer(0.1, locked.clear).start()
    locks.lock(file)
    print("ours")
"""
    assert run(code).split() == ["held", "ours"]
