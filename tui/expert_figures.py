"""The figures of the experts panel in words and bars. Pure; the clock comes in as an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from textual.content import Content

from edgemoe.text.display import count, percent, size
from edgemoe.types import ExpertStats, FloatArray, ModelShape

from .balance import balance, rank
from .expert_map import Spot, sparkline
from .records import ExpertMaps

_BAR = 10  # characters
_WIDE = 70  # characters from which two figures share a line
_WINDOW_SECONDS = 2.0  # the rate of the link is a mean over this
_SAMPLES = 32


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


def figures(
    stats: ExpertStats,
    shape: ModelShape | None,
    hit_rates: Sequence[float],
    traffic: Traffic,
    width: int,
    in_ram: float | None = None,
) -> list[Content]:
    """Give lines for a panel of ``width`` characters: rates, places of the experts, bytes moved.

    ``in_ram`` is the share of the expert bytes that is in RAM; the rest waits on the disk. None: nobody tells.
    """
    total = shape.layers * shape.experts if shape else 0
    total_bytes = sum(shape.expert_bytes) * shape.experts if shape else 0
    rates, fastest = traffic.rates(), max(traffic.rates(), default=0.0)
    spark = width // 2 - 26 if width >= _WIDE else width - 16
    hit = percent(stats.hit_rate) if stats.hits + stats.misses else "–"
    shares = [rate / fastest if fastest else 0.0 for rate in rates]
    here = 1.0 if in_ram is None else in_ram
    in_memory = "all" if here == 1.0 else percent(here)
    hot = stats.resident / total if total else 0.0
    hit_rate = _labelled("hit rate ", f"{hit:>5}", sparkline(hit_rates, spark))
    link = _labelled("link ", f"{size(traffic.rate())}/s", sparkline(shares, max(spark - 2, 0)))
    device = _bar("device", hot, f"{count(stats.resident)} of {count(total)} resident")
    ram = _bar("RAM", here if total else 0.0, f"{in_memory}, {size(round(here * total_bytes))}")
    disk = _bar("disk", 1 - here, f"{size(round((1 - here) * total_bytes))} only there: slow when needed")
    lines = [_beside(hit_rate, link, width), _beside(device, ram, width)]
    if width < _WIDE:
        lines = [hit_rate, link, device, ram]
    if here < 1.0:
        lines.append(disk)
    moved = [f"{size(stats.slot_bytes)} on device", f"{count(stats.uploads)} uploads"]
    moved.append(f"{size(stats.upload_bytes)} moved")
    if stats.disk_bytes:
        moved.append(f"{size(stats.disk_bytes)} from the disk")
    if stats.pending:
        moved.append(f"{count(stats.pending)} pending")
    lines.append(Content.styled(" · ".join(moved), "$muted"))
    if stats.prefetch_useful + stats.prefetch_late + stats.prefetch_wasted:
        ahead = f"fetched ahead: {count(stats.prefetch_useful)} useful · {count(stats.prefetch_late)} late"
        lines.append(Content.styled(f"{ahead} · {count(stats.prefetch_wasted)} wasted", "$muted"))
    return lines


def _labelled(label: str, figure: str, bars: str) -> Content:
    return Content.assemble((label, "$muted"), (f"{figure} ", "bold $primary"), (bars, "$primary"))


def _bar(label: str, share: float, words: str) -> Content:
    full = round(share * _BAR)
    if 0 < share < 1:  # neither full nor empty unless it is
        full = min(max(full, 1), _BAR - 1)
    return Content.assemble(
        (f"{label:<6} ", "$muted"), ("█" * full, "$primary"), ("░" * (_BAR - full), "$muted"), f" {words}"
    )


def _beside(first: Content, second: Content, width: int) -> Content:
    return Content.assemble(first, " " * max(width // 2 - first.cell_length, 2), second)


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
