"""Describe this machine and measure its rates. A measurement takes seconds and is kept in a small file."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import limits
from ..config import home
from ..engine import bandwidth, host
from ..engine.bandwidth import Bench, Weight
from ..planning.placement import MachineRates

SCHEMA = "edgemoe.machine.v1"
RAM_BYTES = 256 << 20
DISK_BYTES = 192 << 20
DISK_SECONDS = 2.0
DISK_BLOCK = 4 << 20
# Small operations of a layer for one token that read no weights: norms, ropes, copies, softmax.
NODES_OF_A_LAYER = 40
RATES = tuple(f.name for f in fields(MachineRates) if f.name.endswith(("_rate", "_ns")))
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Measured:
    """Hold the measured rates of a machine.

    Attributes:
        key: machine, device and number of threads, as one text.
        at: time of the measurement, in seconds since 1970.
        seconds: duration of the measurement.
        rates: rates by the names of `MachineRates`. Rates that could not be measured are missing.
    """

    key: str
    at: float
    seconds: float
    rates: dict[str, float]


def machine(device: str, threads: int) -> MachineRates:
    """Describe this machine's memory, cores and device, without rates."""
    free, total = host.device_memory(device) if device else (0, 0)
    ram, cores = limits.memory(), limits.processors().physical
    sim, shares = device == "sim", host.shares_ram(device)
    return MachineRates(
        device, free, total, ram.available, ram.total, cores, threads, device_is_cpu=sim, device_shares_ram=shares
    )


def measure(
    device: str,
    threads: int,
    experts: Sequence[Weight] = bandwidth.COMMON,
    others: Sequence[Weight] = (),
    progress: Progress = lambda share, step: None,
    memory: bool = True,
) -> dict[str, float]:
    """Measure the rates of this machine, by the names of `MachineRates`.

    Args:
        device: ggml name of the device, or empty for none.
        threads: number of CPU threads.
        experts: routed experts to multiply with.
        others: weights outside the experts. If empty, their rates are not measured.
        progress: called with the share done in 0..1 and the name of the current step.
        memory: True measures RAM and disk, too.
    """
    found: dict[str, float | None] = {}
    if memory:
        progress(0.0, "memory")
        found["ram_rate"] = ram_rate(threads)
        progress(0.1, "disk")
        found["disk_rate"] = disk_rate(home("cache"))
    progress(0.3, "CPU")
    found |= _computing("cpu", "", threads, experts, others)
    if device:
        progress(0.7, device)
        found |= _computing("device", device, threads, experts, others)
        if device == "sim":  # on sim the calling thread computes llama.cpp's part of a model, on the CPU
            found |= {"device_" + n[4:]: v for n, v in found.items() if n.startswith("cpu_dense")}
    progress(1.0, "")
    return {name: value for name, value in found.items() if value}


def _computing(
    where: str, device: str, threads: int, experts: Sequence[Weight], others: Sequence[Weight]
) -> dict[str, float | None]:
    bench = Bench(device, threads)
    try:
        if not bench.opened:
            return {}
        found: dict[str, float | None] = {}
        rate = "device_rate" if device else "cpu_expert_rate"
        for names, weights in (
            ((rate, f"{where}_operation_rate"), experts),
            ((f"{where}_dense_rate", f"{where}_dense_operation_rate"), others),
        ):
            if weights and (pair := bench.rates(weights)):
                found |= dict(zip(names, pair, strict=True))
        if device:
            found["join_ns"] = bench.join_ns()
            found["upload_pinned_rate"], found["upload_pageable_rate"] = map(bench.upload_rate, (True, False))
        else:
            node_ns = bench.node_ns()
            found["layer_ns"] = None if node_ns is None else NODES_OF_A_LAYER * node_ns
        return found
    finally:
        bench.close()


