"""Test endurance: load, ask and free models many times, and run one model under mixed load for long."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgemoe import Llama, OffloadConfig
from edgemoe.engine import host

from . import agreement, routing

BUDGETS = ("25%", "50%", "12.5%")
RESIZE_EVERY = 8  # rounds
DECODED = 32  # tokens of a round


class Soak:
    """Ask a model the same question many times, and compare with its first answer.

    Args:
        path: file of the model.
        device: ggml name of the device.
        keywords: keywords of `Llama`.
        share: percent of the expert bytes on the device.
    """

    def __init__(self, path: Path, device: str, keywords: dict[str, Any], share: float) -> None:
        """Begin without a model."""
        self._path, self._device, self._keywords, self._share = path, device, keywords, share
        self._llm: Llama | None = None
        self._first: tuple[list[int], agreement.Logits] | None = None
        self._round = 0

    def cycle(self) -> dict[str, Any]:
        """Load the model, answer, and free it."""
        started = time.monotonic()
        llm = self._open()
        got = agreement.answer(llm)
        llm.close()
        return self._entry(started, got)

    def turn(self, forced: routing.Routing) -> dict[str, Any]:
        """Decode recorded routing, a prompt as long as the context, sometimes with another budget, and the answer."""
        started = time.monotonic()
        self._llm = llm = self._llm or self._open()
        at = self._round * DECODED % max(1, len(forced.ids) - DECODED)
        llm.experts.force(np.ascontiguousarray(forced.ids[at : at + DECODED]))
        llm.reset()
        for token in range(DECODED):
            llm.eval([token + 1])
        llm.experts.force(forced.ids[:0])
        llm.reset()
        llm.eval([(7 * i + self._round) % 1000 + 1 for i in range(int(self._keywords["n_ctx"]) - 8)])
        self._round += 1
        if self._round % RESIZE_EVERY == 0 and self._device != "none":
            llm.experts.resize(BUDGETS[self._round // RESIZE_EVERY % len(BUDGETS)])
        return self._entry(started, agreement.answer(llm))

    def close(self) -> None:
        """Free the model."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def _open(self) -> Llama:
        return Llama(
            self._path, offload=OffloadConfig(self._device, f"{self._share:g}%", profile="off"), **self._keywords
        )

    def _entry(self, started: float, got: tuple[list[int], agreement.Logits]) -> dict[str, Any]:
        self._first = self._first or got
        verdict = agreement.compare(*got, *self._first)
        free, total = host.device_memory(self._device)
        memory = {"rss": psutil.Process().memory_info().rss, "device": total - free}
        seconds = time.monotonic() - started
        return {"run": os.getpid(), "seconds": seconds, "same": verdict.agreed, "words": verdict.words, **memory}
