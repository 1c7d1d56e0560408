"""Draw small plots as SVG text. Colours are classes; the page gives them values for dark and light."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, log10

# Size of one plot in its own units. A card of the page shows it at about this size.
WIDTH, HEIGHT = 400.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 22.0, 12.0, 42.0
ROW = 46.0  # height of a stacked bar with its heading
THIN, THICK, FULL = 15.0, 32.0, 140.0  # horizontal bars: thinnest, thickest, all together
Points = Sequence[tuple[float, float]]


class Plot:
    """Draw a plot with two linear axes that begin at 0."""

    def __init__(self, x_label: str, y_label: str, x_most: float, y_most: float, percent: str = "") -> None:
        """Draw the axes. ``percent`` names the axes (``x``, ``y``) with shares as values."""
        self._x_most, self._y_most = x_most or 1.0, y_most or 1.0
        self._parts: list[str] = []
        for value in ticks(self._y_most):
            y = self.y(value)
            self._parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self._parts.append(text(LEFT - 6, y + 4, number(value, "y" in percent), "end"))
        for value in ticks(self._x_most):
            self._parts.append(text(self.x(value), HEIGHT - BOTTOM + 16, number(value, "x" in percent), "middle"))
        self._parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle", "label"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        turned = f'transform="rotate(-90 12 {middle})"'
        self._parts.append(f'<text class="label" x="12" y="{middle}" text-anchor="middle" {turned}>{y_label}</text>')

    def x(self, value: float) -> float:
        """Give the horizontal position of a value."""
        return LEFT + value / self._x_most * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Give the vertical position of a value."""
        return HEIGHT - BOTTOM - value / self._y_most * (HEIGHT - BOTTOM - TOP)

    def line(self, points: Points, style: str, marks: bool = False) -> None:
        """Draw straight lines between points. ``marks`` puts a mark on each point."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self._parts.append(f'<polyline class="line {style}" points="{path}"/>')
        for x, y in points if marks else ():
            self._parts.append(f'<circle class="mark {style}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="2.6"/>')

    def column(self, start: float, end: float, value: float, style: str, hint: str) -> None:
        """Draw a column from ``start`` to ``end`` of the x axis."""
        left, top = self.x(start), self.y(value)
        size = f'width="{max(self.x(end) - left, 0.5):.2f}" height="{self.y(0) - top:.2f}"'
        self._parts.append(f'<rect class="{style}" x="{left:.2f}" y="{top:.2f}" {size}>{title(hint)}</rect>')

    def band(self, start: float, end: float, style: str, hint: str) -> None:
        """Fill the whole height from ``start`` to ``end`` of the x axis."""
        self.column(start, end, self._y_most, style, hint)

    def upright(self, value: float, words: str) -> None:
        """Draw a vertical line at a value of the x axis, with words beside it."""
        x, left = self.x(value), value > self._x_most / 2
        self._parts.append(f'<line class="upright" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        at, anchor = (x - 5, "end") if left else (x + 5, "start")
        self._parts.append(text(at, HEIGHT - BOTTOM - 8, words, anchor, "label halo"))

    def svg(self, name: str) -> str:
        """Give the picture as SVG. ``name`` is its description for screen readers."""
        return picture(self._parts, HEIGHT, name)


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float, float, str]]]], unit: str, name: str) -> str:
    """Draw groups of horizontal bars with their values.

    Args:
        rows: groups, each with its name and its bars: name, value, deviation, class.
        unit: unit of the values.
        name: description for screen readers.
    """
    most = max((value + spread for _, group in rows for _, value, spread, _ in group), default=1.0) or 1.0
    names = max((len(what) for _, group in rows for what, _, _, _ in group), default=0)
    scale = max(WIDTH - 90.0 - 6.8 * names, 60.0) / most
    bar = min(THICK, max(THIN, FULL / max(sum(len(group) for _, group in rows), 1)))
    parts, y = [], 4.0
    for heading, group in rows:
        parts.append(text(0, y + 11, heading, "start", "strong"))
        y += 18
        for what, value, spread, style in group:
            end = value * scale
            parts.append(f'<rect class="{style}" x="0" y="{y}" width="{max(end, 1):.1f}" height="{bar:.1f}" rx="2"/>')
            low, high, middle = max(end - spread * scale, 0), end + spread * scale, y + bar / 2
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}M{high:.1f} {middle - 3:.1f}v6"/>'
            )
            parts.append(text(high + 7, middle + 4, f"{value:.{1 if value >= 10 else 2}f} {unit}", "start", "strong"))
            parts.append(text(WIDTH, middle + 4, what, "end"))
            y += bar + 4
        y += 10
    return picture(parts, y, name)


def stacks(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], unit: str, name: str) -> str:
    """Draw stacked horizontal bars on one scale. A row has a heading and parts: name, value, class."""
    most = max((sum(value for _, value, _ in parts) for _, parts in rows), default=1.0) or 1.0
    found, y = [], 4.0
    for heading, parts in rows:
        total = sum(value for _, value, _ in parts)
        found.append(text(0, y + 11, heading, "start", "strong"))
        found.append(text(WIDTH, y + 11, f"{number(total)} {unit}", "end", "strong"))
        x, y = 0.0, y + 18
        for what, value, style in parts:
            width = value / most * WIDTH
            size = f'width="{max(width - 1, 0.3):.2f}" height="32"'
            hint = title(f"{what}: {number(value)} {unit}")
            found.append(f'<rect class="{style}" x="{x:.2f}" y="{y}" {size}>{hint}</rect>')
            x += width
        y += ROW
    return picture(found, y, name)


def cells(levels: Sequence[Sequence[int]], name: str, count: int) -> str:
    """Draw a table of coloured cells, stretched to its box. ``levels`` gives colours 0 .. ``count`` - 1 by row."""
    paths: list[list[str]] = [[] for _ in range(count)]
    for y, row in enumerate(levels):
        x = 0
        while x < len(row):  # neighbours of the same colour become one piece
            end = x
            while end < len(row) and row[end] == row[x]:
                end += 1
            paths[row[x]].append(f"M{x} {y}h{end - x}v1h{x - end}z")
            x = end
    drawn = "".join(f'<path class="c{i}" d="{"".join(path)}"/>' for i, path in enumerate(paths) if path)
    box = f'viewBox="0 0 {len(levels[0])} {len(levels)}" preserveAspectRatio="none" shape-rendering="crispEdges"'
    return f'<svg role="img" aria-label="{escape(name)}" {box}>{drawn}</svg>'


def picture(parts: Sequence[str], height: float, name: str) -> str:
    """Wrap parts into an SVG of `WIDTH`."""
    return f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {WIDTH:g} {height:g}">{"".join(parts)}</svg>'


def text(x: float, y: float, words: str, anchor: str, style: str = "tick") -> str:
    """Draw one line of text."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def title(words: str) -> str:
    """Give a shape the text that a browser shows under the pointer."""
    return f"<title>{escape(words)}</title>"


def ticks(most: float) -> list[float]:
    """Choose four to six round numbers from 0 to ``most``."""
    raw = most / 5
    power = 10.0 ** floor(log10(raw))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if power * times >= raw * 0.999)
    return [i * step for i in range(int(most / step * 1.0001) + 1)]


def number(value: float, percent: bool = False) -> str:
    """Write a number with few digits."""
    if percent:
        return f"{value:.0%}" if abs(value * 100 - round(value * 100)) < 1e-6 else f"{value:.1%}"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")
