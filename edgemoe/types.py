"""Plain records that cross between the rooms of the house. No behaviour, no imports of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ModelShape:
    """Routed-expert geometry of one model.

    Attributes:
        layers: layers that have routed experts, numbered 0.. in the order they run.
        experts: routed experts per layer.
        used: experts a token uses in a layer (top-k).
        expert_bytes: bytes of one expert (all projections) per layer, shape ``(layers,)``.
    """

    layers: int
    experts: int
    used: int
    expert_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Thinking:
    """How a model thinks before it answers, by its chat template.

    Attributes:
        thinks: an answer may begin with thinking unless it is switched off.
        levels: the words of ``--think`` that change the prompt, a subset of ``on``, ``off``, ``low``, ``medium``,
            ``high``; empty when the model cannot be switched.
    """

    thinks: bool = False
    levels: tuple[str, ...] = ()


class Load(NamedTuple):
    """One wish of a policy: bring ``expert`` of ``layer`` onto the device, in the place of ``victim``.

    ``victim`` is an expert that is resident now, or -1 for a free slot.
    """

    layer: int
    expert: int
    victim: int


@dataclass(frozen=True)
class ExpertStats:
    """Counters since the model was loaded. Times are nanoseconds of wall clock, sizes bytes.

    Attributes:
        tokens: tokens computed, prefill included.
        hits: (token, expert) pairs of decode steps computed on the device.
        misses: (token, expert) pairs of decode steps whose expert was not on the device.
        fetched: of these, computed on the device, which fetched the expert while the CPU computed others.
        prefill_hits: pairs of prefill batches whose expert was resident.
        prefill_streamed: pairs of prefill batches whose expert was streamed to the device.
        prefill_misses: pairs of prefill batches computed on the CPU.
        uploads: experts copied to the device into a slot.
        upload_bytes: bytes of these copies.
        streamed_bytes: bytes copied for one prefill batch, or one token, only.
        direct_bytes: bytes of both that the device read from host memory by itself, without a copy to staging memory.
        failed_uploads: copies that the device refused or that failed.
        joins: times the CPU waited for the device.
        device_fallbacks: device computations that failed and were redone on the CPU.
        moe_ns: time inside expert layers.
        device_ns: time from the launch of hot pairs to their results; where the device computes all but cold experts,
            time that the CPU spent on having it compute.
        cpu_ns: time computing cold pairs.
        join_ns: time the CPU was idle, waiting for the device.
        schedule_ns: time choosing what to fetch ahead of need, while a token was under way.
        prefetch_useful: experts loaded ahead of need and then used.
        prefetch_late: experts asked for ahead of need that arrived after it.
        prefetch_wasted: experts loaded ahead of need and evicted unused.
        slots: device slots over all layers.
        slot_bytes: bytes these slots take on the device.
        resident: experts resident now.
        pending: uploads queued or under way.
        stage_bytes: device memory where a prefill puts the experts that it streams.
        fused_layers: layers whose whole expert block was understood.
        plain_layers: expert layers that run as in llama.cpp because their pattern is unknown.
    """

    tokens: int = 0
    hits: int = 0
    misses: int = 0
    fetched: int = 0
    prefill_hits: int = 0
    prefill_streamed: int = 0
    prefill_misses: int = 0
    uploads: int = 0
    upload_bytes: int = 0
    streamed_bytes: int = 0
    direct_bytes: int = 0
    failed_uploads: int = 0
    joins: int = 0
    device_fallbacks: int = 0
    moe_ns: int = 0
    device_ns: int = 0
    cpu_ns: int = 0
    join_ns: int = 0
    schedule_ns: int = 0
    prefetch_useful: int = 0
    prefetch_late: int = 0
    prefetch_wasted: int = 0
    slots: int = 0
    slot_bytes: int = 0
    resident: int = 0
    pending: int = 0
    stage_bytes: int = 0
    fused_layers: int = 0
    plain_layers: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of decode pairs computed on the device, 0 when there were none."""
        total = self.hits + self.misses
        return self.hits / total if total else 0.0
