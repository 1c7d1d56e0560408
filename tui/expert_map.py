"""The layer x expert map as cells of glyphs: their layout and their look. Pure; colours come later.

A row is a layer, a column an expert. A map that does not fit is tried in this order: narrower columns, the
layers laid out in several blocks side by side, two layers in one line (half blocks), and only then several
experts or layers share a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .records import ExpertMaps

LABEL = 4  # three digits and a space
GAP = 2  # between blocks
WIDEST = 4
SHARES = 4  # steps of the resident share of a cell
HEATS = 5  # steps of brightness

UNUSED, HIT, MISS = 0, 1, 2


class Cell(NamedTuple):
    """One cell: ``share`` 0..SHARES resident, ``heat`` 0..HEATS, ``mark`` a hit or a miss of the last token."""

    share: int
    heat: int
    mark: int


class Run(NamedTuple):
    """Text of one look; a ``lower`` cell only where two layers share the line, in half blocks."""

    glyphs: str
    upper: Cell | None
    lower: Cell | None = None


@dataclass(frozen=True)
class Layout:
    """How a map fits its place.

    Attributes:
        cell_width: characters of a cell.
        layer_group: layers that share a cell.
        expert_group: experts that share a cell.
        dense: two layers in one line.
        blocks: blocks of layers side by side.
        lines: lines the map takes.
    """

    cell_width: int
    layer_group: int
    expert_group: int
    dense: bool
    blocks: int
    lines: int


def fit(layers: int, experts: int, columns: int, lines: int) -> Layout:
    """The largest layout of ``layers`` x ``experts`` within ``columns`` x ``lines`` characters."""
    columns, lines = max(columns, LABEL + 1), max(lines, 1)
    for dense in (False, True):
        for width in range(WIDEST, 0, -1):
            blocks = (columns + GAP) // (LABEL + experts * width + GAP)
            text_lines = -(-layers // 2) if dense else layers
            if blocks and -(-text_lines // blocks) <= lines:
                used = -(-text_lines // lines)
                return Layout(width, 1, 1, dense, used, -(-text_lines // used))
    expert_group = max(1, -(-experts // (columns - LABEL)))
    layer_group = max(1, -(-layers // (2 * lines)))
    rows = -(-layers // layer_group)
    dense = rows > lines
    width = max(1, min(WIDEST, (columns - LABEL) // -(-experts // expert_group)))
    return Layout(width, layer_group, expert_group, dense, 1, -(-rows // 2) if dense else rows)


def cells(maps: ExpertMaps, layout: Layout) -> list[list[Cell]]:
    """The map's cells, one list per row of cells, aggregated as ``layout`` says.

    A cell's share is the part of its experts on the device, its heat their mean against the hottest cell (as
    a square root, so that the long tail is seen), its mark a miss if any of its experts was missed.
    """
    share = _mean(maps.residency.astype(np.float32), layout)
    heat = np.sqrt(_mean(np.nan_to_num(maps.heat.astype(np.float32)), layout).clip(0))
    peak = float(heat.max()) if heat.size else 0.0
    heats = np.rint(heat / peak * HEATS if peak > 0 else heat * 0).astype(int)
    # A cell is full or empty only when all or none of its experts are there.
    partial = np.rint(share * SHARES).clip(1, SHARES - 1)
    shares = np.where(share <= 0, 0, np.where(share >= 1, SHARES, partial))
    marks = _marks(maps, layout, share.shape)
    return [
        [Cell(*look) for look in zip(*row, strict=True)]
        for row in zip(shares.astype(int).tolist(), heats.tolist(), marks.tolist(), strict=True)
    ]


def _mean(values: npt.NDArray[np.float32], layout: Layout) -> npt.NDArray[np.float32]:
    rows = np.arange(0, values.shape[0], layout.layer_group)
    columns = np.arange(0, values.shape[1], layout.expert_group)
    total = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    high = np.diff(np.append(rows, values.shape[0]))
    wide = np.diff(np.append(columns, values.shape[1]))
    return np.asarray(total / np.outer(high, wide), dtype=np.float32)


def _marks(maps: ExpertMaps, layout: Layout, shape: tuple[int, ...]) -> npt.NDArray[np.int_]:
    marks = np.zeros(shape, dtype=int)
    layers, experts = maps.residency.shape
    last = maps.last[:layers]
    layer, slot = np.nonzero((last >= 0) & (last < experts))
    expert = last[layer, slot]
    made = np.where(maps.residency[layer, expert], HIT, MISS)
    np.maximum.at(marks, (layer // layout.layer_group, expert // layout.expert_group), made)
    return marks


def draw(maps: ExpertMaps, layout: Layout, shapes_only: bool = False) -> list[list[Run]]:
    """The map as lines of runs; ``shapes_only`` tells residency by glyph alone, without colour."""
    rows = cells(maps, layout)
    step = 2 if layout.dense else 1
    lines: list[list[Run]] = []
    for top in range(0, len(rows), step):
        label = Run(f"{top * layout.layer_group:>3} ", None)
        if layout.dense:
            below: Sequence[Cell | None] = rows[top + 1] if top + 1 < len(rows) else [None] * len(rows[top])
            pairs = zip(rows[top], below, strict=True)
            body = [Run(_half(up, low, shapes_only) * layout.cell_width, up, low) for up, low in pairs]
        else:
            body = [Run(_padded(_glyph(cell), layout.cell_width), cell) for cell in rows[top]]
        lines.append([label, *_merged(body)])
    return _side_by_side(lines, layout)


def _glyph(cell: Cell) -> str:
    if cell.mark == MISS:
        return "□"
    if cell.mark == HIT:
        return "█"
    return "·" if cell.share == 0 else "■" if cell.share == SHARES else "▒"


def _padded(glyph: str, width: int) -> str:
    """A cell's glyph over ``width`` characters, the last one a gap when there is room for one."""
    if width == 1:
        return glyph
    return (glyph.center(width - 1) if glyph in "·□" else glyph * (width - 1)) + " "


