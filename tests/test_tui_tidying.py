"""The chat leaves hardly any cycles for Python's collection, and chooses its time itself."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from rich.segment import Segment
from textual.strip import Strip

from edgemoe.tui import tidying
from edgemoe.tui.tidying import LATE_SECONDS, SOON_SECONDS, Tidying, without_cycles


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(tidying, "time", SimpleNamespace(monotonic=lambda: now.s))
    divide, thresholds = Strip.divide, gc.get_threshold()
    yield now
    Strip.divide = divide  # type: ignore[method-assign]
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def left_by(divide: tidying.Divide) -> int:
    """Count the cycles that a whole line leaves, and the cycles that a cut line leaves."""
    gc.collect()
    gc.disable()
    try:
        for cuts in ([5], [2, 5], [5, 9]):
            strip = Strip([Segment("12"), Segment("345")])
            assert "".join(part.text for part in divide(strip, cuts)) == "12345"
        del strip
        return gc.collect()
    finally:
        gc.enable()


def test_a_line_that_was_drawn_goes_at_once() -> None:
    assert left_by(Strip.divide) > 0, "Textual no longer needs this"
    assert left_by(without_cycles(Strip.divide)) == 0


def test_it_collects_when_it_is_calm_and_at_last_when_it_is_not(clock: SimpleNamespace) -> None:
    tidying_up = Tidying()
    clock.s += LATE_SECONDS
    assert not tidying_up.look(), "not before it begins"
    tidying_up.begin()
    tidying_up.key()
    clock.s += SOON_SECONDS
    tidying_up.key()
    assert not tidying_up.look(), "a key was pressed just now"
    clock.s += 0.5
    assert not tidying_up.look(), "the next may come any moment"
    tidying_up.key()
    clock.s += 0.22
    assert tidying_up.look() and not tidying_up.look()
    clock.s += SOON_SECONDS
    assert tidying_up.look(), "nobody types"
    for _ in range(int(LATE_SECONDS * 10) - 1):
        clock.s += 0.1
        tidying_up.key()
        assert not tidying_up.look()
    clock.s += 0.2
    tidying_up.key()
    assert tidying_up.look()
