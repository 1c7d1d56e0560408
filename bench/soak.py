"""Decode for a long time, and look at the memory of the process: it must stay flat.

    python bench/soak.py --device Vulkan0 --minutes 60
    python bench/soak.py --device sim --minutes 1 --model FILE

A round is a prompt, some hundred tokens, and now and then another budget. Without ``--model`` a tiny model decodes:
then a leak of some bytes a token shows soonest. Every round must give the logits of the first one. Its experts are
forced, because the routers of a tiny model have near ties, and the last digits of CPU and device decide these.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.gpu import agreement, devices, verdicts
from edgemoe import Llama, OffloadConfig
from edgemoe.engine import host

CONTEXT, PROMPT, TOKENS, ASKED = 512, 40, 400, 24
BUDGETS, RESIZE_EVERY = ("25%", "50%", "75%"), 16


def main() -> int:
    """Run; give 0 if the memory is flat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="sim")
    parser.add_argument("--backend", type=Path, help="a ggml backend library to load")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steady", action="store_true", help="keep one budget")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two lines")
    given = parser.parse_args()
    if given.backend:
        devices.load(given.backend)
    with tempfile.TemporaryDirectory() as folder:
        rounds = soak(given.model or tiny(Path(folder)), given)
    verdict = verdicts.soaked(rounds, f"{given.device}, {len(rounds) * TOKENS} tokens in {given.minutes:g} minutes")
    print(verdict)
    return verdict.result != verdicts.PASS


def tiny(folder: Path) -> Path:
    """Write a tiny model; that needs the packages of the tests."""
    from tests.zoo import build

    return build("llama", folder)


def soak(model: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Decode round after round; give the memory after each."""
    offload = OffloadConfig(given.device, "50%", profile="off")
    llm = Llama(model, n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, verbose=False, offload=offload)
    end, said = time.monotonic() + given.minutes * 60, 0.0
    first: agreement.Logits | None = None
    has_memory = devices.is_a_gpu(
        given.device, devices.description(given.device)
    )  # else its memory is the machine's RAM
    rounds: list[dict[str, Any]] = []
    while time.monotonic() < end:
        got = answer(llm)
        first = got if first is None else first
        decode(llm)
        if not given.steady and len(rounds) % RESIZE_EVERY == RESIZE_EVERY - 1:
            llm.experts.resize(BUDGETS[len(rounds) // RESIZE_EVERY % len(BUDGETS)])
        free, total = host.device_memory(given.device)
        same = bool(np.abs(got - first).max() <= agreement.TOLERANCE * np.abs(first).max())
        rss = psutil.Process().memory_info().rss
        rounds.append({"run": os.getpid(), "same": same, "rss": rss, "device": has_memory * (total - free)})
        if time.monotonic() - said > given.every:
            said = time.monotonic()
            wrong = sum(not done["same"] for done in rounds)
            left = f"{(end - said) / 60:.0f} minutes left"
            print(
                f"{len(rounds) * TOKENS} tokens, RSS {rss / 2**20:.1f} MiB, {wrong} wrong answers, {left}", flush=True
            )
    llm.close()
    return rounds


def answer(llm: Llama) -> agreement.Logits:
    """Compute some tokens with chosen experts; give the last one's logits."""
    shape = llm.experts.shape
    assert shape is not None
    random = np.random.default_rng(0)
    ids = [[random.permutation(shape.experts)[: shape.used] for _ in range(shape.layers)] for _ in range(ASKED)]
    llm.experts.force(np.array(ids, dtype=np.int32))
    llm.reset()
    for word in range(ASKED):
        llm.eval([word + 1])
    llm.experts.force(np.empty((0, shape.layers, shape.used), dtype=np.int32))
    logits: agreement.Logits = np.ctypeslib.as_array(
        llama_cpp.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),)
    ).copy()
    return logits


def decode(llm: Llama) -> None:
    """Compute a prompt, then tokens one by one."""
    llm.reset()
    words = (np.arange(PROMPT + TOKENS) * 7 % 190 + 1).tolist()
    llm.eval(words[:PROMPT])
    for word in words[PROMPT:]:
        llm.eval([word])


if __name__ == "__main__":
    sys.exit(main())
