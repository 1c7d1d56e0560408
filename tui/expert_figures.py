"""The figures of the experts panel in words and bars, in one grid. Pure; the clock comes in as an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from textual.content import Content

from edgemoe.text.display import count, percent, seconds, size
from edgemoe.types import BoolArray, ExpertStats, FloatArray, ModelShape

from .balance import balance, rank
from .braille import area, columns
from .expert_map import Spot
from .records import ExpertMaps

LABEL, FIGURE, SCALE = 9, 12, 6  # characters of the columns
_WIDE, _LEAST_WIDE = 96, 70  # characters from which two graphs stand side by side, and where lines are dear
_LEAST_BAR, _WIDEST_BAR = 8, 40
_GUTTER = 3
_LOW_HIT = 0.5  # the graph of hit rates begins here
_SHADES = ("45%", "60%", "75%", "90%", "100%")  # of a graph's columns, from low to high
_WINDOW_SECONDS = 2.0  # the rate of the link is a mean over this
_SAMPLES = 256
_LEAST_NS = 1_000_000  # a look at the clock is no finer


class Traffic:
    """Bytes over the link to the device, as samples of a counter that only grows."""

    def __init__(self) -> None:
        """Nothing has moved."""
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def add(self, total_bytes: int, now_s: float) -> None:
        """The counter reads ``total_bytes`` at ``now_s``."""
        self._samples.append((now_s, total_bytes))

    def rates(self) -> list[float]:
        """Bytes per second between neighbouring samples, oldest first."""
        pairs = zip(self._samples, list(self._samples)[1:], strict=False)
        return [max(now - before, 0) / (end - begin) for (begin, before), (end, now) in pairs if end > begin]

    def rate(self) -> float:
        """Bytes per second of late."""
        if len(self._samples) < 2:
            return 0.0
        end, now = self._samples[-1]
        recent = [sample for sample in self._samples if end - sample[0] <= _WINDOW_SECONDS]
        begin, before = recent[0] if len(recent) > 1 else self._samples[-2]
        return max(now - before, 0) / (end - begin) if end > begin else 0.0


@dataclass(frozen=True)
class TokenTime:
    """The milliseconds of a mean decoded token: ``dense`` outside of the expert layers, and in these the CPU at
    ``cold`` experts, the ``wait`` for the device, and all ``other`` work.
    """

    dense: float
    cold: float
    wait: float
    other: float

    @property
    def total(self) -> float:
        """The whole token."""
        return self.dense + self.cold + self.wait + self.other

    @classmethod
    def between(cls, before: ExpertStats, now: ExpertStats, elapsed_s: float) -> TokenTime | None:
        """Compare two samples of an answer; None where they hold a prompt, or no token."""
        tokens, prompt = now.tokens - before.tokens, _prompt_pairs(now) - _prompt_pairs(before)
        decoded = now.hits + now.misses - before.hits - before.misses
        if tokens <= 0 or prompt or decoded <= 0 or elapsed_s * 1e9 < _LEAST_NS:
            return None
        moe, cold, wait = (now.moe_ns - before.moe_ns, now.cpu_ns - before.cpu_ns, now.join_ns - before.join_ns)
        parts = (elapsed_s * 1e9 - moe, cold, wait, moe - cold - wait)
        dense, cold_ms, wait_ms, other = (max(ns, 0) / tokens / 1e6 for ns in parts)
        return cls(dense, cold_ms, wait_ms, other)


def _prompt_pairs(stats: ExpertStats) -> int:
    return stats.prefill_hits + stats.prefill_streamed + stats.prefill_misses


@dataclass
class Sample:
    """All that the figures are made of.

    Attributes:
        stats: counters.
        shape: of the model's experts, None without any.
        hit_rates: of late, oldest first.
        traffic: over the link.
        in_ram: share of the expert bytes in RAM, None where nobody tells.
        token: time of a token, None before one was decoded.
    """

    stats: ExpertStats = field(default_factory=ExpertStats)
    shape: ModelShape | None = None
    hit_rates: Sequence[float] = ()
    traffic: Traffic = field(default_factory=Traffic)
    in_ram: float | None = None
    token: TokenTime | None = None


Room = Literal["low", "usual", "high"]  # of a panel: two lines of figures, all figures, graphs of two lines


def figures(sample: Sample, width: int, room: Room = "usual", shades: bool = True) -> list[Content]:
    """Give the lines for a panel of ``width`` characters; ``shades`` if the terminal has shades of its colours."""
    stats = sample.stats
    fastest = max(sample.traffic.rates(), default=0.0)
    top = _round_up(fastest)
    hit = percent(stats.hit_rate) if stats.hits + stats.misses else "–"
    hits = [(value - _LOW_HIT) / (1 - _LOW_HIT) for value in sample.hit_rates]
    moved = [value / top if top else 0.0 for value in sample.traffic.rates()]
    beside = width >= (_LEAST_WIDE if room == "low" else _WIDE)
    height, half = 2 if room == "high" else 1, (width - _GUTTER) // 2 if beside else width
    first = _graph("hit rate", hit, hits, (percent(1.0), percent(_LOW_HIT)), half, height, shades)
    link = f"{size(sample.traffic.rate())}/s"
    second = _graph("link", link, moved, (_short(top), "0" if top else ""), half, height, shades)
    if beside:
        lines = [_beside(left, right, width) for left, right in zip(first, second, strict=True)]
    else:
        lines = [*first, *second]
    device, ram, *disk = _places(sample, width)
    if room == "low":
        return [*lines, device, *disk]
    return [*lines, device, ram, *disk, *_token(sample.token, width, shades), *_moves(stats, width)]


def _round_up(per_second: float) -> float:
    """Give the end of the link's scale: the next power of two, so that it seldom changes."""
    return float(2 ** int(np.ceil(np.log2(per_second)))) if per_second > 0 else 0.0


