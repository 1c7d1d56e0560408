"""Write a profile as text: Markdown for people, JSON, JSON lines and CSV for programs.

All forms are made from the form of ``profile.schema.json``, so a saved file can be shown again.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from ..text.console import table

_MIB = 2**20
_LATENCIES = ("ttft_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms")


def as_json(profile: dict[str, Any]) -> str:
    """Write the whole profile as JSON."""
    return json.dumps(profile, indent=1)


def as_jsonl(profile: dict[str, Any]) -> str:
    """Write the rows as JSON, one per line."""
    return "\n".join(json.dumps(row) for row in profile["rows"])


def as_csv(profile: dict[str, Any]) -> str:
    """Write the rows as CSV in llama-bench's form, without nested figures."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in profile["rows"]]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]) if flat else [])
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue().rstrip("\n")


def as_markdown(profile: dict[str, Any]) -> str:
    """Write tables and a verdict as Markdown."""
    rows = profile["rows"]
    parts = []
    if rows:
        parts.append(table(["model", "size", "placement", "threads", "test", "t/s"], [_speed(row) for row in rows]))
    parts += [_latency(rows), *map(_time, profile["time"]), _cache(rows)]
    lines = [[a["tier"], a["what"], f"{a['bytes'] / _MIB:.0f}"] for a in profile["memory"]["allocated"]]
    if used := profile["memory"]["device_used_bytes"]:
        lines.append(["", "in use, as the device counts it, with other programs", f"{used / _MIB:.0f}"])
    parts += [table(["allocated in", "what", "MiB"], lines, texts=2), _resident(profile["memory"])]
    parts += [loading(profile)]
    parts += [f"Note: {note}" for note in profile["notes"]]
    if profile["stopped"]:
        parts.append(f"Ended early ({profile['stopped']}): these are the repetitions that were finished.")
    return "\n\n".join(part for part in (*parts, profile["verdict"], profile["suggestion"]) if part)


def loading(profile: dict[str, Any]) -> str:
    """Describe the loading time of each placement, and its speed right after the load."""
    first = {name: [f"{name} {ms:.0f} ms"] for name, ms in profile["load_ms"].items()}
    for cold in profile["cold"]:
        first[cold["placement"]].append(f"{cold['test']} {cold['ts']:.2f} t/s")
    return f"Loading, then the first prompt and tokens (cold): {'; '.join(', '.join(f) for f in first.values())}."


def test_name(row: dict[str, Any]) -> str:
    """Give llama-bench's name of the test of a row."""
    kind = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
    return kind + (f" @ d{row['n_depth']}" if row["n_depth"] else "")


def cache_figures(row: dict[str, Any]) -> dict[str, float] | None:
    """Compute the figures of the cache for a row of EdgeMoE; None if no expert was resident or counted."""
    counts = row["cache"]
    if not counts or not counts["slots"]:
        return None
    kind = "prefill_" if row["n_prompt"] else ""
    hits = counts[f"{kind}hits"]
    uses = hits + counts[f"{kind}misses"] + (counts["prefill_streamed"] if kind else 0)
    tokens = len(row["samples_ns"]) * (row["n_prompt"] or row["n_gen"])
    prefetch = {what: counts[f"prefetch_{what}"] for what in ("useful", "late", "wasted")}
    return {"hit_rate": hits / max(uses, 1), "uploads_per_token": counts["uploads"] / max(tokens, 1), **prefetch}


def _speed(row: dict[str, Any]) -> list[str]:
    speed = f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"
    size = f"{row['model_size'] / 2**30:.2f} GiB"
    return [row["model_type"], size, row["placement"], str(row["n_threads"]), test_name(row), speed]


def _latency(rows: list[dict[str, Any]]) -> str:
    lines = [
        [f"{row['placement']} {test_name(row)}", *(f"{row[k]:.1f}" for k in _LATENCIES)] for row in rows if row["n_gen"]
    ]
    return table(["latency, ms", "first token", "p50", "p95", "p99"], lines) if lines else ""


def _time(split: dict[str, Any]) -> str:
    whole = split["token_ms"]
    lines = [[name, f"{ms:.2f}", f"{ms / whole:.0%}"] for name, ms in split["ms"].items()]
    total = sum(split["ms"].values())
    lines += [["sum", f"{total:.2f}", f"{total / whole:.0%}"], ["by the clock", f"{whole:.2f}", "100%"]]
    return table([f"one token of {split['test']}", "ms", "share"], lines)


def _cache(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        if found := cache_figures(row):
            shown = [f"{found['hit_rate']:.3f}", f"{found['uploads_per_token']:.1f}"]
            lines.append([test_name(row), *shown, *(f"{found[what]:.0f}" for what in ("useful", "late", "wasted"))])
    return table(["cache", "hit rate", "uploads/token", "useful", "late", "wasted"], lines) if lines else ""


def _resident(memory: dict[str, Any]) -> str:
    """List the bytes in RAM beside the system's own count. If the system does not report pages, say so."""
    if not memory["resident"]:
        return f"The process has {memory['resident_bytes'] / _MIB:.0f} MiB in RAM; this system does not list the parts."
    found = [(part["what"], part["bytes"]) for part in memory["resident"]]
    found += [("sum", sum(size for _, size in found)), ("as the system counts it (RSS)", memory["resident_bytes"])]
    if memory["plain_bytes"]:
        found.append(("llama.cpp, when it loaded the model too", memory["plain_bytes"]))
    found.append(("free", memory["free_bytes"]))
    return table(["in RAM", "MiB"], [[what, f"{size / _MIB:.0f}"] for what, size in found])
