"""Measure the chat on a database of many conversations: the time to the first paint, and the time of searches.

python bench/chat_start.py [--chats 2000] [--starts 9]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import random
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

SHOWN = b"something, or"  # of the prompt, drawn last; the cursor stands on its first letter
TURNS, WORDS = 6, 150  # of each conversation, and of each turn


def fill(path: Path, chats: int) -> None:
    """Make conversations with word frequencies as in a language: a few words are frequent, most are rare."""
    from edgemoe.tui.store import Store

    store, chance = Store(path), random.Random(1)
    words = [f"{chance.choice('bdfklmnprst')}{index}" for index in range(20_000)]
    weights = [1 / (index + 1) for index in range(len(words))]
    store._db.execute("pragma synchronous=off")
    for number in range(chats):
        chat, parent = store.create(f"Conversation {number}", "model", ""), None
        for turn in range(TURNS):
            text = " ".join(chance.choices(words, weights, k=WORDS))
            parent = store.add(chat, parent, "assistant" if turn % 2 else "user", text)
    store.close()


def chat(folder: str) -> None:
    """Open the app as ``edgemoe chat`` does, with a scripted engine in a child."""
    from fake_engine import FakeLlama

    from edgemoe.tui.app import ChatApp
    from edgemoe.tui.records import ChatSettings
    from edgemoe.worker import Worker

    ChatApp(Worker(partial(FakeLlama)), ChatSettings("scripted"), Path(folder) / "chats.db").run()


def first_paint_ms(folder: str) -> tuple[float, float]:
    """Measure the milliseconds from the start of the interpreter to the first frame: wall time and processor time."""
    began = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", "COLORTERM": "truecolor"})
        os.execv(sys.executable, [sys.executable, __file__, "--chat", folder])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    seen = b""
    while SHOWN not in seen and time.monotonic() < began + 20:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536)
    took = (time.monotonic() - began) * 1000
    os.kill(pid, signal.SIGKILL)
    used = os.wait4(pid, 0)[2]
    os.close(terminal)
    return took, (used.ru_utime + used.ru_stime) * 1000


def searches_ms(folder: str) -> list[tuple[str, float]]:
    """Time each search in the archive's thread, as the history list runs it."""
    from edgemoe.tui.archive import Archive

    archive = Archive(Path(folder) / "chats.db", print)
    archive.do(lambda store: store.recent(1)).result()
    taken = []
    for text in ("", "b", "b1", "k19", "d7 f3", "conversation 17", "nosuchword"):
        began = time.perf_counter()
        archive.do(lambda store, text=text: store.search(text, 60)).result()  # type: ignore[misc]
        taken.append((text, (time.perf_counter() - began) * 1000))
    archive.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=2000)
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--chat", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chat:
        chat(options.chat)
        return
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "chats.db", options.chats)
        size = (Path(folder) / "chats.db").stat().st_size / 2**20
        times = sorted(first_paint_ms(folder) for _ in range(options.starts))
        print(
            f"{options.chats} conversations, {size:.0f} MiB: first paint {times[len(times) // 2][0]:.0f} ms (median), "
            f"{times[0][0]:.0f} .. {times[-1][0]:.0f} ms, of it processor {min(used for _, used in times):.0f} ms; "
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
        for text, ms in searches_ms(folder):
            print(f"search {text!r}: {ms:.1f} ms")


if __name__ == "__main__":
    main()
