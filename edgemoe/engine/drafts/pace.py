"""The number of tokens to draft, by measured time. Pure: the caller measures.

A step of n + 1 tokens checks n guesses. It takes longer than a step of one token, because it reads more experts. So a
draft pays only if enough guesses are right. Both are measured: the time of a step by its number of tokens, and the
share of right guesses by kind of guess and by place within the draft.

No draft may slow an answer down. The pace keeps a *reserve* of time: a small share of the time that plain decoding
would have taken, plus all time that drafts saved. A draft must be affordable if every guess of it is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

# Most guesses of a step. Sixteen tokens count as a prefill, which does not move experts.
MOST = 14
# Share of the plain time that wrong guesses may cost; the promise is 3 %.
SHARE = 0.02
# Plain steps' worth of time in the reserve: at the start, at most, and at least. A stall of the machine is no draft's
# fault, so no debt lasts longer than 50 tokens.
FIRST_RESERVE, MOST_RESERVE, LEAST_RESERVE = 1.0, 6.0, -1.0
# A step counts at most so many times the known time of its size.
LONGEST = 1.5
# A draft must be faster than plain decoding by this factor.
WORTH = 1.03
# Plain steps before the first draft, and drafted steps until the plain time is measured again.
PLAIN_FIRST, PLAIN_AGAIN = 3, 48
# Time of one more token in a step, as a share of a plain step, until it is measured.
GUESSED_GROWTH = 0.15
# Weight of a new time; weight of the first opinion of a chance, in guesses; share of old guesses that remains.
SMOOTH, OPINION, FADE = 0.2, 2.0, 0.9
# Chances to draft that pass unused before a kind that does not pay is tried again. After a trial that failed, doubled
# by each further failure; after a trial that paid.
PATIENCE, MOST_PATIENCE, EAGER = 24, 96, 1


class _Kind:
    """Count right guesses of one kind, by place within the draft.

    Attributes:
        passed: chances to draft since the last draft.
        patience: such chances until a draft is made, even if none seems to pay.
    """

    def __init__(self, chance: float) -> None:
        self._tried, self._right = [0.0] * MOST, [0.0] * MOST
        self._tried[0], self._right[0] = OPINION, OPINION * chance
        self.passed, self.patience = 0, PATIENCE

    def chances(self, count: int) -> Iterator[float]:
        """Yield the chance of each guess, if all guesses before it are right. A new place is like the one before."""
        chance = 0.0
        for place in range(count):
            weight = OPINION if place else 0.0
            chance = (self._right[place] + weight * chance) / (self._tried[place] + weight)
            yield chance

    def learn(self, offered: int, accepted: int, paid: bool) -> None:
        """Count a draft of ``offered`` guesses, of which the first ``accepted`` were right."""
        for place in range(min(accepted + 1, offered)):
            self._tried[place] = FADE * self._tried[place] + 1
            self._right[place] = FADE * self._right[place] + (place < accepted)
        if paid:
            self.patience = EAGER
        elif self.passed >= self.patience:
            self.patience = min(max(PATIENCE, 2 * self.patience), MOST_PATIENCE)
        self.passed = 0


class Pace:
    """Decides how many tokens to draft. Times are in nanoseconds.

    Attributes:
        steps: steps so far, with guesses or without.
        offered: guesses so far.
        accepted: right guesses so far.
    """

    def __init__(self, chances: tuple[float, ...]) -> None:
        """Begin without a measurement; ``chances`` are those of `Source`."""
        self._kinds = [_Kind(chance) for chance in chances]
        self._step_ns: dict[int, float] = {}  # by number of tokens
        self._guess_ns = 0.0  # time to draft one token
        self._plain_steps = self._drafted_steps = 0
        self._reserve_ns = 0.0
        self.steps = self.offered = self.accepted = 0

    def count(self, kind: int, most: int) -> int:
        """Choose the number of guesses, 0 for a plain step.

        Args:
            kind: kind of the guess.
            most: largest number that the source and the context have room for.
        """
        if most < 1 or self._plain_steps < PLAIN_FIRST or self._drafted_steps >= PLAIN_AGAIN:
            return 0
        known = self._kinds[kind]
        best = self._best(known, min(most, MOST))
        if not best:
            known.passed += 1
            best = 1 if known.passed >= known.patience else 0
        while best and self._risk(best) > self._reserve_ns:
            best -= 1
        return best

    def step(self, kind: int, offered: int, accepted: int, elapsed_ns: float, drafting_ns: int = 0) -> None:
        """Learn from a step.

        Args:
            kind: kind of the guess.
            offered: number of guesses.
            accepted: number of right guesses; the step made one token more.
            elapsed_ns: time of the step, without ``drafting_ns``.
            drafting_ns: time to draft.
        """
        self.steps, self.offered, self.accepted = self.steps + 1, self.offered + offered, self.accepted + accepted
        if not offered:
            self._note_plain(elapsed_ns)
            self._save(-drafting_ns)
            return
        elapsed_ns = self._note_time(offered + 1, elapsed_ns)
        self._drafted_steps += 1
        self._guess_ns += (SMOOTH if self._guess_ns else 1.0) * (drafting_ns / offered - self._guess_ns)
        plain = self._step_ns[1]
        self._save(SHARE * plain + (accepted + 1) * plain - elapsed_ns - drafting_ns)
        self._kinds[kind].learn(offered, accepted, (accepted + 1) * plain > elapsed_ns + drafting_ns)

    def _note_plain(self, elapsed_ns: float) -> None:
        self._note_time(1, elapsed_ns)
        self._plain_steps += 1
        self._drafted_steps = 0
        if self._plain_steps == PLAIN_FIRST:
            self._reserve_ns = FIRST_RESERVE * self._step_ns[1]
        self._save(SHARE * self._step_ns[1])

    def _save(self, ns: float) -> None:
        plain = self._step_ns[1]
        self._reserve_ns = min(max(self._reserve_ns + ns, LEAST_RESERVE * plain), MOST_RESERVE * plain)

    def _note_time(self, tokens: int, elapsed_ns: float) -> float:
        """Learn the time of a step; return the time that counts."""
        known = self._step_ns.setdefault(tokens, elapsed_ns)
        counted = min(elapsed_ns, LONGEST * known)
        self._step_ns[tokens] = known + SMOOTH * (counted - known)
        return counted

    def _time(self, tokens: int) -> float:
        """Give the time of a step of so many tokens: measured, or between its measured neighbours."""
        if (known := self._step_ns.get(tokens)) is not None:
            return known
        below = max(n for n in self._step_ns if n < tokens)
        above = min((n for n in self._step_ns if n > tokens), default=None)
        if above is not None:
            share = (tokens - below) / (above - below)
            return self._step_ns[below] + share * (self._step_ns[above] - self._step_ns[below])
        plain = self._step_ns[1]
        growth = (self._step_ns[below] - plain) / (below - 1) if below > 1 else GUESSED_GROWTH * plain
        return self._step_ns[below] + max(growth, 0.0) * (tokens - below)

    def _risk(self, count: int) -> float:
        """Give the time that is lost if all guesses are wrong."""
        return self._time(count + 1) + count * self._guess_ns - self._step_ns[1]

    def _best(self, kind: _Kind, most: int) -> int:
        """Give the number of guesses with the most tokens per time, 0 if plain steps are as fast."""
        best, highest = 0, WORTH / self._step_ns[1]
        tokens, all_right = 1.0, 1.0
        for count, chance in enumerate(kind.chances(most), 1):
            all_right *= chance
            tokens += all_right
            rate = tokens / (self._time(count + 1) + count * self._guess_ns)
            if rate > highest:
                best, highest = count, rate
        return best
