"""Record the device's own events during a run: kernels, copies and waits, from CUPTI.

Nsight shows the same activity records. Here torch's profiler (kineto) delivers them. It records the whole process with
ggml's launches. Without a torch built for CUDA there is nothing to record.

**Source**: the trace format of torch.profiler's ``export_chrome_trace``: times in microseconds, categories of kineto.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

KERNEL, COPY, SET = "kernel", "gpu_memcpy", "gpu_memset"
CALLS = ("cuda_runtime", "cuda_driver")
WAYS = {"HtoD": "to_device", "DtoH": "to_host", "DtoD": "inside"}
NS = 1000.0


def record(run: Callable[[], object]) -> dict[str, float]:
    """Run a function and summarise the device's events, see `summary`; empty without a source of events."""
    try:
        import torch
    except ImportError:
        run()
        return {}
    if not torch.cuda.is_available():
        run()
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return summary(json.loads(path.read_text())["traceEvents"])


def summary(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Sum nanoseconds and bytes by kind of event; ``busy_ns`` is the time with any event on the device."""
    done = [event for event in events if event.get("ph") == "X"]
    found = dict.fromkeys((f"{way}_{what}" for way in WAYS.values() for what in ("ns", "bytes")), 0.0)
    found |= {"kernel_ns": 0.0, "sync_ns": 0.0, "kernels": 0.0, "launches": 0.0}
    spans = []
    for event in done:
        kind, name, ns = event.get("cat"), event.get("name", ""), float(event["dur"]) * NS
        if kind == KERNEL:
            found["kernel_ns"] += ns
            found["kernels"] += 1
        elif kind == COPY:
            way = next((way for mark, way in WAYS.items() if mark in name), None)
            if way is not None:
                found[f"{way}_ns"] += ns
                found[f"{way}_bytes"] += float(event.get("args", {}).get("bytes", 0))
        elif kind in CALLS:
            found["sync_ns"] += ns if "Synchronize" in name else 0.0
            found["launches"] += "Launch" in name
        if kind in (KERNEL, COPY, SET):
            spans.append((float(event["ts"]) * NS, float(event["ts"]) * NS + ns))
    return found | {"busy_ns": covered(spans)}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Measure the part of the time line that at least one of ``spans`` covers."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
