"""Write a profile as one self-contained page: without network and libraries, for dark and light."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

import numpy as np

from . import charts
from .measure import OPENING, OURS
from .placements import PLAIN
from .report import cache_figures, loading, test_name

LEVELS = 7  # shades of heat; the first one means never used
_MIB = 2**20
_DASHES = ("", "d1", "d2", "d3")


def page(profile: dict[str, Any]) -> str:
    """Write the HTML of a profile in the form of ``profile.schema.json``."""
    name = profile["rows"][0]["model_filename"] if profile["rows"] else "nothing measured"
    cards = [*_speeds(profile), _time(profile), _latency(profile), _memory(profile), _memory_over_time(profile)]
    cards += [*_observed(profile), _tables(profile)]
    body = f"{_head(profile, name)}{_tiles(profile)}<div class='cards'>{''.join(cards)}</div>{_notes(profile)}"
    template = Path(__file__).with_name("page.html").read_text("utf-8")
    return Template(template).substitute(title=f"{escape(name)}: edgemoe profile", body=body)


def _style(placement: str) -> str:
    if placement == OURS:
        return "ours"
    return "p3" if "last" in placement else "plain"


def _head(profile: dict[str, Any], name: str) -> str:
    machine, rows = profile["machine"], profile["rows"]
    facts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['ram_bytes'] / 2**30:.0f} GiB RAM"]
    if rows:
        kind = f"{rows[0]['model_type']}, {rows[0]['model_size'] / 2**30:.2f} GiB"
        facts = [kind, *facts, f"device {rows[0]['gpu_info'] or 'none'}", f"{rows[0]['n_threads']} threads"]
        facts.append(rows[0]["test_time"].replace("T", " ").replace("Z", " UTC"))
    said = f"{profile['verdict']} {profile['suggestion']}".strip()
    early = f"<p class='verdict early'>Ended early: {escape(profile['stopped'])}. The finished tests are shown.</p>"
    return (
        f"<h1>{escape(name)}</h1><p class='soft'>{escape(' · '.join(facts))} · edgemoe {escape(profile['version'])}</p>"
        f"{early if profile['stopped'] else ''}<p class='verdict'>{escape(said)}</p>"
    )


def _tiles(profile: dict[str, Any]) -> str:
    found: list[tuple[str, str, str]] = []
    rows = profile["rows"]
    for row in rows:
        if row["placement"] != OURS or row["n_depth"] != rows[0]["n_depth"]:
            continue
        alike = [r for r in rows if r["placement"].startswith(PLAIN) and test_name(r) == test_name(row)]
        speed = median(row["samples_ts"])
        best = max((median(other["samples_ts"]) for other in alike), default=0.0)
        beside = f"{speed / best:.2f} x llama.cpp" if best else "alone"
        found.append((f"{'prefill' if row['n_prompt'] else 'decode'}, median t/s", f"{speed:.1f}", beside))
        if row["n_gen"]:
            found.append(("first token", f"{row['ttft_ms']:.0f} ms", f"{OPENING} tokens of prompt"))
            found.append(("between tokens", f"{row['itl_p50_ms']:.1f} ms", f"p99 {row['itl_p99_ms']:.1f} ms"))
            if cache := cache_figures(row):
                found.append(
                    ("hit rate", f"{cache['hit_rate']:.1%}", f"{cache['uploads_per_token']:.1f} uploads/token")
                )
    memory = profile["memory"]
    found.append(("in RAM", _mib(memory["resident_bytes"]), "the whole process"))
    if memory["device_used_bytes"]:
        found.append(("on the device", _mib(memory["device_used_bytes"]), "by its own count"))
    tile = "<div class='tile'><span class='soft'>{}</span><b>{}</b><span class='soft'>{}</span></div>"
    return f"<div class='tiles'>{''.join(tile.format(*map(escape, facts)) for facts in found)}</div>"


def _speeds(profile: dict[str, Any]) -> list[str]:
    cards = []
    for kind, heading in (("n_gen", "Decode"), ("n_prompt", "Prefill")):
        rows: dict[str, list[tuple[str, float, float, str]]] = {}
        for row in profile["rows"]:
            if row[kind]:
                style = _style(row["placement"])
                rows.setdefault(test_name(row), []).append((row["placement"], row["avg_ts"], row["stddev_ts"], style))
        if rows:
            svg = charts.bars(list(rows.items()), "t/s", f"{heading}, tokens per second")
            cards.append(_card(f"{heading}, tokens per second", svg, "Mean, whisker: standard deviation."))
    return cards


def _time(profile: dict[str, Any]) -> str:
    if not profile["time"]:
        return ""
    names = list(profile["time"][0]["ms"])
    rows = [
        (split["test"], [(name, ms, f"p{names.index(name) + 1}") for name, ms in split["ms"].items()])
        for split in profile["time"]
    ]
    svg = charts.stacks(rows, "ms", "Milliseconds per token by part")
    first = profile["time"][0]["ms"]
    legend = [(f"p{i + 1}", name, f"{charts.number(first[name])} ms") for i, name in enumerate(names)]
    return _card(
        "Where a token's time goes", svg, f"Milliseconds per token; figures: {profile['time'][0]['test']}.", legend
    )


def _latency(profile: dict[str, Any]) -> str:
    series = [s for s in profile["latency"] if s["itl_ms"]]
    if not series:
        return ""
    most = max(float(np.quantile(s["itl_ms"], 0.98)) for s in series) * 1.25
    plot = charts.Plot("time between tokens, ms", "share of tokens", most, 1.0, "y")
    tests = list(dict.fromkeys(s["test"] for s in series))
    legend = []
    for one in series:
        values = sorted(one["itl_ms"])
        points = [(min(v, most), (i + 1) / len(values)) for i, v in enumerate(values)]
        dash = _DASHES[tests.index(one["test"]) % len(_DASHES)]
        style = f"{_style(one['placement'])} {dash}"
        plot.line([(points[0][0], 0.0), *points], style)
        legend.append((f"line {style}", f"{one['placement']} {one['test']}", f"p95 {_quantile(values, 0.95)} ms"))
    return _card(
        "Latency, cumulative", plot.svg("Share of tokens by time"), "Slower tokens are drawn at the right edge.", legend
    )


def _memory(profile: dict[str, Any]) -> str:
    memory = profile["memory"]
    parts = [(part["what"], part["bytes"] / _MIB) for part in memory["resident"]]
    if not parts:
        return ""
    styled = [(what, size, f"p{i % 8 + 1}") for i, (what, size) in enumerate(parts)]
    svg = charts.stacks([("in RAM, part by part", styled)], "MiB", "Memory of the process by part")
    total, whole = sum(size for _, size in parts), memory["resident_bytes"] / _MIB
    about = f"Counted page by page: {total / whole:.1%} of the {whole:.0f} MiB that the system reports."
    return _card("What is in memory", svg, about, [(s, what, f"{size:.0f} MiB") for what, size, s in styled])


def _memory_over_time(profile: dict[str, Any]) -> str:
    spans = profile["spans"]
    if not spans:
        return ""
    zero = spans[0]["start_ns"]
    most = max(span["resident_bytes"] for span in spans)
    unit, name = (2**30, "GiB") if most >= 4 * 2**30 else (_MIB, "MiB")
    points = [((s["end_ns"] - zero) / 1e9, s["resident_bytes"] / unit) for s in spans]
    plot = charts.Plot("seconds", f"process in RAM, {name}", points[-1][0], most / unit * 1.1)
    for span in spans:
        if span["what"] in ("loading", "warm-up"):
            at = [(span[key] - zero) / 1e9 for key in ("start_ns", "end_ns")]
            plot.band(at[0], at[1], "load", f"{span['what']}: {span['placement']}")
    plot.line(points, "ours", marks=len(points) < 40)
    about = "After each step of the run. EdgeMoE's model is loaded first."
    legend = [("line ours", "process in RAM", ""), ("load", "a model loads or warms up", "")]
    return _card("Memory over time", plot.svg("Memory over time"), about, legend)


def _observed(profile: dict[str, Any]) -> list[str]:
    seen = profile["observed"]
    if not seen:
        return []
    any_hot = any(map(any, seen["resident"]))
    return [*([_layers(seen), _tokens(seen)] if any_hot else []), _curve(seen["curve"], seen), _maps(seen)]


def _layers(seen: dict[str, Any]) -> str:
    count = len(seen["hit_rate"])
    plot = charts.Plot("layer", "hit rate", count, 1.0, "y")
    for layer, (rate, bound) in enumerate(zip(seen["hit_rate"], seen["bound"], strict=True)):
        hint = f"layer {layer}: {rate:.1%}, optimum {bound:.1%}"
        plot.column(layer + 0.1, layer + 0.9, rate, "ours", hint)
        plot.line([(layer + 0.02, bound), (layer + 0.98, bound)], "p2")
    about = f"{seen['tokens']} tokens of decode. The optimum knows the future, but fetches nothing ahead of need."
    legend = [("ours", "hit rate", f"{np.mean(seen['hit_rate']):.1%}")]
    legend.append(("line p2", "Belady's optimum", f"{np.mean(seen['bound']):.1%}"))
    return _card("Hit rate of each layer", plot.svg("Hit rate of each layer beside the optimum"), about, legend)


def _tokens(seen: dict[str, Any]) -> str:
    steps = seen["steps"]
    rates = [step["hits"] / max(step["hits"] + step["misses"], 1) for step in steps]
    plot = charts.Plot("token", "hit rate", max(len(steps) - 1, 1), 1.0, "y")
    plot.line(list(enumerate(rates)), "ours")
    up = sum(step["upload_bytes"] for step in steps) / _MIB
    about = f"All layers together, after the measurements; {up:.0f} MiB of experts were moved meanwhile."
    return _card("Hit rate, token by token", plot.svg("Hit rate of each token"), about)


def _curve(curve: dict[str, Any], seen: dict[str, Any]) -> str:
    if not curve:
        return ""
    plot = charts.Plot("resident share of the experts", "hit rate", 1.0, 1.0, "xy")
    experts = len(seen["heat"][0])
    knee = curve["knee"]
    plot.upright(knee["slots"] / experts, f"knee: {knee['slots']} of {experts}, {knee['hit_rate']:.0%}")
    legend = []
    for key, name, style in (
        ("belady", "optimum on demand", "p2 d2"), ("adaptive", "ours, on demand", "ours"), ("lru", "LRU", "p3 d1")
    ):  # fmt: skip
        plot.line([(point["share"], point[key]) for point in curve["points"]], style, marks=key == "adaptive")
        legend.append((f"line {style}", name, ""))
    about = f"Routing of {curve['tokens']} tokens replayed; the first use of each expert is left out."
    return _card("Hit rate by cache size", plot.svg("Hit rate by cache size, with the knee"), about, legend)


def _maps(seen: dict[str, Any]) -> str:
    heat = np.array(seen["heat"])
    most = max(float(heat.max()), 1.0)
    levels = np.where(heat > 0, np.clip(np.ceil(np.sqrt(heat / most) * (LEVELS - 1)), 1, LEVELS - 1), 0).astype(int)
    shades = [(f"c{i}", "", "") for i in range(LEVELS)]
    shades[0], shades[-1] = ("c0", "never", ""), (f"c{LEVELS - 1}", f"{most:.0f} uses", "")
    hot = int(np.sum(seen["resident"]))
    used = charts.cells(levels.tolist(), "Uses by layer and expert", LEVELS)
    where = charts.cells(seen["resident"], "Hot experts by layer and expert", 2)
    data = "".join(
        f'<script type="application/json" id="{name}">{json.dumps(values)}</script>'
        for name, values in (("heat", heat.astype(int).tolist()), ("hot", seen["resident"]))
    )
    about = "Since the model was loaded, prefill included. Shades rise with the square root of the uses."
    two = _card("How often each expert was used", _axes(used, heat.shape), about, shades)
    legend = [("c1", "hot: on the device", str(hot)), ("c0", "cold: in RAM", str(heat.size - hot))]
    two += _card("Where each expert is", _axes(where, heat.shape), "At the end of the run.", legend, "places")
    return f"<div class='maps'>{two}</div>{data}"


def _axes(svg: str, shape: tuple[int, ...]) -> str:
    layers, experts = shape
    return (
        f"<div class='map' style='--rows:{layers}'><span class='ylabel'>layer</span>"
        f"<span class='ends'><span>0</span><span>{layers - 1}</span></span>{svg}"
        f"<span class='xs'><span>0</span><span>expert</span><span>{experts - 1}</span></span></div>"
    )


def _tables(profile: dict[str, Any]) -> str:
    speeds = []
    for row in profile["rows"]:
        cache = cache_figures(row)
        latencies = [
            f"{row[k]:.1f}" if row["n_gen"] else "" for k in ("ttft_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms")
        ]
        speed = f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"
        speeds.append(
            [row["placement"], test_name(row), speed, *latencies, f"{cache['hit_rate']:.1%}" if cache else ""]
        )
    header = ["placement", "test", "t/s", "first token, ms", "p50, ms", "p95, ms", "p99, ms", "hit rate"]
    cards = _card("All rows", _table(header, speeds, 2), "", extra="wide") if speeds else ""
    lines = [
        [a["tier"], a["what"], f"{a['bytes'] / _MIB:,.0f}".replace(",", " ")] for a in profile["memory"]["allocated"]
    ]
    about = "As the allocating part reports it. Pages that were never touched are not in RAM."
    if used := profile["memory"]["device_used_bytes"]:
        about += f" The device itself counts {used / _MIB:.0f} MiB in use, other programs included."
    return cards + _card(
        "Memory that was allocated", _table(["tier", "what", "MiB"], lines, 2), about, extra="wide memory"
    )


def _notes(profile: dict[str, Any]) -> str:
    lines = [*profile["notes"], loading(profile)]
    return "".join(f"<p class='soft' style='margin-top:12px'>{escape(line)}</p>" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        styled = ("" if i < texts else " class='n'" for i in range(len(cells)))
        return "".join(f"<{tag}{style}>{escape(cell)}</{tag}>" for cell, style in zip(cells, styled, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{line('th', header)}</tr>{body}</table></div>"


def _card(heading: str, inside: str, about: str, legend: Sequence[tuple[str, str, str]] = (), extra: str = "") -> str:
    """Write one figure. An entry of its legend has a class, a name and a value."""
    keys = "".join(
        f"<li>{_key(style)}<span>{escape(name)} <b>{escape(value)}</b></span></li>" for style, name, value in legend
    )
    listed = f"<ul class='legend'>{keys}</ul>" if keys else ""
    caption = f"<figcaption>{escape(about)}</figcaption>" if about else ""
    return f"<figure class='card {extra}'><h2>{escape(heading)}</h2>{caption}{inside}{listed}</figure>"


def _key(style: str) -> str:
    if style.startswith("line"):
        return f'<svg viewBox="0 0 22 10"><polyline class="{style}" points="0,5 22,5"/></svg>'
    return f'<svg viewBox="0 0 22 10"><rect class="{style}" width="22" height="10" rx="2"/></svg>'


def _quantile(values: Sequence[float], share: float) -> str:
    return charts.number(float(np.quantile(values, share)))


def _mib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / _MIB:.0f} MiB"
