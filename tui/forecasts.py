"""Speed forecasts of models on this machine, made beside the chat: one at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from edgemoe.config import child_environment

DOES_NOT_FIT = 4
# Options of ``edgemoe fit`` that place a model where the chat would; called when a model is looked at.
Options: TypeAlias = Callable[[], Sequence[str]]


class Forecasts:
    """Runs ``edgemoe fit`` for names of models; any thread can read its results.

    A look takes a header and earlier measurements of this machine; a measurement runs some layers, for seconds.
    """

    def __init__(self, options: Options, words: Callable[[dict[str, Any]], str]) -> None:
        """Nothing is worked out yet; ``words`` puts the record that ``edgemoe fit --json`` prints in a line."""
        self._options, self._words = options, words
        self._known: dict[str, str] = {}
        self._measured: set[str] = set()
        self._wanted: list[tuple[str, bool]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    @property
    def known(self) -> dict[str, str]:
        """By name: a line about each model, or the step that is under way for it."""
        with self._lock:
            return dict(self._known)

    def look(self, names: Sequence[str]) -> None:
        """Have a line about each of ``names`` that has none."""
        with self._lock:
            asked = {name for name, _ in self._wanted} | self._known.keys()
            self._wanted += [(name, False) for name in names if name not in asked]
            self._begin()

    def measure(self, name: str) -> None:
        """Have a forecast of ``name`` from a run, before anything else that is waiting."""
        with self._lock:
            if name not in self._measured:
                self._measured.add(name)
                self._known[name] = "forecasting …"
                self._wanted.insert(0, (name, True))
                self._begin()

    def close(self) -> None:
        """End the forecast under way."""
        with self._lock:
            self._closed = True
            self._wanted.clear()
            if self._process is not None:
                _end(self._process)

    def _begin(self) -> None:
        if self._wanted and not self._closed and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._work, name="edgemoe-forecasts", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted or self._closed:
                    self._thread = None
                    return
                name, thorough = self._wanted.pop(0)
            words = self._run(name, thorough)
            with self._lock:
                if thorough or name not in self._measured:
                    self._known[name] = words

    def _run(self, name: str, thorough: bool) -> str:
        command = [sys.executable, "-m", "edgemoe.cli", "fit", name, "--json", *self._options()]
        with self._lock:
            if self._closed:
                return ""
            self._process = process = subprocess.Popen(
                command if thorough else [*command, "--quick"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=child_environment(),
                start_new_session=True,  # it starts others, and all of them have to end with it
            )
        told, said = process.communicate()
        if process.returncode not in (0, DOES_NOT_FIT):
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            return errors[-1].removeprefix("error: ") if errors else "no forecast"
        return self._words(json.loads(told))


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