def _short(per_second: float) -> str:
    for unit, factor in (("G", 2**30), ("M", 2**20)):
        if per_second >= factor:
            return f"{per_second / factor:.0f}{unit}/s"
    return "1M/s" if per_second else ""


def _graph(
    label: str, figure: str, values: Sequence[float], ends: tuple[str, str], width: int, height: int, shades: bool
) -> list[Content]:
    """Draw a graph with its figure, and the ends of its scale at its right."""
    room = max(width - LABEL - FIGURE - SCALE, 0)
    rows = area(values, room, height)
    lines = []
    for number, row in enumerate(rows):
        head = (f"{label:<{LABEL}}", "$muted") if number == 0 else " " * LABEL
        value = (f"{figure:<{FIGURE}}", "bold $primary") if number == 0 else " " * FIGURE
        end = ends[0] if number == 0 else ends[1]
        lines.append(Content.assemble(head, value, _shaded(row, values, room, shades), (f"{end:>{SCALE}}", "$muted")))
    return lines


def _shaded(row: str, values: Sequence[float], room: int, shades: bool) -> Content:
    if not shades:
        return Content.styled(row, "$map-hot")
    shown = columns(values, room)
    steps = []
    for first, second in zip(shown[::2], shown[1::2], strict=True):
        step = min(int(max(first or 0, second or 0, 0) * len(_SHADES)), len(_SHADES) - 1)
        steps.append(f"$map-hot {_SHADES[step]}")
    parts: list[tuple[str, str]] = []
    for mark, step_name in zip(row, steps, strict=True):
        if parts and parts[-1][1] == step_name:
            parts[-1] = (parts[-1][0] + mark, step_name)
        else:
            parts.append((mark, step_name))
    return Content.assemble(*parts)


def _places(sample: Sample, width: int) -> list[Content]:
    """Tell where the experts are: on the device, in RAM, on the disk."""
    stats, shape = sample.stats, sample.shape
    total = shape.layers * shape.experts if shape else 0
    total_bytes = sum(shape.expert_bytes) * shape.experts if shape else 0
    here = 1.0 if sample.in_ram is None else sample.in_ram
    hot = stats.resident / total if total else 0.0
    resident, missing = f"{count(stats.resident)} of {count(total)}", size(round((1 - here) * total_bytes))
    rows = [
        ("device", hot, (f"{resident} · {size(stats.slot_bytes)}", resident), "$map-hot"),
        ("RAM", here if total else 0.0, (size(round(here * total_bytes)),), "$map-cool"),
    ]
    if here < 1.0:
        rows.append(("disk", 1 - here, (f"{missing} only there: slow", missing), "$error"))
    most = width - LABEL - FIGURE - _LEAST_BAR - 2
    told = [next((words for words in choices if len(words) <= most), choices[-1]) for _, _, choices, _ in rows]
    room = min(max(width - LABEL - FIGURE - max(map(len, told)) - 2, _LEAST_BAR), _WIDEST_BAR)
    return [_bar(label, share, words, ink, room) for (label, share, _, ink), words in zip(rows, told, strict=True)]


def _bar(label: str, share: float, words: str, ink: str, room: int) -> Content:
    full = round(share * room)
    if 0 < share < 1:  # neither full nor empty unless it is
        full = min(max(full, 1), room - 1)
    return Content.assemble(
        (f"{label:<{LABEL}}", "$muted"),
        (f"{percent(share):<{FIGURE}}", "bold $primary"),
        ("━" * full, ink),
        ("─" * (room - full), "$map-cold"),
        (f"  {words}", "$muted"),
    )


_LEAST_PART = 0.01  # of a token, to be named
# Of a token: its field, its colour, and its glyph where shapes have to tell.
_PARTS = (("dense", "$muted", "░"), ("other", "$map-hot", "█"), ("cold", "$map-miss", "▓"), ("wait", "$error", "▒"))
_PART_NAMES = {"dense": "attention", "other": "hot", "cold": "cold", "wait": "waiting"}