def ram_rate(threads: int) -> float:
    """Measure the bytes per second that ``threads`` read from memory together."""
    parts = np.array_split(np.ones(RAM_BYTES // 8), threads)
    with ThreadPoolExecutor(threads) as pool:
        return RAM_BYTES / bandwidth.typical(lambda: list(pool.map(np.sum, parts)), 0.3)


def disk_rate(folder: Path) -> float | None:
    """Measure the bytes per second that the disk of ``folder`` reads, without the cache; None if this is impossible."""
    if not hasattr(os, "O_DIRECT"):
        return None
    path = folder / f"speed-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = _fill(path)
        return _read_past_the_cache(path, written) if written else None
    except OSError:
        return None
    finally:
        path.unlink(missing_ok=True)


def _fill(path: Path) -> int:
    block, written = os.urandom(DISK_BLOCK), 0
    end = time.perf_counter() + DISK_SECONDS
    with path.open("wb") as stream:
        while written < DISK_BYTES and time.perf_counter() < end:
            written += stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    return written


def _read_past_the_cache(path: Path, size: int) -> float:
    import mmap

    buffer = mmap.mmap(-1, DISK_BLOCK)  # aligned, as direct reads need it
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        started, done = time.perf_counter(), 0
        while done < size and time.perf_counter() - started < DISK_SECONDS:
            done += os.readv(handle, [buffer])
        return done / (time.perf_counter() - started)
    finally:
        os.close(handle)
        buffer.close()


# ---- kept ----


def key_of(device: str, threads: int) -> str:
    """Identify this machine, the device and the number of threads in one text."""
    from ..engine.host import endpoint_of

    ram, processors = round(limits.memory().total / 2**30), limits.processors().logical
    where = f"{device or 'none'} {endpoint_of(device)}".rstrip()
    return f"{platform.node()} {platform.machine()} {processors} CPUs {ram} GiB {where} {threads} threads"


def path_of(device: str) -> Path:
    """Give the path of the file with the measurements for this device."""
    return home("cache") / f"machine-{''.join(c if c.isalnum() else '_' for c in device) or 'none'}.json"


def load(device: str, threads: int, notes: list[str] | None = None) -> Measured | None:
    """Read an earlier measurement; None if there is no usable one.

    A damaged file raises no error. It is renamed, as is a file of another machine or setting, and ``notes`` gets a
    sentence about it.
    """
    path = path_of(device)
    try:
        found = _checked(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _set_aside(path, f"is damaged ({error})", notes)
        return None
    if found.key != key_of(device, threads):
        _set_aside(path, f"belongs to another machine or setting ({found.key})", notes)
        return None
    return found


def save(device: str, threads: int, rates: dict[str, float], seconds: float) -> Measured:
    """Write measurements to their file. A failure to write is ignored."""
    kept = Measured(key_of(device, threads), time.time(), seconds, rates)
    path = path_of(device)
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"schema": SCHEMA, **asdict(kept)}, indent=1))
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
    return kept


def with_rates(bare: MachineRates, rates: dict[str, float]) -> MachineRates:
    """Add measured rates to the description of a machine."""
    return replace(bare, **rates)  # type: ignore[arg-type]


def _checked(raw: Any) -> Measured:
    if raw["schema"] != SCHEMA:
        raise ValueError(f"its schema is {raw['schema']!r}")
    rates = {name: float(value) for name, value in raw["rates"].items()}
    if not rates.keys() <= set(RATES) or not all(0 < value < float("inf") for value in rates.values()):
        raise ValueError("its rates make no sense")
    return Measured(str(raw["key"]), float(raw["at"]), float(raw["seconds"]), rates)


def _set_aside(path: Path, why: str, notes: list[str] | None) -> None:
    number = 1
    while (bad := path.with_name(f"{path.name}.bad-{number}")).exists():
        number += 1
    try:
        path.rename(bad)
    except OSError:
        return
    if notes is not None:
        notes.append(f"The measurement {path.name} {why}; it was kept as {bad.name}.")
