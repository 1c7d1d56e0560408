"""``edgemoe.Llama`` in place of ``llama_cpp.Llama``: names, signatures, errors, copies, threads, forks, ends."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil
import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

import edgemoe
from edgemoe import (
    BadGguf,
    ComputeFailed,
    ConfigError,
    ContextFailed,
    DoesNotFit,
    EdgeMoEError,
    Llama,
    ModelNotFound,
    OffloadConfig,
    SimConfig,
)
from edgemoe.engine import host, meter, opening
from edgemoe.engine.turns import Turn
from tests.rewrite import TEXT, rewrite, tensors_of
from tests.routing import wide_model
from tests.zoo import OLD, build

NONE = OffloadConfig(device="none", profile="off")
SIM = OffloadConfig(device="sim", vram="50%", profile="off")
# Experts only move because of computed tokens.
MOVING = OffloadConfig(device="sim", vram="30%", profile="off", policy="lru", prefetch="off", synchronous=True)
DEVICES = pytest.mark.parametrize("offload", [NONE, SIM], ids=["none", "sim"])
PROMPT = list(range(5, 25))
MESSAGES = [{"role": "user", "content": "Say it."}]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("zoo"), "Q8_0")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with wide_model(tmp_path_factory.mktemp("wide")) as path:
        yield path


def opened(path: Path, offload: OffloadConfig = NONE, **keywords: Any) -> Llama:
    return Llama(path, offload=offload, **({"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1} | keywords))


def ids(llm: llama_cpp.Llama, prompt: list[int] = PROMPT, count: int = 12) -> list[int]:
    return [token for token, _ in zip(llm.generate(prompt, temp=0), range(count), strict=False)]


def run(code: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a separate program, and check its exit code and output."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


# ---- errors ----


def test_a_missing_model_is_llama_cpps_value_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    with pytest.raises(ValueError, match=r"Model path does not exist: .*missing\.gguf") as error:
        Llama(str(missing))
    assert isinstance(error.value, ModelNotFound)
    (tmp_path / "text.gguf").write_text("not a model, but long enough for a header")
    with pytest.raises(ValueError) as damaged:
        Llama(tmp_path / "text.gguf")
    assert isinstance(damaged.value, BadGguf)


@pytest.mark.parametrize(
    "settings", [{"kv_overrides": {"a": "x" * 200}}, {"tensor_split": [0.1] * 99}, {"kv_overrides": {"a": [1]}}]
)
def test_what_llama_cpp_itself_refuses_is_its_own_error(settings: dict[str, Any], model: Path) -> None:
    with pytest.raises(ValueError) as plain:
        llama_cpp.Llama(str(model), n_ctx=64, verbose=False, **settings)
    for offload in (NONE, SIM):
        with pytest.raises(ValueError) as ours:
            opened(model, offload, **settings)
        assert type(ours.value) is ValueError and str(ours.value) == str(plain.value)


@pytest.mark.skipif(OLD, reason="it takes memory for the cells of any context, 22 GiB here, before it fails")
@DEVICES
def test_a_context_that_cannot_be_made_is_no_damaged_file(offload: OffloadConfig, model: Path) -> None:
    for settings in ({"type_v": 2}, {"n_ctx": -5}):
        with pytest.raises(ContextFailed) as error:
            opened(model, offload, **settings)
        assert isinstance(error.value, ValueError) and "damaged" not in error.value.hint
    with pytest.raises(DoesNotFit) as much:
        opened(model, offload, n_ctx=1 << 31)
    assert isinstance(much.value, ValueError) and "n_ctx" in much.value.hint
    assert much.value.needed_bytes > much.value.free_bytes


@DEVICES
def test_a_full_context_is_a_runtime_error(offload: OffloadConfig, model: Path) -> None:
    llm = opened(model, offload, n_ctx=64)
    with pytest.raises(RuntimeError, match="llama_decode returned 1") as error:
        list(llm.generate(PROMPT, temp=0, logits_processor=never_ending(llm)))
    assert isinstance(error.value, ComputeFailed) and isinstance(error.value, EdgeMoEError)
    llm.reset()
    with pytest.raises(RuntimeError):
        llm.eval([10**8])
    llm.reset()
    assert len(ids(llm)) == 12
    llm.close()


def never_ending(llm: Any) -> Any:
    def processor(tokens: Any, logits: Any) -> Any:
        logits = np.array(logits)
        logits[llm.token_eos()] = -1e9
        return logits

    return llama_cpp.LogitsProcessorList([processor])


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_where_the_device_has_no_room_the_next_smaller_plan_is_tried(nth: int, wide: Path) -> None:
    want = ids(plain := opened(wide, n_ctx=512))
    plain.close()
    sim = SimConfig(capacity=64 << 20, fail_alloc=nth)
    llm = opened(wide, OffloadConfig(device="sim", profile="off", sim=sim), n_ctx=512)
    notes = llm.experts.notes
    assert ids(llm) == want
    assert sum("had no room" in note for note in notes) == 1, notes
    assert len(llm.experts.notes) == len(set(llm.experts.notes))
    llm.close()


def test_what_was_asked_for_is_not_given_up(wide: Path) -> None:
    sim = OffloadConfig(device="sim", profile="off", sim=SimConfig(capacity=64 << 20, fail_alloc=1))
    with pytest.raises(ValueError) as error:
        opened(wide, sim, n_gpu_layers=-1, offload_kqv=True)
    assert not isinstance(error.value, BadGguf)


# ---- names and signatures ----


def test_the_names_of_llama_cpp_are_there() -> None:
    from edgemoe import Llama as Ours
    from edgemoe import LlamaGrammar, LlamaRAMCache, LogitsProcessorList, StoppingCriteriaList, llama_chat_format

    assert Ours is Llama and LlamaGrammar is llama_cpp.LlamaGrammar and LlamaRAMCache is llama_cpp.LlamaRAMCache
    assert LogitsProcessorList is llama_cpp.LogitsProcessorList and StoppingCriteriaList is not None
    assert llama_chat_format is llama_cpp.llama_chat_format and edgemoe.LLAMA_SPLIT_MODE_ROW == 2
    assert not hasattr(edgemoe, "no_such_name") and not hasattr(edgemoe, "_internals_of_theirs")
    assert "LlamaGrammar" in dir(edgemoe) and "OffloadConfig" in dir(edgemoe)
    assert edgemoe.Llama is Llama and edgemoe.__version__ != llama_cpp.__version__


def test_our_modules_load_without_llama_cpp() -> None:
    done = run("""
        import sys
        import edgemoe
        from edgemoe import config
        from edgemoe.models import gguf
        from edgemoe.planning import placement
        dir(edgemoe)
        assert not {"llama_cpp", "torch"} & set(sys.modules), "loaded too much"
        import edgemoe as llama_cpp
        assert llama_cpp.LlamaGrammar.__module__.startswith("llama_cpp.")
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["__init__", "create_completion", "create_chat_completion", "generate", "embed"])
def test_signatures_show_llama_cpps_parameters(name: str, model: Path) -> None:
    theirs = inspect.signature(getattr(llama_cpp.Llama, name)).parameters
    ours = inspect.signature(getattr(Llama, name)).parameters
    assert [parameter for parameter in ours if parameter in theirs] == list(theirs)
    assert all(ours[parameter].default == theirs[parameter].default for parameter in theirs)
    added = {
        "__init__": {"offload", "sequences"},
        "create_chat_completion": {"chat_template_kwargs", "reasoning_effort"},
    }
    assert set(ours) - set(theirs) == added.get(name, set())
    if name == "__init__":
        assert "n_gpu_layers" in inspect.signature(Llama).parameters


