"""A profile in words and numbers: Markdown for people, JSON and CSV in llama-bench's field names for programs."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from statistics import stdev
from typing import Any

import psutil

from .. import __version__
from ..console import table
from ..gguf import TYPES, moe_shape
from .measure import OURS, PLAIN, Result, Samples, middle, quantile

SCHEMA = "edgemoe.profile.v1"
_MIB = 2**20


def rows(result: Result) -> list[dict[str, Any]]:
    """One row per placement and test: llama-bench's fields, then ours."""
    file = result.file
    size = sum(tensor.bytes for tensor in file.tensors.values())
    params = sum(tensor.elements for tensor in file.tensors.values())
    common = {
        "build_number": 0,
        "cpu_info": platform.processor() or platform.machine(),
        "gpu_info": "" if result.device == "none" else result.device,
        "model_filename": file.path.name,
        "model_type": f"{file.architecture} {_mostly(result)}",
        "model_size": size,
        "model_n_params": params,
        "n_threads": result.threads,
        "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return [common | _row(sample, result) for sample in result.samples if sample.ns]


def _row(sample: Samples, result: Result) -> dict[str, Any]:
    speeds = sample.per_second
    return {
        "backends": "CPU" if sample.placement == PLAIN else f"EdgeMoE,{result.device}",
        "placement": sample.placement,
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
    """Everything, in the form of `SCHEMA`."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "complete": result.complete,
        "rows": rows(result),
        "memory": [{"tier": tier, "what": what, "bytes": size} for tier, what, size in memory_table(result)],
        "time": time_split(result),
        "load_ms": result.load_ms,
        "notes": result.notes,
        "verdict": verdict(result),
    }


def as_json(result: Result) -> str:
    """The whole profile."""
    return json.dumps(as_dict(result), indent=1)


def as_jsonl(result: Result) -> str:
    """The rows, one per line."""
    return "\n".join(json.dumps(row) for row in rows(result))


def as_csv(result: Result) -> str:
    """The rows as llama-bench writes them; nested figures are left out."""
    table = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows(result)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]) if table else [])
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue().rstrip("\n")


def memory_table(result: Result) -> list[tuple[str, str, int]]:
    """Tier, what, bytes: what was put where, then what the operating system sees."""
    shape = moe_shape(result.file)
    experts = sum(shape.expert_bytes) * shape.experts if shape else 0
    total = sum(tensor.bytes for tensor in result.file.tensors.values())
    found = [("file", "routed experts", experts), ("file", "all else", total - experts)]
    for (kind, where), size in sorted(result.buffers.items()):
        found.append(("RAM" if _on_host(where) else where, f"{kind} buffer of {where}", size))
    if result.slots:
        found.append((result.device, f"{result.slots} resident experts", result.slot_bytes))
    found.append(("RAM", "process, both models", result.ram["resident"]))
    found.append(("RAM", "of it mapped from files", result.ram["mapped"]))
    found.append(("RAM", "free", result.ram["free"]))
    return found


def time_split(result: Result) -> list[dict[str, Any]]:
    """Milliseconds per generated token by part; the parts of a test add up to its time per token."""
    found = []
    for sample in result.samples:
        if sample.placement != OURS or not sample.test.generate or not sample.ns or sample.stats is None:
            continue
        tokens = len(sample.between_ns)
        stats, total = sample.stats, sum(sample.between_ns)
        experts = min(stats["moe_ns"], total)
        waiting, cold = stats["join_ns"], stats["cpu_ns"]
        parts = {
            "attention, dense layers, sampling": total - experts - sample.scheduler_ns,
            "experts: cold, on the CPU": cold,
            "experts: waiting for the device": waiting,
            "experts: launches, copies, sums": max(experts - cold - waiting - stats["schedule_ns"], 0),
            "scheduler": sample.scheduler_ns + stats["schedule_ns"],
        }
        found.append({"test": sample.test.name, "ms": {name: ns / tokens / 1e6 for name, ns in parts.items()}})
    return found


def verdict(result: Result) -> str:
    """What bounds the speed, and what would change it."""
    ratios = []
    for sample in result.samples:
        other = next((s for s in result.samples if s.test == sample.test and s.placement == PLAIN), None)
        if sample.placement == OURS and sample.ns and other is not None and other.ns:
            ratios.append(f"{sample.test.name}: {middle(sample.per_second) / middle(other.per_second):.2f} x")
    text = f"Against llama.cpp on the CPU: {', '.join(ratios)}." if ratios else "Nothing was measured to the end."
    split = time_split(result)
    if split:
        name, ms = max(split[0]["ms"].items(), key=lambda part: part[1])
        text += f" Most of a token goes to {name} ({ms:.1f} of {sum(split[0]['ms'].values()):.1f} ms)."
    hits = [s.stats for s in result.samples if s.stats and s.test.generate]
    if hits and result.slots:
        used = sum(h["hits"] + h["misses"] for h in hits)
        text += f" {sum(h['hits'] for h in hits) / max(used, 1):.0%} of the expert uses were served by {result.device}."
    if result.device == "sim":
        text += " The sim device computes on the CPU: its speed says nothing about a GPU."
    return text


def as_markdown(result: Result) -> str:
    """Tables and a verdict."""
    parts = [table(["model", "size", "placement", "threads", "test", "t/s"], [_speed_row(r) for r in rows(result)])]
    latency = [
        [f"{row['placement']} {_test(row)}", *(f"{row[k]:.1f}" for k in _LATENCIES)]
        for row in rows(result)
        if row["n_gen"]
    ]
    if latency:
        parts.append(table(["latency, ms", "first token", "p50", "p95", "p99"], latency))
    for split in time_split(result):
        total = sum(split["ms"].values())
        lines = [[name, f"{ms:.2f}", f"{ms / total:.0%}"] for name, ms in split["ms"].items()]
        parts.append(table([f"one token of {split['test']}", "ms", "share"], lines))
    parts.append(_cache(result))
    lines = [[tier, what, f"{size / _MIB:.0f}"] for tier, what, size in memory_table(result)]
    parts.append(table(["where", "what", "MiB"], lines, texts=2))
    parts += [f"Loading: {', '.join(f'{name} {ms:.0f} ms' for name, ms in result.load_ms.items())}."]
    parts += [f"Note: {note}" for note in result.notes]
    if not result.complete:
        parts.append("Interrupted: these are the repetitions that were finished.")
    return "\n\n".join(part for part in (*parts, verdict(result)) if part)


_LATENCIES = ("ttft_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms")


def _cache(result: Result) -> str:
    lines = []
    for sample in result.samples:
        if not sample.stats or not result.slots:
            continue
        s, tokens = sample.stats, len(sample.ns) * (sample.test.prompt or sample.test.generate)
        kind = "prefill_" if sample.test.prompt else ""
        served = s[f"{kind}hits"]
        uses = served + s[f"{kind}misses"] + (s["prefill_streamed"] if kind else 0)
        lines.append(
            [
                sample.test.name,
                f"{served / max(uses, 1):.3f}",
                f"{s['uploads'] / max(tokens, 1):.1f}",
                f"{s['prefetch_useful']}",
                f"{s['prefetch_late']}",
                f"{s['prefetch_wasted']}",
            ]
        )
    return table(["cache", "hit rate", "uploads/token", "useful", "late", "wasted"], lines) if lines else ""


def _speed_row(row: dict[str, Any]) -> list[str]:
    speed = f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"
    size = f"{row['model_size'] / 2**30:.2f} GiB"
    return [row["model_type"], size, row["placement"], str(row["n_threads"]), _test(row), speed]


def _test(row: dict[str, Any]) -> str:
    kind = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
    return kind + (f" @ d{row['n_depth']}" if row["n_depth"] else "")


def _mostly(result: Result) -> str:
    """The type that most of the file is in."""
    size: dict[int, int] = {}
    for tensor in result.file.tensors.values():
        size[tensor.type] = size.get(tensor.type, 0) + tensor.bytes
    return TYPES[max(size, key=lambda kind: size[kind])][0]


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _on_host(where: str) -> bool:
    return where.startswith(("CPU", "EdgeMoE")) or where.endswith("_Host")


def physical_cores() -> int:
    """Cores without their second threads, 1 where unknown."""
    return psutil.cpu_count(logical=False) or 1
