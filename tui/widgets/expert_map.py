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

from ..afterglow import Afterglow
from ..expert_map import GAP, GLOWS, HEATS, LABEL, SHARES, Cell, Layout, Run, Spot, draw, fit, place, spot_at
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
        self._afterglow, self._shines = Afterglow(), True
        self._lines: list[list[Run]] = []
        self._ink: dict[Cell, Color] = {}
        self._looks: dict[tuple[Cell | None, Cell | None, str], Style] = {}
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

    def forget(self) -> None:
        """Another model comes: nothing of the old one glows."""
        self._maps, self._afterglow, self._lines = None, Afterglow(), []
        self.refresh()

    def show(self, maps: ExpertMaps, shines: bool = True) -> None:
        """Draw ``maps`` from now on; ``shines`` if the experts that were used lately glow."""
        self._maps, self._shines = maps, shines
        if shines:
            self._afterglow.see(maps)
        self._redraw()

    def settle(self) -> None:
        """Nothing is computed any more: only the last token still shines."""
        self._afterglow.settle()
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
        glow, rates = self._afterglow.glow(self._maps), self._afterglow.hit_rates(layers)
        glow = glow if self._shines else glow * 0
        self._lines = draw(self._maps, glow, rates, layout, self._few_colours)
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
        segments = [Segment(run.glyphs, self._style(run.upper, run.lower, run.ink)) for run in self._lines[y]]
        strip = Strip(segments).adjust_cell_length(self.size.width, ground)
        if self.spot is None or self._fitted is None or self._maps is None:
            return strip
        x, line = place(self.spot, self._fitted, self._maps.residency.shape[1])
        end = x + max(self._fitted.cell_width - 1, 1)
        if end > self.size.width or line != y:
            return strip
        # A glyph of its own on a ground of its own: half blocks reversed look like others, and shapes need no colour.
        picked = Segment(_PICKED * (end - x), ground + self._reversed(ground))
        begin = x // (step := self._fitted.block_width(self._maps.residency.shape[1]) + GAP) * step
        label = Segment(strip.crop(begin, begin + LABEL).text, ground + Style(bold=True))
        parts = [strip.crop(0, begin), Strip([label]), strip.crop(begin + LABEL, x), Strip([picked])]
        return Strip.join([*parts, strip.crop(end, self.size.width)])

    def _reversed(self, ground: Style) -> Style:
        if self._few_colours:
            return Style(reverse=True, bold=True)
        ink = self.background_colors[1].get_contrast_text(1)
        return Style(color=_colour(self.background_colors[1]), bgcolor=_colour(ink), bold=True)

    def _style(self, upper: Cell | None, lower: Cell | None, ink: str = "muted") -> Style:
        if (style := self._looks.get((upper, lower, ink))) is None:
            style = self._looks[(upper, lower, ink)] = self._look(upper, lower, ink)
        return style

    def _look(self, upper: Cell | None, lower: Cell | None, ink: str) -> Style:
        ground = self.background_colors[1]
        if upper is None:
            named = self.app.theme_variables["map-hot" if ink == "bar" else "muted"]
            return Style(color=_colour(Color.parse(named)), bgcolor=_colour(ground))
        if lower is None:
            return Style(color=_colour(self._cell(upper)), bgcolor=_colour(ground), bold=upper.is_last)
        if self._few_colours:  # two shades cannot be told apart in one character: its shape tells
            brightest = max(upper, lower, key=lambda cell: (cell.glow, cell.heat))
            bold = upper.is_last or lower.is_last
            return Style(color=_colour(self._cell(brightest)), bgcolor=_colour(ground), bold=bold)
        return Style(color=_colour(self._cell(upper)), bgcolor=_colour(self._cell(lower)))

    def _cell(self, cell: Cell) -> Color:
        if (ink := self._ink.get(cell)) is None:
            ink = self._ink[cell] = self._mixed(cell)
        return ink

    def _mixed(self, cell: Cell) -> Color:
        colours = {name: Color.parse(self.app.theme_variables[f"map-{name}"]) for name in _NAMES}
        lit = colours["miss" if cell.missed else "hit"]
        if cell.is_last:
            return lit
        if self._few_colours:  # shades of the terminal's own colours are not known
            return colours["hot" if 2 * cell.share >= SHARES else "cold"]
        heat = cell.heat / HEATS
        cold = colours["cold"].blend(colours["cool"], heat)
        usual = cold.blend(colours["warm"].blend(colours["hot"], heat), cell.share / SHARES)
        return usual.blend(lit, cell.glow / GLOWS)


_PICKED = "◆"
_NAMES = ("cold", "cool", "warm", "hot", "hit", "miss")


def _colour(colour: Color) -> RichColor:
    return colour.rich_color
