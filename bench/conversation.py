"""Measure a conversation of 20 turns, with thinking stripped from its history: tokens read again, first token.

    python bench/conversation.py [--turns 20] [--rounds 3] [--threads N] [--json]

Two random models of eight layers: a hybrid (Qwen3.5's architecture) and a plain one (Qwen3's). Each turn adds a
question; the answer has a thought, which the next prompt leaves out, as chat templates do. "computed to new" is the
ratio of the prompt tokens that EdgeMoE computed to the tokens new in the text, over all turns but the first.

The first token of the last turn is timed on both sides in turn. Each round has other words in the last two questions;
the figures are medians. llama-cpp-python reads the last prompt but one before. It can then reuse as much as in a real
conversation.

Then a conversation of 4,000 tokens is closed and opened again, as by `edgemoe chat --resume`. The time to the next
answer's first token is compared with the time to read the whole conversation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.zoo import files
from tests.zoo.spec import Geometry

SYSTEM, QUESTION, THOUGHT, ANSWER = 1500, 40, 80, 60  # tokens
CONTEXT = 8192
RESUMED = 4000
WIDE = Geometry(embedding=512, dense=1024, expert=512, shared=512, heads=8, kv_heads=2)
MODELS = {"hybrid": "qwen35moe", "plain": "qwen3moe"}


def build(name: str, folder: Path) -> Path:
    """Write a larger model of one of the zoo's architectures."""
    spec = replace(files.SPECS[name], layers=8, experts=16, used=4)
    with mock.patch.dict(files.SPECS, {name: spec}), mock.patch.object(files, "_widths", lambda types: WIDE):
        return files.build(name, folder / "conversation")


def open_model(which: str, path: Path, threads: int, cache: str | Path = "auto") -> Any:
    settings = {"n_ctx": CONTEXT, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    if which == "llama_cpp":
        import llama_cpp

        return llama_cpp.Llama(str(path), **settings)
    from edgemoe import Llama, OffloadConfig

    return Llama(path, offload=OffloadConfig(device="none", profile="off", cache=cache), **settings)


class Conversation:
    """Make the tokens of a conversation. Its answers are forced, so that both sides have the same answers."""

    def __init__(self, seed: int = 1) -> None:
        self._random = np.random.default_rng(seed)
        self.history = self.words(SYSTEM)

    def words(self, count: int) -> list[int]:
        return [int(token) for token in self._random.integers(40, 120, count)]

    def ask(self) -> list[int]:
        """Make a prompt with a new question and the beginning of the answer, as a template does."""
        return [*self.history, *self.words(QUESTION), 33, 34, 35]

    def answered(self, prompt: list[int], answer: list[int]) -> None:
        """Keep the answer and drop its thought."""
        self.history = [*prompt, *answer[THOUGHT:]]


def answer(llm: Any, prompt: list[int], words: list[int]) -> tuple[float, int]:
    """Measure the seconds to the first token of an answer of ``words``; count computed prompt tokens if known."""
    sample, forced = llm.sample, itertools.chain(words, itertools.repeat(65))
    llm.sample = lambda *given, **keywords: (sample(*given, **keywords), next(forced))[1]
    first, count, began = 0.0, 0, time.perf_counter()
    try:
        for chunk in llm.create_completion(prompt, max_tokens=len(words), temperature=0, stream=True):
            first = first or time.perf_counter() - began
            count = chunk.get("timings", {}).get("prompt_n", 0)
    finally:
        del llm.sample
    return first, count


def measure(kind: str, path: Path, turns: int, rounds: int, threads: int) -> dict[str, Any]:
    ours, plain = (open_model(which, path, threads) for which in ("edgemoe", "llama_cpp"))
    talk, computed, new, before = Conversation(), 0, 0, 0
    for turn in range(turns - 2):
        prompt, words = talk.ask(), talk.words(THOUGHT + ANSWER)
        _, count = answer(ours, prompt, words)
        if turn:
            computed, new = computed + count, new + len(prompt) - before
        talk.answered(prompt, words)
        before = len(prompt)
    seconds: dict[str, list[float]] = {"edgemoe": [], "llama_cpp": []}
    begun = talk.history
    for _ in range(rounds):
        talk.history = begun
        prompt, words = talk.ask(), talk.words(THOUGHT + ANSWER)
        for llm in (ours, plain):
            _, count = answer(llm, prompt, words)
            computed, new = computed + count, new + (len(prompt) - before if llm is ours else 0)
        talk.answered(prompt, words)
        last = talk.ask()
        for which, llm in (("edgemoe", ours), ("llama_cpp", plain)):
            first, count = answer(llm, last, talk.words(4))
            seconds[which].append(first)
            computed, new = computed + count, new + (len(last) - len(prompt) if llm is ours else 0)
    ratios = [b / a for a, b in zip(seconds["edgemoe"], seconds["llama_cpp"], strict=True)]
    ours.close()
    plain.close()
    return {
        "model": f"{kind} ({MODELS[kind]})",
        "turns": turns,
        "prompt": len(last),
        "computed_to_new": computed / new,
        "edgemoe_s": statistics.median(seconds["edgemoe"]),
        "llama_cpp_s": statistics.median(seconds["llama_cpp"]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def measure_restart(kind: str, path: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Measure the seconds to the first token: after reading everything, and after a restart."""
    talk, read, resumed, sizes, copies = Conversation(), [], [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            llm = open_model("edgemoe", path, threads, cache)
            prompt, words = talk.words(RESUMED), talk.words(THOUGHT + ANSWER)
            read.append(answer(llm, prompt, words)[0])
            began = time.perf_counter()
            llm.keep()  # a new question may have to wait for this work
            copies.append(time.perf_counter() - began)
            llm.close()
            sizes.append(sum(file.stat().st_size for file in Path(cache).iterdir()))
            llm = open_model("edgemoe", path, threads, cache)
            talk.answered(prompt, words)
            resumed.append(answer(llm, talk.ask(), talk.words(4))[0])
            llm.close()
    return {
        "model": f"{kind} ({MODELS[kind]})",
        "read_s": statistics.median(read),
        "resumed_s": statistics.median(resumed),
        "share": statistics.median(b / a for a, b in zip(read, resumed, strict=True)),
        "file_bytes": statistics.median(sizes),
        "copy_s": statistics.median(copies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "edgemoe-zoo"
    rows = [
        measure(kind, build(name, folder), options.turns, options.rounds, options.threads)
        for kind, name in MODELS.items()
    ]
    restarts = [
        measure_restart(kind, build(name, folder), options.rounds, options.threads) for kind, name in MODELS.items()
    ]
    if options.json:
        print(json.dumps({"conversation": rows, "restart": restarts}, indent=2))
        return
    print("| model | turns | last prompt | computed to new | first token, s | llama_cpp, s | ratio (min .. max) |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['turns']} | {row['prompt']} | {row['computed_to_new']:.2f} "
            f"| {row['edgemoe_s']:.2f} | {row['llama_cpp_s']:.2f} "
            f"| {row['ratio']:.1f} ({row['ratio_min']:.1f} .. {row['ratio_max']:.1f}) |"
        )
    print(f"\n| {RESUMED} tokens | read, s | after a restart, s | share | file, MB | copied for it, s |")
    print("|---|---|---|---|---|---|")
    for row in restarts:
        print(
            f"| {row['model']} | {row['read_s']:.2f} | {row['resumed_s']:.2f} | {row['share']:.1%} "
            f"| {row['file_bytes'] / 1e6:.0f} | {row['copy_s']:.3f} |"
        )


if __name__ == "__main__":
    main()
