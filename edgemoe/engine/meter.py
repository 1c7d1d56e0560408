"""The costs of one answer: llama-server's ``timings`` and our ``edgemoe`` receipt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from ..types import ExpertStats
from .binding import NativeEngine


class Meter:
    """Adds up the computations between ``start`` and ``receipt``. One thread at a time."""

    def __init__(self, native: NativeEngine, device: str, on_device: bool) -> None:
        """Meter an engine.

        Args:
            native: the engine.
            device: name of the device of the hot experts.
            on_device: the other layers run there, too.
        """
        self._native = native
        self._device, self._on_device = device, on_device
        self._reset()

    def _reset(self) -> None:
        self._prompt_n = self._cache_n = self._predicted_n = self._draft_n = self._accepted_n = 0
        self._prompt_ns = self._first_ns = self._waited_ns = self._began_ns = 0
        self._in_parts = False
        self._before = ExpertStats()

    def start(self) -> None:
        """Begin an answer."""
        self._reset()
        self._began_ns = time.perf_counter_ns()
        self._before = self._native.stats()

    def reads(self, computed: int, cached: int) -> None:
        """Note a prompt: ``cached`` of its tokens are in the context, ``computed`` tokens are not."""
        if self._in_parts:  # the prompt was read in parts for this answer, so none of it was cached
            computed, cached = computed + cached - self._prompt_n, 0
        self._prompt_n, self._cache_n = self._prompt_n + computed, self._cache_n + cached

    def reads_part(self, computed: int) -> None:
        """Note a part of a prompt that was read by itself, before the answer: text beside an image."""
        self._in_parts = True
        self._prompt_n += computed

    def drafted(self, evaluated: int | None, asked: int) -> None:
        """Count guesses of a draft model, after the first token of an answer.

        Args:
            evaluated: tokens computed in the step; None if a right guess made the step needless.
            asked: tokens of the step that are no guesses.
        """
        if evaluated is None:
            self._accepted_n += 1
        else:
            self._draft_n += evaluated - asked

    def computed(self, elapsed_ns: int) -> None:
        """Account for one evaluation. Before the answer's first token, the evaluation belongs to the prompt."""
        if not self._first_ns:
            self._prompt_ns += elapsed_ns

    def sampled(self, counts: bool = True) -> None:
        """Note that a token was chosen; ``counts``: it is part of the answer and does not end it."""
        self._first_ns = self._first_ns or time.perf_counter_ns()
        self._predicted_n += counts

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Leave out the time that the reader of the answer takes."""
        began = time.perf_counter_ns()
        try:
            yield
        finally:
            self._waited_ns += time.perf_counter_ns() - began

    def receipt(self) -> dict[str, Any]:
        """Give ``timings`` and ``edgemoe``: milliseconds, bytes, rates per second."""
        # Other code computes the images between two parts, so only the clock tells the time of the prompt.
        prompt_ns = self._first_ns - self._began_ns if self._in_parts and self._first_ns else self._prompt_ns
        prompt_ms = prompt_ns / 1e6
        now = time.perf_counter_ns()
        predicted_ms = max(0, now - (self._first_ns or now) - self._waited_ns) / 1e6
        drafts = {"draft_n": self._draft_n, "draft_n_accepted": self._accepted_n} if self._draft_n else {}
        return {
            "timings": {
                "cache_n": self._cache_n,
                "prompt_n": self._prompt_n,
                "prompt_ms": prompt_ms,
                "prompt_per_second": _rate(self._prompt_n, prompt_ms),
                "predicted_n": self._predicted_n,
                "predicted_ms": predicted_ms,
                # The prompt's evaluation gave the first token.
                "predicted_per_second": _rate(max(self._predicted_n - 1, 0), predicted_ms),
                **drafts,
            },
            "edgemoe": self._experts_part(),
        }

    def _experts_part(self) -> dict[str, Any]:
        now, then = self._native.stats(), self._before
        hits, misses = now.hits - then.hits, now.misses - then.misses
        return {
            "device": self._device,
            "on_device": self._on_device,
            "hits": hits,
            "misses": misses,
            "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
            "upload_bytes": now.upload_bytes - then.upload_bytes,
            "streamed_bytes": now.streamed_bytes - then.streamed_bytes,
            "moe_ms": (now.moe_ns - then.moe_ns) / 1e6,
            "device_ms": (now.device_ns - then.device_ns) / 1e6,
            "cpu_ms": (now.cpu_ns - then.cpu_ns) / 1e6,
            "join_ms": (now.join_ns - then.join_ns) / 1e6,
            "disk_bytes": now.disk_bytes - then.disk_bytes,
            "disk_ms": (now.disk_wait_ns - then.disk_wait_ns) / 1e6,
        }


def _rate(count: int, ms: float) -> float:
    return count / ms * 1e3 if ms > 0 else 0.0
