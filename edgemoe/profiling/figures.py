"""Bring the measurements of a profile into the form of ``profile.schema.json``."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import stdev
from typing import Any

from .. import __version__, limits
from ..engine import devices
from ..models.gguf import TYPES, moe_shape
from ..planning.kv_cache import USUAL_TYPE, cache_type
from . import curve, memory
from .measure import DRAFTED, OURS, Result, Samples, middle, quantile
from .observe import Observation, Step
from .placements import PLAIN, SIMULATED
from .suggest import suggestion

SCHEMA = "edgemoe.profile.v1"
BATCH = 512  # llama-cpp-python's default for n_batch and n_ubatch


def rows(result: Result) -> list[dict[str, Any]]:
    """Make one row per placement and test: llama-bench's fields, then ours."""
    file = result.file
    size = sum(tensor.bytes for tensor in file.tensors.values())
    params = sum(tensor.elements for tensor in file.tensors.values())
    common = {
        "build_commit": result.build,
        "build_number": 0,
        "cpu_info": _cpu(),
        "gpu_info": "" if result.device == "none" else result.device,
        "model_filename": file.path.name,
        "model_type": f"{file.architecture} {_main_type(result)}",
        "model_size": size,
        "model_n_params": params,
        "n_batch": BATCH,
        "n_ubatch": BATCH,
        "n_threads": result.threads,
        "type_k": cache_type(result.attention.get("type_k", USUAL_TYPE)).name,
        "type_v": cache_type(result.attention.get("type_v", USUAL_TYPE)).name,
        "flash_attn": bool(result.attention.get("flash_attn")),
        "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return [common | _row(sample, result) for sample in result.samples if sample.ns]


def _row(sample: Samples, result: Result) -> dict[str, Any]:
    speeds, ours = sample.per_second, sample.placement in (OURS, DRAFTED)
    return {
        "backends": f"EdgeMoE,{result.device}" if ours else "CPU" if result.device in SIMULATED else result.device,
        "placement": sample.placement,
        "n_gpu_layers": 0 if result.device == "none" or (result.device == "sim" and not ours) else -1,
        "n_prompt": sample.test.prompt,
        "n_gen": sample.test.generate,
        "n_depth": sample.test.depth,
        "avg_ns": int(sum(sample.ns) / len(sample.ns)),
        "stddev_ns": int(_deviation(sample.ns)),
        "avg_ts": sum(speeds) / len(speeds),
        "stddev_ts": _deviation(speeds),
        "samples_ns": sample.ns,
        "samples_ts": speeds,
        "ttft_ms": middle(sample.first_ns) / 1e6,
        "itl_p50_ms": quantile(sample.between_ns, 0.5) / 1e6,
        "itl_p95_ms": quantile(sample.between_ns, 0.95) / 1e6,
        "itl_p99_ms": quantile(sample.between_ns, 0.99) / 1e6,
        "cache": sample.stats or {},
        "scheduler_ns": sample.scheduler_ns,
    }


def as_dict(result: Result) -> dict[str, Any]:
    """Give the whole profile in the form of `SCHEMA`."""
    shape = moe_shape(result.file)
    seen = result.observed
    observed = _observed(seen, shape.experts) if seen is not None and shape is not None else None
    return {
        "schema": SCHEMA,
        "version": __version__,
        "interrupted": result.interrupted,
        "stopped": result.stopped,
        "machine": machine(),
        "rows": rows(result),
        "latency": _latency(result),
        "memory": memory_figures(result),
        "time": time_split(result),
        "load_ms": result.load_ms,
        "spans": [vars(span) for span in result.spans],
        "cold": [{"placement": s.placement, "test": s.test.name, "ts": s.per_second[0]} for s in result.cold if s.ns],
        "observed": observed,
        "notes": result.notes,
        "verdict": verdict(result),
        "suggestion": suggestion(result, observed["curve"] if observed else {}, devices()),
    }


def machine() -> dict[str, Any]:
    """Describe the machine of the measurement."""
    return {
        "cpu": _cpu(),
        "cores": physical_cores(),
        "ram_bytes": limits.memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu() -> str:
    """Read the processor's name from the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _latency(result: Result) -> list[dict[str, Any]]:
    return [
        {"placement": s.placement, "test": s.test.name, "itl_ms": [round(ns / 1e6, 4) for ns in s.between_ns]}
        for s in result.samples
        if s.between_ns
    ]


def memory_figures(result: Result) -> dict[str, Any]:
    """List the allocated bytes by tier, and the bytes in RAM by part, beside the system's own count."""
    ram = result.ram
    return {
        "allocated": [{"tier": tier, "what": what, "bytes": size} for tier, what, size in allocated(result)],
        "resident": [{"what": _part_name(what, result), "bytes": size} for what, size in ram.parts.items()],
        "resident_bytes": ram.resident,
        "shared_bytes": ram.shared,
        "proportional_bytes": ram.proportional,
        "plain_bytes": result.plain_bytes,
        "free_bytes": ram.free,
        "device_used_bytes": result.device_used,
    }


def allocated(result: Result) -> list[tuple[str, str, int]]:
    """List allocations as (tier, purpose, bytes), as the allocating part reports them."""
    shape = moe_shape(result.file)
    experts = sum(shape.expert_bytes) * shape.experts if shape else 0
    total = sum(tensor.bytes for tensor in result.file.run_tensors.values())
    found = [("file", "routed experts", experts), ("file", "all else", total - experts)]
    for (kind, where), size in sorted(result.buffers.items()):
        name = where.partition("[")[0]  # the name of an RPC device contains its address
        found.append(("RAM" if _on_host(name) else name, f"{kind} buffer of {name}", size))
    if result.slots:
        found.append((result.device.upper(), f"{result.slots} resident experts", result.slot_bytes))
    if ram := _ram_of_experts(result):
        found.append(("RAM", "experts, the others are read from the disk", ram))
    if result.stage_bytes:
        found.append((result.device.upper(), "staging for experts of a prefill", result.stage_bytes))
    return found


def _ram_of_experts(result: Result) -> int:
    """Count the RAM that experts take in a model that is larger than the RAM; 0 in others."""
    return max((sample.stats.get("ram_bytes", 0) for sample in result.samples if sample.stats), default=0)


def _part_name(part: str, result: Result) -> str:
    """Describe a kind of llama.cpp's buffers in words."""
    later = "resident experts, staging" if result.slots and result.device == "sim" else "staging, logits"
    later = f"experts, {later}" if _ram_of_experts(result) else later
    names = {
        "model": "weights copied into buffers, vocabulary", "KV": "KV cache", "RS": "recurrent state",
        "compute": "compute buffers, as far as used", "output": "output buffer", memory.LATER: later,
    }  # fmt: skip
    return names.get(part, part)


def time_split(result: Result) -> list[dict[str, Any]]:
    """Split the milliseconds per generated token into measured parts. ``token_ms`` is the total, measured apart."""
    found = []
    for sample in result.samples:
        if sample.placement != OURS or not sample.test.generate or not sample.ns or sample.stats is None:
            continue
        tokens, stats = len(sample.between_ns), sample.stats
        scheduler = sample.scheduler_ns + stats["schedule_ns"]
        inside = stats["cpu_ns"] + stats["join_ns"] + stats.get("disk_wait_ns", 0) + stats["schedule_ns"]
        parts = {
            "attention, dense layers, router": sample.computing_ns - stats["moe_ns"] - sample.scheduler_ns,
            "experts: cold, on the CPU": stats["cpu_ns"],
            "experts: waiting for the device": stats["join_ns"],
            "experts: waiting for the disk": stats.get("disk_wait_ns", 0),
            "experts: launches, copies, sums": stats["moe_ns"] - inside,
            "scheduler": scheduler,
            "logits and sampling": sample.sampling_ns,
        }
        total = sum(sample.between_ns) / tokens / 1e6
        ms = {name: max(ns, 0) / tokens / 1e6 for name, ns in parts.items()}
        found.append({"test": sample.test.name, "token_ms": total, "ms": ms})
    return found


def verdict(result: Result) -> str:
    """Describe the speed beside llama.cpp, the largest part of a token's time, and the hit rate."""
    ratios = []
    for sample in result.samples:
        others = [s for s in result.samples if s.test == sample.test and s.placement.startswith(PLAIN) and s.ns]
        if sample.placement == OURS and sample.ns and others:
            best = max(middle(other.per_second) for other in others)
            ratios.append(f"{sample.test.name}: {middle(sample.per_second) / best:.2f} x")
    against = "llama.cpp on the CPU" if result.device in SIMULATED else "llama.cpp's best placement of whole layers"
    text = f"Against {against}: {', '.join(ratios)}." if ratios else "There is nothing to compare with."
    if not result.slots and result.device != "none" and moe_shape(result.file) is not None:
        text = f"No expert is on {result.device}: both placements are the same, and a ratio of them says nothing."
    split = time_split(result)
    if split:
        name, ms = max(split[0]["ms"].items(), key=lambda part: part[1])
        text += f" Most of a token goes to {name} ({ms:.1f} of {sum(split[0]['ms'].values()):.1f} ms)."
    hits = [s.stats for s in result.samples if s.stats and s.test.generate and s.placement == OURS]
    if hits and result.slots:
        used = sum(h["hits"] + h["misses"] for h in hits)
        text += f" {sum(h['hits'] for h in hits) / max(used, 1):.0%} of the expert uses were served by {result.device}."
    if result.device == "sim":
        text += " The sim device computes on the CPU: its speed says nothing about a GPU."
    return text


def _observed(seen: Observation, experts: int) -> dict[str, Any]:
    slots = seen.resident.sum(axis=1)
    return {
        "tokens": len(seen.steps),
        "steps": [_step(step) for step in seen.steps],
        "heat": [[round(float(v), 2) for v in layer] for layer in seen.heat],
        "resident": [[int(v) for v in layer] for layer in seen.resident],
        "hit_rate": [round(float(v), 4) for v in seen.hit_rate],
        "bound": [round(v, 4) for v in curve.bounds(seen.ids, experts, slots)],
        "curve": curve.hit_rates(seen.ids, experts),
    }


def _step(step: Step) -> dict[str, int]:
    return {
        "start_ns": step.start_ns,
        "computing_ns": step.computing_ns,
        "sampling_ns": step.sampling_ns,
        "scheduler_ns": step.scheduler_ns,
        **step.counts,
        "resident": step.resident,
        "pending": step.pending,
    }


def _main_type(result: Result) -> str:
    """Name the type with the most bytes in the file."""
    size: dict[int, int] = {}
    for tensor in result.file.tensors.values():
        size[tensor.type] = size.get(tensor.type, 0) + tensor.bytes
    return TYPES[max(size, key=lambda kind: size[kind])][0]


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _on_host(where: str) -> bool:
    return where.startswith(("CPU", "EdgeMoE")) or where.endswith("_Host")


def physical_cores() -> int:
    """Count the cores that this process may use, without their second threads."""
    return limits.processors().physical
