"""The number of threads that decode, with a scripted machine in the place of a clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import pytest

from edgemoe import Llama, OffloadConfig, limits
from edgemoe.engine import threads
from edgemoe.engine.threads import WINDOW, Threads, Usage
from tests.parity import PROMPT
from tests.zoo import build

MS = 1_000_000
# From threads and a token to milliseconds, preemptions and, if others compute meanwhile, milliseconds of computing.
Machine = Callable[[int, int], tuple[float, int] | tuple[float, int, float]]


def run(machine: Machine, tokens: int, most: int = 2, controller: Threads | None = None) -> tuple[list[int], float]:
    """Decode ``tokens``; give the threads of each token and the milliseconds of all."""
    controller = controller or Threads(most)
    counts, spent = [], 0.0
    for token in range(tokens):
        took, preempted, *computed = machine(controller.count, token)
        counts.append(controller.count)
        spent += took
        cpu_ms = computed[0] if computed else took * controller.count
        controller.passed(int(took * MS), Usage(preempted, int(cpu_ms * MS)))
    return counts, spent


def alone(count: int, token: int) -> tuple[float, int]:
    return 24 / count, 0


def beside_busy_programs(count: int, token: int) -> tuple[float, int]:
    """Two processors, two busy programs: one thread gets half a processor, two wait for each other."""
    return (48.0, 8) if count == 1 else ((60, 70, 400, 90)[token % 4], 20)


def test_alone_nothing_is_ever_tried() -> None:
    counts, spent = run(alone, 2000, most=8)
    assert set(counts) == {8} and spent == 2000 * 24 / 8


def test_beside_busy_programs_one_thread_within_a_fifth_of_the_best_after_100_tokens() -> None:
    controller = Threads(2)
    run(beside_busy_programs, 100, controller=controller)
    counts, spent = run(beside_busy_programs, 900, controller=controller)
    assert counts.count(1) > 880 and spent < 1.2 * 900 * 48
    first, early = run(beside_busy_programs, 100)
    assert first[-1] == 1 and early < 2.2 * 100 * 48


def test_the_other_programs_end_and_all_threads_come_back() -> None:
    def machine(count: int, token: int) -> tuple[float, int]:
        return beside_busy_programs(count, token) if token < 200 else alone(count, token)

    counts, _ = run(machine, 700)
    assert counts[199] == 1 and set(counts[-100:]) == {2}


def test_a_busy_machine_from_one_token_to_the_next_is_noticed_without_a_count_of_preemptions() -> None:
    def machine(count: int, token: int) -> tuple[float, int]:
        if token < 64:
            return alone(count, token)
        return beside_busy_programs(count, token)[0], 0

    counts, _ = run(machine, 200)
    assert counts[63] == 2 and set(counts[120:136]) == {1}


def test_one_long_token_costs_little() -> None:
    def machine(count: int, token: int) -> tuple[float, int]:
        return (5000.0 if token == 100 else alone(count, token)[0]), 0

    counts, spent = run(machine, 1000)
    assert counts[-1] == 2 and counts.count(1) <= WINDOW
    assert spent - 5000 < 1.01 * 1000 * 12


def test_background_work_that_no_other_number_helps_costs_little() -> None:
    def machine(count: int, token: int) -> tuple[float, int]:
        return 24 / count, 3  # 125 and more in a second

    counts, spent = run(machine, 3000)
    assert counts[-1] == 2 and spent < 1.05 * 3000 * 12


@pytest.mark.parametrize("slow_ms", [80.0, 650.0])
def test_the_first_slow_token_ends_a_trial_that_cannot_win(slow_ms: float) -> None:
    def machine(count: int, token: int) -> tuple[float, int, float]:
        return (10.0, 1, 10.0) if count == 1 else (slow_ms, 8, 24.0)

    controller = Threads(2)
    run(machine, 64, controller=controller)
    counts, spent = run(machine, 2000, controller=controller)
    assert counts.count(2) <= 2000 / threads.PATIENCE and spent < 1.1 * 2000 * 10


@pytest.mark.parametrize(("most", "others", "best"), [(8, 3, 5), (16, 8, 8), (4, 3, 1), (6, 1, 5)])
def test_it_finds_the_number_whose_threads_share_no_processor(most: int, others: int, best: int) -> None:
    """A thread that has to share its processor takes eight times as long, and all wait for it."""

    def machine(count: int, token: int) -> tuple[float, int]:
        shares = count > most - others
        return 40 / count * (8 if shares else 1), 10 * shares

    counts, _ = run(machine, 600, most=most)
    assert max(set(counts[-200:]), key=counts[-200:].count) == best


def test_it_never_leaves_its_limits() -> None:
    counts, _ = run(lambda count, token: (float(token % 7 + 1), 100), 3000, most=3)
    assert min(counts) >= 1 and max(counts) <= 3
    assert set(run(lambda count, token: (1.0, 100), 500, most=1)[0]) == {1}


# ---- in a model ----


def test_the_context_gets_the_number_and_answers_stay_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build("llama", tmp_path)
    monkeypatch.setattr(limits, "processors", lambda: limits.Processors(2, 2))
    counts: list[int] = []

    def scripted(self: Threads, elapsed_ns: int, usage: Usage) -> int:
        counts.append(llama_cpp.llama_n_threads(llm.ctx))
        self.count = 3 - self.count
        return self.count

    monkeypatch.setattr(Threads, "passed", scripted)
    for given in ({}, {"n_threads": 2}):
        llm = Llama(path, n_ctx=128, offload=OffloadConfig(device="none", profile="off"), **given)
        batch = llama_cpp.llama_n_threads_batch(llm.ctx)
        tokens = [token for _, token in zip(range(6), llm.generate(PROMPT, temp=0), strict=False)]
        assert llama_cpp.llama_n_threads_batch(llm.ctx) == batch
        if not given:
            want = tokens
            assert counts == [2, 1, 2, 1, 2]
        llm.close()
    assert tokens == want and len(counts) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count")
def test_the_system_counts_the_time_of_computing() -> None:
    before = Usage.now()
    while not (passed := Usage.now().since(before)).cpu_ns:
        pass
    assert passed.cpu_ns > 0 and passed.preempted >= 0
