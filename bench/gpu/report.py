"""Report a run: `edgemoe profile`'s own record for each model and budget, and one Markdown page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from edgemoe.models.gguf import check
from edgemoe.profiling import Test, figures, memory
from edgemoe.profiling.measure import Result, Samples
from edgemoe.text.console import table

from . import cells, verdicts
from .cells import Cell, Contender
from .journal import Entry, Journal
from .session import Model

MIB = 2**20
DEVICE_HEADER = [
    "budget", "test", "placement", "token, ms", "device busy", "kernels", "CPU in sync", "to device", "to host",
    "kernels, number", "launches",
]  # fmt: skip
DEVICE_NOTE = (
    "Recorded by CUPTI in one more repetition, which it slows down; ms a token. Busy: anything ran on the device."
)
LIMITS = {
    "dense": "weights beside the experts / the bandwidth; on a GPU it is only handed over here, and waited for in join",
    "cold": "misses that the CPU computes x bytes of an expert / its bandwidth",
    "join": "weights beside the experts and hits / the device's bandwidth",
    "launch": "no bytes: graphs started, copies begun",
    "scheduler": "no bytes",
    "sync": "no bytes: the last wait, logits, the choice of a token",
}


def records(journal: Journal, scope: cells.Scope, model: Model, threads: int, build: str) -> Iterator[tuple[str, Any]]:
    """Give the name and the contents of a profile for each budget with samples."""
    for share in sorted(scope.shares):
        result = _result(journal, scope, model, share, threads, build)
        if result.samples:
            yield f"profile-{model.name}-{share:g}.json", figures.as_dict(result)


def _result(journal: Journal, scope: cells.Scope, model: Model, share: float, threads: int, build: str) -> Result:
    found: list[Samples] = []
    for cell in cells.cells(scope):
        if (cell.model, cell.share, cell.kind) != (model.name, share, cells.STEADY):
            continue
        for contender in cell.contenders:
            entries = journal.of("sample", cell=cell.key, contender=contender.name)
            if entries:
                found.append(_samples(_title(journal, model.name, contender), cell.test, entries))
    opened = {e["contender"]: e for e in journal.of("opened", model=model.name)}
    ours = opened.get(Contender(cells.OURS, share).name, {})
    names = {c.name: c for c in cells.contenders(scope, share)}
    loads = {_title(journal, model.name, c): opened[n]["load_s"] * 1e3 for n, c in names.items() if n in opened}
    return Result(
        check(model.path), threads, scope.device, found, loads, {}, ours.get("slot_bytes", 0), ours.get("slots", 0),
        memory.Account.nothing(), 0, ours.get("stage_bytes", 0), ours.get("device_bytes"),
        [*model.marks, *ours.get("notes", [])], build=build,
    )  # fmt: skip


def _title(journal: Journal, model: str, contender: Contender) -> str:
    """Give the placement's name, with the number of layers in place of ``last N``."""
    opened = journal.of("opened", model=model, contender=contender.name)
    if contender.placement == cells.LAST and opened:
        return cells.LAST.replace("N", str(opened[-1]["whole_layers"]))
    return contender.placement


def _samples(placement: str, test: Test, entries: Sequence[Entry]) -> Samples:
    """Join all repetitions."""
    from edgemoe.profiling.measure import GAUGES

    whole = Samples(placement, test)
    for entry in entries:
        for name in ("ns", "first_ns", "between_ns"):
            getattr(whole, name).extend(entry[name])
        for name in ("computing_ns", "sampling_ns", "scheduler_ns"):
            setattr(whole, name, getattr(whole, name) + entry[name])
        if (stats := entry["stats"]) is not None:
            old = whole.stats or dict.fromkeys(stats, 0)
            whole.stats = {name: stats[name] if name in GAUGES else old[name] + stats[name] for name in stats}
    return whole