@pytest.mark.parametrize(
    "settings",
    # The oldest llama.cpp refuses main_gpu itself where there is no GPU.
    [{"split_mode": 2}, *([] if OLD else [{"main_gpu": 1, "split_mode": 0}]), {"tensor_split": [0.0, 1.0]}],
    ids=str,
)
def test_settings_for_several_devices_are_refused_by_name(settings: dict[str, Any], model: Path) -> None:
    with pytest.raises(ConfigError, match="|".join(settings)):
        opened(model, SIM, **settings)
    llm = opened(model, NONE, **settings)
    want = ids(llm)
    llm.close()
    for fine in ({"split_mode": 0}, {"split_mode": 1, "main_gpu": 1}, {"tensor_split": [1.0, 1.0]}):
        llm = opened(model, SIM, **fine)
        assert ids(llm) == want
        llm.close()


def test_the_device_that_llama_cpp_settings_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_all_devices", lambda: [("CUDA0", 1), ("CUDA1", 1)])
    auto = OffloadConfig()

    def chosen(**settings: Any) -> str:
        return opening.resolve_device(auto, settings)

    assert chosen() == "CUDA0" == chosen(main_gpu=1) == chosen(split_mode=0)
    assert chosen(main_gpu=1, split_mode=0) == "CUDA1" == chosen(tensor_split=[0, 1])
    for settings in ({"main_gpu": 2, "split_mode": 0}, {"tensor_split": [1, 1]}, {"split_mode": 2}):
        with pytest.raises(ConfigError):
            chosen(**settings)


# ---- copies ----


@DEVICES
def test_copies_keep_where_experts_live(offload: OffloadConfig, model: Path) -> None:
    llm = opened(model, offload, n_ctx=128)
    want = ids(llm)
    for again in (pickle.loads(pickle.dumps(llm)), copy.copy(llm), copy.deepcopy(llm)):
        assert again.experts.device == offload.device and again._offload == offload
        assert again.n_ctx() == llm.n_ctx() and again.chat_format == llm.chat_format
        assert again.experts.stats().slots == llm.experts.stats().slots
        assert ids(again) == want
        again.close()
    llm.close()


