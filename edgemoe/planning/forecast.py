"""The speed of a model on a machine: a forecast from runs of a few layers, or an upper bound from rates. Pure.

A copy of a few layers (``edgemoe.machine.trial_run``) runs through the engine as the model would; every further layer
adds the same time. A bound from rates leaves out the waiting inside a layer: measured speeds were 0.55 to 0.83 of such
bounds (docs/log.md).

By rates, the time of a token is the time to read the dense weights, and for each layer the time of its experts and of
one join. Device and CPU compute their experts at the same time. Uploads run at the same time, too: they add to the time
only if the link is slower than the computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..types import FloatArray
from .placement import BATCH, MachineRates, ModelNeeds, Placement, disk_bytes
from .typical import typical_hit_rate

# The forecast assumes that a prefill streams an expert to the device if so many tokens of a batch use it. The engine
# begins with the same number (OffloadConfig.stream_tokens) and corrects it by measured rates.
STREAM_TOKENS = 32
# Largest share by which a measured speed may differ from the forecast of a run: `python bench/fit.py`.
BAND = 0.25


@dataclass(frozen=True)
class Run:
    """Times of a copy of the first layers of a model.

    Attributes:
        layers: layers of the copy.
        prefill_s: seconds of a batch of `BATCH` tokens.
        decode_s: seconds of one token.
    """

    layers: int
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class SpeedForecast:
    """Tokens per second; None if a rate that the speed depends on was not measured.

    Attributes:
        hit_rate: assumed share of experts found on the device, 0..1.
        prefill: tokens per second of a batch of `BATCH` tokens.
        decode: tokens per second, one at a time.
        band: the share by which the speeds may be wrong; None if they are upper bounds.
    """

    hit_rate: float
    prefill: float | None
    decode: float | None
    band: float | None = None


def from_runs(
    runs: Sequence[Run], machine: MachineRates, needs: ModelNeeds, placed: Placement, hit_rate: float
) -> SpeedForecast:
    """Compute the speeds of the whole model from runs of short copies of it, the shortest first."""
    first, last = runs[0], runs[-1]

    def whole(short: float, longer: float) -> float:
        more = needs.layers - last.layers
        return longer + (more * max(0.0, longer - short) / (last.layers - first.layers) if more > 0 else 0.0)

    prefill = _with_disk(whole(first.prefill_s, last.prefill_s), machine, placed)
    decode: float | None = whole(first.decode_s, last.decode_s)
    if decode is not None and placed.ram_short_bytes:
        decode = decode + disk_bytes(placed, needs) / machine.disk_rate if machine.disk_rate else None
    hits = hit_rate if any(placed.slots) else 0.0
    return SpeedForecast(
        hits, None if prefill is None else BATCH / prefill, None if decode is None else 1 / decode, BAND
    )


def forecast(machine: MachineRates, needs: ModelNeeds, placed: Placement, hit_rate: float) -> SpeedForecast:
    """Compute upper bounds of a model's speeds from rates; ``hit_rate`` is the hit rate of decode, 0..1."""
    hits = needs.pairs * hit_rate if any(placed.slots) else 0.0
    decode = step_seconds(machine, needs, hits, needs.pairs - hits, 0, placed.dense_on_device)
    if decode is not None and placed.ram_short_bytes:
        read = disk_bytes(placed, needs)
        decode = decode + read / machine.disk_rate if machine.disk_rate else None
    batch = _batch_seconds(machine, needs, placed)
    batch = None if batch is None else _with_disk(batch, machine, placed)
    prefill = None if batch is None else BATCH / batch
    return SpeedForecast(hit_rate if any(placed.slots) else 0.0, prefill, None if decode is None else 1 / decode)


def _with_disk(batch_s: float, machine: MachineRates, placed: Placement) -> float | None:
    """Compute the seconds of a prefill that reads the missing experts once, while it computes others."""
    if not placed.ram_short_bytes:
        return batch_s
    return max(batch_s, placed.ram_short_bytes / machine.disk_rate) if machine.disk_rate else None