def page(journal: Journal, scope: cells.Scope, models: Sequence[Model], head: Sequence[str]) -> str:
    """Write the whole page: device and machine, speeds, parts of a token beside their limits, memory, bars."""
    parts = ["\n".join(head), *cells.missing_rows(scope.device)]
    for model in models:
        speeds = _speeds(journal, scope, model.name)
        if not speeds:
            continue
        parts += [f"### {model.name}", "\n".join(model.marks)]
        header = ["budget", "test", "state", "placement", "median t/s", "min .. max", "n", "ms", "ours is"]
        parts += [
            table(header, speeds, texts=4),
            "ms: of a token, or of the whole prompt, which is the time to its first token.",
        ]
        parts += [text for share in sorted(scope.shares) if (text := _token(journal, scope, model.name, share))]
        if rows := _device_rows(journal, scope, model.name):
            parts += [table(DEVICE_HEADER, rows, texts=3), DEVICE_NOTE]
        if held := _held(journal, model.name):
            parts.append(table(["device memory, MiB", "experts", "staging", "all, as the device counts"], held))
    failed = [f"- {e['model']}, {e['contender']}: {e['words']}" for e in journal.of("failed")]
    if failed:
        parts += ["### What did not run", "\n".join(failed)]
    judged = [f"- {line.result}: {line.bar}: {line.figure}" for line in verdicts.lines(journal, scope)]
    return "\n\n".join(part for part in [*parts, "### Bars", "\n".join(judged)] if part) + "\n"


def _speeds(journal: Journal, scope: cells.Scope, model: str) -> list[list[str]]:
    rows = []
    for cell in sorted(cells.cells(scope), key=lambda c: (c.model, c.share, c.kind, c.test.name)):
        if cell.model != model:
            continue
        ours = cell.contenders[0]
        for contender in cell.contenders:
            entries = journal.of("sample", cell=cell.key, contender=contender.name)
            if entries:
                rows.append(_speed(journal, cell, contender, ours, entries))
    return rows


def _speed(journal: Journal, cell: Cell, contender: Contender, ours: Contender, entries: Sequence[Entry]) -> list[str]:
    tokens = cell.test.prompt or cell.test.generate
    speeds = [tokens / e["ns"][0] * 1e9 for e in entries]
    took = median(e["ns"][0] for e in entries) / 1e6 / (cell.test.generate or 1)
    name = _title(journal, cell.model, contender) if not contender.ours else contender.name
    found = verdicts.ratio(journal, cell, ours, contender) if contender != ours else None
    spread = f"{min(speeds):.2f} .. {max(speeds):.2f}"
    shown = f"{found.middle:.3f} x" if found else ""
    return [
        f"{cell.share:g} %",
        cell.test.name,
        cell.kind,
        name,
        f"{median(speeds):.2f}",
        spread,
        str(len(speeds)),
        f"{took:.2f}",
        shown,
    ]


def _token(journal: Journal, scope: cells.Scope, model: str, share: float) -> str:
    """Split the time of a token into parts, each beside the time to read its bytes."""
    cell, ours = Cell(model, share, Test(generate=scope.generate), ()), Contender(cells.OURS, share)
    samples = journal.of("sample", cell=cell.key, contender=ours.name)
    if not samples:
        return ""
    parts, whole = verdicts.parts_ms(samples), verdicts.token_ms(samples)
    floor = limits_ms(journal, model, samples, scope.device)
    rows = [
        [name, f"{ms:.3f}", f"{floor[name]:.3f}" if name in floor else "", LIMITS[name]] for name, ms in parts.items()
    ]
    rows.append(["unexplained", f"{whole - sum(parts.values()):.3f}", "", ""])
    rows.append(["by the clock", f"{whole:.3f}", "", ""])
    rows += [[f"beside it: {name}", f"{ms:.3f}", f"{least:.3f}" if least else "", why] for name, ms, least, why in
             _beside(journal, model, samples, scope.device)]  # fmt: skip
    return table([f"one token at {share:g} %, ms", "measured", "limit", "terms of the limit"], rows)


