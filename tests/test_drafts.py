"""Several tokens a step: answers stay as they are, rejected guesses leave no trace, and drafts that do not pay stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from edgemoe import Llama, OffloadConfig
from edgemoe.answer.receipt import Receipt
from edgemoe.engine.drafts import Drafts, NGrams, head
from edgemoe.engine.drafts.pace import MOST, Pace
from edgemoe.errors import ConfigError, ModelNotFound
from edgemoe.types import IdArray
from tests import zoo
from tests.zoo import reference

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 197] * 2
NONE = OffloadConfig(device="none", profile="off")
SIM = OffloadConfig(device="sim", profile="off", vram="50%")
DEVICES = pytest.mark.parametrize("offload", [NONE, SIM], ids=["none", "sim"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafts")


def opened(name: str, folder: Path, offload: OffloadConfig = NONE, **keywords: Any) -> Llama:
    settings: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1} | keywords
    return Llama(zoo.build(name, folder), offload=offload, **settings)


class Scripted:
    """Guess the tokens of a known text; every guess behind the first ``right`` ones of a draft is wrong."""

    name, chances = "scripted", (0.5,)

    def __init__(self, text: Sequence[int], right: int) -> None:
        self.text, self.right, self.at = list(text), right, 0

    def find(self, tokens: IdArray) -> tuple[int, int]:
        self.at = len(tokens)
        return 0, MOST

    def read(self) -> None:
        pass

    def draft(self, count: int) -> list[int]:
        known = self.text[self.at : self.at + count]
        return [token if place < self.right else (token + 1) % 200 for place, token in enumerate(known)]

    def close(self) -> None:
        pass


class Always:
    """Draft as many tokens as there is room for, up to ``most``."""

    def __init__(self, most: int) -> None:
        self.most, self.steps = most, list[tuple[int, int]]()

    def count(self, kind: int, most: int) -> int:
        return min(most, self.most)

    def step(self, kind: int, offered: int, accepted: int, elapsed_ns: int, drafting_ns: int = 0) -> None:
        self.steps.append((offered, accepted))


def drafting(llm: Llama, text: Sequence[int], right: int = 2, most: int = 5) -> Always:
    """Let ``llm`` draft from ``text`` in every step, also in greedy answers."""
    llm._offload = replace(llm._offload or OffloadConfig(), speculative="ngram")
    llm.drafts = Drafts(llm, Scripted(text, right))
    llm.drafts.pace = pace = Always(most)  # type: ignore[assignment]
    return pace


def made(llm: Llama, prompt: list[int] = PROMPT, count: int = 40, **options: Any) -> list[int]:
    return [token for token, _ in zip(llm.generate(prompt, **({"temp": 0} | options)), range(count), strict=False)]


def made_with_logits(llm: Llama, **options: Any) -> tuple[list[int], list[Any]]:
    tokens, rows = [], []
    for token, _ in zip(llm.generate(PROMPT, **options), range(40), strict=False):
        row = llama_cpp.llama_get_logits_ith(llm.ctx, llm._row)
        rows.append(np.ctypeslib.as_array(row, shape=(llm.n_vocab(),)).copy())
        tokens.append(token)
    return tokens, rows


# ---- answers ----


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "deepseek2-v2", "glm4moe", "gpt-oss"])
@DEVICES
def test_greedy_tokens_are_those_without_drafts(name: str, offload: OffloadConfig, folder: Path) -> None:
    plain = opened(name, folder, OffloadConfig(device="none", profile="off", speculative="off"))
    wanted = made(plain)
    plain.close()
    llm = opened(name, folder, offload)
    for right, most in ((2, 5), (14, 14), (0, 3)):
        pace = drafting(llm, [*PROMPT, *wanted], right, most)
        assert made(llm) == wanted
        assert {accepted for _, accepted in pace.steps[:-1]} == {min(right, most)}
    llm.close()


@DEVICES
def test_sampled_tokens_are_those_without_drafts(offload: OffloadConfig, folder: Path) -> None:
    """Draw with the same random numbers; a draw on the border of two tokens may go either way, by rounding."""
    options: dict[str, Any] = {"temp": 1.0, "top_k": 0, "repeat_penalty": 1.1, "frequency_penalty": 0.2}
    plain, llm = opened("llama", folder, OffloadConfig(device="none", speculative="off")), opened("llama", folder)
    equal = 0
    for seed in range(6):
        plain.set_seed(seed)
        wanted, rows = made_with_logits(plain, **options)
        drafting(llm, [*PROMPT, *wanted], right=3)
        llm.set_seed(seed)
        got, ours = made_with_logits(llm, **options)
        same = next((at for at in range(40) if got[at] != wanted[at]), 40)
        assert all(
            np.abs(one - other).max() <= 1e-3 * np.abs(one).max()
            for one, other in zip(rows[: same + 1], ours, strict=False)
        )
        equal += same == 40
    assert equal >= 5
    plain.close()
    llm.close()


def test_the_conversation_is_the_default_source(folder: Path) -> None:
    plain, llm = opened("llama", folder, OffloadConfig(device="none", speculative="off")), opened("llama", folder)
    assert plain.drafts is None and llm.drafts is not None and llm.drafts.source.name == "ngram"
    text, pace = PROMPT * 4, Always(6)
    llm.drafts.pace = pace  # type: ignore[assignment]
    settings: dict[str, Any]
    for settings in ({"temperature": 0}, {"seed": 7}):  # the caller expects the same answer each time
        want, got = (model.create_completion(text, max_tokens=48, **settings) for model in (plain, llm))
        assert got["choices"] == want["choices"] and not pace.steps
    llm.create_completion(text, max_tokens=48)
    assert pace.steps
    plain.close()
    llm.close()


def test_an_answer_with_probabilities_stops_and_processors(folder: Path) -> None:
    seen: list[int] = []

    def processor(ids: Any, scores: Any) -> Any:
        seen.append(hash(tuple(int(token) for token in ids)))
        return scores

    answers, prefixes = [], []
    wanted: list[int] = []
    for drafted in (False, True):
        llm = opened("llama", folder, OffloadConfig(device="none", speculative="off"))
        if drafted:
            drafting(llm, [*PROMPT, *wanted])
        else:
            wanted = made(llm)
        for settings in ({"logprobs": 3}, {"stop": ["e"]}, {"logits_processor": [processor]}, {"max_tokens": 7}):
            seen.clear()
            llm.reset()
            answer = llm.create_completion(PROMPT, **({"max_tokens": 30, "temperature": 0} | settings))
            answers.append((answer["choices"], answer["usage"]))
            prefixes.append(list(seen))
        llm.close()
    half = len(answers) // 2
    for one, other in zip(answers[:half], answers[half:], strict=True):
        probabilities = [choice[0].pop("logprobs") for choice, _ in (one, other)]
        assert one == other
        if probabilities[0] is not None:
            assert probabilities[0]["tokens"] == probabilities[1]["tokens"]
            assert np.allclose(probabilities[0]["token_logprobs"], probabilities[1]["token_logprobs"], atol=5e-3)
    assert prefixes[:half] == prefixes[half:] and any(prefixes)


def test_a_criterion_ends_an_answer_between_guesses(folder: Path) -> None:
    llm = opened("llama", folder, OffloadConfig(device="none", speculative="off"))
    wanted = made(llm)
    lengths = []

    def criterion(ids: Any, scores: Any) -> bool:
        lengths.append(len(ids))
        return len(ids) >= len(PROMPT) + 7

    for _ in range(2):
        lengths.clear()
        assert made(llm, stopping_criteria=criterion) == wanted[:7]
        assert lengths == list(range(len(PROMPT), len(PROMPT) + 8))
        drafting(llm, [*PROMPT, *wanted], right=4)
    llm.close()


def test_a_full_context_ends_as_without_drafts(folder: Path) -> None:
    answers = []
    wanted: list[int] = []
    for drafted in (False, True):
        llm = opened("llama", folder, OffloadConfig(device="none", speculative="off"), n_ctx=64)
        if drafted:
            drafting(llm, [*PROMPT, *wanted], right=9, most=9)
        bias = {llm.token_eos(): -1e9}
        answers.append(llm.create_completion(PROMPT, temperature=0, max_tokens=None, logit_bias=bias)["choices"])
        wanted = [int(token) for token in llm.input_ids[len(PROMPT) : llm.n_tokens]]
        llm.close()
    assert answers[0] == answers[1]


def test_guesses_of_the_caller(folder: Path) -> None:
    llm = opened("llama", folder, OffloadConfig(device="none", profile="off", speculative="off"))
    wanted = made(llm)
    drafting(llm, [*PROMPT, *wanted], right=5)
    stream = llm.generate(PROMPT, temp=0)
    got = [next(stream) for _ in range(3)]
    for sent in ([7, 8, 9], wanted[4:7], [*wanted[5:8], 1]):
        got.append(stream.send(sent))
    assert [*got, *(next(stream) for _ in range(20))] == wanted[:26]
    stream.close()
    llm.close()


def test_two_answers_with_drafts_take_turns(folder: Path) -> None:
    prompts = [PROMPT, [9, 8, 7] * 12]
    llm = opened("llama", folder, OffloadConfig(device="none", speculative="off"))
    wanted = [made(llm, prompt, 24) for prompt in prompts]
    for text in ([*prompts[0], *wanted[0]], [*prompts[1], *wanted[1]]):
        drafting(llm, text, right=9)
        streams = [llm.generate(prompt, temp=0) for prompt in prompts]
        together: list[list[int]] = [[], []]
        for step in range(48):
            which = (step // 3) % 2  # a stream goes on in the middle of its draft
            together[which].append(next(streams[which]))
        assert together == wanted
        for stream in streams:
            stream.close()
    llm.close()


@DEVICES
def test_a_stream_that_is_left_leaves_no_guesses(offload: OffloadConfig, folder: Path) -> None:
    llm = opened("llama", folder, offload)
    drafting(llm, [])
    wanted = made(llm)
    drafting(llm, [*PROMPT, *wanted], right=9, most=9)
    for count in (1, 2, 5, 8):
        assert made(llm, count=count) == wanted[:count]
        assert made(llm, [*PROMPT, *wanted[:count]], 40 - count) == wanted[count:]
    llm.close()


def test_a_cancel_in_the_middle_of_a_draft(folder: Path) -> None:
    llm = opened("llama", folder)
    drafting(llm, [])
    wanted = made(llm)
    drafting(llm, [*PROMPT, *wanted], right=9, most=9)
    stream = llm.generate(PROMPT, temp=0)
    assert [next(stream) for _ in range(4)] == wanted[:4]
    llm.cancel()
    assert list(stream) == []
    assert made(llm) == wanted
    llm.close()


def test_drafts_are_counted(folder: Path) -> None:
    llm = opened("llama", folder)
    drafting(llm, [])
    bias = {llm.token_eos(): -1e9}
    settings: dict[str, Any] = {"max_tokens": 21, "temperature": 0, "logit_bias": bias}
    plain = llm.create_completion(PROMPT, **settings)
    assert "draft_n" not in plain["timings"]
    wanted = [int(token) for token in llm.input_ids[len(PROMPT) : llm.n_tokens]]
    drafting(llm, [*PROMPT, *wanted, 0, 0, 0, 0], right=3, most=4)
    timings = llm.create_completion(PROMPT, **settings)["timings"]
    assert timings["predicted_n"] == 21
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (20, 15)  # five steps of four tokens
    llm.close()


def test_the_receipt_shows_drafts() -> None:
    timings = {"predicted_n": 21, "predicted_per_second": 30.0, "draft_n": 20, "draft_n_accepted": 15}
    receipt = Receipt.of({"timings": timings})
    assert "4.0 tokens a step, 15 of 20 guesses right" in receipt.statistics() and "4.0 tokens a step" in receipt.line()
    assert "a step" not in Receipt.of({"timings": {"predicted_n": 21}}).line()


def test_two_threads_with_drafts(folder: Path) -> None:
    llm = opened("llama", folder)
    drafting(llm, [])
    prompts = [PROMPT, [9, 8, 7] * 12, list(range(5, 60))]
    wanted = [made(llm, prompt, 20) for prompt in prompts]
    drafting(llm, [*PROMPT, *wanted[0]], right=9, most=9)
    got: dict[int, list[int]] = {}

    def work(number: int) -> None:
        got[number] = made(llm, prompts[number], 20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[number] for number in range(3)] == wanted
    llm.close()


def test_a_memory_that_cannot_be_cut_has_no_drafts_and_says_so(folder: Path) -> None:
    for name, keywords in (("jamba", {}), ("gpt-oss", {"swa_full": False})):
        llm = opened(name, folder, OffloadConfig(device="none", profile="off", speculative="ngram"), **keywords)
        assert llm.drafts is None and any("No drafts" in note for note in llm.experts.notes)
        assert len(made(llm, count=5)) == 5
        llm.close()
        llm = opened(name, folder, NONE, **keywords)
        assert llm.drafts is None and not any("No drafts" in note for note in llm.experts.notes)
        llm.close()


def test_settings(folder: Path) -> None:
    with pytest.raises(ConfigError, match="speculative='sometimes' is unknown"):
        OffloadConfig(speculative="sometimes")
    with pytest.raises(ConfigError, match="draft_model exclude each other"):
        opened("llama", folder, OffloadConfig(device="none", speculative="ngram"), draft_model=lambda ids: ids[:0])


# ---- the conversation as source ----


def test_the_longest_agreement_is_followed() -> None:
    source = NGrams()

    def guess(text: list[int], count: int) -> tuple[int, list[int]]:
        kind, most = source.find(np.array(text, np.intc))
        return kind, source.draft(min(count, most)) if most else []

    assert guess([1, 2], 4) == (0, [])
    assert guess([1, 2, 3, 4, 5, 6], 4) == (0, [])
    assert guess([1, 2, 3, 7, 8, 9, 1, 2, 3], 3) == (0, [7, 8, 9])
    assert guess([5, 1, 2, 3, 7, 0, 6, 1, 2, 3, 8, 0, 5, 1, 2, 3], 2) == (0, [7, 0])
    assert guess([1, 2, 3, 7, 0, 1, 2, 3, 8, 0, 9, 1, 2, 3], 2)[1] == [8, 0]  # the latest of equals
    assert guess([4, 4, 4, 4, 4], 6) == (0, [4] * 6)
    assert guess([1, 2, 3, 4] * 8, 6) == (3, [1, 2, 3, 4, 1, 2])


def test_every_guess_follows_an_earlier_occurrence() -> None:
    random, source = np.random.default_rng(3), NGrams()
    for _ in range(300):
        text = random.integers(0, 4, random.integers(0, 120)).astype(np.intc)
        _, most = source.find(text)
        words = {tuple(text[at : at + 3]) for at in range(len(text) - 3)}
        assert bool(most) == (tuple(text[-3:]) in words and len(text) > 3)
        if most:
            follows = {int(text[at + 3]) for at in range(len(text) - 3) if tuple(text[at : at + 3]) == tuple(text[-3:])}
            assert source.draft(1)[0] in follows


# ---- the pace, on a virtual clock ----

MS = 1_000_000


def run(
    pace: Pace, tokens: int, right: Callable[[int], bool], step_ms: Callable[[int], float], guess_ms: float = 0.0
) -> tuple[float, list[int]]:
    """Make so many tokens; return the time as a share of the plain time, and the guesses offered by token."""
    elapsed, done, offers = 0.0, 0, list[int]()
    while done < tokens:
        count = pace.count(0, MOST)
        accepted = 0
        while accepted < count and right(done + accepted):
            accepted += 1
        pace.step(0, count, accepted, int(step_ms(count + 1) * MS), int(count * guess_ms * MS))
        elapsed += step_ms(count + 1) + count * guess_ms
        offers += [count] + [0] * accepted
        done += accepted + 1
    return elapsed / (done * step_ms(1)), offers


@pytest.mark.parametrize("growth", [0.02, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("guess_ms", [0.0, 3.0])
@pytest.mark.parametrize("chance", [0.4, 0.9])
def test_guesses_that_never_fit_end_within_64_tokens(growth: float, guess_ms: float, chance: float) -> None:
    share, offers = run(Pace((chance,)), 1000, lambda _: False, lambda n: 10 + 10 * growth * (n - 1), guess_ms)
    assert share <= 1.03
    assert sum(count > 0 for count in offers[64:]) <= len(offers[64:]) // 50


@pytest.mark.parametrize("growth", [0.02, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("guess_ms", [0.0, 1.5])
def test_no_chance_makes_answers_slower(growth: float, chance: float, guess_ms: float) -> None:
    random = np.random.default_rng(7)
    share, _ = run(
        Pace((0.6,)), 2000, lambda _: random.random() < chance, lambda n: 10 + 10 * growth * (n - 1), guess_ms
    )
    tokens = np.cumprod(np.full(MOST, chance)).cumsum() + 1
    times = np.array([10 + (10 * growth + guess_ms) * n for n in range(1, MOST + 1)])
    best = min(1.0, float((times / tokens).min()) / 10)
    assert share <= 1.03
    assert share <= 1.15 * best + 0.03, (share, best)


def test_a_text_that_changes_is_followed() -> None:
    pace = Pace((0.6,))
    share, _ = run(pace, 500, lambda _: False, lambda n: 10 + 2 * (n - 1))
    assert share <= 1.03
    share, _ = run(pace, 1500, lambda _: True, lambda n: 10 + 2 * (n - 1))
    assert share <= 0.45
    share, _ = run(pace, 500, lambda _: False, lambda n: 10 + 2 * (n - 1))
    assert share <= 1.03


def test_stalls_of_the_machine_do_not_stop_good_guesses() -> None:
    random, pace = np.random.default_rng(5), Pace((0.6,))

    def step_ms(tokens: int) -> float:
        return (10 + 2 * (tokens - 1)) * (12 if random.random() < 0.05 else 1)

    _, offers = run(pace, 3000, lambda at: at % 40 > 0, step_ms)
    assert sum(count > 0 for count in offers) > 200 and sum(offers) > 1500


def test_a_kind_that_fails_does_not_stop_another() -> None:
    pace = Pace((0.5, 0.5))
    plain, drafted = 0, 0
    for turn in range(2000):
        kind = turn % 2
        count = pace.count(kind, MOST)
        accepted = count if kind else 0
        pace.step(kind, count, accepted, int((10 + (count > 0) * 3) * MS))
        plain += not kind and not count
        drafted += bool(kind and count)
    assert plain > 900 and drafted > 850


# ---- the law of sampled tokens ----


def test_ten_thousand_tokens_have_the_law_of_the_model(folder: Path) -> None:
    """Compare the pairs of tokens of many short answers, drafted against plain, by a chi-square test."""
    plain = opened("llama", folder, OffloadConfig(device="none", profile="off", speculative="off"))
    llm = opened("llama", folder)
    drafting(llm, [*PROMPT, *made(plain, count=8)], right=4, most=4)
    counts = np.zeros((2, 256))
    for row, model in enumerate((plain, llm)):
        for seed in _seeds(row):
            model.set_seed(seed)
            for token in made(model, count=8, temp=0.7, top_k=40):
                counts[row, token % 256] += 1
    assert counts.sum(1).min() >= 10_000
    common = counts.sum(0) >= 20
    table = np.column_stack([counts[:, common], counts[:, ~common].sum(1)])
    table = table[:, table.sum(0) > 0]
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic, freedom = float(((table - expected) ** 2 / expected).sum()), table.shape[1] - 1
    assert statistic < freedom + 3.3 * np.sqrt(2 * freedom)  # about one false alarm in a thousand
    plain.close()
    llm.close()


def _seeds(row: int) -> Iterator[int]:
    yield from range(row * 100_000, row * 100_000 + 1250)


# ---- a small model as source ----


def test_a_small_model_drafts_and_its_vocabulary_is_checked(folder: Path) -> None:
    small = zoo.build("llama", folder)
    plain = opened("llama", folder, OffloadConfig(device="none", profile="off", speculative="off"))
    wanted = made(plain)
    plain.close()
    llm = opened("llama", folder, OffloadConfig(device="none", profile="off", speculative=small))
    assert llm.drafts is not None and llm.drafts.source.name == "model"
    llm.drafts.pace = pace = Always(4)  # type: ignore[assignment]
    assert made(llm) == wanted
    offered, accepted = (sum(column) for column in zip(*pace.steps, strict=True))
    assert accepted >= 0.9 * offered  # the model itself; a step without a sure guess offers none
    llm.close()
    with pytest.raises(ModelNotFound):
        opened("llama", folder, OffloadConfig(device="none", speculative=folder / "none.gguf"))


def test_a_small_model_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(zoo.build("llama", folder).read_bytes().replace(b"<|begin|>", b"<|start|>"))
    with pytest.raises(ConfigError, match=r"another vocabulary: token \d+ is '<|start|>', not '<|begin|>'"):
        opened("llama", folder, OffloadConfig(device="none", speculative=other))


# ---- the model's own head as source ----

HEADS = ("qwen35moe", "glm4moe", "deepseek2-v3", "deepseek32", "glm-dsa", "hy_v3", "cohere2moe", "step35")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("device", "share", "layers"), [("none", 0, 0), ("sim", 25, 0), ("sim", 50, -1), ("sim", 100, -1)]
)
def test_drafts_of_a_head(
    name: str, device: str, share: int, layers: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "LEAST_CHANCE", 0.0)
    path = zoo.build(name, folder, mtp=True)
    keywords: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "n_gpu_layers": layers}
    plain = reference.plain(path)
    wanted, _ = reference.greedy(plain, PROMPT, 24)
    plain.close()
    offload = OffloadConfig(device=device, profile="off", vram=f"{share}%", speculative="mtp")
    with reference.defaults("model", use_extra_bufts=False):
        llm = Llama(path, offload=offload, **keywords)
    assert llm.drafts is not None and llm.drafts.source.name == "mtp"
    llm.drafts.pace = pace = Always(3)  # type: ignore[assignment]
    for _ in range(2):  # a random head is wrong: every step takes tokens back
        assert made(llm, count=24) == wanted
    assert sum(offered for offered, _ in pace.steps) > 60
    again = [*PROMPT, *wanted[:10]]
    assert made(llm, again, 14) == wanted[10:]
    llm.close()


def test_a_head_that_never_fits_is_off_within_64_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LEAST_CHANCE", 0.0)
    offload = OffloadConfig(device="none", profile="off", speculative="mtp")
    llm = Llama(zoo.build("glm4moe", folder, mtp=True), offload=offload, n_ctx=512, n_threads=1, n_threads_batch=1)
    assert llm.drafts is not None
    counts: list[int] = []
    learn = llm.drafts.pace.step

    def step(kind: int, offered: int, accepted: int, *_: int) -> None:
        """Let a step take 10 ms, and 3 ms more for each guess."""
        counts.append(offered)
        learn(kind, offered, accepted, (10 + 3 * offered) * MS)

    monkeypatch.setattr(llm.drafts.pace, "step", step)
    made(llm, count=400, logits_processor=[without(llm.token_eos())])
    assert sum(counts) > 0 and sum(count > 0 for count in counts[64:]) <= len(counts[64:]) // 50
    assert sum(10 + 3 * count for count in counts) <= 1.03 * 10 * len(counts)
    llm.close()


def without(banned: int) -> Callable[[Any, Any], Any]:
    def process(ids: Any, scores: Any) -> Any:
        scores[banned] = -1e9
        return scores

    return process


def test_a_head_follows_batches_of_any_size(folder: Path) -> None:
    """Follow the batches of a model in parts of any size: the head's own guesses stay the same."""
    path = zoo.build("glm4moe", folder, mtp=True)
    guesses = []
    for parts in ([40], [13, 27], [1] * 40, [7, 1, 1, 31]):
        llm = Llama(
            path, offload=OffloadConfig(device="none", profile="off", speculative="mtp"), n_ctx=128, n_threads=1
        )
        assert llm.drafts is not None
        at = 0
        for count in parts:
            llm.eval(PROMPT[at : at + count])
            at += count
        text = np.array([*PROMPT, 77], np.intc)
        llm.drafts.source.find(text)
        head.LEAST_CHANCE, before = 0.0, head.LEAST_CHANCE
        guesses.append(llm.drafts.source.draft(4))
        head.LEAST_CHANCE = before
        llm.close()
    assert guesses == [guesses[0]] * 4 and len(guesses[0]) == 4


