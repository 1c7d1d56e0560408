"""A continued conversation computes only new tokens, for every kind of model memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from edgemoe import Llama, OffloadConfig
from edgemoe.engine.llama import ComputeFailed
from tests import zoo

# Models with memory that cannot be cut: hybrids, recurrent models, and sliding windows that only keep the window.
HYBRID = (
    *("qwen3next", "qwen35moe", "granitehybrid", "jamba", "lfm2moe", "kimi-linear", "kimi-k3", "nemotron_h_moe"),
    *("nemotron_h_moe-puzzle", "deepseek4", "minimax-01", "bailingmoe3"),
)
RECURRENT = ("mamba", "mamba2", "rwkv6")
WINDOWED = (
    *("gpt-oss", "gemma4", "llama4", "smallthinker", "afmoe", "mimo2", "step35", "cohere2moe", "exaone-moe", "laguna"),
    *("maple", "mellum", "granite_swa", "dots3note"),
)
PLAIN = ("llama", "qwen3moe", "deepseek2-v2")
CONVERSATION = 900
SLACK = 300  # tokens that may be read again beside the new tokens
CPU = OffloadConfig(device="none", profile="off")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def opened(name: str, folder: Path, **keywords: Any) -> Llama:
    settings: dict[str, Any] = {
        "n_ctx": 2048,
        "n_threads": 1,
        "n_threads_batch": 1,
        "swa_full": False,
        "offload": CPU,
    } | keywords
    return Llama(zoo.build(name, folder), **settings)


def asked(llm: Llama, prompt: list[int], count: int = 24) -> tuple[dict[str, Any], list[int]]:
    """Give the timings of an answer of ``count`` tokens to ``prompt``, and the answer."""
    made: list[int] = []
    bias = {llm.token_eos(): -1e9}
    answer = llm.create_completion(prompt, max_tokens=count, temperature=0, logit_bias=bias)
    made = [int(token) for token in llm.input_ids[len(prompt) : llm.n_tokens]]
    timings: dict[str, Any] = answer["timings"]
    return timings, made


def logits_after(llm: Llama, prompt: list[int]) -> Any:
    """Give the logits after ``prompt``. Any part of the prompt may have been computed before."""
    stream = llm.generate(prompt, temp=0)
    next(stream)
    logits = last_logits(llm)
    stream.close()
    return logits


def resumed(llm: Llama, prompt: list[int]) -> tuple[int, Any]:
    """Count the tokens of ``prompt`` that were not computed again, and give the logits after it."""
    reached: list[int] = []
    begin = llm._prefix.begin
    llm._prefix.begin = lambda tokens: reached.append(begin(tokens)) or reached[-1]  # type: ignore[func-returns-value,method-assign]
    try:
        logits = logits_after(llm, prompt)
    finally:
        llm._prefix.begin = begin  # type: ignore[method-assign]
    return reached[0] if reached else len(prompt), logits


def last_logits(llm: Llama) -> Any:
    """Give the logits after the last computed token."""
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(row, shape=(llm.n_vocab(),)).copy()


def words(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(5, 250, count)]


def agree(got: Any, wanted: Any) -> bool:
    """A prompt in batches of other sizes rounds otherwise."""
    return bool(np.abs(got - wanted).max() <= 1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("name", [*HYBRID, *RECURRENT, *WINDOWED, *PLAIN])
def test_only_new_tokens_are_read(name: str, folder: Path) -> None:
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


@pytest.mark.parametrize("name", [*HYBRID, *RECURRENT, *WINDOWED, *PLAIN])
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


def test_answers_in_turns_equal_answers_alone(folder: Path) -> None:
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


# Events between two prompts.


@pytest.mark.parametrize("name", ["llama", "jamba", "qwen35moe", "lfm2moe", "granite_swa", "gemma4"])
def test_a_computation_that_ended_half_way_leaves_no_wrong_state(name: str, folder: Path) -> None:
    llm, fresh = (opened(name, folder, n_batch=256, n_ubatch=64) for _ in range(2))
    prompt = words(1, 900)
    wanted = logits_after(fresh, prompt)
    # Each kind of prompt, new or with a known beginning, is cancelled at the first node, in the middle, and in a later
    # batch.
    for begun in (0, 500):
        for nodes in (1, 77, 300):
            llm.reset()
            if begun:
                asked(llm, prompt[:begun], 1)
            left = [nodes]

            def stop(_: Any, left: list[int] = left) -> bool:
                left[0] -= 1
                return left[0] < 0

            calls_back = llama_cpp.ggml_abort_callback(stop)
            llama_cpp.llama_set_abort_callback(llm._ctx.ctx, calls_back, None)
            with pytest.raises(ComputeFailed):
                asked(llm, prompt, 1)
            llama_cpp.llama_set_abort_callback(llm._ctx.ctx, llama_cpp.ggml_abort_callback(0), None)
            assert begun <= llm.n_tokens < len(prompt)
            # Both ways give the same: the computation continues, or the prompt is asked again.
            if nodes == 77:
                llm.eval(prompt[llm.n_tokens :])
                assert agree(last_logits(llm), wanted), (begun, nodes)
            else:
                reach, got = resumed(llm, prompt)
                assert reach >= begun - SLACK and agree(got, wanted), (begun, nodes, reach)
    llm.close()
    fresh.close()


@pytest.mark.parametrize("name", ["jamba", "qwen35moe", "gpt-oss", "llama"])
def test_tokens_may_be_taken_back_by_hand(name: str, folder: Path) -> None:
    llm, fresh = opened(name, folder), opened(name, folder)
    prompt, more = words(1, 700), words(2, 30)
    for kept in (650, 300, 3):
        llm.reset()
        llm.eval(prompt)
        llm.n_tokens = kept
        llm.eval(more)
        fresh.reset()
        fresh.eval([*prompt[:kept], *more])
        assert llm.n_tokens == kept + len(more)
        assert agree(last_logits(llm), last_logits(fresh)), kept
    llm.close()
    fresh.close()


@pytest.mark.parametrize("name", ["jamba", "gpt-oss", "llama"])
def test_refused_drafts_leave_no_trace(name: str, folder: Path) -> None:
    class Guesses:
        """Guess two right tokens and three at random."""

        def __init__(self, right: list[int]) -> None:
            self.right, self.random = right, np.random.default_rng(5)

        def __call__(self, ids: Any, /, **_: Any) -> Any:
            known = self.right[len(ids) : len(ids) + 2]
            return np.array([*known, *self.random.integers(5, 250, 3)], np.intc)

    plain = opened(name, folder)
    prompt = words(1, 100) * 3
    _, wanted = asked(plain, prompt, 40)
    llm = opened(name, folder, draft_model=Guesses([*prompt, *wanted]))
    _, got = asked(llm, prompt, 40)
    assert got[:39] == wanted[:39]
    plain.close()
    llm.close()


def test_another_adapter_makes_everything_void(folder: Path) -> None:
    for name in ("dots1", "lfm2moe"):
        llm, fresh = opened(name, folder), opened(name, folder)
        prompt, other = words(1, 400), words(2, 400)
        asked(llm, prompt)
        asked(llm, other)
        asked(llm, prompt)
        layers, width = 3, llm.n_embd()
        vector = (np.random.default_rng(1).standard_normal(layers * width) * 3).astype(np.float32)
        data = vector.ctypes.data_as(llama_cpp.ctypes.POINTER(llama_cpp.ctypes.c_float))
        for model in (llm, fresh):
            assert llama_cpp.llama_set_adapter_cvec(model.ctx, data, vector.size, width, 1, layers) == 0
        assert not agree(logits_after(llm, [*prompt, 7]), logits_after(fresh, [*prompt, 7])), "the vector does nothing"
        llm.forget()
        assert llm._prefix.bytes == 0 and llm.n_tokens == 0
        for wanted in (other, prompt):
            fresh.forget()
            assert agree(logits_after(llm, [*wanted, 7]), logits_after(fresh, [*wanted, 7]))
        llm.close()
        fresh.close()


@pytest.mark.parametrize("name", ["jamba", "gpt-oss", "llama"])
def test_states_that_llama_cpp_saved_are_put_back(name: str, folder: Path) -> None:
    llm, fresh = opened(name, folder), opened(name, folder)
    first, second = words(1, 400), words(2, 500)
    asked(llm, first)
    saved, n_tokens = llm.save_state(), llm.n_tokens
    asked(llm, second)
    llm.load_state(saved)
    assert llm.n_tokens == n_tokens
    held = [int(token) for token in llm.input_ids[:n_tokens]]
    reach, got = resumed(llm, [*held, 7, 8])
    assert reach == n_tokens and agree(got, logits_after(fresh, [*held, 7, 8]))
    fresh.reset()
    assert agree(logits_after(llm, [*second, 9]), logits_after(fresh, [*second, 9]))
    llm.close()
    fresh.close()


def test_embeddings_between_two_prompts(folder: Path) -> None:
    for name in ("llama", "jamba"):
        llm, fresh = opened(name, folder, embedding=True), opened(name, folder, embedding=True)
        prompt = words(1, 300)
        wanted = logits_after(fresh, prompt)
        asked(llm, prompt[:200])
        llm.create_embedding(["some text", "and another"])
        assert agree(logits_after(llm, prompt), wanted)
        asked(llm, words(2, 300))
        assert agree(logits_after(llm, prompt), wanted)
        llm.close()
        fresh.close()


def test_tokens_that_were_computed_elsewhere_are_never_matched(folder: Path) -> None:
    """Compute embeddings as for images: they count as tokens, and no token identifies the image."""
    for name in ("llama", "jamba"):
        llm, fresh = opened(name, folder), opened(name, folder)
        begin, image, end = words(1, 100), words(2, 60), words(3, 100)
        for seen in (begin, []):
            asked(llm, words(9, 150), 1)
            llm.reset()
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
            if seen:
                llm.eval(seen)
            count = llm.n_tokens
            llm._batch.set_batch(batch=image, n_past=count, logits_all=False)
            llm._ctx.decode(llm._batch)
            llm.input_ids[count : count + len(image)] = 0  # no token reports their content
            llm.n_tokens += len(image)
            llm.eval(end)
            prompt = [*seen, *[0] * len(image), *end, 7]
            asked(llm, words(4, 200), 1)  # another conversation, and back
            fresh.reset()
            assert agree(logits_after(llm, prompt), logits_after(fresh, prompt))
        llm.close()
        fresh.close()


def test_a_budget_below_one_state_costs_no_copies(folder: Path) -> None:
    llm = opened("jamba", folder)
    llm._prefix._budget = 1000
    copies: list[int] = []
    copied = llm._prefix._state
    llm._prefix._state = lambda flags: copies.append(flags) or copied(flags)  # type: ignore[func-returns-value,method-assign]
    asked(llm, words(1, 600), 300)
    assert llm._prefix.bytes == 0 and len(copies) == 1
    llm.close()


def test_what_holds_a_mark_twice_counts_it_once(folder: Path) -> None:
    llm = opened("jamba", folder)
    first = words(1, 900)
    asked(llm, first, 300)
    before = llm._prefix.bytes
    asked(llm, [*first[:800], *words(2, 400)], 4)  # both conversations share their marks up to here
    kept = llm._prefix._kept[0]
    shared = set(map(id, kept.marks)) & set(map(id, llm._prefix._marks))
    assert shared and before > 0
    own = sum(mark.bytes for mark in llm._prefix._marks if id(mark) not in shared)
    assert llm._prefix.bytes == kept.bytes + own
    llm.close()


def test_rows_of_logits_belong_to_the_prompt(folder: Path) -> None:
    llm, fresh = opened("llama", folder, logits_all=True), opened("llama", folder, logits_all=True)
    text, other = "A text that is long enough to be kept by far. " * 6, "Something else altogether, long too. " * 6
    asks = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    llm.create_completion(text, **asks)
    llm.create_completion(other, **asks)
    got, wanted = (model.create_completion(text, **asks)["choices"][0]["logprobs"] for model in (llm, fresh))
    assert np.allclose(got["token_logprobs"][1:], wanted["token_logprobs"][1:], atol=1e-3)
    llm.close()
    fresh.close()


def test_a_token_of_an_answer_asks_for_one_stop(folder: Path) -> None:
    llm = opened("jamba", folder)
    llm.eval(words(1, 600))
    assert llm._prefix.stops(1) == [1] and not sum(llm._prefix.stops(0))
    assert sum(llm._prefix.stops(1000)) == 1000
    llm.close()
