"""The watchdog frees memory if other programs need it, takes it again when they end, and changes no answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemoe import Llama, OffloadConfig
from edgemoe.config import SimConfig
from edgemoe.engine import host
from edgemoe.engine.watchdog import QUIET_LOOKS, BudgetChanged, Watchdog
from edgemoe.profiling.observe import likeliest
from tests.routing import wide_model

MIB = 1 << 20


class Device:
    """Simulate a device of 1000 MiB (reserve 250) that other programs use, too."""

    def __init__(self) -> None:
        self.others, self.hot, self.automatic = 0, 600 * MIB, True
        self.asked: list[int] = []

    def memory(self) -> tuple[int, int]:
        return 1000 * MIB - self.hot - self.others, 1000 * MIB

    def held(self) -> int:
        return self.hot

    def fit_memory(self, vram: int) -> int:
        self.asked.append(vram)
        self.hot = vram // (10 * MIB) * 10 * MIB
        return 0


def watched(events: list[BudgetChanged] | None = None) -> tuple[Device, Watchdog]:
    device = Device()
    return device, Watchdog(device, 600 * MIB, (events if events is not None else []).append)


def test_the_reserve_is_restored_at_once() -> None:
    events: list[BudgetChanged] = []
    device, dog = watched(events)
    assert dog.look() is None
    device.others = 400 * MIB
    assert dog.look() == events[0] and events[0].before_bytes == 600 * MIB
    assert device.hot == 350 * MIB and device.memory()[0] == 250 * MIB
    assert "shrank from 600 to 350 MiB" in events[0].sentence
    assert dog.look() is None, "once is enough"


def test_it_grows_back_only_after_some_quiet() -> None:
    device, dog = watched()
    device.others = 500 * MIB
    dog.look()
    device.others = 0
    for _ in range(QUIET_LOOKS - 1):
        assert dog.look() is None
    device.others = 500 * MIB
    assert dog.look() is None
    device.others = 0
    for _ in range(QUIET_LOOKS - 1):
        assert dog.look() is None, "the quiet was broken and counts from its beginning"
    grown = dog.look()
    assert grown is not None and "grew" in grown.sentence and device.hot == 600 * MIB
    assert dog.look() is None and len(device.asked) == 2


def test_a_little_memory_is_not_worth_a_change() -> None:
    device, dog = watched()
    device.others = 500 * MIB
    dog.look()
    device.others = 400 * MIB  # 100 MiB more, less than half of the reserve
    assert all(dog.look() is None for _ in range(3 * QUIET_LOOKS))


def test_nothing_is_left_when_others_take_all() -> None:
    device, dog = watched()
    device.others = 2000 * MIB
    dog.look()
    assert device.hot == 0 and dog.look() is None


def test_a_budget_that_was_asked_for_is_not_touched() -> None:
    device, dog = watched()
    device.others, device.automatic = 900 * MIB, False
    assert dog.look() is None and not device.asked


def until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def llm_of(tmp_path: Path) -> Callable[[int], Llama]:
    def opened(capacity: int) -> Llama:
        with wide_model(tmp_path) as path:
            sim = SimConfig(capacity=capacity)
            config = OffloadConfig(device="sim", profile="off", prefetch="off", sim=sim)
            return Llama(path, n_ctx=1024, n_threads=1, offload=config)

    return opened


def test_memory_taken_while_answering(llm_of: Callable[[int], Llama]) -> None:
    big = 64 * MIB
    llm = llm_of(big)
    try:
        llm.eval(list(range(1, 40)))
        full = llm.experts.stats().slot_bytes
        assert full > 0 and llm.experts.automatic
        free, _ = llm._native.device_memory()
        small = (big - free - full // 2) * 4 // 3  # room for half the hot set and the reserve (1/4)
        host.core().configure_sim(SimConfig(capacity=small))  # another program took the rest
        tokens, shrank_after = [7], 0.0
        taken = time.monotonic()
        while len(tokens) < 500 and not (shrank_after and len(tokens) > 60):
            llm.eval([tokens[-1]])
            tokens.append(likeliest(llm))
            if not shrank_after:  # as slow as a large model; otherwise the tokens end before the first look
                shrank_after = (
                    time.monotonic() - taken if until(lambda: llm.experts.stats().slot_bytes < full, 0.01) else 0.0
                )
        assert 0 < shrank_after < 1.0, "within a second, while it answers"
        assert until(lambda: llm._native.device_memory()[0] >= small // 4, 1)
        free, total = llm._native.device_memory()
        assert total == small and free >= total // 4, "the reserve is free again"
        assert full * 0.3 < llm.experts.stats().slot_bytes < full * 0.6, "and no more was given up than needed"
        assert until(lambda: any("shrank" in note for note in llm.experts.notes), 1)
        assert llm.experts.stats().failed_uploads == llm.experts.stats().device_fallbacks == 0
        host.core().configure_sim(SimConfig(capacity=big))
        assert until(lambda: llm.experts.stats().slot_bytes == full, 12), "it grows back"
        assert until(lambda: any("grew" in note for note in llm.experts.notes), 1)
        assert not any("shrank" in note for note in llm.experts.notes), "what is no longer true is not said"
        again = llm_of(big)
        again.eval(list(range(1, 40)))
        same = [7]
        for _ in tokens[1:]:
            again.eval([same[-1]])
            same.append(likeliest(again))
        again.close()
        assert tokens == same, "and no token changed"
    finally:
        llm.close()
