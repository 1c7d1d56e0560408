"""Compare EdgeMoE without a device with plain llama-cpp-python: A B A B on one machine, medians of ratios.

    python bench/cpu.py [--model FILE] [--threads N] [--rounds N] [--prompts N,N] [--ik PYTHON] [--before CHECKOUT]
                         [--json]

Without ``--model`` a random Q4_K_M model of 16 Granite-like layers (521 MB) is written to the folder of temporary files
once. For speed, both models run in one process, in turn. For memory and load time, each model has its own process, in
turn.

``--ik`` names the Python of an environment with ik-llama-cpp-python: ik_llama.cpp takes its turn too, in a process of
its own (bench/ik.py). ``--before`` names another checkout of EdgeMoE with its core built: it takes its turn likewise
(bench/before.py). ``EDGEMOE_KERNELS`` chooses our kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from edgemoe import limits

PROMPT_TOKENS, DECODE_TOKENS = 256, 32
PROMPTS = "16,64,256"


def open_model(which: str, path: Path, threads: int) -> object:
    """Open a model: ``plain`` is llama_cpp.Llama, ``edgemoe`` is EdgeMoE without a device."""
    settings = {"n_ctx": 1024, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    if which == "plain":
        import llama_cpp

        return llama_cpp.Llama(str(path), **settings)
    from edgemoe import Llama, OffloadConfig

    return Llama(path, offload=OffloadConfig(device="none", profile="off"), **settings)


def measure_start(which: str, path: Path, threads: int) -> dict[str, float]:
    """Measure this process: the load time in seconds, and the resident set in MiB after some tokens."""
    started = time.perf_counter()
    llm = open_model(which, path, threads)
    loaded = time.perf_counter() - started
    llm.eval(list(range(1, PROMPT_TOKENS)))
    for token in range(1, 3 * DECODE_TOKENS):
        llm.eval([token * 37 % 8000])
    return {"load_s": loaded, "rss_mib": psutil.Process().memory_info().rss / 2**20}


class ChildModel:
    """Run a model in a child process, with the two methods that the measurement needs."""

    def __init__(self, script: str, python: str, path: Path, threads: int, checkout: str | None = None) -> None:
        """Load the model with a script of this folder, optionally with the packages of another checkout."""
        self._script = script
        self._child = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), str(path), str(threads)],
            env={**os.environ, "PYTHONPATH": checkout} if checkout else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._ask([])

    def reset(self) -> None:
        """Empty the context."""
        self._ask([])

    def eval(self, tokens: list[int]) -> None:
        """Compute tokens after the tokens that were computed before."""
        self._ask(tokens)

    def _ask(self, tokens: list[int]) -> None:
        assert self._child.stdin and self._child.stdout
        print(json.dumps(tokens), file=self._child.stdin, flush=True)
        if self._child.stdout.readline().strip() != "done":
            raise SystemExit(f"the child process ended; bench/{self._script} alone says why")


def measure_speed(
    path: Path, threads: int, rounds: int, prompts: list[int], children: dict[str, ChildModel]
) -> dict[str, dict[str, list[float]]]:
    """Measure the tokens per second of prompts and of decode, one figure per round. The first round is dropped."""
    models: dict[str, Any] = {which: open_model(which, path, threads) for which in ("plain", "edgemoe")}
    models.update(children)
    parts = ["decode", *(f"prompt of {n}" for n in prompts)]
    speeds: dict[str, dict[str, list[float]]] = {which: {part: [] for part in parts} for which in models}
    for current in range(rounds + 1):
        for which, llm in models.items():
            found = {}
            for n in prompts:
                llm.reset()
                found[f"prompt of {n}"] = n / seconds(llm, [[(i * 131 + current * 17) % 8000 + 1 for i in range(n)]])
            singles = [[(i * 71 + current * 29) % 8000 + 1] for i in range(DECODE_TOKENS)]
            found["decode"] = DECODE_TOKENS / seconds(llm, singles)
            if current:
                for part, speed in found.items():
                    speeds[which][part].append(speed)
    return speeds


def seconds(llm: Any, batches: list[list[int]]) -> float:
    """Time the batches, one after the other."""
    started = time.perf_counter()
    for batch in batches:
        llm.eval(batch)
    return time.perf_counter() - started


def ratio_row(what: str, plain: list[float], ours: list[float]) -> dict[str, object]:
    """Compute the medians of both sides, and of the ratios pair by pair."""
    ratios = [b / a for a, b in zip(plain, ours, strict=True)]
    return {
        "what": what,
        "plain": statistics.median(plain),
        "edgemoe": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=limits.processors().physical)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--prompts", default=PROMPTS, help="tokens of each, with commas between")
    parser.add_argument("--ik", metavar="PYTHON", help="Python of an environment with ik-llama-cpp-python")
    parser.add_argument("--before", metavar="CHECKOUT", help="another checkout of EdgeMoE with its core built")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start", choices=("plain", "edgemoe"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.model or Path(tempfile.gettempdir()) / "edgemoe-bench-small.gguf"
    if options.start:
        print(json.dumps(measure_start(options.start, path, options.threads)))
        return
    if not options.model:
        import models

        models.write(path, models.SHAPES["small"])
    starts: dict[str, list[dict[str, float]]] = {"plain": [], "edgemoe": []}
    for _ in range(options.starts):
        for which, figures in starts.items():
            command = [
                sys.executable,
                __file__,
                "--start",
                which,
                "--model",
                str(path),
                "--threads",
                str(options.threads),
            ]
            figures.append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    prompts = [int(n) for n in options.prompts.split(",")]
    children = {}
    if options.ik:
        children["ik_llama.cpp"] = ChildModel("ik.py", options.ik, path, options.threads)
    if options.before:
        children["EdgeMoE before"] = ChildModel("before.py", sys.executable, path, options.threads, options.before)
    speeds = measure_speed(path, options.threads, options.rounds, prompts, children)
    rows = [ratio_row(f"{part} tok/s", plain, speeds["edgemoe"][part]) for part, plain in speeds["plain"].items()]
    for other in children:
        for part, theirs in speeds[other].items():
            rows.append(ratio_row(f"{part} tok/s, {other} in the place of llama_cpp", theirs, speeds["edgemoe"][part]))
    for key in ("load_s", "rss_mib"):
        if not starts["plain"]:
            break
        rows.append(ratio_row(key, *([f[key] for f in starts[which]] for which in ("plain", "edgemoe"))))
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"| {path.name}, {options.threads} threads | llama_cpp | edgemoe | ratio (min .. max) |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['what']} | {row['plain']:.2f} | {row['edgemoe']:.2f} "
            f"| {row['ratio']:.3f} ({row['ratio_min']:.3f} .. {row['ratio_max']:.3f}) |"
        )


if __name__ == "__main__":
    main()
