"""Stops answers of the demo model in prefill and in decode, kills its process in mid-answer: how long, what is kept.

python bench/stop.py [--stops 50] [--kills 20]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from edgemoe import OffloadConfig
from edgemoe.demo import build_demo
from edgemoe.worker import EngineDied, RemoteEngine, Worker, open_llama

STORY = [{"role": "user", "content": "Write a long story about a ship."}]


def long_prompt(salt: int) -> list[dict[str, str]]:
    """About 3000 tokens that no earlier prompt shares."""
    words = random.Random(salt).choices(["sea", "ship", "wind", "sail", "rope", "port", "star"], k=2800)
    return [{"role": "user", "content": f"{salt} " + " ".join(words)}]


def stop(engine: RemoteEngine, messages: list[dict[str, str]], after_s: float, decode: bool) -> tuple[float, int]:
    """Milliseconds from the cancel to the end of the stream, and pieces that came."""
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.perf_counter())
        engine.cancel()

    timer = threading.Timer(after_s, press)
    pieces = 0
    if not decode:
        timer.start()
    try:
        for chunk in engine.create_chat_completion(messages, stream=True, max_tokens=2000, temperature=0.8):
            pieces += bool(chunk["choices"][0]["delta"].get("content"))
            if decode and pieces == 1 and timer.ident is None:
                timer.start()
    except EngineDied:
        raise
    except Exception as error:
        print(f"after a stop: {type(error).__name__}: {error}", flush=True)
    timer.cancel()
    return ((time.perf_counter() - pressed[0]) * 1000 if pressed else float("nan")), pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    model: Path = build_demo()
    offload = OffloadConfig(device="sim", vram="50%", profile="off")
    worker = Worker(partial(open_llama, str(model), n_ctx=4096, offload=offload))
    engine: Any = worker.open(lambda: None)
    spread = random.Random(7)
    for name, decode in (("prefill", False), ("decode", True)):
        times, kept = [], 0
        for turn in range(options.stops):
            ms, pieces = stop(engine, STORY if decode else long_prompt(turn), spread.uniform(0.02, 0.8), decode)
            times.append(ms)
            kept += pieces > 0
        times.sort()
        over = sum(not ms < 200 for ms in times)
        print(
            f"{name}: median {times[len(times) // 2]:.0f} ms, worst {times[-1]:.0f} ms, {over} not under 200 ms, "
            f"{kept} with text",
            flush=True,
        )
    answered = 0
    for _ in range(options.kills):
        pieces = 0
        try:
            for _chunk in engine.create_chat_completion(STORY, stream=True, max_tokens=400):
                pieces += 1
                if pieces == 10:
                    os.kill(engine.pid, signal.SIGKILL)
        except EngineDied:
            pass
        engine.close()
        engine = worker.open(lambda: None)
        words = list(engine.create_chat_completion(STORY, stream=True, max_tokens=5))
        answered += pieces >= 10 and len(words) > 1
    print(f"killed in mid-answer: {answered} of {options.kills} kept the text and answered the next question")
    engine.close()


if __name__ == "__main__":
    main()
