"""The cache is counted as llama.cpp allocates it; bad caches are refused before loading; contexts by plan."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe import Llama, OffloadConfig
from edgemoe.cli.main import main
from edgemoe.config import Budget, SimConfig
from edgemoe.engine import attention, host, opening
from edgemoe.errors import ConfigError, ContextFailed, DoesNotFit
from edgemoe.models import gguf
from edgemoe.planning import context, kv_cache
from edgemoe.planning.placement import GIB, MachineRates, ModelNeeds, Placement, place
from edgemoe.profiling import memory
from edgemoe.profiling.placements import attention_of, placements
from tests.routing import wide_model
from tests.test_plan import DESKTOP, MODEL, budgets, is_within_its_budget, machines, models
from tests.zoo import ARCHITECTURES, build
from tests.zoo.reference import defaults, greedy, plain

NONE = OffloadConfig(device="none", profile="off", policy="off")
TYPES = ("f16", "q8_0", "q4_0", ("q8_0", "f16"), ("q4_0", "q8_0"))
LENGTH = 16384
# llama.cpp logs each of at most five buffers with two digits behind the point.
ROUNDING = 5 * 5243


# ---- the cache ----


@pytest.mark.parametrize("flash", ["on", "off"])
@pytest.mark.parametrize("name", ["llama", "gpt-oss", "deepseek2-v3", "deepseek4", "minimax-m3", "qwen3next"])
def test_the_plan_counts_the_cache_of_llama_cpp(name: str, flash: str, tmp_path: Path) -> None:
    cache_equals_llama_cpp_s(build(name, tmp_path), OffloadConfig(device="none", profile="off", flash=flash))


@pytest.mark.parametrize("name", ["llama", "gemma4", "granitehybrid"])
def test_the_plan_counts_quantised_caches_and_windows(name: str, tmp_path: Path) -> None:
    path = build(name, tmp_path, "Q4_K")  # heads of 64 numbers are whole blocks
    for kinds, whole in itertools.product(TYPES, (True, False)):
        cache_equals_llama_cpp_s(path, replace(NONE, kv=kinds), swa_full=whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_plan_counts_every_cache_of_every_architecture(name: str, tmp_path: Path) -> None:
    for quant, kinds, flash, whole in itertools.product((None, "Q4_K"), TYPES, ("on", "off"), (True, False)):
        path = build(name, tmp_path, quant)
        try:
            config = OffloadConfig(device="none", profile="off", kv=kinds, flash=flash)
            opening.prepare(opening.read(path, False), config, {"n_ctx": LENGTH})
        except ConfigError:
            continue
        cache_equals_llama_cpp_s(path, config, swa_full=whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_refuses_the_caches_that_are_refused_before_loading(name: str, tmp_path: Path) -> None:
    for quant, kinds in itertools.product((None, "Q4_K"), itertools.product(("f16", "q8_0", "q4_0"), repeat=2)):
        path, file = build(name, tmp_path, quant), gguf.read(build(name, tmp_path, quant))
        keywords = {"type_k": attention.NUMBERS[kinds[0]], "type_v": attention.NUMBERS[kinds[1]], "flash_attn": True}
        try:
            attention.settings(file, NONE, keywords, 512, lambda heads, types: True)
        except ContextFailed:
            # Without flash attention llama.cpp reads half blocks of keys, and answers nonsense.
            with contextlib.suppress(ValueError) if name in attention.NEVER_FLASH else pytest.raises(ValueError):
                llama_cpp.Llama(str(path), n_ctx=512, verbose=False, **keywords)
        else:
            llama_cpp.Llama(str(path), n_ctx=512, verbose=False, **keywords).close()


def cache_equals_llama_cpp_s(path: Path, config: OffloadConfig, **keywords: Any) -> None:
    prepared = opening.prepare(opening.read(path, False), config, {"n_ctx": LENGTH, **keywords})
    with memory.watch() as ledger, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Llama(path, n_ctx=LENGTH, offload=config, **keywords).close()
    found = sum(size for (kind, _), size in ledger.buffers.items() if kind in ("KV", "RS"))
    planned = prepared.attempts[0].placement.kv_bytes
    assert planned == pytest.approx(found, rel=0.01, abs=ROUNDING), (config.kv, config.flash, keywords)
    assert ledger.buffers["compute", "CPU"] <= prepared.needs.compute_bytes(LENGTH) + (128 << 10)  # small inputs


def test_embeddings_of_many_texts_have_a_state_each(tmp_path: Path) -> None:
    path = build("granitehybrid", tmp_path)
    cache_equals_llama_cpp_s(path, NONE, embedding=True, n_batch=64, n_ubatch=64)


@pytest.mark.parametrize("name", ["granitehybrid", "gpt-oss", "qwen35moe"])
def test_each_of_several_sequences_has_its_state_and_window(name: str, tmp_path: Path) -> None:
    path = build(name, tmp_path)
    prepared = opening.prepare(opening.read(path, False), NONE, {"n_ctx": LENGTH, "swa_full": False}, 4)
    with memory.watch() as ledger:
        Llama(path, n_ctx=LENGTH, offload=NONE, swa_full=False, sequences=4).close()
    found = sum(size for (kind, _), size in ledger.buffers.items() if kind in ("KV", "RS"))
    assert prepared.attempts[0].placement.kv_bytes == pytest.approx(found, rel=0.01, abs=ROUNDING)
    assert opening.beyond_training(prepared.file, {"n_ctx": 4 * 512}, 4) == "", (
        "each sequence has what it was trained for"
    )
    assert "600 is more" in opening.beyond_training(prepared.file, {"n_ctx": 4 * 600}, 4)


# ---- the same tokens ----


@pytest.mark.parametrize("device", ["none", "sim"])
@pytest.mark.parametrize("kv", ["q8_0", ("q8_0", "q4_0")], ids=str)
@pytest.mark.parametrize("name", ["gpt-oss", "qwen3next", "cohere2moe"])
def test_tokens_are_llama_cpp_s_with_the_same_settings(name: str, kv: Any, device: str, tmp_path: Path) -> None:
    answers_as_llama_cpp(
        build(name, tmp_path, "Q4_K"), OffloadConfig(device=device, vram="50%", profile="off", kv=kv, flash="on")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_of_every_architecture_are_llama_cpp_s(name: str, tmp_path: Path) -> None:
    for kv, flash, device in itertools.product(("f16", "q8_0", "q4_0", "q8_0,f16"), ("on", "off"), ("none", "sim")):
        path = build(name, tmp_path, "Q4_K")
        try:
            config = OffloadConfig(device=device, vram="50%", profile="off", kv=kv, flash=flash)
            opening.prepare(opening.read(path, False), config, {"n_ctx": 512})
        except ConfigError:
            continue
        answers_as_llama_cpp(path, config)


def answers_as_llama_cpp(path: Path, config: OffloadConfig) -> None:
    """Compare tokens and logits, to the last bit."""
    prompt = [3, 14, 15, 92, 65, 35, 89, 79] * 4
    keys, values = (attention.NUMBERS[kind] for kind in config.kv_types)
    alike = {"n_ctx": 512, "n_batch": 128, "n_ubatch": 128, "n_threads": 1, "n_threads_batch": 1}
    before = plain(path, type_k=keys, type_v=values, flash_attn=config.flash == "on", **alike)
    wanted, scores = greedy(before, prompt, 12)
    before.close()
    with defaults("model", use_extra_bufts=False):
        llm = Llama(path, offload=config, **alike)
    assert (llm.context_params.type_k, llm.context_params.type_v) == (keys, values)
    found, ours = greedy(llm, prompt, 12)
    llm.close()
    assert found == wanted and (ours == scores).all(), config


def test_the_cpu_attends_to_a_cache_in_ram(tmp_path: Path) -> None:
    path, prompt, used = build("gpt-oss", tmp_path), [3, 14, 15, 92, 65, 35] * 8, []
    sizes = {"n_batch": 128, "n_ubatch": 128, "n_threads": 1, "n_threads_batch": 1}
    before = plain(path, n_ctx=512, flash_attn=True, **sizes)
    wanted, scores = greedy(before, prompt, 8)
    before.close()
    for length in (512, LENGTH):
        config = OffloadConfig(device="sim", profile="off", flash="on")
        with defaults("model", use_extra_bufts=False), memory.watch() as ledger:
            llm = Llama(path, n_ctx=length, n_gpu_layers=-1, offload_kqv=False, offload=config, **sizes)
        used.append(ledger.buffers["compute", "SIM"])
        found, ours = greedy(llm, prompt, 8)
        llm.close()
        assert found == wanted and (length > 512 or (ours == scores).all())
    assert used[0] == used[1], "the device needs no memory for a longer context"


# ---- flash attention ----


def chosen(path: Path, config: OffloadConfig = NONE, computes: bool = True, length: int = 512, **given: Any) -> Any:
    return attention.settings(gguf.read(path), config, given, length, lambda heads, types: computes)


def test_auto_is_on_for_long_contexts_and_quantised_values(tmp_path: Path) -> None:
    path = build("llama", tmp_path, "Q4_K")
    assert chosen(path) == {"flash_attn": False}, "as llama_cpp has it"
    assert chosen(path, length=attention.FLASH_CONTEXT) == {"flash_attn": False}
    for length in (attention.FLASH_CONTEXT + 1, 0):
        assert chosen(path, length=length) == {"flash_attn": True}
        assert chosen(path, length=length, computes=False) == {"flash_attn": False}
    assert chosen(path, replace(NONE, kv="q8_0")) == {"flash_attn": True, "type_k": 8, "type_v": 8}
    assert chosen(path, replace(NONE, kv="q8_0,f16")) == {"flash_attn": False, "type_k": 8}
    assert chosen(path, replace(NONE, flash="on")) == {"flash_attn": True}
    assert chosen(path, replace(NONE, flash="off"), length=1 << 17) == {"flash_attn": False}


def test_keywords_of_llama_cpp_come_first(tmp_path: Path) -> None:
    path = build("llama", tmp_path, "Q4_K")
    assert chosen(path, replace(NONE, kv="q8_0", flash="on"), type_v=1, flash_attn=False) == {
        "flash_attn": False, "type_k": 8,
    }  # fmt: skip
    assert chosen(path, replace(NONE, kv="q8_0"), type_k=None, type_v=2)["type_v"] == 2


def test_the_cpu_and_sim_compute_flash_attention_and_an_unknown_device_does_not(tmp_path: Path) -> None:
    host.core()
    for name in ("gpt-oss", "deepseek2-v3", "gemma4", "llama"):
        heads = kv_cache.heads(gguf.read(build(name, tmp_path)))
        assert heads
        for kind in heads:
            assert host.computes_flash("", kind, (1, 1)) and host.computes_flash("sim", kind, (1, 1))
            assert not host.computes_flash("CUDA7", kind, (1, 1))
            assert not host.computes_flash("sim", kind._replace(queries=3, pairs=2), (1, 1)), "no whole groups"


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"flash": "sometimes"}, "flash='sometimes'"),
        ({"kv": "q5_0"}, "kv='q5_0'"),
        ({"kv": ("f16", "f16", "f16")}, "3 types"),
        ({"kv": "q8_0", "flash": "off"}, "a q8_0 cache of values needs flash attention"),
    ],
)
def test_settings_are_checked_when_they_are_made(settings_: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OffloadConfig(**settings_)
    assert OffloadConfig(kv="q8_0,f16", flash="off").kv_types == ("q8_0", "f16")
    assert OffloadConfig(kv=("f16", "q4_0")).kv_types == ("f16", "q4_0") and OffloadConfig().kv_types == ("f16", "f16")


# ---- said before loading ----


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*args: Any, **keywords: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Llama, "_load", loads)


@pytest.mark.parametrize(
    ("name", "quant", "given", "words"),
    [
        ("llama", "Q4_K", {"type_v": 8, "flash_attn": False}, "q8_0 cache of values needs flash attention"),
        ("grok", "Q4_K", {"type_v": 8}, "q8_0 cache of values needs flash attention"),
        ("llama", None, {"type_k": 8}, "heads of 16 numbers are no whole blocks of 32"),
        ("deepseek2-v3", None, {"type_k": 0, "flash_attn": True}, "keeps keys and values in one row"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_a_cache_that_llama_cpp_cannot_make_is_refused_before_loading(
    name: str, quant: str | None, given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ContextFailed, match=words) as caught:
        Llama(build(name, tmp_path, quant), n_ctx=512, offload=NONE, **given)
    assert caught.value.hint


@pytest.mark.usefixtures("unloaded")
def test_a_context_beyond_the_memory_is_refused_with_figures_before_loading(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"needs \d+ MiB, \d+ MiB are free") as caught:
        Llama(build("llama", tmp_path), n_ctx=1 << 30, offload=NONE)
    assert caught.value.needed_bytes > caught.value.free_bytes and "--ctx" in caught.value.hint


def test_a_context_beyond_the_training_is_said_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build("llama", tmp_path)  # trained for 512 tokens
    with pytest.warns(UserWarning, match="more than the 512 tokens that the model was trained for"):
        monkeypatch.setattr(Llama, "_load", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Llama(path, n_ctx=1024, offload=NONE)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in ({"n_ctx": 512}, {"n_ctx": 0}, {"n_ctx": 1024, "rope_freq_scale": 0.5}):
            Llama(path, offload=NONE, **given).close()


def test_a_command_says_it_once_and_before_it_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build("llama", tmp_path)

    def opens(*args: Any, **keywords: Any) -> Any:
        llm = Llama(*args, **keywords)
        assert "trained for" in capsys.readouterr().err
        return llm

    assert main(["run", str(path), "x", "--device", "none", "--ctx", "1024", "--max-tokens", "1"], opens) == 0
    assert "trained for" not in capsys.readouterr().err


def test_a_device_without_such_attention_is_named_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build("llama", tmp_path, "Q4_K")
    monkeypatch.setattr(host, "computes_flash", lambda device, heads, types: types[0] == types[1])
    for kv, said in (("q8_0", False), ("q8_0,q4_0", True)):
        config = OffloadConfig(device="sim", profile="off", kv=kv)
        with contextlib.closing(Llama(path, n_ctx=512, n_threads=1, offload=config)) as llm:
            text = (
                "sim has no flash attention for this model with a cache of q4_0 and q8_0: the CPU computes it, slowly."
            )
            assert (text in llm.experts.notes) == said


def test_the_profile_opens_llama_cpp_with_the_same_attention(tmp_path: Path) -> None:
    path = build("llama", tmp_path, "Q4_K")
    with contextlib.closing(Llama(path, n_ctx=512, offload=replace(NONE, kv="q8_0,q4_0"))) as ours:
        asked = attention_of(ours)
    assert asked == {"flash_attn": True, "type_k": 8, "type_v": 2}
    (placement,) = placements(gguf.read(path), "none", 0)
    with contextlib.closing(placement.open(path, {"n_ctx": 512, "verbose": False} | asked)) as beside:
        assert attention_of(beside) == asked


# ---- the context by plan ----


def test_the_context_is_what_the_model_was_trained_for_where_that_is_cheap() -> None:
    rich = replace(DESKTOP, device_free_bytes=90 * GIB, device_total_bytes=96 * GIB)
    flat = replace(MODEL, flash=True)
    made = by_plan(flat, rich, 131_072)
    assert made.placement.context == 131_072 and made.faster == 0
    assert context.in_words(made, flat, "CUDA0", 38.2).startswith("128k context, all that the model was trained for")
    assert by_plan(flat, rich, 1000).placement.context == 1000, "shorter than the least"


def test_a_context_that_costs_much_speed_is_shorter() -> None:
    flat = replace(MODEL, flash=True)
    made = by_plan(flat, DESKTOP, 131_072)
    assert 8192 <= made.placement.context < 131_072 and made.placement.kv_on_device
    assert made.shorter == 8192 or made.placement.context == 8192
    assert 0 < made.faster < context.LITTLE
    text = context.in_words(made, flat, "CUDA0", 38.0)
    assert f"{made.placement.context // 1024}k context" in text and "% of the experts on CUDA0" in text
    assert "about 38 tokens/s; " in text and "would give 4" in text
    assert "% faster." in context.in_words(made, flat, "CUDA0")


def test_a_longer_context_leaves_half_of_the_ram_to_others() -> None:
    dense = ModelNeeds(None, 24, GIB, GIB, GIB, kv_token_bytes=96 << 10, flash=True, vocabulary=32000, width=2048)
    laptop = MachineRates("", 0, 0, 6 * GIB, 16 * GIB, 8)
    made = by_plan(dense, laptop, 1 << 20)
    assert made.placement.context == 16384 and made.placement.ram_private_bytes < 3 * GIB


def by_plan(needs: ModelNeeds, machine: MachineRates, trained: int) -> context.ContextChoice:
    return context.choose(needs, trained, machine, lambda tokens: place(machine, needs, tokens, Budget()))


def chosen_well(machine: MachineRates, model: ModelNeeds, trained: int, budget: Budget, flash: bool) -> None:
    model, tried = replace(model, flash=flash), {}

    def placed(tokens: int) -> Placement:
        tried[tokens] = place(machine, model, tokens, budget)
        return tried[tokens]

    made = context.choose(model, trained, machine, placed)
    least = tried[min(tried)]
    assert made.placement == tried[made.placement.context] and min(trained, 4096) <= made.placement.context <= trained
    assert made.placement.kv_on_device == least.kv_on_device
    assert made.placement.fits or made.placement == least, "a longer context never takes the memory of the weights"
    assert 0 <= made.faster <= context.LITTLE + 1e-9
    is_within_its_budget(machine, model, made.placement.context, budget)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(machines(), models(), st.integers(1, 1 << 20), budgets, st.booleans())
def test_a_chosen_context_stays_within_its_budgets(
    machine: MachineRates, model: ModelNeeds, trained: int, budget: Budget, flash: bool
) -> None:
    chosen_well(machine, model, trained, budget, flash)


@pytest.mark.slow
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
@given(machines(), models(), st.integers(1, 1 << 20), budgets, st.booleans())
def test_10000_chosen_contexts_stay_within_their_budgets(
    machine: MachineRates, model: ModelNeeds, trained: int, budget: Budget, flash: bool
) -> None:
    chosen_well(machine, model, trained, budget, flash)


def test_a_model_opens_with_the_context_of_the_plan(tmp_path: Path) -> None:
    path = build("llama", tmp_path)
    llm = Llama(path, n_ctx="auto", n_threads=1, offload=NONE)
    assert llm.n_ctx() == 512 and llm.context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    assert "512 context, all that the model was trained for." in llm.experts.notes
    again = pickle.loads(pickle.dumps(llm))
    assert again.n_ctx() == 512 and again.__getstate__()["n_ctx"] == "auto"
    llm.close()
    again.close()
    with pytest.raises(ConfigError, match="n_ctx='long'"):
        Llama(path, n_ctx="long", offload=NONE)


# ---- long contexts on small cards ----

CARDS = st.integers(0, 600).map(lambda n: n << 20)
LENGTHS = st.sampled_from([4096, 8192, 32768, 131_072])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with wide_model(tmp_path_factory.mktemp("context"), like="qwen3moe") as path:
        yield path


def loads_as_planned(path: Path, capacity: int, length: int, kind: str, flash: str) -> None:
    config = OffloadConfig(device="sim", profile="off", kv=kind, flash=flash, sim=SimConfig(capacity=capacity))
    host.core().configure_sim(config.sim)
    prepared = opening.prepare(opening.read(path, False), config, {"n_ctx": length})
    made = prepared.attempts[0].placement
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llm = Llama(path, n_ctx=length, n_threads=1, offload=config)
    try:
        llm.eval(list(range(1, 70)))
        llm.eval([5])
        free, total = llm._native.device_memory()
        assert total - free <= max(made.device_bytes, capacity - made.reserve_bytes)
        assert not any("had no room" in note for note in llm.experts.notes)
        assert bool(llm.context_params.offload_kqv) == made.kv_on_device or not made.dense_on_device
    finally:
        llm.close()
        host.core().configure_sim(SimConfig())


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(CARDS, LENGTHS, st.sampled_from(["f16", "q8_0"]))
def test_a_long_context_on_a_small_card_loads_as_planned(wide: Path, capacity: int, length: int, kind: str) -> None:
    loads_as_planned(wide, capacity, length, kind, "auto")


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(CARDS, LENGTHS, st.sampled_from(["f16", "q8_0", "q8_0,f16"]), st.sampled_from(["auto", "on"]))
def test_60_long_contexts_on_small_cards_load_as_planned(
    wide: Path, capacity: int, length: int, kind: str, flash: str
) -> None:
    loads_as_planned(wide, capacity, length, kind, flash)
