"""Compare answers with drafts and without: A B A B on one machine, medians of ratios.

    python bench/drafts.py MODEL.gguf [--speculative ngram|mtp|GGUF] [--tokens N] [--rounds N] [--threads N]

The task is the edit of a file of 200 lines: the answer repeats the file with another name in every tenth line. The
tokens of the answer are given (``logit_bias`` by a processor), so that a model of any size writes the edited file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgemoe import Llama, OffloadConfig

NAMES = ("order", "invoice", "customer", "address", "parcel", "refund", "basket", "coupon")


def source(name: str) -> str:
    """Write a file of 200 lines; every tenth line has ``name``."""
    lines = []
    for number in range(200):
        thing = NAMES[number * 5 % len(NAMES)]
        word = name if number % 10 == 3 else NAMES[number * 3 % len(NAMES)]
        lines.append(f"{thing} = {word}({number})")
    return "\n".join(lines)


class Dictated:
    """Raises the logit of the next token of a given answer."""

    def __init__(self, start: int, answer: list[int]) -> None:
        self.start, self.answer = start, answer

    def __call__(self, ids: Any, scores: Any) -> Any:
        place = len(ids) - self.start
        if 0 <= place < len(self.answer):
            scores[self.answer[place]] += np.float32(1e6)
        return scores


def timed(llm: Llama, prompt: list[int], answer: list[int]) -> tuple[float, list[int]]:
    """Write the answer; return the seconds from its first to its last token, and the tokens."""
    stream = llm.generate(prompt, temp=0, logits_processor=[Dictated(len(prompt), answer)])
    made = [next(stream)]
    started = time.perf_counter()
    made += [next(stream) for _ in range(len(answer) - 1)]
    seconds = time.perf_counter() - started
    stream.close()
    return seconds, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--speculative", default="ngram")
    parser.add_argument("--device", default="none")
    parser.add_argument("--tokens", type=int, default=400, help="longest answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    threads = {"n_threads": given.threads, "n_threads_batch": given.threads}
    models = {
        name: Llama(
            given.model,
            n_ctx=4096,
            offload=OffloadConfig(given.device, profile="off", speculative=name, cache="off"),
            **threads,
        )
        for name in ("off", given.speculative)
    }
    plain, drafted = models.values()
    prompt = plain.tokenize(f"Rename refund to credit in this file:\n{source('refund')}\n\nThe file:\n".encode())
    answer = plain.tokenize(source("credit").encode(), add_bos=False)[: given.tokens]
    ratios = []
    for _ in range(given.rounds):
        (without, one), (with_drafts, other) = (timed(llm, prompt, answer) for llm in (plain, drafted))
        assert one == other == answer, "the answers differ"
        ratios.append(without / with_drafts)
        print(f"{len(answer) / without:.1f} tok/s without, {len(answer) / with_drafts:.1f} with", flush=True)
    assert drafted.drafts is not None
    times = {n: round(ns / 1e6, 1) for n, ns in sorted(drafted.drafts.pace._step_ns.items())}
    print(f"ratio {median(ratios):.2f}; ms of a step by its tokens: {times}")
    for llm in models.values():
        llm.close()


if __name__ == "__main__":
    main()
