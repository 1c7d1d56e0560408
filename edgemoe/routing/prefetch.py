"""Loading ahead of need: when it pays, and the controller that turns it off where it does not."""

from __future__ import annotations

from statistics import median

# Layers between the choice and the layer it is for. One ahead names .772 of the experts, two .760 (gpt-oss-20b).
LEAD = 1
# Expected uses that an exchange must win. Held out, a quarter resident, at most one load per layer and token; hit rate
# (share of prefetches never used), gpt-oss-20b and DeepSeek-V2-Lite: 0.1: .814 (.28), .703 (.20); 0.3: .804 (.17),
# .700 (.15).
GAIN = 0.3

# Most decode steps from one turn of the policy to the next. While experts are fetched ahead, little is left to fetch on
# demand: hit rate (loads per layer and token), a quarter of gpt-oss-20b resident, every step .8705 (0.97), every eighth
# .8689 (0.90).
PLAN_EVERY = 8
EPOCH = 16  # decode steps timed before a judgement: their median hardly feels a hiccup
HOLD, LONGEST_HOLD = 128, 8192  # steps until the other setting gets its next chance
WORTH = 0.99  # prefetch stays on at equal speed: hits come before speed shows them


class Controller:
    """Decides by the clock whether prefetch stays on: both ways are timed, the faster runs, the other is tried again.

    Attributes:
        on: whether to prefetch in the next step.
    """

    def __init__(self) -> None:
        """Begin with prefetch on."""
        self.on = True
        self._times: dict[bool, list[int]] = {True: [], False: []}
        self._left = EPOCH
        self._probing = True
        self._hold = HOLD
        self._winner = True

    def step(self, elapsed_ns: int) -> bool:
        """Take the wall time of the decode step just done; returns whether to prefetch in the next."""
        if self._probing:
            self._times[self.on].append(elapsed_ns)
        self._left -= 1
        if self._left <= 0:
            self._turn()
        return self.on

    def _turn(self) -> None:
        if not self._probing:  # enough of the winner: time both again, the winner first
            self._times = {True: [], False: []}
            self._probing, self._left = True, EPOCH
            return
        if not self._times[not self.on]:
            self.on, self._left = not self.on, EPOCH
            return
        times = {setting: median(values) for setting, values in self._times.items()}
        best = times[True] * WORTH <= times[False]
        self._hold = min(2 * self._hold, LONGEST_HOLD) if best == self._winner else HOLD
        self.on = self._winner = best
        self._probing, self._left = False, self._hold
