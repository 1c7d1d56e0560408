"""Tokens under observation: what the counters say of each single one, and which experts it used."""

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
    """Something that was done from ``start_ns`` to ``end_ns`` of the process's clock, and the memory after it."""

    what: str
    placement: str
    start_ns: int
    end_ns: int
    resident_bytes: int


@dataclass(frozen=True)
class Step:
    """One decode step.

    Attributes:
        start_ns: when it began.
        computing_ns: inside ``eval``.
        sampling_ns: from there to the choice of a token.
        scheduler_ns: of ``computing_ns``, in Python after the computation.
        counts: differences of ``COUNTERS``.
        resident: experts in device memory after it.
        pending: uploads queued or under way after it.
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
    """What was seen of some decode steps.

    Attributes:
        steps: in running order.
        ids: experts used, ``(steps, layers, used)``, -1 where not known.
        resident: hot experts at the end, ``(layers, experts)``.
        heat: uses of each expert since the model was loaded, ``(layers, experts)``.
        hit_rate: of each layer, by what was resident when a step began, ``(layers,)``.
    """

    steps: list[Step]
    ids: IdArray
    resident: BoolArray
    heat: FloatArray
    hit_rate: FloatArray


def observe(llm: Any, text: list[int], opening: int, count: int) -> Observation | None:
    """Generate ``count`` tokens after ``opening`` tokens of ``text``; None where there are no routed experts."""
    if llm.experts.shape is None:
        return None
    llm.reset()
    llm.eval(text[:opening])
    token, native, moments, states = likeliest(llm), llm._native, [], []
    counts = [native.snapshot()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.npz"
        with llm.experts.record(path):
            for _ in range(count):  # whatever is done here costs decoding: figures are made afterwards
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
    """Of each layer: what was resident when its token began, of ``(tokens, layers, used)`` and ``(.., experts)``."""
    known = ids >= 0
    hit = np.take_along_axis(resident, np.maximum(ids, 0), axis=2) & known
    rate: FloatArray = (hit.sum(axis=2) / np.maximum(known.sum(axis=2), 1)).mean(axis=0).astype(np.float32)
    return rate


def _step(started: int, computed: int, sampled: int, scheduler: int, before: ExpertStats, after: ExpertStats) -> Step:
    counts = {name: getattr(after, name) - getattr(before, name) for name in COUNTERS}
    return Step(started, computed - started, sampled - computed, scheduler, counts, after.resident, after.pending)


def likeliest(llm: Any) -> int:
    """The token with the largest logit of the last position; waits for the device."""
    logits = np.ctypeslib.as_array(llm._ctx.get_logits_ith(-1), shape=(llm.n_vocab(),))
    return int(logits.argmax())
