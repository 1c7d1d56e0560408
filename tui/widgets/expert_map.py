"""The expert map: every expert of every layer as a cell of glyph and colour."""

from __future__ import annotations

from dataclasses import dataclass

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.color import Color
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ..expert_map import HEATS, HIT, MISS, SHARES, Cell, Layout, Run, Spot, draw, fit, place, spot_at
from ..records import ExpertMaps


class ExpertMap(Widget):
    """Draws :class:`ExpertMaps` in the largest layout that fits; colours follow the theme.

    Attributes:
        spot: the expert that is picked, None for none.
    """

    can_focus = True
    BINDINGS = [
        Binding("left", "move(0, -1)", show=False),
        Binding("right", "move(0, 1)", show=False),
        Binding("up", "move(-1, 0)", show=False),
        Binding("down", "move(1, 0)", show=False),
        Binding("space", "usual", show=False),
        Binding("p", "pin", show=False),
    ]

    @dataclass
    class Fitted(Message):
        """The map found a new layout for its place."""

        layout: Layout

    @dataclass
    class Picked(Message):
        """The user points at an expert, at none when ``spot`` is None."""

        spot: Spot | None

    class UsualToggled(Message):
        """The user wants to see the unusual experts of this conversation, or no longer."""

    @dataclass
    class PinToggled(Message):
        """The user wants ``spot`` to stay on the device, or no longer."""

        spot: Spot

    def __init__(self, id: str | None = None) -> None:
        """Empty until :meth:`show`."""
        super().__init__(id=id)
        self._maps: ExpertMaps | None = None
        self._lines: list[list[Run]] = []
        self._ink: dict[Cell, Color] = {}
        self._looks: dict[tuple[Cell | None, Cell | None], Style] = {}
        self._fitted: Layout | None = None
        self.spot: Spot | None = None

    def on_focus(self) -> None:
        """Begin in the corner."""
        self.pick(self.spot or Spot(0, 0))

    def on_blur(self) -> None:
        """Nothing is picked without the focus."""
        self.pick(None)

    def on_click(self, event: events.Click) -> None:
        """Pick the expert under the mouse."""
        if self._maps is not None and self._fitted is not None:
            layers, experts = self._maps.residency.shape
            self.pick(spot_at(event.x, event.y, self._fitted, layers, experts) or self.spot)

    def action_move(self, layers: int, experts: int) -> None:
        """Pick a neighbour."""
        if self._maps is not None and self.spot is not None:
            high, wide = self._maps.residency.shape
            self.pick(Spot(min(max(self.spot.layer + layers, 0), high - 1), (self.spot.expert + experts) % wide))

    def action_usual(self) -> None:
        """Compare with the usual experts."""
        self.post_message(self.UsualToggled())

    def action_pin(self) -> None:
        """Pin or unpin the picked expert."""
        if self.spot is not None:
            self.post_message(self.PinToggled(self.spot))

    def pick(self, spot: Spot | None) -> None:
        """Point at ``spot``."""
        self.spot = spot
        self.post_message(self.Picked(spot))
        self.refresh()

    def on_mount(self) -> None:
        """Forget the colours whenever the theme changes."""
        self.app.theme_changed_signal.subscribe(self, lambda _: self._forget_colours())

    def show(self, maps: ExpertMaps) -> None:
        """Draw ``maps`` from now on."""
        self._maps = maps
        self._redraw()

    def on_resize(self) -> None:
        """Fit the new size."""
        self._redraw()

    def _redraw(self) -> None:
        if self._maps is None or not self.size.width or not self.size.height:
            return
        layers, experts = self._maps.residency.shape
        layout = fit(layers, experts, self.size.width, self.size.height)
        if layout != self._fitted:
            self._fitted = layout
            self.post_message(self.Fitted(layout))
        self._lines = draw(self._maps, layout, self._few_colours)
        self.refresh()

    @property
    def _few_colours(self) -> bool:
        """Whether shapes have to replace shades."""
        return self.app.no_color or self.app.native_ansi_color

    def _forget_colours(self) -> None:
        self._ink.clear()
        self._looks.clear()
        self._redraw()
        self.refresh()

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """All there is."""
        return container.width

    def render_line(self, y: int) -> Strip:
        """One line of the map."""
        ground = self._style(None, None)
        if y >= len(self._lines):
            return Strip.blank(self.size.width, ground)
        segments = [Segment(run.glyphs, self._style(run.upper, run.lower)) for run in self._lines[y]]
        strip = Strip(segments).adjust_cell_length(self.size.width, ground)
        if self.spot is None or self._fitted is None or self._maps is None:
            return strip
        x, line = place(self.spot, self._fitted, self._maps.residency.shape[1])
        end = x + max(self._fitted.cell_width - 1, 1)
        if line != y or end > self.size.width:
            return strip
        # A glyph of its own: half blocks reversed look like others, and shapes need no colour.
        ink = _colour(self.background_colors[1].get_contrast_text(1))
        picked = Segment(_PICKED * (end - x), ground + Style(color=None if self._few_colours else ink, bold=True))
        return Strip.join([strip.crop(0, x), Strip([picked]), strip.crop(end, self.size.width)])

    def _style(self, upper: Cell | None, lower: Cell | None) -> Style:
        key = (upper, lower)
        if (style := self._looks.get(key)) is None:
            style = self._looks[key] = self._made(upper, lower)
        return style

    def _made(self, upper: Cell | None, lower: Cell | None) -> Style:
        ground = self.background_colors[1]
        if upper is None:
            return _rich(self.app.theme_variables["secondary"], ground)
        if lower is None:
            return Style(color=_colour(self._cell(upper)), bgcolor=_colour(ground), bold=upper.mark != 0)
        if self._few_colours:
            brightest = max(upper, lower, key=lambda cell: (cell.mark, cell.heat))
            bold = bool(upper.mark or lower.mark)
            return Style(color=_colour(self._cell(brightest)), bgcolor=_colour(ground), bold=bold)
        return Style(color=_colour(self._cell(upper)), bgcolor=_colour(self._cell(lower)))

    def _cell(self, cell: Cell) -> Color:
        if (ink := self._ink.get(cell)) is None:
            ink = self._ink[cell] = self._mixed(cell)
        return ink

    def _mixed(self, cell: Cell) -> Color:
        colours = {name: Color.parse(self.app.theme_variables[f"map-{name}"]) for name in _NAMES}
        if cell.mark == HIT:
            return colours["hit"]
        if cell.mark == MISS:
            return colours["miss"]
        if self._few_colours:  # shades of the terminal's own colours are not known
            return colours["hot" if 2 * cell.share >= SHARES else "cold"]
        heat = cell.heat / HEATS
        cold = colours["cold"].blend(colours["cool"], heat)
        return cold.blend(colours["warm"].blend(colours["hot"], heat), cell.share / SHARES)


_PICKED = "◆"
_NAMES = ("cold", "cool", "warm", "hot", "hit", "miss")


def _colour(colour: Color) -> RichColor:
    return colour.rich_color


def _rich(ink: str, ground: Color) -> Style:
    return Style(color=_colour(Color.parse(ink)), bgcolor=_colour(ground), dim=True)
