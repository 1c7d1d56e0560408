"""The chat in a terminal while a scripted engine streams: processor use, memory, and how fast a key shows.

python bench/chat_stream.py [--seconds 300] [--rate 100] [--size 120x40]
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

MARK = "Ω"  # in no text of the answer
CODE = "\n".join(f"    total = total + values[{line}] * weights[{line}]  # line {line}" for line in range(60))
PARAGRAPH = f"\n\nSome **bold** words about it, and `code` in a line.\n\n```python\ndef f(values):\n{CODE}\n```\n"


def chat(rate: float, seconds: float, folder: str) -> None:
    """The app, in this process, its engine in a child."""
    from fake_engine import FakeLlama

    from edgemoe.worker import Worker
    from tui.app import ChatApp
    from tui.records import ChatSettings

    many = int(seconds * rate / len(PARAGRAPH.split(" "))) + 2
    engines = Worker(partial(FakeLlama, answers=[PARAGRAPH * many], delay_s=1 / rate, n_ctx=1_000_000))
    ChatApp(engines, ChatSettings("scripted"), Path(folder) / "chats.db").run()


def processor_s(pid: int) -> float:
    """Seconds of processor time the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def drain(terminal: int, seconds: float, until: bytes = b"") -> tuple[bytes, float]:
    """What comes within ``seconds`` or until ``until`` is in it, and how long that took."""
    began, seen = time.monotonic(), b""
    while (left := began + seconds - time.monotonic()) > 0 and not (until and until in seen):
        if select.select([terminal], [], [], left)[0]:
            seen += os.read(terminal, 65536)
    return seen, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--size", default="120x40")
    options = parser.parse_args()
    columns, rows = (int(part) for part in options.size.split("x"))
    folder = tempfile.mkdtemp()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        chat(options.rate, options.seconds, folder)
        os._exit(0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    drain(terminal, 4)
    os.write(terminal, b"go\r")
    drain(terminal, 3)
    began, used, lags, first_mib = time.monotonic(), processor_s(pid), [], resident_mib(pid)
    while time.monotonic() - began < options.seconds:
        os.write(terminal, MARK.encode())
        lags.append(drain(terminal, 2, MARK.encode())[1] * 1000)
        os.write(terminal, b"\x7f")
        drain(terminal, 0.5)
        if len(lags) % 20 == 0:
            share = (processor_s(pid) - used) / (time.monotonic() - began)
            print(f"{time.monotonic() - began:5.0f} s: {share:.0%} of a core, {resident_mib(pid):.0f} MiB", flush=True)
    share = (processor_s(pid) - used) / (time.monotonic() - began)
    lags.sort()
    print(
        f"processor {share:.0%} of a core; key shows after {lags[len(lags) // 2]:.0f} ms (median), "
        f"{lags[int(len(lags) * 0.95)]:.0f} ms (95 %), {lags[-1]:.0f} ms (worst of {len(lags)}); "
        f"memory {first_mib:.0f} -> {resident_mib(pid):.0f} MiB"
    )
    os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