# ---- messages ----


def test_lines_of_others_go_to_the_callback_that_was_there(model: Path) -> None:
    done = run(
        """
        import ctypes, sys
        import llama_cpp
        lines = []
        @llama_cpp.llama_log_callback
        def mine(level, text, data):
            lines.append(text)
        llama_cpp.llama_log_set(mine, ctypes.c_void_p(0))
        from edgemoe import Llama, OffloadConfig
        ours = Llama(sys.argv[1], n_ctx=64, offload=OffloadConfig(device="sim", vram="50%", profile="off"))
        ours.eval([5, 6, 7])
        assert not lines, lines
        plain = llama_cpp.Llama(sys.argv[1], n_ctx=64, verbose=True)
        assert len(lines) > 50, lines
        before = len(lines)
        loud = Llama(sys.argv[1], n_ctx=64, verbose=True, offload=OffloadConfig(device="none", profile="off"))
        assert len(lines) > before + 50
        for llm in (plain, ours, loud):
            llm.close()
        """,
        model,
    )
    assert done.returncode == 0, done.stderr


def test_verbose_prints_as_llama_cpp_does(model: Path) -> None:
    code = """
        import sys
        from edgemoe import Llama, OffloadConfig
        llm = Llama(sys.argv[1], n_ctx=64, verbose=bool(int(sys.argv[2])), offload=OffloadConfig(device="none"))
        llm.eval([5])
        llm.close()
    """
    loud, quiet = (run(code, model, verbose) for verbose in (1, 0))
    assert loud.returncode == quiet.returncode == 0
    assert "llama_model_loader" in loud.stderr and loud.stdout == ""
    assert quiet.stderr == quiet.stdout == ""


# ---- everything that computes moves the hot set ----


def test_embeddings_move_the_hot_set_and_count(wide: Path) -> None:
    llm = opened(wide, MOVING, embedding=True)
    plain = llama_cpp.Llama(str(wide), n_ctx=256, n_threads=1, embedding=True, verbose=False)
    shape = llm.experts.shape
    assert shape is not None
    llm.eval([5, 6, 7])
    before = llm.experts.stats()
    for count in range(1, 13):
        text = chr(64 + count)
        assert np.allclose(llm.embed(text), plain.embed(text), atol=1e-3)
    assert llm.n_tokens == 0
    after = llm.experts.stats()
    tokens = 3 + sum(len(llm.tokenize(chr(64 + count).encode())) for count in range(1, 13))
    assert llm.experts.heat()[0].sum() == tokens * shape.used, "each token once"
    assert after.uploads > before.uploads and after.hits + after.misses > before.hits + before.misses
    assert llm.experts.last().min() >= 0
    both = llm.create_embedding(["a", "bc"])
    assert len(both["data"]) == 2
    plain.close()
    llm.close()


def test_a_prompt_after_an_embedding_is_read_anew(model: Path) -> None:
    llm = opened(model, SIM, embedding=True)
    llama_cpp.llama_set_embeddings(llm.ctx, False)
    want = ids(llm)
    llama_cpp.llama_set_embeddings(llm.ctx, True)
    llm.embed("something else")
    with pytest.raises(ValueError, match="exceed batch size"):
        llm.embed(["x" * 20, "y" * 3000], truncate=False)
    assert llm.n_tokens == 0
    llama_cpp.llama_set_embeddings(llm.ctx, False)
    assert ids(llm) == want
    llm.close()


def test_decode_of_the_context_moves_the_hot_set(wide: Path) -> None:
    llm = opened(wide, MOVING)
    before = llm.experts.stats().uploads
    for position in range(40):
        llm._batch.set_batch(batch=[position + 5], n_past=position, logits_all=False)
        llm._ctx.decode(llm._batch)
    assert llm.experts.stats().uploads > before
    assert llm.experts.stats().tokens == 40
    llm.close()