def _token(token: TokenTime | None, width: int, shades: bool) -> list[Content]:
    """Show the time of a token as one stacked bar, and below it the names of its parts."""
    if token is None or token.total <= 0:
        return []
    room = min(width - LABEL - FIGURE, 2 * _WIDEST_BAR)
    spent = [(name, ink, "█" if shades else glyph, getattr(token, name)) for name, ink, glyph in _PARTS]
    ends = np.rint(np.cumsum([0.0] + [ms for *_, ms in spent]) / token.total * room).astype(int).tolist()
    bars = [(glyph * (end - at), ink) for (_, ink, glyph, _), at, end in zip(spent, ends, ends[1:], strict=False)]
    figure = f"{seconds(token.total / 1000)}"
    line = Content.assemble((f"{'token':<{LABEL}}", "$muted"), (f"{figure:<{FIGURE}}", "bold $primary"), *bars)
    shown = [part for part in spent if part[-1] / token.total >= _LEAST_PART]
    keys = [
        Content.assemble((f"{'■' if shades else glyph} ", ink), (f"{_PART_NAMES[name]} {ms:.1f}", "$muted"))
        for name, ink, glyph, ms in shown
    ]
    legend = Content("  ").join(keys)
    return [line, Content.assemble(" " * (LABEL if legend.cell_length <= width - LABEL else 0), legend)]


def _moves(stats: ExpertStats, width: int) -> list[Content]:
    """Count the experts that were moved, as many figures as there is room for."""
    parts = [f"{count(stats.uploads)} uploads", f"{count(stats.pending)} pending" if stats.pending else ""]
    if stats.disk_bytes:
        parts.append(f"{size(stats.disk_bytes)} from the disk")
    if stats.prefetch_useful + stats.prefetch_late + stats.prefetch_wasted:
        parts += [f"ahead: {count(stats.prefetch_useful)} useful", f"{count(stats.prefetch_late)} late"]
        parts.append(f"{count(stats.prefetch_wasted)} wasted")
    line = ""
    for part in filter(None, parts):
        longer = f"{line} · {part}" if line else part
        if LABEL + FIGURE + len(longer) <= width:
            line = longer
    head, figure = f"{'moved':<{LABEL}}", f"{size(stats.upload_bytes):<{FIGURE}}"
    return [Content.assemble((head, "$muted"), (figure, "bold $primary"), (line, "$muted"))]


def _beside(first: Content, second: Content, width: int) -> Content:
    return Content.assemble(first, " " * (width - first.cell_length - second.cell_length), second)


def by_rank(heat: FloatArray, residency: BoolArray, width: int, height: int) -> list[Content]:
    """Draw the share of the routing that the hottest experts of every layer take, those on the device in their colour.

    Nothing is drawn before something was counted.
    """
    total = float(heat.sum())
    if total <= 0 or height < 2:
        return []
    experts = heat.shape[1]
    taken = np.concatenate([[0.0], np.cumsum(np.sort(heat, axis=1)[:, ::-1].sum(axis=0)) / total])
    share = float(residency.mean())
    room = max(width - SCALE, 1)
    places = (np.arange(2 * room) + 1) / (2 * room)
    values = np.interp(places, np.arange(experts + 1) / experts, taken).tolist()
    hot = round(share * room)
    best = float(np.interp(share, np.arange(experts + 1) / experts, taken))
    words = f"the hottest {percent(share)} take {percent(best)} of routing"
    lines = [Content.assemble((f"{'by rank':<{LABEL}}", "$muted"), (words[: max(width - LABEL, 0)], "$muted"))]
    for number, row in enumerate(area(values, room, height - 1)):
        end = percent(1.0) if number == 0 else "0" if number == height - 2 else ""
        lines.append(Content.assemble((row[:hot], "$map-hot"), (row[hot:], "$map-cool"), (f"{end:>{SCALE}}", "$muted")))
    return lines


def picked(spot: Spot, maps: ExpertMaps, special: FloatArray | None, is_pinned: bool) -> list[str]:
    """Describe one expert and its layer."""
    counts = maps.heat[spot.layer]
    times, total = float(counts[spot.expert]), float(counts.sum())
    where = "on the device" if maps.residency[spot.layer, spot.expert] else "on the CPU"
    words = [f"layer {spot.layer}, expert {spot.expert}: {where}" + (", pinned" if is_pinned else "")]
    if total > 0:
        words[0] += f" · routed to {count(round(times))} times, {times / total:.1%}"
        words[0] += f" · place {rank(counts, spot.expert)} of {len(counts)}"
    if special is not None and (more := float(special[spot.layer, spot.expert])) > 0:
        words[0] += f" · {more:.1%} more than usual"
    even = balance(counts)
    words.append(
        f"its layer: entropy {even.entropy:.1f} of {even.most:.1f} bits · hottest quarter {percent(even.quarter)}"
    )
    return words
