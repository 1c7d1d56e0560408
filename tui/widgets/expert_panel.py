"""The experts panel: figures, the map, the picked expert, and the meaning of the map's cells."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from edgemoe.text.display import count, flow
from edgemoe.types import ExpertStats, FloatArray, ModelShape

from ..balance import LEAST_PAIRS, unusual
from ..expert_figures import Room, Sample, TokenTime, Traffic, by_rank, figures, picked
from ..expert_map import Layout, Spot, fit, scale
from ..records import ExpertMaps
from .expert_map import ExpertMap

CURVE_SECONDS = 1.0  # between two drawings of the curve by rank, which moves slowly
QUIET_SECONDS = 2.1  # without a sample: longer than the link's rate looks back
_LOW = 18  # lines, below which the figures are few and the legend makes room for the words about an expert
_HIGH = 30  # lines, from which graphs take two of them
_LEAST_CURVE, _MOST_CURVE = 4, 9  # lines of the curve by rank
_AROUND = 4  # characters of the panel's edges
_LEAST_COLUMNS, _USUAL_COLUMNS = 48, 60  # of the panel: its figures need them, and like them
LEAST_CHAT = 56  # characters that the chat keeps beside the panel
_AROUND_MAP = 13  # lines of the panel that are not the map's, about
_HISTORY = 256  # samples with decoded pairs: a minute at full rate


class ExpertPanel(Vertical):
    """Shows samples of the experts; knows nothing of where they come from."""

    def __init__(self, id: str | None = None) -> None:
        """Empty until the model is known."""
        super().__init__(id=id)
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._traffic = Traffic()
        self.stats: ExpertStats | None = None
        self._in_ram: float | None = None
        self._seen_s = 0.0  # when the last sample came
        self._token: TokenTime | None = None
        self._curve_s = -CURVE_SECONDS  # when the curve by rank was drawn
        self._shape: ModelShape | None = None
        self._maps: ExpertMaps | None = None
        self._before: FloatArray | None = None  # heat when this conversation began
        self._begins = True
        self._shows_unusual = False
        self._layout: Layout | None = None
        self._height = 0  # of the figures, in lines
        self._can_pin = False
        self._pinned: set[Spot] = set()
        self._quiet: Timer | None = None

    def compose(self) -> ComposeResult:
        """Figures above, map, the curve by rank, picked expert, legend below."""
        yield Static(Content("no model yet"), id="expert-figures")
        yield ExpertMap(id="expert-map")
        yield Static(Content(""), id="expert-curve")
        yield Static(Content(""), id="expert-picked")
        yield Static(Content(""), id="expert-legend")

    def open(self, shape: ModelShape | None, device: str, stats: ExpertStats | None, can_pin: bool = False) -> None:
        """A model was loaded: name its device, forget the old figures."""
        self._rates.clear()
        self._traffic = Traffic()
        self._shape, self.stats, self._maps, self._can_pin = shape, stats, None, can_pin
        self._in_ram = self._token = None
        self._pinned.clear()
        self.begin()
        self.query_one(ExpertMap).forget()
        many = f" · {shape.layers} layers × {shape.experts}" if shape else ""
        self.border_title = Content(f"experts · {device}{many}")
        if shape is None:
            self.say("this model has no routed experts")
        elif stats is not None:
            self._draw_figures(stats)

    def begin(self) -> None:
        """Take the next map as the use before this conversation."""
        self._begins = True

    def say(self, text: str) -> None:
        """Words in the place of the figures."""
        self._height = 1
        shown = self.query_one("#expert-figures", Static)
        shown.update(Content(text), layout=False)
        shown.styles.height = self._height

    def show(self, stats: ExpertStats, maps: ExpertMaps | None, in_ram: float | None = None) -> None:
        """Draw a sample. The rate of the graph is that of the tokens since the sample before."""
        before, now = self.stats or ExpertStats(), time.monotonic()
        hits, misses = stats.hits - before.hits, stats.misses - before.misses
        if hits + misses > 0:
            self._rates.append(hits / (hits + misses))
        if now - self._seen_s < QUIET_SECONDS:
            self._token = TokenTime.between(before, stats, now - self._seen_s) or self._token
        self._seen_s = now
        self._traffic.add(stats.upload_bytes + stats.streamed_bytes, now)
        self.stats, self._in_ram = stats, in_ram
        # Nobody tells that nothing moves any more.
        if self._quiet is not None:
            self._quiet.stop()
        self._quiet = self.set_timer(QUIET_SECONDS, self._settle)
        if maps is not None:
            self._maps = maps
            if self._begins:
                self._begins, self._before = False, maps.heat
        if self.display:
            self._draw_figures(stats)
        if self.display or maps is not None:  # hidden, it costs nothing and is there at once when it is opened
            self._draw_map()

    def _settle(self) -> None:
        if self.stats is not None and self._traffic.rate() > 0:
            self._traffic.add(self.stats.upload_bytes + self.stats.streamed_bytes, time.monotonic())
            self._draw_figures(self.stats)
        self._curve_s = -CURVE_SECONDS
        self._draw_curve()
        if not self._shows_unusual:
            self.query_one(ExpertMap).settle()

    def on_resize(self) -> None:
        """The graphs are as wide as there is room."""
        if self.stats is not None and self._shape is not None:
            self._draw_figures(self.stats)
        self._place()

    def columns(self, screen: int, lines: int) -> int:
        """Characters that the panel takes beside a chat on a ``screen`` of so many, with one expert a cell if it can.

        The panel takes no more than its map and its figures need.
        """
        if self._shape is None:
            return _LEAST_COLUMNS
        room = max(screen - LEAST_CHAT, _LEAST_COLUMNS)
        layout = fit(self._shape.layers, self._shape.experts, room - _AROUND, max(lines - _AROUND_MAP, 1))
        return min(max(layout.width(self._shape.experts) + _AROUND, _USUAL_COLUMNS), room)

    def _draw_figures(self, stats: ExpertStats) -> None:
        width = max(self.content_size.width, 20)
        sample = Sample(stats, self._shape, list(self._rates), self._traffic, self._in_ram, self._token)
        high = self.content_size.height
        room: Room = "low" if high < _LOW else "high" if high >= _HIGH else "usual"
        lines = figures(sample, width, room, shades=not self._has_few_colours)
        shown = self.query_one("#expert-figures", Static)
        shown.update(Content("\n").join(lines), layout=False)
        # A layout of the whole screen only where these lines change their number.
        if len(lines) != self._height:
            self._height = len(lines)
            shown.styles.height = self._height
            self._place()

    @property
    def _has_few_colours(self) -> bool:
        return self.app.no_color or self.app.native_ansi_color

    def _place(self) -> None:
        """Give the map the lines that it uses, and the curve by rank the rest."""
        if self._shape is None:
            return
        chart, curve = self.query_one(ExpertMap), self.query_one("#expert-curve", Static)
        legend, gap = 1, self.query_one("#expert-figures").styles.margin.bottom
        picked = 0 if chart.spot is None else len(self._picked_words(chart.spot).split("\n"))
        room = self.content_size.height - self._height - legend - gap - picked
        used = fit(self._shape.layers, self._shape.experts, self.content_size.width, max(room, 1)).height
        rest = room - used - 1
        curve.display = rest >= _LEAST_CURVE
        chart.styles.height = used if curve.display else "1fr"
        self._draw_curve(min(rest, _MOST_CURVE))

    def _draw_curve(self, lines: int = 0) -> None:
        curve, now = self.query_one("#expert-curve", Static), time.monotonic()
        is_due = bool(lines) or now - self._curve_s >= CURVE_SECONDS
        if curve.display and self._maps is not None and is_due:
            height = lines or curve.size.height - 1
            drawn = by_rank(self._maps.heat, self._maps.residency, self.content_size.width, height)
            self._curve_s = now if drawn else self._curve_s
            curve.update(Content("\n").join(drawn), layout=bool(lines))

    # The map, and the expert that is picked in it.

    def _draw_map(self) -> None:
        if (maps := self._maps) is None:
            return
        chart, heat = self.query_one(ExpertMap), self._unusual() if self._shows_unusual else None
        if heat is not None:
            chart.show(replace(maps, heat=heat, last=maps.last * 0 - 1), shines=False)
        else:
            chart.show(maps)
        self._draw_curve()
        if chart.spot is not None:
            self._draw_picked(chart.spot)

    def _unusual(self) -> FloatArray | None:
        if self._maps is None or self._before is None:
            return None
        return unusual(self._maps.heat, self._before)

    @on(ExpertMap.Picked)
    def _picked(self, event: ExpertMap.Picked) -> None:
        self.query_one("#expert-legend").display = event.spot is None or self.size.height >= _LOW
        if event.spot is None:
            self.query_one("#expert-picked", Static).update(Content(""))
        else:
            self._draw_picked(event.spot)
        self._place()

    def _draw_picked(self, spot: Spot) -> None:
        if self._maps is None:
            return
        *words, keys = self._picked_words(spot).split("\n")
        text = Content.assemble("\n".join(words), (f"\n{keys}", "$muted"))
        self.query_one("#expert-picked", Static).update(text)

    def _picked_words(self, spot: Spot) -> str:
        if self._maps is None:
            return ""
        keys = "arrows move · Space unusual" + (" · P pin" if self._can_pin else "") + " · Esc back"
        words = picked(spot, self._maps, self._unusual(), spot in self._pinned)
        return flow("\n".join([*words, keys]), max(self.content_size.width, 20))

    @on(ExpertMap.UsualToggled)
    def _toggle_usual(self) -> None:
        if not self._shows_unusual and self._unusual() is None:
            self.notify(
                f"Nothing to compare with yet: that takes {count(LEAST_PAIRS)} routed experts before this "
                "conversation, and as many in it."
            )
            return
        self._shows_unusual = not self._shows_unusual
        self._draw_map()
        self._draw_legend()

    def mark_pinned(self, spot: Spot, pinned: bool) -> None:
        """The engine has pinned ``spot``, or let it go."""
        (self._pinned.add if pinned else self._pinned.discard)(spot)
        if (picked := self.query_one(ExpertMap).spot) is not None:
            self._draw_picked(picked)

    def is_pinned(self, spot: Spot) -> bool:
        """Whether the user has pinned ``spot``."""
        return spot in self._pinned

    @on(ExpertMap.Fitted)
    def _fitted(self, event: ExpertMap.Fitted) -> None:
        self._layout = event.layout
        self._draw_legend()

    def _draw_legend(self) -> None:
        layout = self._layout
        if layout is None:
            return
        few, dense = self._has_few_colours, layout.dense
        keys = [("█", "$map-hit", "hit"), ("□", "$map-miss", "miss")] if not self._shows_unusual else []
        keys += [("■", "$map-hot", "on device"), ("·", "$map-cool", "on CPU")]
        if few and dense:
            keys = [("□", "$map-miss", "miss"), ("▀", "$map-hot", "on device"), ("·", "$map-cool", "on CPU")]
        elif not few:
            keys = [("▀" if dense else "▇", ink, name) for _, ink, name in keys]
        legend = Content("  ").join(Content.assemble((glyph, ink), f" {name}") for glyph, ink, name in keys)
        strong = "bright" if self.app.current_theme.dark else "dark"
        shaded = f"{strong} = more than usual" if self._shows_unusual else f"{strong} = often"
        for note in filter(None, (scale(layout), "" if few and not self._shows_unusual else shaded)):
            if legend.cell_length + len(note) + 2 <= self.content_size.width:
                legend = Content.assemble(legend, (f"  {note}", "$muted"))
        self.query_one("#expert-legend", Static).update(legend)