def test_a_file_without_a_head_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no MTP head"):
        opened("glm4moe", folder, OffloadConfig(device="none", speculative="mtp"))
    llm = Llama(
        zoo.build("qwen3next", folder, mtp=True),
        offload=OffloadConfig(device="none", profile="off", speculative="mtp"),
        n_ctx=64,
    )
    assert llm.drafts is None and any("No drafts" in note for note in llm.experts.notes)
    llm.close()


@pytest.mark.skipif(
    tuple(map(int, llama_cpp.__version__.split(".")[:3])) < (0, 3, 36),
    reason="0.3.28 keeps no snapshots of lfm2moe and nemotron_h_moe",
)
@pytest.mark.parametrize("name", ["qwen35moe", "lfm2moe", "nemotron_h_moe"])
def test_a_recurrent_memory_takes_guesses_back_by_snapshots(name: str, folder: Path) -> None:
    plain = opened(name, folder, OffloadConfig(device="none", profile="off", speculative="off"))
    wanted = made(plain)
    plain.close()
    llm = opened(name, folder, OffloadConfig(device="none", profile="off", speculative="ngram"))
    for right in (0, 1, 2, 3, 4):
        pace = drafting(llm, [*PROMPT, *wanted], right, most=9)
        assert made(llm) == wanted
        assert max(offered for offered, _ in pace.steps) == 4
        assert made(llm, [*PROMPT, *wanted[:17]], 20) == wanted[17:37]
    llm.n_tokens -= 3  # the snapshots are of a batch of fewer tokens: marks put the memory back
    llm.eval([5, 6])
    fresh = opened(name, folder, OffloadConfig(device="none", profile="off", speculative="off"))
    fresh.eval([int(token) for token in llm.input_ids[: llm.n_tokens]])
    rows = [
        np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(m.ctx, -1), shape=(m.n_vocab(),)) for m in (llm, fresh)
    ]
    assert np.abs(rows[0] - rows[1]).max() <= 2e-3 * np.abs(rows[1]).max()
    llm.close()
    fresh.close()
