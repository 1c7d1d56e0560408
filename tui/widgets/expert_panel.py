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

from edgemoe.text.display import count
from edgemoe.types import ExpertStats, FloatArray, ModelShape

from ..balance import LEAST_PAIRS, unusual
from ..expert_figures import Traffic, figures, picked
from ..expert_map import Layout, Spot, scale
from ..records import ExpertMaps
from .expert_map import ExpertMap

QUIET_SECONDS = 2.1  # without a sample: longer than the link's rate looks back
_LOW = 18  # lines, below which the legend makes room for the words about an expert
_HISTORY = 64  # samples with decoded pairs: a quarter of a minute at full rate


class ExpertPanel(Vertical):
    """Shows samples of the experts; knows nothing of where they come from."""

    def __init__(self, id: str | None = None) -> None:
        """Empty until the model is known."""
        super().__init__(id=id)
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._traffic = Traffic()
        self.stats: ExpertStats | None = None
        self._in_ram: float | None = None
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
        """Figures above, map, picked expert, legend below."""
        yield Static(Content("no model yet"), id="expert-figures")
        yield ExpertMap(id="expert-map")
        yield Static(Content(""), id="expert-picked")
        yield Static(Content(""), id="expert-legend")

    def open(self, shape: ModelShape | None, device: str, stats: ExpertStats | None, can_pin: bool = False) -> None:
        """A model was loaded: name its device, forget the old figures."""
        self._rates.clear()
        self._traffic = Traffic()
        self._shape, self.stats, self._maps, self._can_pin = shape, stats, None, can_pin
        self._in_ram = None
        self._pinned.clear()
        self.begin()
        self.border_title = Content(f"experts · {device}")
        if shape is None:
            self.say("this model has no routed experts")
        elif stats is not None:
            self._draw_figures(stats)

    def begin(self) -> None:
        """Take the next map as the use before this conversation."""
        self._begins = True

    def say(self, text: str) -> None:
        """Words in the place of the figures."""
        self._height = 0
        self.query_one("#expert-figures", Static).update(Content(text))

    def show(self, stats: ExpertStats, maps: ExpertMaps | None, in_ram: float | None = None) -> None:
        """Draw a sample. The rate of the sparkline is that of the tokens since the sample before."""
        before = self.stats or ExpertStats()
        hits, misses = stats.hits - before.hits, stats.misses - before.misses
        if hits + misses > 0:
            self._rates.append(hits / (hits + misses))
        self._traffic.add(stats.upload_bytes + stats.streamed_bytes, time.monotonic())
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

    def on_resize(self) -> None:
        """The sparkline is as wide as there is room."""
        if self.stats is not None and self._shape is not None:
            self._draw_figures(self.stats)

    def _draw_figures(self, stats: ExpertStats) -> None:
        width = max(self.content_size.width, 20)
        lines = figures(stats, self._shape, list(self._rates), self._traffic, width, self._in_ram)
        height, self._height = self._height, len(lines)
        # A layout of the whole screen only where these lines change their number.
        self.query_one("#expert-figures", Static).update(Content("\n").join(lines), layout=height != self._height)

    # The map, and the expert that is picked in it.

    def _draw_map(self) -> None:
        if (maps := self._maps) is None:
            return
        if self._shows_unusual and (heat := self._unusual()) is not None:
            maps = replace(maps, heat=heat, last=maps.last * 0 - 1)
        chart = self.query_one(ExpertMap)
        chart.show(maps)
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

    def _draw_picked(self, spot: Spot) -> None:
        if self._maps is None:
            return
        keys = "arrows move · Space unusual" + (" · P pin" if self._can_pin else "") + " · Esc back"
        words = picked(spot, self._maps, self._unusual(), spot in self._pinned)
        text = Content.assemble("\n".join(words), ("\n" + keys, "$muted"))
        self.query_one("#expert-picked", Static).update(text)

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
        keys = [("█", "$map-hit", "hit"), ("□", "$map-miss", "miss"), ("■", "$map-hot", "on device")]
        few = self.app.no_color or self.app.native_ansi_color
        if layout.dense:
            keys = (
                [("▀", "$map-hot", "on device"), ("□", "$map-miss", "miss")]
                if few
                else [("▀", ink, name) for _, ink, name in keys]
            )
        keys.append(("▀" if layout.dense and not few else "·", "$map-cool", "on CPU"))
        if self._shows_unusual:
            keys = [key for key in keys if key[2].startswith("on ")]
        legend = Content("  ").join(Content.assemble((glyph, ink), f" {name}") for glyph, ink, name in keys)
        strong = "bright" if self.app.current_theme.dark else "dark"
        shaded = f"{strong} = more than usual" if self._shows_unusual else f"{strong} = often"
        note = " · ".join(part for part in (scale(layout), "" if few and not self._shows_unusual else shaded) if part)
        self.query_one("#expert-legend", Static).update(Content.assemble(legend, (f"  {note}", "$muted")))
