"""Runs other programs, and turns a failure into an error of one line. Provides pip if the environment has none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import EdgeMoEError


class SetupFailed(EdgeMoEError):
    """A step of the set-up failed; the text names the step, the hint a cure."""


class Missing(SetupFailed):
    """A program or library that a backend needs is not on this machine."""


def run(command: Sequence[str], step: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return its output.

    Args:
        command: program and arguments.
        step: name of the step, for the error.
        environment: variables to add to the environment of this process.

    Raises:
        SetupFailed: the program is missing or fails.
    """
    try:
        done = subprocess.run(
            [*command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | dict(environment or {}),
        )
    except OSError as error:
        raise Missing(f"{step} needs {command[0]}, which does not start ({error})", "install it") from error
    if done.returncode:
        raise SetupFailed(f"{step} failed ({Path(command[0]).name} ended with {done.returncode}): {cause(done.stdout)}")
    return done.stdout


def cause(output: str) -> str:
    """Pick the lines of a failed program's output that say why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " | ".join([line for line in lines if "rror" in line or "Could NOT" in line][:3] or lines[-3:])


def pip(work: Path) -> list[str]:
    """Give the command that runs pip.

    Args:
        work: folder for an environment with pip, which is made if this environment has no pip (uv makes such ones).

    Raises:
        Missing: there is no pip, and Python cannot install it.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    place = work / "pip"
    own = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not own.exists():
        try:
            run([sys.executable, "-m", "venv", str(place)], "pip")
        except SetupFailed as error:
            raise Missing("this Python environment has no pip", "install pip into it") from error
    return [str(own), "-m", "pip"]


def pip_install(requirements: Sequence[str], place: Path, work: Path) -> None:
    """Install packages from PyPI into a folder, once; an installation that was cut short is repeated."""
    done = place / ".complete"
    if done.exists() and done.read_text() == "\n".join(requirements):
        return
    options = ["install", "--quiet", "--upgrade", "--target", str(place)]
    run([*pip(work), *options, *requirements], f"installing {requirements[0].partition('[')[0]}")
    done.write_text("\n".join(requirements))
