"""The layer x expert map as cells of glyphs: their layout and their look. Pure; colours come later.

A row is a layer, a column an expert; a ruler numbers the experts, and a bar behind a row shows the layer's hit rate.
A map that does not fit is tried in this order: narrower columns, the layers laid out in several blocks side by side,
two layers in one line (half blocks), the same without bars, and only then several experts or layers in a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.types import FloatArray

from .braille import bar, pair_of_bars
from .records import ExpertMaps

LABEL = 4  # three digits and a space
GAP = 2  # between blocks
BAR = 6  # characters of a layer's hit rate
WIDEST, WIDEST_TALL = 4, 6
LEAST_RULED = 8  # lines, below which the ruler makes room
TICK = 6  # characters between two numbers of the ruler, at least
SHARES = 4  # steps of the resident share of a cell
HEATS = 5  # steps of brightness
GLOWS = 5  # steps of the afterglow; the last is the last token


class Cell(NamedTuple):
    """One cell: ``share`` 0..SHARES resident, ``heat`` 0..HEATS, ``glow`` 0..GLOWS; ``missed`` if the used are cold."""

    share: int
    heat: int
    glow: int
    missed: bool

    @property
    def is_last(self) -> bool:
        """Whether the last token used it."""
        return self.glow == GLOWS


class Run(NamedTuple):
    """Text of one look; a ``lower`` cell only where two layers share the line, in half blocks.

    Without a cell it is a label, in the ink that ``ink`` names, ``muted`` or ``bar``.
    """

    glyphs: str
    upper: Cell | None = None
    lower: Cell | None = None
    ink: str = "muted"


@dataclass(frozen=True)
class Layout:
    """How a map fits its place.

    Attributes:
        cell_width: characters of a cell.
        layer_group: layers that share a cell.
        expert_group: experts that share a cell.
        dense: two layers in one line.
        blocks: blocks of layers side by side.
        lines: lines of layers, without the ruler.
        tall: a cell takes two lines.
        bar: characters of a layer's bar, 0 for none.
        ruled: a ruler is above the layers.
    """

    cell_width: int
    layer_group: int
    expert_group: int
    dense: bool
    blocks: int
    lines: int
    tall: bool = False
    bar: int = 0
    ruled: bool = False

    @property
    def height(self) -> int:
        """Lines that the map takes."""
        return self.lines + self.ruled

    def block_width(self, experts: int) -> int:
        """Characters of one block."""
        return LABEL + -(-experts // self.expert_group) * self.cell_width + (self.bar + 1 if self.bar else 0)

    def width(self, experts: int) -> int:
        """Characters that the map takes."""
        return self.blocks * (self.block_width(experts) + GAP) - GAP


def fit(layers: int, experts: int, columns: int, lines: int) -> Layout:
    """The largest layout of ``layers`` x ``experts`` within ``columns`` x ``lines`` characters."""
    columns, lines = max(columns, LABEL + 1), max(lines, 1)
    ruled = lines >= LEAST_RULED
    rows = lines - ruled
    layout = _whole(layers, experts, columns, rows) or _grouped(layers, experts, columns, rows)
    return replace(layout, ruled=ruled)


def _whole(layers: int, experts: int, columns: int, rows: int) -> Layout | None:
    """Give the layout with one expert a cell, None where it does not fit."""
    for long, dense in ((BAR, False), (BAR, True), (0, False), (0, True)):
        for width in range(WIDEST, 0, -1):
            layout = Layout(width, 1, 1, dense, 1, 0, bar=long)
            blocks = (columns + GAP) // (layout.block_width(experts) + GAP)
            text_lines = -(-layers // 2) if dense else layers
            if blocks and -(-text_lines // blocks) <= rows:
                used = -(-text_lines // rows)
                found = replace(layout, blocks=used, lines=-(-text_lines // used))
                return _grown(found, layers, experts, columns, rows)
    return None


def _grown(layout: Layout, layers: int, experts: int, columns: int, rows: int) -> Layout:
    """Give every cell two lines where there is room for them."""
    if layout.dense or layout.blocks > 1 or 2 * layers > rows:
        return layout
    wider = [replace(layout, cell_width=width) for width in range(WIDEST_TALL, layout.cell_width, -1)]
    fitting = [wide for wide in wider if wide.block_width(experts) <= columns]
    return replace((fitting or [layout])[0], tall=True, lines=2 * layers)


def _grouped(layers: int, experts: int, columns: int, rows: int) -> Layout:
    """Give the layout with several experts or layers in a cell."""
    long = BAR if columns >= 8 * BAR else 0
    room = max(columns - LABEL - (long + 1 if long else 0), 1)
    expert_group = max(1, -(-experts // room))
    layer_group = max(1, -(-layers // (2 * rows)))
    many = -(-layers // layer_group)
    dense = many > rows
    width = max(1, min(WIDEST, room // -(-experts // expert_group)))
    return Layout(width, layer_group, expert_group, dense, 1, -(-many // 2) if dense else many, bar=long)


def cells(maps: ExpertMaps, glow: FloatArray, layout: Layout) -> list[list[Cell]]:
    """The map's cells, one list per row of cells, aggregated as ``layout`` says.

    A cell's share is the part of its experts on the device, its heat their mean against the hottest cell (as a square
    root, so that the long tail is seen), its glow the part of its experts that was used lately.
    """
    share = _mean(maps.residency.astype(np.float32), layout)
    heat = np.sqrt(_mean(np.nan_to_num(maps.heat.astype(np.float32)), layout).clip(0))
    peak = float(heat.max()) if heat.size else 0.0
    heats = np.rint(heat / peak * HEATS if peak > 0 else heat * 0).astype(int)
    # A cell is full or empty only when all or none of its experts are there.
    partial = np.rint(share * SHARES).clip(1, SHARES - 1)
    shares = np.where(share <= 0, 0, np.where(share >= 1, SHARES, partial))
    many = layout.layer_group * layout.expert_group
    lit, cold = _mean(glow, layout) * many, _mean(glow * ~maps.residency, layout) * many
    glows = np.floor(_brightness(lit, many) * GLOWS).astype(int)
    return [
        [Cell(*look) for look in zip(*row, strict=True)]
        for row in zip(
            shares.astype(int).tolist(), heats.tolist(), glows.tolist(), (2 * cold > lit).tolist(), strict=True
        )
    ]


def _brightness(lit: FloatArray, many: int) -> FloatArray:
    """Scale the sums of glow in cells of ``many`` experts to 0..1.

    Some experts of a large cell are always in use: there the mean cell is dark and the brightest is full.
    """
    if many <= 2:
        return np.asarray(lit / many, dtype=np.float32)
    usual, most = float(np.median(lit)), float(lit.max())
    return np.asarray(((lit - usual) / max(most - usual, 1e-6)).clip(0, 1), dtype=np.float32)


def _mean(values: npt.NDArray[np.float32], layout: Layout) -> npt.NDArray[np.float32]:
    rows = np.arange(0, values.shape[0], layout.layer_group)
    columns = np.arange(0, values.shape[1], layout.expert_group)
    total = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    high = np.diff(np.append(rows, values.shape[0]))
    wide = np.diff(np.append(columns, values.shape[1]))
    return np.asarray(total / np.outer(high, wide), dtype=np.float32)


def draw(
    maps: ExpertMaps,
    glow: FloatArray,
    hit_rates: Sequence[float | None],
    layout: Layout,
    shapes_only: bool = False,
) -> list[list[Run]]:
    """The map as lines of runs; ``shapes_only`` tells residency by glyph alone, without colour."""
    rows = cells(maps, glow, layout)
    rates = _grouped_rates(hit_rates, layout, len(rows))
    step = 2 if layout.dense else 1
    lines: list[list[Run]] = []
    for top in range(0, len(rows), step):
        label = Run(f"{top * layout.layer_group:>3} ")
        ends = _bars(rates[top : top + step], layout)
        if layout.dense:
            below: Sequence[Cell | None] = rows[top + 1] if top + 1 < len(rows) else [None] * len(rows[top])
            pairs = zip(rows[top], below, strict=True)
            body = [Run(_half(up, low, shapes_only) * layout.cell_width, up, low) for up, low in pairs]
            lines.append([label, *_merged(body), *ends])
            continue
        if layout.tall:
            lines.append([label, *_merged(_tiles(rows[top], layout, shapes_only, "▆")), *ends])
            label, ends = Run(" " * LABEL), _bars([None], layout)
        lines.append([label, *_merged(_tiles(rows[top], layout, shapes_only, "█" if layout.tall else "▇")), *ends])
    placed = _side_by_side(lines, layout)
    return [_ruler(maps.residency.shape[1], layout), *placed] if layout.ruled else placed


def _tiles(row: Sequence[Cell], layout: Layout, shapes_only: bool, tile: str) -> list[Run]:
    return [Run(_padded(_glyph(cell) if shapes_only else tile, layout.cell_width), cell) for cell in row]


def _glyph(cell: Cell) -> str:
    if cell.is_last:
        return "□" if cell.missed else "█"
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
    if any(cell.is_last and cell.missed for cell in (upper, lower)) and not (upper.share or lower.share):
        return "□"
    return {(False, False): "·", (True, False): "▀", (False, True): "▄", (True, True): "█"}[
        2 * upper.share >= SHARES, 2 * lower.share >= SHARES
    ]


def _grouped_rates(hit_rates: Sequence[float | None], layout: Layout, rows: int) -> list[float | None]:
    grouped: list[float | None] = []
    for row in range(rows):
        known = [rate for rate in hit_rates[row * layout.layer_group :][: layout.layer_group] if rate is not None]
        grouped.append(sum(known) / len(known) if known else None)
    return grouped


def _bars(rates: Sequence[float | None], layout: Layout) -> list[Run]:
    """Give the bar behind a line: of one layer, or of two in one line."""
    if not layout.bar:
        return []
    if layout.dense:
        return [Run(" " + pair_of_bars(rates[0], rates[1] if len(rates) > 1 else None, layout.bar), ink="bar")]
    return [Run(" " + bar(rates[0], layout.bar), ink="bar")]


def _ruler(experts: int, layout: Layout) -> list[Run]:
    """Number the experts above every block."""
    step = 1
    while step * layout.cell_width < TICK * layout.expert_group:
        step *= 2
    numbers = ""
    for expert in range(0, experts, step):
        numbers = f"{numbers.ljust(expert // layout.expert_group * layout.cell_width)}{expert}"
    wide = layout.block_width(experts) - LABEL
    if layout.bar:
        numbers = f"{numbers[: wide - layout.bar].ljust(wide - layout.bar)}{'hit':<{layout.bar}}"
    block = Run(" " * LABEL + numbers[:wide].ljust(wide))
    return [run for index in range(layout.blocks) for run in ([Run(" " * GAP)] if index else []) + [block]]


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
    gap = Run(" " * GAP)
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


class Spot(NamedTuple):
    """An expert of a layer."""

    layer: int
    expert: int


def place(spot: Spot, layout: Layout, experts: int) -> tuple[int, int]:
    """Column and line where the cell of ``spot`` begins, in a map of ``experts`` per layer."""
    line = spot.layer // layout.layer_group // (2 if layout.dense else 1) * (2 if layout.tall else 1)
    block, y = divmod(line, layout.lines)
    x = block * (layout.block_width(experts) + GAP) + LABEL + spot.expert // layout.expert_group * layout.cell_width
    return x, y + layout.ruled


def spot_at(x: int, y: int, layout: Layout, layers: int, experts: int) -> Spot | None:
    """The first expert of the cell at column ``x`` and line ``y``, the upper one of two; None beside the map."""
    block, column = divmod(x, layout.block_width(experts) + GAP)
    y -= layout.ruled
    expert = (column - LABEL) // layout.cell_width * layout.expert_group
    row = (block * layout.lines + y) // (2 if layout.tall else 1)
    layer = row * (2 if layout.dense else 1) * layout.layer_group
    inside = column >= LABEL and expert < experts and layer < layers and 0 <= y < layout.lines
    return Spot(layer, expert) if inside else None
