"""The chat on a real terminal: signals leave it usable, and no engine outlives the chat."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_tui_worker import gone

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0
ENGINE_S = 3.0  # the longest time that an engine may live after its chat
# The chat writes the process id of its engine to the descriptor that is its first argument.
CHAT = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from functools import partial
from fake_engine import FakeLlama
from edgemoe.tui.app import ChatApp
from edgemoe.tui.records import ChatSettings
from edgemoe.worker import Worker
class Telling(Worker):
    def open(self, *arguments, **keywords):
        engine = super().open(*arguments, **keywords)
        os.write(int(sys.argv[1]), str(engine.pid).encode())
        return engine
app = ChatApp(Telling(partial(FakeLlama, answers=["word " * 50000], delay_s=0.02)), ChatSettings("tiny"))
app.run()
raise SystemExit(app.return_code)
"""
# What a chat switches on, and a shell needs off: alternate screen, mouse reports, pasted text in brackets.
MODES = (b"1049", b"1000", b"1003", b"2004")


class Terminal:
    """Run the chat on a terminal of its own, and read its screen."""

    def __init__(self) -> None:
        self._keeper, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = self.settings()
        told, tell = os.pipe()
        self.seen = b""
        code = CHAT.format(root=str(ROOT), tests=str(ROOT / "tests"))
        self.chat = subprocess.Popen(
            [sys.executable, "-c", code, str(tell)], stdin=self._slave, stdout=self._slave, stderr=self._slave,
            env=os.environ | {"TERM": "xterm-256color"}, pass_fds=[tell],
        )  # fmt: skip
        os.close(tell)
        self.until(lambda: bool(select.select([told], [], [], 0)[0]))
        self.engine = int(os.read(told, 20))
        os.close(told)

    def settings(self) -> list[object]:
        """Give the terminal's settings: echo, lines, signals."""
        return termios.tcgetattr(self._slave)

    def write(self, text: str) -> None:
        """Press keys."""
        os.write(self._keeper, text.encode())

    def until(self, condition: Callable[[], bool]) -> None:
        """Read the screen until something is so."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, self.seen[-2000:]
            self._read(0.01)

    def _read(self, seconds: float) -> None:
        if select.select([self._keeper], [], [], seconds)[0]:
            self.seen += os.read(self._keeper, 65536)

    def ask(self) -> None:
        """Send a question, and wait until its answer is on the screen."""
        self.until(lambda: b"idle" in self.seen)
        self.write("go\r")
        self.until(lambda: b"word word" in self.seen)

    def is_as_before(self) -> bool:
        """Tell whether a shell could go on: the terminal's settings, and the modes that the program switched."""
        while select.select([self._keeper], [], [], 0)[0]:
            self._read(0)
        off = all(self.seen.rfind(b"\x1b[?" + mode + b"l") > self.seen.rfind(b"\x1b[?" + mode + b"h") for mode in MODES)
        return off and self.seen.rfind(b"\x1b[?25h") > self.seen.rfind(b"\x1b[?25l") and self.settings() == self.before

    def close(self) -> None:
        """End the chat at once."""
        self.chat.kill()
        self.chat.wait()
        os.close(self._keeper)
        os.close(self._slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    found = Terminal()
    yield found
    found.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_ended_chat_leaves_a_sane_terminal_and_no_engine(number: int, terminal: Terminal) -> None:
    terminal.ask()
    terminal.chat.send_signal(number)
    assert gone(terminal.engine, ENGINE_S)
    terminal.until(lambda: terminal.chat.poll() is not None)
    assert terminal.chat.returncode == 128 + number and terminal.is_as_before()


def test_a_killed_chat_leaves_no_engine(terminal: Terminal) -> None:
    terminal.ask()
    terminal.chat.kill()
    assert gone(terminal.engine, ENGINE_S)


def test_a_stopped_chat_leaves_a_sane_terminal_and_comes_back(terminal: Terminal) -> None:
    terminal.ask()
    for _ in range(2):
        os.kill(terminal.chat.pid, signal.SIGTSTP)
        terminal.until(lambda: os.WIFSTOPPED(stopped(terminal.chat.pid)))
        assert terminal.is_as_before()
        terminal.seen = b""
        os.kill(terminal.chat.pid, signal.SIGCONT)
        terminal.until(
            lambda: b"\x1b[?1049h" in terminal.seen and b"tiny" in terminal.seen and b"word" in terminal.seen
        )
    terminal.write("\x1b")  # the answer stops: keys arrive again
    terminal.until(lambda: b"stopped" in terminal.seen)


def stopped(pid: int) -> int:
    """Give the status of a process that was stopped; 0 if it runs."""
    return os.waitpid(pid, os.WUNTRACED | os.WNOHANG)[1]
