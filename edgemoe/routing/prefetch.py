"""Loading ahead of need: when it pays, and the controller that turns it off where it does not."""

from __future__ import annotations

from statistics import median

# Layers between the choice of an expert and its layer. One layer ahead predicts .772 of the experts, two .760
# (gpt-oss-20b).
LEAD = 1
# Least gain of an exchange, in expected uses. Measured on held-out routing, a quarter resident, at most one load per
# layer and token. Hit rate (share of prefetches never used) of gpt-oss-20b, then of DeepSeek-V2-Lite. Gain 0.1: .814
# (.28), .703 (.20). Gain 0.3: .804 (.17), .700 (.15).
GAIN = 0.3

# Most decode steps from one turn of the policy to the next. Prefetches leave little to load on demand. Hit rate (loads
# per layer and token), a quarter of gpt-oss-20b resident: every step .8705 (0.97), every eighth step .8689 (0.90).
PLAN_EVERY = 8
EPOCH = 16  # decode steps that are timed for a judgement; a stall hardly moves their median
HOLD, LONGEST_HOLD = 128, 8192  # steps until both settings are timed again
WORTH = 0.99  # prefetch stays on even without a gain of speed: hits rise before speed does


class Controller:
    """Decides whether prefetch stays on: times both settings, runs the faster, and later times both again.

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
