"""Number of threads at run time: the controller against every fixed number, alone and beside busy programs.

    python bench/threads.py [--model FILE] [--most N] [--busy N,N] [--rounds N] [--json]

Without ``--model`` the random model of bench/cpu.py (521 MB) is used. One process decodes a few tokens with each fixed
number of threads, then with the controller, and again. Each figure is the median of the rounds. The controller has
decoded 100 tokens beside the same programs before it counts. Run it on a machine without other load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemoe import Llama, OffloadConfig
from edgemoe.engine.opening import default_threads

WARM_UP, TOKENS, CONTEXT = 100, 32, 1024
CONTROLLER = "controller"
SPIN = "while True: pass"


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Keep so many processors busy meanwhile."""
    children = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(programs)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def open_models(path: Path, most: int) -> dict[str, Llama]:
    """One model for each fixed number of threads, and one whose number is chosen at run time."""
    offload = OffloadConfig(device="none", profile="off", cache="off")
    models = {str(n): Llama(path, n_ctx=CONTEXT, n_threads=n, offload=offload) for n in range(1, most + 1)}
    models[CONTROLLER] = Llama(path, n_ctx=CONTEXT, offload=offload)
    return models


def decode_ms(llm: Llama, tokens: int) -> float:
    """Decode from an empty context; give milliseconds per token."""
    llm.reset()
    started = time.perf_counter()
    for token in range(tokens):
        llm.eval([token * 71 % (llm.n_vocab() - 1) + 1])
    return (time.perf_counter() - started) * 1e3 / tokens


def measure(models: dict[str, Llama], programs: int, rounds: int) -> dict[str, object]:
    """Time every way beside so many busy programs."""
    found: dict[str, list[float]] = {way: [] for way in models}
    with busy(programs):
        first_ms = decode_ms(models[CONTROLLER], WARM_UP)
        for _ in range(rounds):
            for way, llm in models.items():
                found[way].append(decode_ms(llm, TOKENS))
    ms = {way: statistics.median(times) for way, times in found.items()}
    best = min((way for way in ms if way != CONTROLLER), key=ms.__getitem__)
    ratios = [b / a for a, b in zip(found[best], found[CONTROLLER], strict=True)]
    return {
        "busy": programs,
        "ms_per_token": ms,
        "best_fixed": best,
        "controller_to_best": statistics.median(ratios),
        "first_100_ms_per_token": first_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--most", type=int, default=default_threads(False), help="largest fixed number (%(default)s)")
    parser.add_argument("--busy", default="0,2,0", help="busy programs, one run each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path = options.model or Path(tempfile.gettempdir()) / "edgemoe-bench-small.gguf"
    if not options.model:
        import models as random_models

        random_models.write(path, random_models.SHAPES["small"])
    models = open_models(path, options.most)
    found = [measure(models, int(programs), options.rounds) for programs in options.busy.split(",")]
    for llm in models.values():
        llm.close()
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for row in found:
        times = row["ms_per_token"]
        assert isinstance(times, dict)
        print(
            f"beside {row['busy']} busy programs: "
            + ", ".join(f"{way} {ms:.1f}" for way, ms in times.items())
            + f" ms per token; controller {row['controller_to_best']:.2f} x the time of {row['best_fixed']}"
            + f"; its first {WARM_UP} tokens {row['first_100_ms_per_token']:.1f}"
        )


if __name__ == "__main__":
    main()