def limits_ms(journal: Journal, model: str, samples: Sequence[Entry], device: str) -> dict[str, float]:
    """Compute the least milliseconds of a token's parts: bytes divided by ggml's bandwidth on this machine."""
    rates, size = _rates(journal, model)
    if not rates or not size:
        return {}
    tokens, expert = sum(len(s["between_ns"]) for s in samples), size["expert"]
    misses, hits, fetched = (sum(s["stats"][w] for s in samples) / tokens for w in ("misses", "hits", "fetched"))
    found = {}
    dense = rates.get("device_dense_rate" if device not in cells.WITHOUT_GPU else "cpu_dense_rate")
    if dense and device in cells.WITHOUT_GPU:
        found["dense"] = size["dense"] / dense * 1e3
    if cpu := rates.get("cpu_expert_rate"):
        found["cold"] = (misses - fetched) * expert / cpu * 1e3
    if gpu := rates.get("device_rate"):
        beside = size["dense"] / dense if dense and device not in cells.WITHOUT_GPU else 0.0
        found["join"] = (hits * expert / gpu + beside) * 1e3
    return found


def _beside(
    journal: Journal, model: str, samples: Sequence[Entry], device: str
) -> Iterator[tuple[str, float, float, str]]:
    """List the parts that run beside the other parts. They are not in the sum."""
    rates, size = _rates(journal, model)
    tokens = sum(len(s["between_ns"]) for s in samples)
    each = {what: sum(s["stats"][what] for s in samples) / tokens for what in ("device_ns", "hits", "upload_bytes")}
    gpu, link = (rates.get(name, 0.0) for name in ("device_rate", "upload_pinned_rate"))
    hot = each["hits"] * size["expert"] / gpu * 1e3 if gpu and size else 0.0
    if each["device_ns"] and device in cells.WITHOUT_GPU:
        yield "hot", each["device_ns"] / 1e6, hot, "hits x bytes / the device's bandwidth"
    if link and each["upload_bytes"]:
        copied = each["upload_bytes"] / link * 1e3
        yield "copy", float("nan"), copied, f"{each['upload_bytes'] / MIB:.1f} MiB uploaded / the link's bandwidth"


def _device_rows(journal: Journal, scope: cells.Scope, model: str) -> list[list[str]]:
    """List the device's own events of a token."""
    rows = []
    for cell in cells.cells(scope):
        for contender in cell.contenders if cell.model == model and cell.kind == cells.STEADY else ():
            for told in journal.of("events", cell=cell.key, contender=contender.name)[-1:]:
                tokens = told["tokens"]
                times = [told[name] / tokens / 1e6 for name in ("clock_ns", "busy_ns", "kernel_ns", "sync_ns")]
                copies = [
                    f"{told[f'{way}_ns'] / tokens / 1e6:.3f} ({told[f'{way}_bytes'] / tokens / MIB:.2f} MiB)"
                    for way in ("to_device", "to_host")
                ]
                name = contender.name if contender.ours else _title(journal, model, contender)
                counts = [f"{told[what] / tokens:.0f}" for what in ("kernels", "launches")]
                rows.append(
                    [f"{cell.share:g} %", cell.test.name, name, *(f"{ms:.3f}" for ms in times), *copies, *counts]
                )
    return rows


def _rates(journal: Journal, model: str) -> tuple[dict[str, float], dict[str, float]]:
    rates, sizes = journal.of("rates", model=model), journal.of("size", model=model)
    return (rates[-1]["rates"] if rates else {}), (sizes[-1] if sizes else {})


def _held(journal: Journal, model: str) -> list[list[str]]:
    opened = {e["contender"]: e for e in journal.of("opened", model=model)}
    return [
        [name, *(f"{e[what] / MIB:.0f}" if what in e else "" for what in ("slot_bytes", "stage_bytes", "device_bytes"))]
        for name, e in opened.items()
    ]


def write(folder: Path, journal: Journal, scope: cells.Scope, models: Sequence[Model], head: Sequence[str],
          threads: int, build: str) -> Path:  # fmt: skip
    """Write the profiles of the models with files, and the page, into ``folder``; return the page's path."""
    for model in (m for m in models if m.path.exists()):
        for name, record in records(journal, scope, model, threads, build):
            (folder / name).write_text(json.dumps(record, indent=1))
    path = folder / "table.md"
    path.write_text(page(journal, scope, models, head))
    return path


def now() -> str:
    """Give the date and time of a run."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
