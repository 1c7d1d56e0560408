"""Compare decode and prompt of a model larger than the RAM with plain llama-cpp-python. A B A B, in the same limit.

    python bench/disk.py MODEL --trace TRACE [--share 0.5] [--rounds 3] [--vram 0] [--tokens 40]

Each run is a process of its own in a memory control group, version 1 or 2. This needs the right to make a group. The
limit is a share of the file, plus the memory of a process without a model. The file's pages are dropped before each
run. Both sides take their experts from the trace: in plain llama-cpp-python, a callback of llama.cpp overwrites the
choice of the routers. The callback costs about 1 us for each node of the graph. llama.cpp does not repack weights here:
repacked weights are no pages of the file, and the limit would end the process.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp
import numpy as np

from edgemoe import Llama, OffloadConfig
from edgemoe.models import gguf
from edgemoe.planning import model_needs
from edgemoe.routing import trace
from edgemoe.types import IdArray

# Bytes of a process with llama_cpp and this program, before it opens a model.
PROCESS = 220 * 2**20
PROMPT, WARM_UP, CONTEXT = 512, 8, 1024
# Positions in a ggml_tensor, see edgemoe/core/ggml/abi.h.
_NE, _NB, _DATA, _NAME = 16, 48, 248, 256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="RAM as a share of the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--vram", default="", help="device memory for experts on sim; empty: no device")
    parser.add_argument("--side", choices=("plain", "ours"), help="run one side in this process")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(run(given)))
        return
    results: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(given.rounds):
        for side in results:
            results[side].append(limited(given, side))
            print(side, json.dumps(results[side][-1]), flush=True)
    for what in ("decode", "prompt"):
        ratios = [a[what] / b[what] for a, b in zip(results["plain"], results["ours"], strict=True)]
        print(f"{what}: {median(ratios):.2f} times as fast ({min(ratios):.2f} .. {max(ratios):.2f})")


def limited(given: argparse.Namespace, side: str) -> dict[str, float]:
    """Run one side in a control group of its own."""
    size = sum(shard.stat().st_size for shard in gguf.shards(given.model))
    group = Group(int(size * given.share) + PROCESS)
    for shard in gguf.shards(given.model):
        with shard.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=group.enter, check=True, timeout=900)
    finally:
        group.remove()
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


class Group:
    """A control group that limits memory."""

    def __init__(self, limit: int) -> None:
        """Make the group."""
        root = Path("/sys/fs/cgroup")
        first = (root / "memory").is_dir()
        self.folder = (root / "memory" if first else root) / f"edgemoe-bench-{os.getpid()}"
        self.folder.mkdir()
        (self.folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))

    def enter(self) -> None:
        """Move this process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """Remove the group; its processes have ended."""
        self.folder.rmdir()


def run(given: argparse.Namespace) -> dict[str, float]:
    """Open the model, compute a prompt and tokens, and give seconds and bytes."""
    file = gguf.check(given.model)
    shape = model_needs.of(file).shape
    assert shape is not None
    ids = trace.read(given.trace).ids[:, : shape.layers, : shape.used].astype(np.int32)
    began, before = time.perf_counter(), disk_bytes()
    llm, at, close = (ours if given.side == "ours" else plain)(given, ids)
    loaded = time.perf_counter()
    after_load = disk_bytes()
    llm.eval(list(range(3, 3 + PROMPT)))
    read = time.perf_counter()
    after_prompt = disk_bytes()
    missed = missing(llm)
    times = []
    for token in range(WARM_UP + given.tokens):
        if token == WARM_UP:
            start_bytes, missed = disk_bytes(), missing(llm)
        started = time.perf_counter()
        llm.eval([token + 5])
        times.append(time.perf_counter() - started)
    result = {
        "load": loaded - began,
        "prompt": read - loaded,
        "decode": sum(times[WARM_UP:]) / given.tokens,
        "load_mb": (after_load - before) / 1e6,
        "prompt_mb": (after_prompt - after_load) / 1e6,
        "decode_mb": (disk_bytes() - start_bytes) / given.tokens / 1e6,
        "missing_mb": (missing(llm) - missed) / given.tokens / 1e6,
    }
    result |= at()
    close()
    return {name: round(value, 4) for name, value in result.items()}


Made = tuple[Any, Callable[[], dict[str, float]], Callable[[], None]]


def ours(given: argparse.Namespace, ids: IdArray) -> Made:
    """Open EdgeMoE with forced routing."""
    device = OffloadConfig("sim", given.vram, profile="off") if given.vram else OffloadConfig("none", profile="off")
    llm = Llama(given.model, offload=device, n_ctx=CONTEXT, n_batch=PROMPT, n_threads=1, n_threads_batch=1)
    llm.experts.force(ids)

    def facts() -> dict[str, float]:
        stats = llm.experts.stats()
        return {
            "wait": stats.disk_wait_ns / 1e9,
            "ram_gb": stats.ram_bytes / 1e9,
        }

    return llm, facts, llm.close


def plain(given: argparse.Namespace, ids: IdArray) -> Made:
    """Open llama_cpp with routers that are overwritten."""
    passed: dict[int, int] = {}
    layers: list[int] = []

    @llama_cpp.llama_cpp.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]
    def chosen(tensor: int, ask: bool, _: Any) -> bool:
        name = ctypes.string_at(tensor + _NAME)
        if not name.startswith(b"ffn_moe_topk-"):
            return not ask
        if not ask:
            block = int(name.partition(b"-")[2])
            if block not in layers:
                layers.append(block)
            overwrite(tensor, ids, layers.index(block), passed)
        return True

    defaults, models = llama_cpp.llama_cpp.llama_context_default_params, llama_cpp.llama_cpp.llama_model_default_params

    def with_callback() -> Any:
        params = defaults()
        params.cb_eval = chosen
        return params

    def mapped() -> Any:
        params = models()
        params.use_extra_bufts = False  # repacked weights are no pages of the file: the process would be killed
        return params

    llama_cpp.llama_cpp.llama_context_default_params = with_callback
    llama_cpp.llama_cpp.llama_model_default_params = mapped
    llm = llama_cpp.Llama(
        str(given.model), n_ctx=CONTEXT, n_batch=PROMPT, n_threads=1, n_threads_batch=1, n_gpu_layers=0, verbose=False
    )
    return llm, lambda: {"forced": sum(passed.values())}, llm.close


def overwrite(tensor: int, ids: IdArray, layer: int, passed: dict[int, int]) -> None:
    """Write the next experts of the trace over the ids of a computed tensor."""
    used, tokens = (ctypes.c_int64 * 2).from_address(tensor + _NE)
    step = (ctypes.c_size_t * 2).from_address(tensor + _NB)[1]
    data = ctypes.c_void_p.from_address(tensor + _DATA).value or 0
    at = passed.get(layer, 0)
    for token in range(tokens):
        row = np.ascontiguousarray(ids[(at + token) % len(ids), layer, :used])
        ctypes.memmove(data + token * step, row.ctypes.data, 4 * used)
    passed[layer] = at + tokens


def disk_bytes() -> int:
    """Count the bytes that this process read from the disk."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def missing(llm: Any) -> int:
    """Count the bytes of the experts that were not in RAM when they were needed; 0 for llama_cpp."""
    return llm.experts.stats().missed_bytes if isinstance(llm, Llama) else 0


if __name__ == "__main__":
    main()
