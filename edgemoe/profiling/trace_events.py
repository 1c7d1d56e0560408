"""Write a profile as Chrome trace events, which Perfetto and chrome://tracing open.

A decode step is measured by its begin, its end, and the time of each part summed over the layers. The span of a part
shows this sum and begins with the step; the name of its track says so. The order of the layers inside a step is
neither measured nor shown.
"""

from __future__ import annotations

from typing import Any

STEPS = 16  # number of steps at the end of the observation that are shown
RUN, DECODE = 1, 2  # process ids of the two groups of tracks
SUMS = {
    3: ("device stream: hot pairs (sum over layers)", "hot pairs", "device_ns"),
    4: ("CPU workers: cold pairs (sum over layers)", "cold pairs", "cpu_ns"),
    5: ("joins: the CPU waits for the device (sum over layers)", "waiting", "join_ns"),
    6: ("expert layers, whole (sum over layers)", "expert layers", "moe_ns"),
}
_ABOUT = (
    "Times are microseconds of one clock. Spans of tracks named 'sum over layers' are as long as the sum of all layers "
    "in their step and begin with it: the order inside a step is not measured. Uploads are marks at the end of the "
    "step in which they arrived: when each one ran is not measured."
)


def trace(profile: dict[str, Any]) -> dict[str, Any]:
    """Make the trace events of a profile in the form of ``profile.schema.json``: the run, and its last decode steps."""
    seen = profile["observed"]
    steps = seen["steps"][-STEPS:] if seen else []
    starts = [span["start_ns"] for span in profile["spans"]] + [step["start_ns"] for step in steps]
    zero = min(starts, default=0)
    events = _names() + [_span(RUN, 1, f"{s['what']}: {s['placement']}", s, zero) for s in profile["spans"]]
    events += [
        _counter(RUN, "process in RAM", span["end_ns"] - zero, {"MiB": span["resident_bytes"] / 2**20})
        for span in profile["spans"]
    ]
    for number, step in enumerate(steps):
        events += _step(number, step, zero)
    events.sort(key=lambda event: (event["ph"] != "M", event.get("ts", 0.0)))
    about = {"tool": f"edgemoe {profile['version']}", "about": _ABOUT, "cpu": profile["machine"]["cpu"]}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _names() -> list[dict[str, Any]]:
    threads = {(RUN, 1): "measurements", (DECODE, 1): "decode steps", (DECODE, 2): "copy stream: experts that arrived"}
    threads |= {(DECODE, tid): name for tid, (name, _, _) in SUMS.items()}
    named = [("process_name", RUN, 0, "the whole run"), ("process_name", DECODE, 0, "decode steps under observation")]
    named += [("thread_name", pid, tid, name) for (pid, tid), name in threads.items()]
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}} for kind, pid, tid, name in named
    ]
    order = [(pid, tid) for pid, tid in threads]
    return events + [
        {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
        for pid, tid in order
    ]


def _step(number: int, step: dict[str, int], zero: int) -> list[dict[str, Any]]:
    start = step["start_ns"]
    computed, end = start + step["computing_ns"], start + step["computing_ns"] + step["sampling_ns"]
    shown = {name: step[name] for name in ("hits", "misses", "uploads", "upload_bytes")}
    events = [
        _complete(1, f"token {number}", start - zero, end - start, shown),
        _complete(1, "llama_decode", start - zero, step["computing_ns"] - step["scheduler_ns"], {}),
        _complete(1, "policy and predictor", computed - step["scheduler_ns"] - zero, step["scheduler_ns"], {}),
        _complete(1, "logits and sampling", computed - zero, step["sampling_ns"], {}),
    ]
    for tid, (_, name, key) in SUMS.items():
        events.append(_complete(tid, name, start - zero, step[key], {"sum_over_layers_ms": step[key] / 1e6}))
    if step["uploads"]:
        what = f"{step['uploads']} experts, {step['upload_bytes'] / 2**20:.1f} MiB"
        events.append({"ph": "i", "s": "t", "name": what, "pid": DECODE, "tid": 2, "ts": (end - zero) / 1e3})
    uses = max(step["hits"] + step["misses"], 1)
    events.append(_counter(DECODE, "hit rate", start - zero, {"share": step["hits"] / uses}))
    events.append(_counter(DECODE, "bytes up", start - zero, {"MiB": step["upload_bytes"] / 2**20}))
    events.append(_counter(DECODE, "experts", start - zero, {"resident": step["resident"], "pending": step["pending"]}))
    return events


def _span(pid: int, tid: int, name: str, span: dict[str, Any], zero: int) -> dict[str, Any]:
    start, length = span["start_ns"] - zero, span["end_ns"] - span["start_ns"]
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": start / 1e3, "dur": length / 1e3}


def _complete(tid: int, name: str, start: int, length: int, shown: dict[str, Any]) -> dict[str, Any]:
    found = {"ph": "X", "name": name, "pid": DECODE, "tid": tid, "ts": start / 1e3, "dur": max(length, 0) / 1e3}
    return found | ({"args": shown} if shown else {})


def _counter(pid: int, name: str, at: int, values: dict[str, float]) -> dict[str, Any]:
    return {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": at / 1e3, "args": values}
