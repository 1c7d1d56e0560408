"""Observe single tokens: the counters of each decode step, and the experts that it used."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..routing import trace
from ..types import BoolArray, ExpertStats, FloatArray, IdArray

# Counters of a step that are kept; times are sums over the layers of the model.
COUNTERS = (
    *("hits", "misses", "uploads", "upload_bytes", "moe_ns", "device_ns", "cpu_ns", "join_ns", "schedule_ns"),
    *("prefetch_useful", "prefetch_late", "prefetch_wasted"),
)


@dataclass(frozen=True)
class Span:
    """Describe one step of a run.

    Attributes:
        what: the step, in words.
        placement: placement that the step belongs to.
        start_ns: begin, on the process's clock.
        end_ns: end, on the process's clock.
        resident_bytes: bytes of the process in RAM after the step.
    """

    what: str
    placement: str
    start_ns: int
    end_ns: int
    resident_bytes: int


@dataclass(frozen=True)
class Step:
    """Describe one decode step.

    Attributes:
        start_ns: begin of the step.
        computing_ns: time inside ``eval``.
        sampling_ns: time from the end of ``eval`` to the choice of a token.
        scheduler_ns: part of ``computing_ns`` in Python, before and after the computation.
        counts: differences of ``COUNTERS``.
        resident: resident experts after the step.
        pending: uploads queued or under way after the step.
    """

    start_ns: int
    computing_ns: int
    sampling_ns: int
    scheduler_ns: int
    counts: dict[str, int]
    resident: int
    pending: int


@dataclass(frozen=True)
class Observation:
    """Hold the observation of some decode steps.

    Attributes:
        steps: the steps in order.
        ids: expert ids, ``(steps, layers, used)``; -1 if unknown.
        resident: marks the resident experts at the end, ``(layers, experts)``.
        heat: uses of each expert since the model was loaded, ``(layers, experts)``.
        hit_rate: hit rate of each layer by the experts that were resident at the begin of a step, ``(layers,)``.
    """

    steps: list[Step]
    ids: IdArray
    resident: BoolArray
    heat: FloatArray
    hit_rate: FloatArray


def observe(llm: Any, text: list[int], opening: int, count: int) -> Observation | None:
    """Generate ``count`` tokens after ``opening`` tokens of ``text``; None if the model has no routed experts."""
    if llm.experts.shape is None:
        return None
    llm.reset()
    llm.eval(text[:opening])
    token, native, moments, states = likeliest(llm), llm._native, [], []
    counts = [native.snapshot()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.npz"
        with llm.experts.record(path):
            for _ in range(count):  # work in this loop slows decoding, so the figures are computed afterwards
                states.append(llm.experts.residency())
                started, scheduled = time.perf_counter_ns(), llm.experts.scheduler_ns
                llm.eval([token])
                computed = time.perf_counter_ns()
                token = likeliest(llm)
                moments.append((started, computed, time.perf_counter_ns(), llm.experts.scheduler_ns - scheduled))
                counts.append(native.snapshot())
        ids = trace.read(path).ids[-count:]
    stats = [native.read(raw) for raw in counts]
    steps = [_step(*moment, *pair) for moment, pair in zip(moments, pairwise(stats), strict=True)]
    hit_rate = _hit_rate(ids, np.stack(states))
    return Observation(steps, ids, llm.experts.residency(), llm.experts.heat(), hit_rate)


def _hit_rate(ids: IdArray, resident: BoolArray) -> FloatArray:
    """Compute the hit rate of each layer, from experts resident at the begin of a token.

    Args:
        ids: expert ids, ``(tokens, layers, used)``.
        resident: marks the resident experts, ``(tokens, layers, experts)``.
    """
    known = ids >= 0
    hit = np.take_along_axis(resident, np.maximum(ids, 0), axis=2) & known
    rate: FloatArray = (hit.sum(axis=2) / np.maximum(known.sum(axis=2), 1)).mean(axis=0).astype(np.float32)
    return rate


def _step(started: int, computed: int, sampled: int, scheduler: int, before: ExpertStats, after: ExpertStats) -> Step:
    counts = {name: getattr(after, name) - getattr(before, name) for name in COUNTERS}
    return Step(started, computed - started, sampled - computed, scheduler, counts, after.resident, after.pending)


def likeliest(llm: Any) -> int:
    """Give the token with the largest logit of the last position. This waits for the device."""
    logits = np.ctypeslib.as_array(llm._ctx.get_logits_ith(-1), shape=(llm.n_vocab(),))
    return int(logits.argmax())
