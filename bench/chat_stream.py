"""Measure the chat in a terminal while a scripted engine streams: processor use, memory, and the delay of a key.

One endless answer full of code, or with --short a new answer of 229 tokens every 3 seconds, or with --thought an
endless thought that begins with 30,000 characters.

python bench/chat_stream.py [--seconds 300] [--rate 100] [--size 120x40] [--short | --thought folded|unfolded]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

MARK = "Ω"  # occurs in no text of the answer
CODE = "\n".join(f"    total = total + values[{line}] * weights[{line}]  # line {line}" for line in range(60))
PARAGRAPH = f"\n\nSome **bold** words about it, and `code` in a line.\n\n```python\ndef f(values):\n{CODE}\n```\n"
# The text is one piece. The scripted engine cuts it at spaces, and the chat wraps it as any other text.
THOUGHT = ("The user wants a function, so let me see what it has to do and what it must not do. " * 6 + "\n") * 60
SHORT_SECONDS = 3.0
REPORT_SECONDS = 30.0


def chat(rate: float, seconds: float, folder: str, short: bool, thought: bool) -> None:
    """Open the app in this process, with its engine in a child."""
    from fake_engine import FakeLlama, Script

    from edgemoe.tui.app import ChatApp
    from edgemoe.tui.records import ChatSettings
    from edgemoe.worker import Worker

    many = 1 if short else int(seconds * rate / len(PARAGRAPH.split(" "))) + 2
    text = PARAGRAPH.replace(CODE, CODE[: len(CODE) // 4]) if short else PARAGRAPH * many
    answer = Script("", THOUGHT.replace(" ", "\xa0") + text) if thought else Script(text)
    engines = Worker(partial(FakeLlama, answers=[answer], delay_s=1 / rate, n_ctx=1_000_000))
    ChatApp(engines, ChatSettings("scripted"), Path(folder) / "chats.db").run()


def processor_s(pid: int) -> float:
    """Give the seconds of processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def drain(terminal: int, seconds: float, until: bytes = b"") -> tuple[bytes, float]:
    """Read output for ``seconds``, or until it holds ``until``; give it with the time that passed."""
    began, seen = time.monotonic(), b""
    while (left := began + seconds - time.monotonic()) > 0 and not (until and until in seen):
        if select.select([terminal], [], [], left)[0]:
            seen += os.read(terminal, 65536)
    return seen, time.monotonic() - began


def start(options: argparse.Namespace) -> tuple[int, int]:
    """Start the app in its own terminal and begin its first answer. Yield the process and the terminal."""
    columns, rows = (int(part) for part in options.size.split("x"))
    folder = tempfile.mkdtemp()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        chat(options.rate, options.seconds, folder, options.short, bool(options.thought))
        os._exit(0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    drain(terminal, 4)
    os.write(terminal, b"\x14go\r" if options.thought == "unfolded" else b"go\r")
    drain(terminal, 3)
    return pid, terminal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--size", default="120x40")
    parser.add_argument("--short", action="store_true", help="many short answers instead of one endless one")
    parser.add_argument("--thought", choices=("folded", "unfolded"), help="an endless thought instead")
    options = parser.parse_args()
    pid, terminal = start(options)
    began, used, lags = time.monotonic(), processor_s(pid), []
    memory = [(0.0, resident_mib(pid))]
    asked = began
    while (now := time.monotonic()) - began < options.seconds:
        if options.short and now - asked >= SHORT_SECONDS:
            asked = now
            os.write(terminal, b"go\r")
        os.write(terminal, MARK.encode())
        lags.append(drain(terminal, 2, MARK.encode())[1] * 1000)
        os.write(terminal, b"\x7f")
        drain(terminal, 0.5)
        if now - began >= memory[-1][0] + REPORT_SECONDS:
            memory.append((now - began, resident_mib(pid)))
            share = (processor_s(pid) - used) / (now - began)
            print(f"{now - began:5.0f} s: {share:.0%} of a core, {memory[-1][1]:.1f} MiB", flush=True)
    elapsed = time.monotonic() - began
    share, memory = (processor_s(pid) - used) / elapsed, [*memory, (elapsed, resident_mib(pid))]
    settled_s, settled_mib = next((at, mib) for at, mib in memory if at >= min(60, elapsed / 2))
    growth = (memory[-1][1] - settled_mib) / max(elapsed - settled_s, 1) * 60
    lags.sort()
    print(
        f"processor {share:.0%} of a core; key shows after {lags[len(lags) // 2]:.0f} ms (median), "
        f"{lags[int(len(lags) * 0.95)]:.0f} ms (95 %), {lags[int(len(lags) * 0.99)]:.0f} ms (99 %), {lags[-1]:.0f} ms "
        f"(worst), {sum(lag > 50 for lag in lags)} of {len(lags)} after 50; "
        f"memory {memory[0][1]:.0f} -> {memory[-1][1]:.0f} MiB, after {settled_s:.0f} s {growth:+.2f} MiB a minute"
    )
    os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