def _half(upper: Cell, lower: Cell | None, shapes_only: bool) -> str:
    """Upper and lower half of one character. With colours always ``▀``: ink above, ground below."""
    if lower is None:
        return "▀" if upper.share or not shapes_only else "·"
    if not shapes_only:
        return "▀"
    if MISS in (upper.mark, lower.mark) and not (upper.share or lower.share):
        return "□"
    return {(False, False): "·", (True, False): "▀", (False, True): "▄", (True, True): "█"}[
        2 * upper.share >= SHARES, 2 * lower.share >= SHARES
    ]


def _merged(runs: Iterable[Run]) -> list[Run]:
    """Neighbours of one look as one run: the screen pays by the run."""
    merged: list[Run] = []
    for run in runs:
        if merged and merged[-1][1:] == run[1:]:
            merged[-1] = Run(merged[-1].glyphs + run.glyphs, run.upper, run.lower)
        else:
            merged.append(run)
    return merged


def _side_by_side(lines: list[list[Run]], layout: Layout) -> list[list[Run]]:
    gap = Run(" " * GAP, None)
    placed = []
    for line in range(layout.lines):
        parts = lines[line :: layout.lines]
        placed.append([run for index, part in enumerate(parts) for run in ([gap] if index else []) + part])
    return placed


def scale(layout: Layout) -> str:
    """Tell the layers and experts that share a cell, empty for one expert a cell."""
    if layout.expert_group == layout.layer_group == 1:
        return ""
    names = [(layout.layer_group, "layers"), (layout.expert_group, "experts")]
    return "a cell = " + " × ".join(f"{many} {name}" for many, name in names if many > 1)


def sparkline(values: Iterable[float], width: int) -> str:
    """The last ``width`` values of 0..1 as a line of bars, the newest on the right."""
    recent = list(values)[-width:] if width > 0 else []
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[min(max(round(value * 7), 0), 7)] for value in recent)


class Spot(NamedTuple):
    """An expert of a layer."""

    layer: int
    expert: int


def place(spot: Spot, layout: Layout, experts: int) -> tuple[int, int]:
    """Column and line where the cell of ``spot`` begins, in a map of ``experts`` per layer."""
    line = spot.layer // layout.layer_group // (2 if layout.dense else 1)
    block, y = divmod(line, layout.lines)
    return block * _block_width(layout, experts) + LABEL + spot.expert // layout.expert_group * layout.cell_width, y


def spot_at(x: int, y: int, layout: Layout, layers: int, experts: int) -> Spot | None:
    """The first expert of the cell at column ``x`` and line ``y``, the upper one of two; None beside the map."""
    block, column = divmod(x, _block_width(layout, experts))
    expert = (column - LABEL) // layout.cell_width * layout.expert_group
    layer = (block * layout.lines + y) * (2 if layout.dense else 1) * layout.layer_group
    inside = column >= LABEL and expert < experts and layer < layers and 0 <= y < layout.lines
    return Spot(layer, expert) if inside else None


def _block_width(layout: Layout, experts: int) -> int:
    return LABEL + -(-experts // layout.expert_group) * layout.cell_width + GAP
