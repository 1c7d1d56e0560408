"""Measure the time of a token in a long answer outside the model: our loop and llama_cpp's, in the same run.

    python bench/stream.py [--tokens 16200] [--plain 8200] [--computing] [--json]

Both stream the same forced letters from a tiny model. The loop's time is from the end of one `llama_decode` to the
beginning of the next: sampling, detokenising, stop strings, chunks, and an idle reader. The table has medians of
200 tokens each. llama_cpp's loop detokenises the whole answer again for every token. --plain sets the length of its
answer (0: none).

Only the prompt is computed. Its last logits are sampled again for each token. With --computing the model computes
each token. After a long context every loop finds cold caches: the first call after `llama_decode` took 2 us at 200
tokens and 30 us at 8,000, and the same call again took 1 us at both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import zoo

PLACES = (200, 1000, 4000, 8000, 16000)
AROUND = 100  # tokens before and after a place
LONG_PROMPT = 15_000
CONTEXT = 20_000
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled, stop strings": {"temperature": 0.8, "stop": ["<|end|>", "\n\nUser:", "###"]},
}


class Timed:
    """Replace ``decode``, and record the idle time before each call.

    Args:
        decode: function that computes a batch.
        singles: True computes batches of a single token, too.
    """

    def __init__(self, decode: Callable[[Any], Any], singles: bool) -> None:
        self._decode, self._singles, self._ended = decode, singles, 0
        self.gaps: list[int] = []

    def __call__(self, batch: Any) -> Any:
        self.gaps.append(time.perf_counter_ns() - self._ended)
        result = self._decode(batch) if self._singles or batch.n_tokens() > 1 else None
        self._ended = time.perf_counter_ns()
        return result


def open_model(which: str, path: Path) -> Any:
    settings = {"n_ctx": CONTEXT, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    if which == "llama_cpp":
        import llama_cpp

        return llama_cpp.Llama(str(path), **settings)
    from edgemoe import Llama, OffloadConfig

    return Llama(path, offload=OffloadConfig(device="none", profile="off"), **settings)


def gaps(llm: Any, prompt: int, tokens: int, way: dict[str, Any], computing: bool) -> list[float]:
    """Measure the microseconds around each token of one answer."""
    llm.reset()
    decode, sample = llm._ctx.decode, llm.sample
    timed, letters = Timed(decode, computing), itertools.cycle(range(ord("a"), ord("z")))
    llm._ctx.decode = timed
    # Sample as usual, then replace the token. The answer must not end, and must not hold parts of characters.
    llm.sample = lambda *given, **keywords: (sample(*given, **keywords), next(letters))[1]
    try:
        for _ in llm.create_completion([65, 66, 67, 68] * (prompt // 4), max_tokens=tokens, stream=True, **way):
            pass
    finally:
        llm._ctx.decode = decode
        del llm.sample
    return [gap / 1000 for gap in timed.gaps[1 - tokens :]]


def row(found: list[float], place: int) -> float | None:
    part = found[place - AROUND : place + AROUND]
    return statistics.median(part) if len(part) == 2 * AROUND else None


def measure(path: Path, tokens: int, plain: int, computing: bool) -> list[dict[str, Any]]:
    models = {which: open_model(which, path) for which in ("edgemoe", "llama_cpp")}
    rows: list[dict[str, Any]] = []
    for name, way in WAYS.items():
        found: dict[str, list[float]] = {which: [] for which in models}
        behind: dict[str, float | None] = {}
        for which, llm in models.items():
            gaps(llm, 20, 300, way, computing)  # warm-up: lazy allocations
            if count := tokens if which == "edgemoe" else min(plain, tokens):
                found[which] = gaps(llm, 20, count, way, computing)
            behind[which] = row(gaps(llm, LONG_PROMPT, 400, way, computing), 200)
        base = row(found["edgemoe"], PLACES[0])
        for place in PLACES:
            ours, theirs = (row(found[which], place) for which in ("edgemoe", "llama_cpp"))
            rows.append({"way": name, "at": f"{place:,}", "edgemoe": ours, "llama_cpp": theirs, "base": base})
        at = f"200 behind a prompt of {LONG_PROMPT:,}"
        rows.append(
            {"way": name, "at": at, "edgemoe": behind["edgemoe"], "llama_cpp": behind["llama_cpp"], "base": base}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_200)
    parser.add_argument("--plain", type=int, default=8_200)
    parser.add_argument("--computing", action="store_true", help="the model computes each token, too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path = zoo.build("qwen3moe", Path(tempfile.gettempdir()) / "edgemoe-zoo")
    rows = measure(path, options.tokens, options.plain, options.computing)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| answer | at token | edgemoe, us | to 200 | llama_cpp, us |\n|---|---|---|---|---|")
    for part in rows:
        ours, theirs, base = part["edgemoe"], part["llama_cpp"], part["base"]
        ratio = f"{ours / base:.2f}" if ours and base else "-"
        ours, theirs = (f"{value:,.0f}" if value else "-" for value in (ours, theirs))
        print(f"| {part['way']} | {part['at']} | {ours} | {ratio} | {theirs} |")


if __name__ == "__main__":
    main()
