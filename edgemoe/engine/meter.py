"""What one answer cost: llama-server's ``timings`` and our ``edgemoe`` receipt."""

from __future__ import annotations

import time
from typing import Any

from ..types import ExpertStats
from .binding import NativeEngine


class Meter:
    """Adds up the computations between ``start`` and ``receipt``. One thread at a time."""

    def __init__(self, native: NativeEngine, device: str, on_device: bool) -> None:
        """Meter ``native``, whose hot experts are on ``device``; ``on_device``: all else of the model, too."""
        self._native = native
        self._device, self._on_device = device, on_device
        self.running = False
        self._reset()

    def _reset(self) -> None:
        self._prompt_n = self._cache_n = self._predicted_n = 0
        self._prompt_ns = self._predicted_from = 0
        self._before = ExpertStats()

    def start(self) -> None:
        """Begin an answer."""
        self._reset()
        self._before = self._native.stats()
        self.running = True

    def stop(self) -> None:
        """End an answer, receipt or not."""
        self.running = False

    def computed(self, tokens: int, cached: int, elapsed_ns: int) -> None:
        """Account for one evaluation of ``tokens`` tokens after ``cached`` that were there."""
        if not self.running or tokens == 0:
            return
        if self._predicted_from == 0:
            self._prompt_n, self._cache_n, self._prompt_ns = tokens, cached, elapsed_ns
            self._predicted_from = time.perf_counter_ns()
        else:
            self._predicted_n += tokens

    def receipt(self) -> dict[str, Any]:
        """``timings`` and ``edgemoe``; milliseconds, bytes, rates per second. Ends the answer."""
        self.running = False
        prompt_ms = self._prompt_ns / 1e6
        started = self._predicted_from or time.perf_counter_ns()
        predicted_ms = (time.perf_counter_ns() - started) / 1e6
        predicted_n = self._predicted_n + (1 if self._predicted_from else 0)  # the prompt's evaluation gave the first
        return {
            "timings": {
                "cache_n": self._cache_n,
                "prompt_n": self._prompt_n,
                "prompt_ms": prompt_ms,
                "prompt_per_second": _rate(self._prompt_n, prompt_ms),
                "predicted_n": predicted_n,
                "predicted_ms": predicted_ms,
                "predicted_per_second": _rate(self._predicted_n, predicted_ms),
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
        }


def _rate(count: int, ms: float) -> float:
    return count / ms * 1e3 if ms > 0 else 0.0
