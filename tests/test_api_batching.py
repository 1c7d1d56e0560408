"""Several answers in one context equal the same answers one by one."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from zoo import build

from edgemoe import Llama, OffloadConfig
from edgemoe.engine.batching import BESIDE_MS, FIRST_PIECE, Batching, _Pace
from edgemoe.engine.seat import Seat
from edgemoe.errors import ConfigError

CPU = OffloadConfig(device="none", profile="off")
SIM = OffloadConfig(device="sim", vram="50%", profile="off", synchronous=True)
SETTINGS: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
# Tokens of the zoo's vocabulary. The prompts share a beginning, as conversations with one system prompt do.
SHARED = [5 + i % 40 for i in range(40)]
PROMPTS = [[*SHARED, 50 + i, *range(60, 63 + 5 * i)] for i in range(4)]
LONGEST = 12


def one_by_one(path: Path, prompts: list[list[int]], offload: OffloadConfig = CPU) -> list[str]:
    llm = Llama(path, n_ctx=512, offload=offload, **SETTINGS)
    answers = [llm.create_completion(prompt, temperature=0, max_tokens=LONGEST) for prompt in prompts]
    llm.close()
    return [answer["choices"][0]["text"] for answer in answers]


@contextmanager
def batching(path: Path, parallel: int = 4, n_ctx: int = 512, offload: OffloadConfig = CPU) -> Iterator[Batching]:
    llm = Llama(path, n_ctx=n_ctx, offload=offload, sequences=parallel, **SETTINGS)
    made = Batching(llm, parallel)
    try:
        yield made
    finally:
        made.close()
        llm.close()


def together(made: Batching, prompts: list[list[int]], **keywords: Any) -> list[dict[str, Any]]:
    answers: list[Any] = [None] * len(prompts)

    def answer(number: int) -> None:
        given = {"temperature": 0, "max_tokens": LONGEST, "prompt": prompts[number], **keywords}
        answers[number] = next(iter(Seat(made).complete(**given)))

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return answers


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["choices"][0]["text"] for answer in answers]


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss", "qwen3next", "nemotron_h_moe", "lfm2moe", "deepseek2-v3"])
def test_answers_together_equal_answers_one_by_one(name: str, tmp_path: Path) -> None:
    path = build(name, tmp_path)
    expected = one_by_one(path, PROMPTS)
    with batching(path) as made:
        assert texts(together(made, PROMPTS)) == expected
        again = together(made, PROMPTS)
        assert texts(again) == expected
        assert any(answer["timings"]["cache_n"] > 0 for answer in again), "no beginning was used again"


def test_answers_together_equal_those_one_by_one_on_a_device(tmp_path: Path) -> None:
    path = build("qwen3moe", tmp_path)
    with batching(path, offload=SIM) as made:
        assert texts(together(made, PROMPTS)) == one_by_one(path, PROMPTS, SIM)


def test_more_answers_than_sequences_wait_for_their_turn(tmp_path: Path) -> None:
    path = build("qwen3moe", tmp_path)
    prompts = [*PROMPTS, *([9, *prompt] for prompt in PROMPTS)]
    with batching(path, parallel=3) as made:
        assert texts(together(made, prompts)) == one_by_one(path, prompts)


def test_a_beginning_that_prompts_share_is_read_once(tmp_path: Path) -> None:
    with batching(build("qwen3moe", tmp_path)) as made:
        answers = together(made, PROMPTS)
    read = sum(answer["timings"]["prompt_n"] for answer in answers)
    assert read <= sum(map(len, PROMPTS)) - 3 * (len(SHARED) - 1)


def test_a_full_context_delays_an_answer_and_changes_none(tmp_path: Path) -> None:
    """Four answers of 150 tokens do not fit 256 tokens at once: later ones wait, or are read again."""
    path = build("qwen3moe", tmp_path)
    prompts = [[20 + number, *range(30, 90)] for number in range(4)]
    llm = Llama(path, n_ctx=256, offload=CPU, **SETTINGS)
    expected = [llm.create_completion(prompt, temperature=0, max_tokens=90)["choices"][0]["text"] for prompt in prompts]
    llm.close()
    with batching(path, n_ctx=256) as made:
        assert texts(together(made, prompts, max_tokens=90)) == expected


def test_an_answer_that_is_cancelled_ends_and_the_others_go_on(tmp_path: Path) -> None:
    path = build("qwen3moe", tmp_path)
    expected = one_by_one(path, PROMPTS[:1])
    with batching(path) as made:
        seat = Seat(made)
        chunks = seat.complete(prompt=PROMPTS[1], temperature=0, max_tokens=400, stream=True)
        next(iter(chunks))
        other = threading.Thread(target=lambda: results.extend(together(made, PROMPTS[:1])))
        results: list[dict[str, Any]] = []
        other.start()
        seat.cancel()
        rest = list(chunks)
        other.join(60)
        assert rest[-1]["choices"][0]["finish_reason"] == "stop" and len(rest) < 400
        assert texts(results) == expected


@pytest.mark.filterwarnings("ignore:n_ctx")
def test_a_cancel_while_a_prompt_is_read_stops_the_reading(tmp_path: Path) -> None:
    path = build("qwen3moe", tmp_path)
    with batching(path, n_ctx=8192) as made:
        seat = Seat(made)
        chunks = seat.complete(prompt=[7] * 8000, temperature=0, max_tokens=4, stream=True)
        threading.Timer(0.05, seat.cancel).start()
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons[-1] == "stop"
        assert texts(together(made, PROMPTS[:1])) == one_by_one(path, PROMPTS[:1])


def test_probabilities_are_those_of_one_answer_alone(tmp_path: Path) -> None:
    path = build("qwen3moe", tmp_path)
    llm = Llama(path, n_ctx=512, offload=CPU, **SETTINGS)
    alone = llm.create_completion(PROMPTS[0], temperature=0, max_tokens=4, logprobs=3)["choices"][0]["logprobs"]
    llm.close()
    with batching(path) as made:
        beside = together(made, PROMPTS[:2], max_tokens=4, logprobs=3)[0]["choices"][0]["logprobs"]
    assert beside["tokens"] == alone["tokens"]
    assert beside["token_logprobs"] == pytest.approx(alone["token_logprobs"], abs=1e-3)


@pytest.mark.parametrize("token_ms", [0.3, 5.0, 30.0])
def test_pieces_of_a_prompt_keep_a_step_short(token_ms: float) -> None:
    """On a machine whose speed changes, 95 of 100 steps beside other answers stay below 300 ms."""
    chance, pace = random.Random(1), _Pace(BESIDE_MS, FIRST_PIECE, 512)
    steps = []
    for number in range(400):
        speed = token_ms * (1 if number < 200 else 2) * chance.uniform(0.8, 1.3)
        steps.append(20 + pace.count * speed)
        pace.passed(pace.count, steps[-1])
    assert sorted(steps)[380] < 300
    assert sum(steps[20:200]) / 180 > 100 or pace.count == 512, "the pieces are needlessly short"


def test_tokens_of_another_model_are_refused(tmp_path: Path) -> None:
    with batching(build("qwen3moe", tmp_path), parallel=1) as made:
        for given in ({"prompt": [10**6]}, {"prompt": [5], "logit_bias": {"1000000": 1.0}}):
            with pytest.raises(ConfigError, match="not one of the model's"):
                list(Seat(made).complete(**given))
