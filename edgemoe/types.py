"""Plain records that several packages share. They have no behaviour and import nothing of ours."""

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
    """Describe the routed experts of one model.

    Attributes:
        layers: number of layers with routed experts. They are numbered from 0 in the order that they run.
        experts: routed experts per layer.
        used: experts that the router chooses for a token in a layer (top-k).
        expert_bytes: bytes of one expert (all projections) per layer, shape ``(layers,)``.
    """

    layers: int
    experts: int
    used: int
    expert_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Thinking:
    """Describe the thinking of a model before it answers, according to its chat template.

    Attributes:
        thinks: True if an answer may begin with thinking, unless thinking is switched off.
        levels: the words of ``--think`` that change the prompt, a subset of ``on``, ``off``, ``low``, ``medium``,
            ``high``. Empty if the template has no switch for thinking.
    """

    thinks: bool = False
    levels: tuple[str, ...] = ()


class Load(NamedTuple):
    """Request of a policy: upload ``expert`` of ``layer`` to the slot of ``victim``.

    ``victim`` is an expert that is resident now, or -1 for a free slot.
    """

    layer: int
    expert: int
    victim: int


@dataclass(frozen=True)
class ExpertStats:
    """Count events since the model was loaded. Times are nanoseconds of wall clock, sizes are bytes.

    Attributes:
        tokens: tokens computed, prefill included.
        hits: (token, expert) pairs of decode steps computed on the device.
        misses: (token, expert) pairs of decode steps with an expert that was not on the device.
        fetched: misses that the device computed: it fetched the expert while the CPU computed others.
        prefill_hits: pairs of prefill batches with a resident expert.
        prefill_streamed: pairs of prefill batches with an expert that was streamed to the device.
        prefill_misses: pairs of prefill batches that the CPU computed.
        uploads: experts copied to the device into a slot.
        upload_bytes: bytes of the uploads.
        streamed_bytes: bytes of experts that were copied for only one prefill batch or one token.
        direct_bytes: uploaded and streamed bytes that the device read from host memory without a copy to staging.
        failed_uploads: copies that the device refused or that failed.
        joins: times the CPU waited for the device.
        device_fallbacks: device computations that failed and were redone on the CPU.
        moe_ns: time inside expert layers.
        device_ns: time from the launch of hot pairs to their results. If the device runs llama.cpp's whole graph: time
            that the CPU spent on launching the device's work.
        cpu_ns: time computing cold pairs.
        join_ns: time the CPU was idle, waiting for the device.
        schedule_ns: time for choosing experts to prefetch while a token was being computed.
        prefetch_useful: experts that were prefetched and then used.
        prefetch_late: experts that were queued for prefetch but arrived after they were needed.
        prefetch_wasted: experts that were prefetched and evicted unused.
        slots: device slots over all layers.
        slot_bytes: bytes that the slots take on the device.
        resident: experts resident now.
        pending: uploads queued or under way.
        stage_bytes: device memory for the experts that a prefill streams.
        fused_layers: expert layers with a recognised pattern, which run split by expert.
        plain_layers: expert layers that run as in llama.cpp because their pattern is unknown.
        disk_bytes: bytes of experts that were read from the disk, past the file cache.
        disk_reads: reads of the disk.
        missed_bytes: bytes of the experts that a computation needed and that were not in RAM.
        disk_wait_ns: time that computations waited for the disk.
        ram_bytes: RAM that experts take if the model is larger than the RAM, else 0.
        ram_budget: the most RAM for experts if the model is larger than the RAM, else 0.
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
    disk_bytes: int = 0
    disk_reads: int = 0
    missed_bytes: int = 0
    disk_wait_ns: int = 0
    ram_bytes: int = 0
    ram_budget: int = 0

    @property
    def hit_rate(self) -> float:
        """Give the share of decode pairs that the device computed; 0 before the first decode step."""
        total = self.hits + self.misses
        return self.hits / total if total else 0.0
