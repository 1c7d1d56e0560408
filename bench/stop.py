"""Stop answers in the chat with its key, in prefill and in decode. Kill the engine, then the chat, during an answer.

Stops and engine kills use the demo model in the real chat, in its own process. The time is from the key to the message
on the screen. Kills of the chat use a scripted engine at 100 tokens per second. They compare the answers on the screen
and in the database.

python bench/stop.py [MODEL.gguf] [--stops 50] [--kills 20] [--app-kills 20]
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import pty
import random
import re
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from textual.pilot import Pilot

from edgemoe import OffloadConfig
from edgemoe.models.demo import build_demo
from edgemoe.tui.app import ChatApp
from edgemoe.tui.records import ChatSettings
from edgemoe.tui.screens.chat import ChatScreen
from edgemoe.tui.store import Store
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.prompt import Prompt
from edgemoe.worker import Worker, open_llama

STORY = "Write a long story about a ship."
RATE = 100.0  # tokens per second of the scripted engine
BAR_MS = 200


def long_prompt(salt: int) -> str:
    """Make about 3000 tokens that no earlier prompt shares."""
    words = random.Random(salt).choices(["sea", "ship", "wind", "sail", "rope", "port", "star"], k=2800)
    return f"{salt} " + " ".join(words)


class Driven:
    """Run a chat, with the actions of a user."""

    def __init__(self, pilot: Pilot[None], worker: Worker) -> None:
        self.pilot, self.worker = pilot, worker

    @property
    def screen(self) -> ChatScreen:
        screen = self.pilot.app.screen
        assert isinstance(screen, ChatScreen)
        return screen

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited in vain, state {self.screen.state}"
            await asyncio.sleep(0.001)

    async def ask(self, text: str) -> None:
        self.screen.query_one(Prompt).text = text
        await self.pilot.press("enter")

    async def stop(self, text: str, after_s: float, decode: bool) -> tuple[float, bool] | None:
        """Measure the milliseconds from the key to the word "stopped", and whether text is kept; None: too late."""
        await self.screen.library.new()
        await self.ask(text)
        await self.until(lambda: self.screen.state == ("answering" if decode else "reading"))
        await asyncio.sleep(after_s)
        if self.screen.state != ("answering" if decode else "reading"):
            await self.until(lambda: self.screen.state in ("idle", "stopped"))
            return None
        began = time.perf_counter()
        key = asyncio.create_task(self.pilot.press("escape"))
        await self.until(lambda: self.screen.state in ("stopped", "idle"))
        took = (time.perf_counter() - began) * 1000
        await key
        return took, any(turn.role == "assistant" and turn.text for turn in self.screen.conversation.turns)

    async def kill(self) -> bool:
        """Kill the engine during an answer. Tell whether the text is kept and the next question is answered."""
        await self.screen.library.new()
        await self.ask(STORY)
        await self.until(lambda: self.screen.state == "answering")
        await asyncio.sleep(0.3)
        seen, engine = self.screen.query(AnswerTurn).last().text, self.worker._engine
        assert engine is not None
        os.kill(engine.pid, signal.SIGKILL)
        await self.until(lambda: self.worker._engine is not engine and self.screen.state == "idle")
        kept = self.screen.conversation.turns[-1].text.startswith(seen) and bool(seen)
        await self.ask("What is the capital of France?")
        await self.until(lambda: len(self.screen.conversation.turns) == 4)
        await self.until(lambda: self.screen.state == "idle")
        return kept and bool(self.screen.conversation.turns[3].text)


async def engine(options: argparse.Namespace) -> None:
    """Stop and kill the real engine."""
    config = OffloadConfig(device="sim", vram="50%", profile="off")
    worker = Worker(partial(open_llama, str(options.model or build_demo()), n_ctx=8192, offload=config))
    settings = ChatSettings("demo", "", {"max_tokens": 600, "temperature": 0.8}, look="dark")
    with tempfile.TemporaryDirectory() as folder:
        app = ChatApp(worker, settings, Path(folder) / "chats.db")
        async with app.run_test(size=(120, 40)) as pilot:
            driven = Driven(pilot, worker)
            await driven.until(lambda: isinstance(app.screen, ChatScreen) and app.screen.state == "idle")
            for decode in (False, True):
                await stops(driven, decode, options.stops)
            well = [await driven.kill() for _ in range(options.kills)]
            if well:
                print(f"engine killed: {sum(well)} of {len(well)} kept the text, came back, answered the next question")


async def stops(driven: Driven, decode: bool, many: int) -> None:
    spread, done, salt = random.Random(7), [], 0
    while len(done) < many:
        salt += 1
        text = STORY if decode else long_prompt(salt)
        if (stopped := await driven.stop(text, spread.uniform(0.02, 0.8), decode)) is not None:
            done.append(stopped)
    if done:
        times = sorted(ms for ms, _ in done)
        print(
            f"stopped in {'decode' if decode else 'prefill'}: median {times[len(times) // 2]:.0f} ms, worst "
            f"{times[-1]:.0f} ms of {many}, {sum(ms >= BAR_MS for ms in times)} not under {BAR_MS} ms, "
            f"{sum(kept for _, kept in done)} with text kept",
            flush=True,
        )


def scripted(folder: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from fake_engine import FakeLlama

    answer = " ".join(f"w{number}" for number in range(20_000))
    engines = Worker(partial(FakeLlama, answers=[answer], delay_s=1 / RATE, n_ctx=1_000_000))
    ChatApp(engines, ChatSettings("scripted", look="dark"), Path(folder) / "chats.db").run()


def kill_app(after_s: float) -> tuple[int, int]:
    """Give the last word on the terminal and the last word in the database."""
    with tempfile.TemporaryDirectory() as folder:
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.update({"TERM": "xterm-256color", "COLORTERM": "truecolor"})
            scripted(folder)
            os._exit(0)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        seen, asked, end = b"", False, time.monotonic() + 30
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.02)[0]:
                seen += os.read(terminal, 65536)
            if not asked and b"idle" in seen:
                os.write(terminal, b"go\r")
                asked, seen = True, b""
            if b"w9 " in seen and end > time.monotonic() + after_s:
                end = time.monotonic() + after_s
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        store = Store(Path(folder) / "chats.db")
        saved = store.read(store.recent(1)[0].id)
        store.close()
        words = [int(word) for word in re.findall(rb"w(\d+)", seen)]
        kept = re.findall(r"w(\d+)", saved.turns[-1].text) if saved else []
        return max(words, default=-1), int(kept[-1]) if kept else -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="the demo model by default")
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--app-kills", type=int, default=20)
    options = parser.parse_args()
    if options.stops or options.kills:
        asyncio.run(engine(options))
    spread, lost = random.Random(3), []
    for _ in range(options.app_kills):
        seen, kept = kill_app(spread.uniform(0.5, 3))
        lost.append(max(seen - kept, 0) / RATE if seen > 0 else float("inf"))
    if lost:
        print(
            f"chat killed {len(lost)} times: lost {max(lost):.2f} s of the stream at worst, {min(lost):.2f} s at best"
        )


if __name__ == "__main__":
    main()
