"""How many threads decode: one less when other programs need the processors, and back when they do not.

The threads of a token wait for each other at every operation. If another program takes the processor of one thread, all
threads wait. Beside two busy programs, two threads decode at an eighth to two thirds of the speed of one thread. Only a
measurement tells which number is best. So the controller tries one thread less when tokens stall, and goes back if that
is slower. Then it tries larger steps at once: as long as one thread shares its processor, one less helps nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

# Tokens of a measurement.
WINDOW = 8
# A trial wins if its tokens take less than this share of the time.
WORTH = 0.95
# Tokens stall if the system preempts their threads so often in a second, by the clock or of computing. If two programs
# share a processor, Linux preempts after 3 to 4 ms of computing. On a very busy machine that is rare by the clock.
PREEMPTIONS_PER_S = 50
# Tokens also stall if they suddenly take so many times as long as before.
SUDDEN = 1.5
# Share of the latest measurement in the usual time of a token.
SMOOTHING = 0.25
# Tokens until the next trial of the same kind, after a trial that lost. The number doubles each time.
PATIENCE, MOST_PATIENCE = 64, 256
# The pause takes at least so many times as long as the trial: a token of too many threads may take as long as 60
# others.
PAUSE = 20


class Usage(NamedTuple):
    """Usage of the processors by the threads of this process.

    Attributes:
        preempted: number of times that the system took a processor from a thread that needed it.
        cpu_ns: time that the threads ran, added up.
    """

    preempted: int
    cpu_ns: int

    @classmethod
    def now(cls) -> Usage:
        """Read the usage since the process began; zeros on Windows, which does not count preemptions.

        **Source**: ``ru_nivcsw``, ``ru_utime`` and ``ru_stime`` of getrusage(2).
        """
        if sys.platform == "win32":
            return cls(0, 0)
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(usage.ru_nivcsw, int((usage.ru_utime + usage.ru_stime) * 1e9))

    def since(self, before: Usage) -> Usage:
        """Give the usage after ``before``."""
        return Usage(self.preempted - before.preempted, self.cpu_ns - before.cpu_ns)


@dataclass
class _Trial:
    """A measurement of another number of threads.

    Attributes:
        step: threads more than usual, negative for fewer.
        usual_ns: time of a token with the usual number of threads.
        tried_ns: time of a token with the other number, once it is known; then the usual number is measured again.
    """

    step: int
    usual_ns: float
    tried_ns: float | None = None


class Threads:
    """The number of threads that decode the next token.

    Attributes:
        count: threads for the next token.
    """

    def __init__(self, most: int) -> None:
        """Begin with ``most`` threads, which is also the limit."""
        self.count = self._usual = most
        self._most = most
        self._trial: _Trial | None = None
        self._before: float | None = None
        self._down = 1  # number of threads less in the next trial
        self._wait = {"down": 0, "up": 0}
        self._patience = {"down": PATIENCE, "up": PATIENCE}
        self._clear()

    def _clear(self) -> None:
        self._tokens = self._spent_ns = self._cpu_ns = self._preempted = 0

    def passed(self, elapsed_ns: int, usage: Usage) -> int:
        """Account for a token and return the number of threads for the next one.

        Args:
            elapsed_ns: time that the token's computation took.
            usage: usage of the processors meanwhile.
        """
        self._tokens += 1
        self._spent_ns += elapsed_ns
        self._preempted += usage.preempted
        self._cpu_ns += usage.cpu_ns
        if self._tokens == WINDOW or self._lost():
            mean = self._spent_ns / self._tokens
            if self._trial is None:
                self._consider(mean)
            else:
                self._judge(self._trial, mean)
            self._clear()
        return self.count

    def _lost(self) -> bool:
        """Tell whether the trial has taken so long that its other tokens cannot make it win."""
        if self._trial is None:
            return False
        rival = self._trial.usual_ns if self._trial.tried_ns is None else self._trial.tried_ns / WORTH
        return self._spent_ns > WINDOW * rival

    def _consider(self, mean: float) -> None:
        """Begin a trial if there is a reason."""
        sudden = self._before is not None and mean > SUDDEN * self._before
        stalled = sudden or self._preempted * 1e9 > PREEMPTIONS_PER_S * min(self._spent_ns, self._cpu_ns)
        self._before = mean if self._before is None else self._before + SMOOTHING * (mean - self._before)
        self._wait = {way: max(0, tokens - self._tokens) for way, tokens in self._wait.items()}
        if stalled and self._usual > 1 and (sudden or not self._wait["down"]):
            self._begin(-min(self._down, self._usual - 1), mean)
        elif self._usual < self._most and not self._wait["up"]:
            self._begin(1, mean)

    def _begin(self, step: int, mean: float) -> None:
        self._trial = _Trial(step, mean)
        self.count = self._usual + step

    def _judge(self, trial: _Trial, mean: float) -> None:
        if trial.tried_ns is None and trial.step < 0 and mean < WORTH * trial.usual_ns:
            trial.tried_ns, self.count = mean, self._usual  # the usual number again: its stall may be over
            return
        tried, usual = (mean, trial.usual_ns) if trial.tried_ns is None else (trial.tried_ns, mean)
        if tried < WORTH * usual:
            self._won(trial.step)
        elif 0 < -trial.step < self._usual - 1:
            self._down *= 2  # at once
        else:
            self._give_up("down" if trial.step < 0 else "up", self._spent_ns / usual)
        self._trial, self.count = None, self._usual

    def _won(self, step: int) -> None:
        way, back = ("down", "up") if step < 0 else ("up", "down")
        self._usual += step
        self._down, self._before = 1, None
        self._wait[back] = self._patience[back]
        self._patience[way] = PATIENCE

    def _give_up(self, way: str, cost: float) -> None:
        """Try no other number of this kind for a while; ``cost`` is the trial's time in usual tokens."""
        self._down = 1
        self._wait[way] = max(self._patience[way], int(PAUSE * cost))
        self._patience[way] = min(MOST_PATIENCE, 2 * self._patience[way])