def test_raw_decodes_are_counted_and_kept_within_bounds(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemoe.engine import routing_log

    monkeypatch.setattr(routing_log, "MOST_UNREPORTED", 10)
    llm = opened(model, OffloadConfig(device="sim", vram="50%", profile="off", policy="lru"))
    shape = llm.experts.shape
    assert shape is not None
    for position in range(40):
        llm._batch.set_batch(batch=[position + 5], n_past=position, logits_all=False)
        assert llama_cpp.llama_decode(llm.ctx, llm._batch.batch) == 0
        llm.experts.heat()
        assert len(llm._scheduler._log._unreported) <= 10
    assert llm.experts.heat()[0].sum() == 40 * shape.used
    llm.n_tokens = 40
    llm.eval([7])  # the token must not count as an earlier one
    assert llm._scheduler._log.recent()[1][-1] == 7
    llm.close()


# ---- accounts ----


class Clock:
    """Give a clock that only a test advances."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now / 1e9


@DEVICES
def test_accounts_of_a_prompt_that_is_there_already(offload: OffloadConfig, model: Path) -> None:
    llm = opened(model, offload)
    for most in (8, 1):
        llm.reset()
        first = llm.create_completion(PROMPT, max_tokens=most, temperature=0)
        assert first["timings"]["predicted_n"] == first["usage"]["completion_tokens"]
        for prompt in (PROMPT, PROMPT):
            again = llm.create_completion(prompt, max_tokens=most, temperature=0)
            timings = again["timings"]
            assert timings["prompt_n"] in (0, 1) and timings["prompt_n"] + timings["cache_n"] == len(PROMPT)
            assert timings["predicted_n"] == again["usage"]["completion_tokens"] >= most
            assert again["choices"][0]["text"] == first["choices"][0]["text"]
    llm.close()


@DEVICES
def test_accounts_of_a_draft_model(offload: OffloadConfig, model: Path) -> None:
    llm = opened(model, offload)
    prompt = PROMPT * 3
    want = llm.create_completion(prompt, max_tokens=24, temperature=0)
    assert "draft_n" not in want["timings"]
    llm.close()
    llm = opened(model, offload, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4, max_ngram_size=2))
    answer = llm.create_completion(prompt, max_tokens=24, temperature=0)
    *_, last = llm.create_completion(prompt, max_tokens=24, temperature=0, stream=True)
    llm.close()
    assert answer["choices"][0]["text"] == want["choices"][0]["text"]
    for timings in (answer["timings"], last["timings"]):
        assert timings["predicted_n"] == answer["usage"]["completion_tokens"] == 24
        assert 0 <= timings["draft_n_accepted"] <= timings["draft_n"] and timings["draft_n"] > 0


def test_accepted_guesses_are_counted(model: Path) -> None:
    llm = opened(model)
    made = [token for token, _ in zip(llm.generate(PROMPT, temp=0), range(21), strict=False)]
    llm.close()
    known = np.array([*PROMPT, *made], dtype=np.intc)

    def oracle(input_ids: Any, **_: Any) -> Any:
        return known[len(input_ids) : len(input_ids) + 3]

    llm = opened(model, draft_model=oracle)
    stream = llm.generate(PROMPT, temp=0)
    turn = Turn(meter.Meter(llm._native, "none", False))
    with llm._turns.taking(turn):
        assert [next(stream) for _ in range(20)] == made[:20]
        timings = turn.meter.receipt()["timings"] if turn.meter else {}
    stream.close()
    llm.close()
    assert timings["predicted_n"] == 20
    # The prompt gives the first token. Then one step computes a token and three guesses, and gives four.
    assert timings["draft_n"] == 15 and timings["draft_n_accepted"] == 14


def test_two_answers_with_drafts_take_turns(model: Path) -> None:
    prompts = [PROMPT * 3, [9, 8, 7] * 12]
    want = [ids(llm := opened(model), prompt) for prompt in prompts]
    llm.close()
    llm = opened(model, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4, max_ngram_size=2))
    streams = [llm.generate(prompt, temp=0) for prompt in prompts]
    together: list[list[int]] = [[], []]
    for _ in range(12):
        for stream, tokens in zip(streams, together, strict=True):
            tokens.append(next(stream))
    assert together == want
    for stream in streams:
        stream.close()
    llm.close()


@pytest.mark.parametrize("chat", [False, True])
def test_the_readers_time_is_not_ours(chat: bool, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    llm = opened(model, SIM)
    bias = {llm.token_eos(): -1e9}
    settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "stream": True, "logit_bias": bias}
    stream = llm.create_chat_completion(MESSAGES, **settings) if chat else llm.create_completion(PROMPT, **settings)
    for chunk in stream:
        clock.now += 50_000_000
        last = chunk
    llm.close()
    assert last["timings"]["predicted_n"] >= 8 and last["timings"]["predicted_ms"] == 0


def test_a_prompt_in_parts_is_a_prompt(model: Path) -> None:
    """Compute as image handlers do: texts by ``eval``, images by other code, then a completion of all tokens."""
    llm = opened(model, SIM)

    def handler(*, llama: Any, messages: Any, **given: Any) -> Any:
        llama.reset()
        llama._ctx.kv_cache_clear()
        llama.eval(PROMPT)
        batch = llama._batch
        batch.set_batch(batch=[50, 51, 52], n_past=llama.n_tokens, logits_all=False)
        assert llama_cpp.llama_decode(llama.ctx, batch.batch) == 0
        llama.input_ids[llama.n_tokens : llama.n_tokens + 3] = [50, 51, 52]
        llama.n_tokens += 3
        llama.eval([60, 61])
        prompt = llama.input_ids[: llama.n_tokens].tolist()
        return llama.create_completion(prompt, max_tokens=6, temperature=0, logit_bias={llama.token_eos(): -1e9})

    llm.chat_handler = handler
    for _ in range(2):
        timings = llm.create_chat_completion(MESSAGES)["timings"]
        assert timings["prompt_n"] == len(PROMPT) + 5 and timings["cache_n"] == 0 and timings["predicted_n"] == 6
    llm.close()


# ---- streams that are left ----


@DEVICES
@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_that_is_left_or_never_begun_takes_nothing_from_others(
    chat: bool, offload: OffloadConfig, model: Path
) -> None:
    llm = opened(model, offload)

    def ask(**keywords: Any) -> Any:
        keywords |= {"max_tokens": 6, "temperature": 0}
        return llm.create_chat_completion(MESSAGES, **keywords) if chat else llm.create_completion(PROMPT, **keywords)

    def text(answer: Any) -> str:
        choice = answer["choices"][0]
        return str(choice["message"]["content"] if chat else choice["text"])

    want = text(ask())
    never, left = ask(stream=True), ask(stream=True)
    next(left)
    for _ in range(2):
        answer = ask()
        assert text(answer) == want and answer["timings"]["predicted_n"] == answer["usage"]["completion_tokens"]
        assert "edgemoe" in answer
        llm.cancel()
    del never
    assert text(ask()) == want
    left.close()
    answer = ask()
    assert text(answer) == want and "timings" in answer
    llm.close()


@DEVICES
def test_a_cancel_ends_the_running_answer_and_not_the_next(offload: OffloadConfig, model: Path) -> None:
    llm = opened(model, offload, embedding=True)
    llama_cpp.llama_set_embeddings(llm.ctx, False)
    want = ids(llm)
    llm.reset()
    llm.cancel()
    llm.eval(PROMPT)
    llm.cancel()
    assert ids(llm) == want
    llm.cancel()
    assert llm.tokenize(b"abc", add_bos=False) == [97, 98, 99]
    llama_cpp.llama_set_embeddings(llm.ctx, True)
    llm.cancel()
    assert len(llm.embed("abc")) > 0
    llm.close()


# ---- threads, processes, ends ----


@DEVICES
def test_threads_get_the_answers_of_each_alone(offload: OffloadConfig, model: Path) -> None:
    llm = opened(model, offload)
    prompts = [[seed + 5, seed + 6, seed + 7] * 4 for seed in range(4)]

    def answer(prompt: list[int]) -> str:
        return str(llm.create_completion(prompt, max_tokens=10, temperature=0)["choices"][0]["text"])

    want, got = [answer(prompt) for prompt in prompts], dict[int, list[str]]()

    def work(number: int) -> None:
        got[number] = [answer(prompts[number]) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: [want[number]] * 4 for number in range(4)}
    llm.close()


@DEVICES
def test_close_while_another_thread_computes(offload: OffloadConfig, model: Path) -> None:
    llm = opened(model, offload, n_ctx=2048)
    begun, errors = threading.Event(), list[BaseException]()
    never_ends = {llm.token_eos(): -1e9}

    def work() -> None:
        try:
            while True:
                for _ in llm.create_completion(PROMPT, max_tokens=500, logit_bias=never_ends, stream=True):
                    begun.set()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    llm.close()
    thread.join()
    assert isinstance(errors[0], EdgeMoEError) and "closed" in str(errors[0])
    for use in (lambda: llm.eval([1]), lambda: llm.create_completion("x"), lambda: list(llm.generate([1, 2]))):
        with pytest.raises(EdgeMoEError, match="closed"):
            use()


ENDING = """
    import sys, threading
    from edgemoe import Llama, OffloadConfig
    config = OffloadConfig(device=sys.argv[2], vram="50%", profile=sys.argv[3])
    llm = Llama(sys.argv[1], n_ctx=512, n_threads=1, offload=config)
    begun = threading.Event()
    def work():
        while True:
            for _ in llm.create_completion("word " * 30, max_tokens=200, stream=sys.argv[4] == "stream"):
                begun.set()
    threading.Thread(target=work, daemon=True).start()
    begun.wait()
    sys.exit(int(sys.argv[5]))
"""


@pytest.mark.parametrize("device", ["none", "sim"])
@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_a_thread_that_computes_while_the_program_ends(device: str, kind: str, model: Path, tmp_path: Path) -> None:
    for code in (0, 7, 0):
        done = run(ENDING, model, device, tmp_path, kind, code)
        assert done.returncode == code and done.stderr == "", done.stderr
    assert list(tmp_path.iterdir()), "the profile is kept"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("device", ["none", "sim"])
def test_a_fork_gets_an_error_instead_of_a_hang(device: str, model: Path, tmp_path: Path) -> None:
    done = run(
        """
        import os, signal, sys
        from edgemoe import EdgeMoEError, Llama, OffloadConfig
        config = OffloadConfig(device=sys.argv[2], vram="50%", profile=sys.argv[3])
        def load():
            return Llama(sys.argv[1], n_ctx=256, n_threads=1, n_threads_batch=1, offload=config)
        llm = load()
        want = llm.create_completion([5, 6, 7], max_tokens=6, temperature=0)["choices"][0]["text"]
        stream = llm.create_completion([5, 6, 7], max_tokens=6, stream=True)
        next(stream)

        def child(what):
            sys.stdout.flush()
            process = os.fork()
            if process == 0:
                signal.alarm(20)
                what()
                sys.exit(3)
            _, status = os.waitpid(process, 0)
            assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 3, status

        def answer():
            decode = lambda: llm._ctx.decode(llm._batch)
            for use in (lambda: llm("x"), lambda: llm.eval([1]), lambda: next(stream), decode):
                try:
                    use()
                except EdgeMoEError as error:
                    assert "another process" in str(error), error
                else:
                    raise SystemExit(9)
            assert llm.tokenize(b"ab", add_bos=False) == [97, 98]

        def again():
            fresh = load()
            assert fresh.create_completion([5, 6, 7], max_tokens=6, temperature=0)["choices"][0]["text"] == want
            fresh.close()

        child(lambda: None)
        child(answer)
        child(lambda: llm.close())
        assert not os.path.isdir(sys.argv[3]) or not os.listdir(sys.argv[3]), "a child kept a profile"
        child(again)
        assert llm.create_completion([5, 6, 7], max_tokens=6, temperature=0)["choices"][0]["text"] == want
        stream.close()
        """,
        model,
        device,
        tmp_path / "profiles",
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert list((tmp_path / "profiles").iterdir())


def test_a_stream_that_outlives_its_model_ends_in_silence(model: Path) -> None:
    done = run(
        """
        import sys
        from edgemoe import Llama, OffloadConfig
        llm = Llama(sys.argv[1], n_ctx=256, n_threads=1, offload=OffloadConfig(device="sim", vram="50%", profile="off"))
        stream, tokens = llm("abc", stream=True), llm.generate([5, 6, 7])
        next(stream), next(tokens)
        llm.close()
        del stream, tokens
        """,
        model,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr


# ---- states and caches ----


@DEVICES
@pytest.mark.parametrize("logits_all", [False, True])
def test_states_come_back(logits_all: bool, offload: OffloadConfig, model: Path) -> None:
    keywords: dict[str, Any] = {"n_ctx": 1024, "logits_all": logits_all}
    llm, other = opened(model, offload, **keywords), opened(model, offload, **keywords)
    prompts = [[5 + (seed * 7 + i) % 200 for i in range(700)] for seed in range(2)]
    want, states = [], []
    for prompt in prompts:
        llm.reset()
        llm.eval(prompt)
        states.append(llm.save_state())
        want.append([llm.sample(temp=0)])
        for _ in range(5):
            llm.eval([want[-1][-1]])
            want[-1].append(llm.sample(temp=0))
    for turn in range(6):
        holder = other if turn % 3 == 2 else llm
        holder.load_state(states[turn % 2])
        if turn == 3 and offload is SIM:
            llm.experts.resize("20%")
        got = [token for token, _ in zip(holder.generate(prompts[turn % 2], temp=0), range(6), strict=False)]
        assert got == want[turn % 2]
    assert states[0].llama_state_size < 8 << 20
    llm.close()
    other.close()


@DEVICES
@pytest.mark.parametrize("capacity", [1, 1 << 30])
def test_a_cache_of_states_changes_no_answer(capacity: int, offload: OffloadConfig, model: Path) -> None:
    llm = opened(model, offload)
    prompts = [PROMPT, [*PROMPT, 30, 31], [40, *PROMPT], PROMPT]

    def answers() -> list[str]:
        return [llm.create_completion(p, max_tokens=8, temperature=0)["choices"][0]["text"] for p in prompts]

    want = answers()
    llm.set_cache(llama_cpp.LlamaRAMCache(capacity_bytes=capacity))
    assert answers() == want == answers()
    llm.close()


# ---- requests ----


def test_logits_of_every_token_are_announced(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MUCH_OF_RAM", 1e-9)
    with pytest.warns(UserWarning, match="GiB of logits"):
        llm = opened(model, logits_all=True)
    assert any("logits_all" in note for note in llm.experts.notes)
    llm.close()
    llm = opened(model, SIM)
    assert not any("logits_all" in note for note in llm.experts.notes)
    answer = llm.create_completion(PROMPT, max_tokens=4, logprobs=3, temperature=0)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"] == 4
    llm.close()


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"word": {"$ref": "#/$defs/word"}, "sure": {"type": "boolean"}},
    "required": ["word", "sure"],
    "$defs": {"word": {"enum": ["ja", "nö", "日本"]}},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}},
        {"type": "json_object", "schema": SCHEMA},
    ],
    ids=lambda wanted: wanted["type"],
)
@pytest.mark.parametrize("tools", [False, True])
def test_a_schema_constrains_the_answer(wanted: dict[str, Any], stream: bool, tools: bool, templated: Path) -> None:
    llm = opened(templated, SIM, n_ctx=1024)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    extra = {"tools": [tool]} if tools else {}
    for seed in range(3):
        answer = llm.create_chat_completion(
            MESSAGES, response_format=wanted, stream=stream, seed=seed, temperature=1.0, max_tokens=200, **extra
        )
        if stream:
            text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in answer)
        else:
            text = answer["choices"][0]["message"]["content"]
        made = json.loads(text)
        assert made["word"] in ("ja", "nö", "日本") and isinstance(made["sure"], bool)
    plain = llm.create_chat_completion(MESSAGES, response_format={"type": "text"}, max_tokens=4)
    assert "content" in plain["choices"][0]["message"]
    with pytest.raises(ConfigError, match="xml"):
        llm.create_chat_completion(MESSAGES, response_format={"type": "xml"})
    llm.close()


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model with its own chat template."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    folder = tmp_path_factory.mktemp("templated")
    source = build("llama", folder, "Q8_0")
    return rewrite(source, folder / "t.gguf", tensors_of(source), {"tokenizer.chat_template": (TEXT, template)})


# ---- nothing grows ----


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@DEVICES
def test_memory_threads_and_files_stay_flat(offload: OffloadConfig, model: Path) -> None:
    process = psutil.Process()

    def rounds(count: int) -> None:
        for _ in range(count):
            llm = opened(model, offload)
            llm.create_completion(PROMPT, max_tokens=8)
            gone = weakref.ref(llm)
            del llm
            gc.collect()
            assert gone() is None

    rounds(20)
    before, threads, files = resident(), process.num_threads(), process.num_fds()
    rounds(40)
    grown = resident() - before
    assert grown < 8 << 20, f"{grown / 2**20:.1f} MiB more"
    assert process.num_threads() <= threads and process.num_fds() <= files
    used(opened(model, offload), 300, 100)


@pytest.mark.slow
@DEVICES
def test_memory_stays_flat_over_20000_answers(offload: OffloadConfig, model: Path) -> None:
    used(opened(model, offload), 20_000, 500)


def used(llm: Llama, answers: int, abandoned: int) -> None:
    """Ask ``answers`` times and leave ``abandoned`` streams. The memory of the process must not grow."""
    process, random = psutil.Process(), np.random.default_rng(3)

    def ask(count: int, every: int) -> None:
        for number in range(count):
            prompt = [int(token) for token in random.integers(5, 250, 24)]
            if number % every == 0:
                stream = llm.create_completion(prompt, max_tokens=8, stream=True)
                next(stream)
                del stream
            else:
                llm.create_completion(prompt, max_tokens=3)

    every = max(2, answers // abandoned)
    ask(min(answers, 600), every)
    before, threads, files = resident(), process.num_threads(), process.num_fds()
    ask(answers, every)
    grown = resident() - before
    assert grown < 16 << 20, f"{grown / 2**20:.1f} MiB more"
    assert process.num_threads() <= threads and process.num_fds() <= files
    assert not llm._turns._unfinished
    llm.close()


# ---- placement ----


@pytest.mark.parametrize("kind", [8, 2], ids=["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["cohere2moe", "gpt-oss", "llama"])
def test_a_quantised_cache_beside_hot_experts(name: str, kind: int, tmp_path: Path) -> None:
    path = build(name, tmp_path, "Q4_K")  # heads of 64 numbers are whole blocks
    settings: dict[str, Any] = {"type_k": kind, "type_v": kind, "flash_attn": True, "n_ctx": 512}
    plain = llama_cpp.Llama(str(path), n_threads=1, verbose=False, **settings)
    want = ids(plain)
    plain.close()
    for share in ("25%", "50%", "100%"):
        llm = opened(path, OffloadConfig(device="sim", vram=share, profile="off"), **settings)
        llm.experts.wait()
        assert ids(llm) == want, share
        llm.close()


@pytest.mark.parametrize("vram", ["0", "1KiB", "0%", "auto"])
def test_no_hot_expert_is_one_note_that_says_why(vram: str, wide: Path) -> None:
    capacity = 1 << 20 if vram == "auto" else 1 << 40
    llm = opened(wide, OffloadConfig(device="sim", vram=vram, profile="off", sim=SimConfig(capacity=capacity)))
    about = [note for note in llm.experts.notes if "xpert" in note]
    assert len(about) == 1 and "No expert is on sim" in about[0] and "budget" in about[0], llm.experts.notes
    assert llm.experts.stats().slots == 0
    llm.close()


@pytest.mark.parametrize("stream_tokens", [0, 32])
def test_a_long_prompt_leaves_the_hot_set_alone(stream_tokens: int, wide: Path) -> None:
    config = OffloadConfig(
        device="sim", vram="50%", profile="off", stream_tokens=stream_tokens, synchronous=True, prefetch="off"
    )
    llm = opened(wide, config, n_ctx=2048)
    random = np.random.default_rng(5)

    def decode(count: int) -> float:
        before = llm.experts.stats()
        for _ in range(count):
            llm.eval([int(random.integers(5, 250))])
        after = llm.experts.stats()
        hits, misses = after.hits - before.hits, after.misses - before.misses
        return hits / (hits + misses)

    first = decode(200)
    hot = llm.experts.residency()
    llm.eval([int(token) for token in random.integers(5, 250, 1500)])
    assert (llm.experts.residency() == hot).all()
    assert decode(50) >= first - 0.05
    llm.close()


# ---- the clients' ways in ----


def test_it_is_a_llama_and_unknown_fields_break_no_model(model: Path) -> None:
    pytest.importorskip("openai")
    from openai.types import Completion
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    llm = opened(model, SIM)
    assert isinstance(llm, llama_cpp.Llama)
    Completion.model_validate(llm.create_completion(PROMPT, max_tokens=3))
    ChatCompletion.model_validate(llm.create_chat_completion(MESSAGES, max_tokens=3))
    for chunk in llm.create_chat_completion(MESSAGES, max_tokens=3, stream=True):
        assert len(chunk["choices"]) == 1
        ChatCompletionChunk.model_validate(chunk)
    assert llm.create_chat_completion_openai_v1(MESSAGES, max_tokens=3).choices[0].message.role == "assistant"
    llm.close()


def test_from_pretrained_is_of_our_class(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    name = "sub/tiny.gguf"
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(model.read_bytes())
    (tmp_path / "sub" / "more.txt").write_text("more")

    class Files:
        def ls(self, repo: str, recursive: bool = False) -> list[str]:
            return [f"{repo}/{name}", f"{repo}/sub/more.txt"]

    fetched: list[str] = []

    def download(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        fetched.append(f"{subfolder}/{filename}")
        return str(tmp_path / (subfolder or "") / filename)

    monkeypatch.setattr(hub, "HfFileSystem", Files)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    llm = Llama.from_pretrained(
        "some/model", "*tiny.gguf", additional_files=["*more.txt"], n_ctx=64, n_threads=1, offload=SIM
    )
    assert type(llm) is Llama and llm.experts.device == "sim" and "sub/tiny.gguf" in fetched
    assert len(ids(llm, count=3)) == 3
    llm.close()


# ---- bare surroundings ----

COMMAND = "import sys; from edgemoe.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are closed by a shell")
@pytest.mark.parametrize(
    ("arguments", "code"), [("show MODEL", 0), ("run MODEL hi --max-tokens 2", 0), ("rm nothing", 3), ("chat MODEL", 2)]
)
def test_commands_without_standard_streams(arguments: str, code: int, model: Path) -> None:
    line = f'"{sys.executable}" -c "$0" {arguments.replace("MODEL", str(model))} 0<&- 1>&- 2>&-'
    assert subprocess.run(["sh", "-c", line, COMMAND], cwd=ROOT, timeout=120).returncode == code


@pytest.mark.parametrize(
    "surroundings",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["output", "all"],
)
def test_commands_where_only_ascii_is_known(surroundings: dict[str, str], model: Path) -> None:
    command = [sys.executable, "-c", COMMAND, "run", str(model), "é?", "--max-tokens", "12"]
    done = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, env=os.environ | surroundings)
    assert done.returncode == 0 and done.stdout.isascii() and done.stderr.isascii(), done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a home is always known")
@pytest.mark.parametrize("named", [None, "~/x"])
def test_without_a_home_nothing_is_kept(
    named: str | None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    def nobody(uid: int) -> Any:
        raise KeyError(uid)

    for name in ("HOME", "EDGEMOE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    if named:
        monkeypatch.setenv("EDGEMOE_HOME", named)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    llm = opened(model, OffloadConfig(device="sim", vram="50%"))
    assert len(ids(llm)) == 12
    llm.close()
    assert len([note for note in llm.experts.notes if "not saved" in note]) == 1, llm.experts.notes
    assert not list(Path.cwd().iterdir()), "no folder called ~"


def test_a_home_is_read_as_a_shell_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgemoe.config import home

    monkeypatch.setenv("HOME", str(tmp_path))
    for text, folder in (("~/x", "x"), (f"{tmp_path}/mit Ümlaut\n", "mit Ümlaut")):
        monkeypatch.setenv("EDGEMOE_HOME", text)
        assert home("data") == tmp_path / folder / "data"