def step_seconds(
    machine: MachineRates, needs: ModelNeeds, hits: float, misses: float, uploads: float, dense_on_device: bool = True
) -> float | None:
    """Compute the seconds of one token; None if a rate is missing.

    Args:
        machine: rates.
        needs: the model.
        hits: experts that the device computes for the token, over all layers.
        misses: experts that the CPU computes for the token, over all layers.
        uploads: experts that are copied to the device meanwhile.
        dense_on_device: the device, if there is one, computes attention and output.
    """
    dense = _over(needs.dense_read_bytes, _dense_rate(machine, dense_on_device))
    device = _over(hits * needs.pair_bytes, machine.device_rate)
    cpu = _over(misses * needs.pair_bytes, machine.cpu_expert_rate)
    upload = _over(uploads * needs.pair_bytes, machine.upload_pinned_rate or machine.upload_pageable_rate)
    joins = min(needs.shape.layers, hits) if needs.shape else 0.0
    join = 0.0 if not joins else None if machine.join_ns is None else joins * machine.join_ns / 1e9
    if dense is None or device is None or cpu is None or upload is None or join is None:
        return None
    fixed = needs.layers * (machine.layer_ns or 0.0) / 1e9
    return max(dense + together(machine, device, cpu) + join + fixed, upload)


def together(machine: MachineRates, device_s: float, cpu_s: float) -> float:
    """Compute the wall time of device and CPU at once; a device that computes on the CPU's cores leaves it fewer."""
    longer = max(device_s, cpu_s)
    if not machine.device_is_cpu:
        return longer
    return max(longer, (device_s + cpu_s * machine.threads) / max(1, machine.cores))


def hit_rate(placed: Placement, needs: ModelNeeds, heat: FloatArray | None) -> float:
    """Estimate the hit rate of decode from the hottest experts of the routing profile, or from typical routing.

    Args:
        placed: the placement.
        needs: the model.
        heat: uses of each expert, ``(layers, experts)``; None if unknown.
    """
    if needs.shape is None or not any(placed.slots):
        return 0.0
    typical = float(np.mean([typical_hit_rate(n / needs.shape.experts) for n in placed.slots]))
    if heat is None or heat.sum() <= 0:
        return typical
    return float(np.mean([_covered(row, n) for row, n in zip(heat, placed.slots, strict=True)]))


def _covered(row: Sequence[float] | FloatArray, slots: int) -> float:
    used = np.sort(np.asarray(row, dtype=np.float64))[::-1]
    total = float(used.sum())
    return float(used[:slots].sum()) / total if total else 0.0


def _over(amount: float, rate: float | None) -> float | None:
    """Compute the time of an amount at a rate. Without a rate it is None; an amount of 0 takes 0 seconds."""
    if amount <= 0:
        return 0.0
    return amount / rate if rate else None


def _dense_rate(machine: MachineRates, on_device: bool) -> float | None:
    if on_device and machine.device:
        return machine.device_dense_rate or machine.device_rate
    return machine.cpu_dense_rate or machine.cpu_expert_rate


def _batch_seconds(machine: MachineRates, needs: ModelNeeds, placed: Placement) -> float | None:
    """Compute the seconds of a batch of `BATCH` tokens. Cold experts are streamed, or the CPU computes them."""
    on_device = placed.dense_on_device and bool(machine.device)
    dense_rate = machine.device_dense_operation_rate if on_device else machine.cpu_dense_operation_rate
    dense = _over(BATCH * needs.dense_operations, dense_rate or machine.cpu_operation_rate)
    if needs.shape is None or dense is None:
        return dense
    work = BATCH * needs.pairs * needs.expert_operations
    slots = sum(placed.slots) / (needs.shape.layers * needs.shape.experts) if any(placed.slots) else 0.0
    streams = bool(placed.stream_slots) and BATCH * needs.shape.used / needs.shape.experts >= STREAM_TOKENS
    device = _over(work * (1.0 if streams else slots), machine.device_operation_rate)
    cpu = _over(0.0 if streams else work * (1 - slots), machine.cpu_operation_rate)
    link = machine.upload_pinned_rate or machine.upload_pageable_rate
    upload = _over((1 - slots) * needs.expert_bytes if streams else 0.0, link)
    if device is None or cpu is None or upload is None:
        return None
    return dense + max(together(machine, device, cpu), upload)
