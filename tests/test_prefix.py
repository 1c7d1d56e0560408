"""What of a conversation is computed again: only what is new, whatever the model keeps of what it read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe import Llama, OffloadConfig
from tests import zoo

# Models whose memory cannot be cut: hybrids, recurrent ones, and sliding windows that keep the window only.
HYBRID = ("qwen3next", "qwen35moe", "granitehybrid", "jamba", "lfm2moe", "kimi-linear", "nemotron_h_moe", "minimax-01")
WINDOWED = ("gpt-oss", "gemma4", "llama4", "afmoe", "mimo2", "step35", "cohere2moe", "exaone-moe", "granite_swa")
PLAIN = ("llama", "qwen3moe", "deepseek2-v2")
CONVERSATION = 900
SLACK = 300  # tokens that may be read again beside the new ones
CPU = OffloadConfig(device="none", profile="off")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def opened(name: str, folder: Path, **keywords: Any) -> Llama:
    path = zoo.build(name, folder)
    return Llama(path, n_ctx=2048, n_threads=1, swa_full=False, offload=CPU, **keywords)


def asked(llm: Llama, prompt: list[int], count: int = 24) -> tuple[dict[str, Any], list[int]]:
    """Timings of an answer of ``count`` tokens to ``prompt``, and the answer."""
    made: list[int] = []
    bias = {llm.token_eos(): -1e9}
    answer = llm.create_completion(prompt, max_tokens=count, temperature=0, logit_bias=bias)
    made = [int(token) for token in llm.input_ids[len(prompt) : llm.n_tokens]]
    timings: dict[str, Any] = answer["timings"]
    return timings, made


def logits_after(llm: Llama, prompt: list[int]) -> Any:
    """Logits behind ``prompt``, with whatever the model has of it."""
    import llama_cpp

    stream = llm.generate(prompt, temp=0)
    next(stream)
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    logits = np.ctypeslib.as_array(row, shape=(llm.n_vocab(),)).copy()
    stream.close()
    return logits


@pytest.mark.parametrize("name", [*HYBRID, *WINDOWED, *PLAIN])
def test_only_what_is_new_is_read(name: str, folder: Path) -> None:
    llm = opened(name, folder)
    random = np.random.default_rng(3)

    def words(count: int) -> list[int]:
        return [int(token) for token in random.integers(5, 250, count)]

    question = words(CONVERSATION)
    timings, answer = asked(llm, question, 60)
    assert timings["cache_n"] == 0 and timings["prompt_n"] == CONVERSATION

    def check(what: str, prompt: list[int], fresh: int) -> list[int]:
        timings, made = asked(llm, prompt)
        assert timings["prompt_n"] <= fresh + SLACK, f"{what}: {timings}"
        assert timings["prompt_n"] + timings["cache_n"] == len(prompt), what
        return made

    more = words(20)
    check("goes on", [*question, *answer, *more], len(more) + 2)
    check("answer dropped", [*question, *more], len(more))
    check("its first half dropped", [*question, *answer[30:], *more], len(answer[30:]) + len(more))
    check("regenerated", question, 0)
    check("end edited", [*question[:-20], *words(20)], 20)
    branch = [*question[:300], *words(500)]
    check("branch", branch, 500 + (0 if llm._prefix.cuttable else 300))
    check("back from the branch", [*question, *more], len(more))
    check("another conversation", words(700), 700)
    check("back from it", [*question, *words(5)], 5)
    check("back to the branch", [*branch, *words(5)], 5)
    llm.close()


@pytest.mark.parametrize("name", [*HYBRID, *WINDOWED, *PLAIN])
def test_what_was_put_back_gives_the_logits_of_a_fresh_computation(name: str, folder: Path) -> None:
    llm, fresh = opened(name, folder), opened(name, folder)
    random = np.random.default_rng(5)
    question = [int(token) for token in random.integers(5, 250, 600)]
    other = [int(token) for token in random.integers(5, 250, 600)]
    for prompt in (question, [*question[:580], *other[:20]], other, [*question, *other[:9]]):
        asked(llm, prompt)
    for prompt in ([*question[:590], *other[:30]], [*other, *question[:7]]):
        got, wanted = logits_after(llm, prompt), logits_after(fresh, prompt)
        # A prompt in batches of other sizes rounds otherwise.
        assert np.abs(got - wanted).max() <= 1e-3 * np.abs(wanted).max()
        fresh.reset()
    llm.close()
    fresh.close()


def test_states_stay_within_their_budget(folder: Path) -> None:
    llm = opened("jamba", folder)
    llm._prefix._budget = 300_000
    random = np.random.default_rng(7)
    for _ in range(12):
        asked(llm, [int(token) for token in random.integers(5, 250, 400)], 4)
        assert 0 < llm._prefix.bytes <= 300_000
    llm._prefix._budget = 0
    asked(llm, [5, 6, 7] * 200, 4)
    llm.close()


def test_answers_that_take_turns_are_those_of_each_alone(folder: Path) -> None:
    for name in ("llama", "jamba"):
        llm = opened(name, folder)
        prompts = [[int(token) for token in np.random.default_rng(seed).integers(5, 250, 80)] for seed in (1, 2)]
        alone = [[token for token, _ in zip(llm.generate(p, temp=0), range(12), strict=False)] for p in prompts]
        streams = [llm.generate(prompt, temp=0) for prompt in prompts]
        together: list[list[int]] = [[], []]
        for _ in range(12):
            for stream, tokens in zip(streams, together, strict=True):
                tokens.append(next(stream))
        assert together == alone
        llm.close()
