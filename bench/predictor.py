"""Measure the microseconds that the core needs to predict one layer, with cold tables as in a real step.

python bench/predictor.py
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from edgemoe.engine.predictor import NativePredictor
from edgemoe.routing.predictor import Tables


def tables(layers: int, experts: int, used: int) -> Tables:
    rng = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return Tables(
        used, np.array([0.5, 0.8, 0.95, 0.99, 0.998], dtype=np.float32), some(layers, experts), some(layers, 5),
        some(layers, experts, experts), np.array([0.8, 0.99], dtype=np.float32), some(2, layers, experts, experts),
        some(2, layers, experts), some(2, layers, 5), some(2, layers, experts, experts),
        some(2, 3, layers, experts, experts), some(2, layers, 3, 2), some(2, layers),
    )  # fmt: skip


def _call_ns() -> float:
    """Time an empty call from Python."""
    native = NativePredictor(tables(1, 8, 1))
    call, place, times = native._lib.em_predictor_routed, np.zeros(1, dtype=np.int32).ctypes.data, []
    for _ in range(2000):
        started = time.perf_counter_ns()
        call(native.handle, 0, place, 0)
        times.append(time.perf_counter_ns() - started)
    native.close()
    return median(times)


def main() -> None:
    call = _call_ns()
    print("| layers | experts | top-k | one layer ahead, us | after a token, us per layer |")
    print("|---:|---:|---:|---:|---:|")
    for layers, experts, used in ((24, 32, 4), (48, 128, 8), (58, 256, 8)):
        native = NativePredictor(tables(layers, experts, used).only(1))
        rng = np.random.default_rng(1)
        out, ahead, after = np.empty(experts, dtype=np.float32), [], []
        for _ in range(60):
            ids = np.argsort(rng.random((layers, experts)), axis=1)[:, :used].astype(np.int32)
            native.begin(7)  # an id that was seen before
            for layer in range(layers - 1):
                native.routed(layer, ids[layer])
                started = time.perf_counter_ns()
                native._lib.em_predictor_next(native.handle, layer + 1, 1, out.ctypes.data)
                ahead.append(time.perf_counter_ns() - started - call)
            started = time.perf_counter_ns()
            native.seen(np.array([7], dtype=np.int32), ids[None])
            native.token(ids)
            after.append((time.perf_counter_ns() - started) / layers)
        print(f"| {layers} | {experts} | {used} | {median(ahead) / 1e3:.2f} | {median(after) / 1e3:.2f} |")
        native.close()


if __name__ == "__main__":
    main()
