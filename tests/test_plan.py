"""The placement never exceeds the memory, names everything that it leaves out, and can be loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe import Llama, OffloadConfig
from edgemoe.config import Budget, SimConfig
from edgemoe.engine import opening
from edgemoe.models import gguf
from edgemoe.planning import model_needs
from edgemoe.planning.placement import GIB, MachineRates, ModelNeeds, Placement, place, reserve_of
from edgemoe.profiling import memory
from edgemoe.types import ModelShape
from tests.routing import wide_model
from tests.zoo import ARCHITECTURES, build

SHAPE = ModelShape(24, 32, 4, (12 << 20,) * 24)
MODEL = ModelNeeds(
    SHAPE, 24, dense_bytes=2 * GIB, dense_device_bytes=1 * GIB, dense_read_bytes=1 * GIB, kv_token_bytes=48 << 10,
    width=2880, expert_width=2880, heads=64, vocabulary=201_088,
)  # fmt: skip
DESKTOP = MachineRates("CUDA0", 8 * GIB, 8 * GIB, 30 * GIB, 32 * GIB, 8, disk_rate=2e9)
AUTO = Budget()


@st.composite
def machines(draw: st.DrawFn) -> MachineRates:
    total = draw(st.integers(0, 96 * GIB))
    free = draw(st.integers(0, total))
    ram = draw(st.integers(0, 512 * GIB))
    rate = draw(st.one_of(st.none(), st.floats(1e8, 1e10)))
    return MachineRates(draw(st.sampled_from(["", "CUDA0", "sim"])), free, total, ram, ram, 8, disk_rate=rate)


@st.composite
def models(draw: st.DrawFn) -> ModelNeeds:
    layers = draw(st.integers(1, 64))
    experts = draw(st.integers(2, 512))
    used = draw(st.integers(1, min(experts, 16)))
    sizes = draw(st.lists(st.integers(1024, 64 << 20), min_size=layers, max_size=layers))
    shape = draw(st.sampled_from([None, ModelShape(layers, experts, used, tuple(sizes))]))
    dense = draw(st.integers(1 << 20, 40 * GIB))
    return ModelNeeds(
        shape, layers, dense, draw(st.integers(0, dense)), dense, kv_token_bytes=draw(st.integers(0, 1 << 20)),
        kv_window_bytes=draw(st.integers(0, 1 << 20)), window=draw(st.sampled_from([0, 128, 4096])),
        state_bytes=draw(st.integers(0, 1 << 30)), width=draw(st.integers(64, 16384)),
        expert_width=draw(st.integers(32, 8192)), heads=draw(st.integers(1, 128)),
        vocabulary=draw(st.integers(1, 300_000)), flash=draw(st.booleans()),
        batch=draw(st.sampled_from([1, 64, 512, 4096])),
        kv_compressed=draw(st.sampled_from([(), ((4, 1 << 12), (128, 1 << 14))])),
    )  # fmt: skip


budgets = st.one_of(
    st.just(AUTO),
    st.integers(0, 96 * GIB).map(lambda n: Budget(bytes=n)),
    st.floats(0, 1).map(lambda x: Budget(share=x)),
)
contexts = st.integers(1, 1 << 18)


def is_within_its_budget(machine: MachineRates, model: ModelNeeds, context: int, budget: Budget) -> None:
    made = place(machine, model, context, budget)
    reserve = reserve_of(machine.device_total_bytes) if budget == AUTO else 0
    assert made.device_bytes <= max(0, machine.device_free_bytes - reserve)
    assert machine.device or not (made.device_bytes or made.slots), "nothing is placed where there is no device"
    experts = sum(n * size for n, size in zip(made.slots, model.shape.expert_bytes, strict=True)) if made.slots else 0
    if budget.bytes is not None:
        assert experts <= budget.bytes
    if budget.share is not None:
        assert experts <= model.expert_bytes * budget.share
    if model.shape is not None:
        assert all(n == 0 or n >= min(2 * model.shape.used, model.shape.experts) for n in made.slots)
        assert all(n <= model.shape.experts for n in made.slots)
    ram = made.ram_private_bytes + made.ram_mapped_bytes
    assert made.fits == (ram <= machine.ram_free_bytes)
    assert made.fits or made.reason.startswith("RAM is too small")
    states = max((machine.ram_free_bytes - ram) // 4, machine.ram_free_bytes // 64)
    assert 0 <= made.states_bytes <= min(4 * GIB, states)
    assert ram + made.device_bytes >= model.expert_bytes + model.kv_bytes(context), "nothing is forgotten"


@settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(machines(), models(), contexts, budgets)
def test_a_plan_never_takes_more_than_there_is(
    machine: MachineRates, model: ModelNeeds, context: int, budget: Budget
) -> None:
    is_within_its_budget(machine, model, context, budget)


@pytest.mark.slow
@settings(max_examples=10_000, suppress_health_check=list(HealthCheck))
@given(machines(), models(), contexts, budgets)
def test_10000_plans_never_take_more_than_there_is(
    machine: MachineRates, model: ModelNeeds, context: int, budget: Budget
) -> None:
    is_within_its_budget(machine, model, context, budget)


def test_auto_keeps_a_gibibyte_for_the_desktop() -> None:
    made = place(DESKTOP, MODEL, 8192, AUTO)
    assert made.dense_on_device and made.kv_on_device and made.fits and not made.reason
    left = DESKTOP.device_free_bytes - made.device_bytes
    assert GIB <= left < GIB + 2 * (12 << 20), "all but the reserve is used, to the last expert"


def test_a_longer_context_takes_its_memory_from_the_experts() -> None:
    short, long = (place(DESKTOP, MODEL, context, AUTO) for context in (2048, 8192))
    assert long.kv_bytes - short.kv_bytes == 6144 * (48 << 10)
    taken = long.kv_bytes + long.compute_bytes - short.kv_bytes - short.compute_bytes
    assert short.hot_bytes - long.hot_bytes == pytest.approx(taken, abs=2 * (12 << 20))


def test_the_reason_names_everything_left_out() -> None:
    far = place(DESKTOP, replace(MODEL, flash=True), 131_072, AUTO)
    assert not far.kv_on_device and "KV cache" in far.reason
    small = place(replace(DESKTOP, device_free_bytes=GIB * 9 // 8, device_total_bytes=4 * GIB), MODEL, 2048, AUTO)
    assert not small.dense_on_device and "dense weights" in small.reason and "all experts stay" in small.reason
    greedy = place(DESKTOP, MODEL, 2048, Budget(bytes=20 * GIB))
    assert "instead of 9.00 GiB" in greedy.reason and greedy.slots
    assert place(DESKTOP, MODEL, 2048, Budget(bytes=0)).reason == ""


def test_the_reason_names_missing_ram_and_its_cost() -> None:
    poor = replace(DESKTOP, ram_free_bytes=3 * GIB)
    made = place(poor, MODEL, 2048, AUTO)
    assert not made.fits and made.ram_short_bytes == made.ram_private_bytes + made.ram_mapped_bytes - 3 * GIB
    assert "from the disk" in made.reason and "s per token" in made.reason
    assert "s per token" not in place(replace(poor, disk_rate=None), MODEL, 2048, AUTO).reason, "nothing is invented"
    hopeless = place(replace(DESKTOP, device="", ram_free_bytes=1 << 20), MODEL, 2048, AUTO)
    assert "cannot be loaded" in hopeless.reason


def test_a_window_caps_the_cache() -> None:
    windowed = replace(MODEL, kv_token_bytes=24 << 10, kv_window_bytes=24 << 10, window=128)
    assert windowed.kv_bytes(512) == MODEL.kv_bytes(512)
    assert windowed.kv_bytes(131_072) == 131_072 * (24 << 10) + 768 * (24 << 10)


@pytest.mark.parametrize("name", ["llama", "gpt-oss", "deepseek2-v3", "gemma4", "qwen3next", "granitehybrid"])
def test_cache_and_buffers_equal_llama_cpp_s(name: str, tmp_path: Path) -> None:
    is_what_llama_cpp_takes(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_cache_equals_llama_cpp_s(name: str, tmp_path: Path) -> None:
    is_what_llama_cpp_takes(name, tmp_path)


CACHES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("llama", "cohere2moe", "gpt-oss", "granitehybrid", "gemma4") for kind in CACHES),
        *(("deepseek2-v3", kind) for kind in ("f32", "bf16")),  # the heads are no whole blocks
    ],
)
def test_a_cache_of_another_type_equals_llama_cpp_s(name: str, kind: str, tmp_path: Path) -> None:
    path, number = build(name, tmp_path, "Q4_K"), CACHES[kind]  # heads of 64 numbers are whole blocks
    settings: dict[str, Any] = {"n_ctx": 16384, "type_k": number, "type_v": number, "flash_attn": True}
    with memory.watch() as ledger:
        Llama(path, offload=OffloadConfig(device="none", profile="off"), **settings).close()
    cache = sum(size for (what, _), size in ledger.buffers.items() if what in ("KV", "RS"))
    assert opening.needs_of(gguf.read(path), settings).kv_bytes(16384) == pytest.approx(cache, rel=0.01, abs=3 * 5243)


@pytest.mark.parametrize("batch", [64, 2048])
@pytest.mark.parametrize("name", ["llama", "gpt-oss", "deepseek2-v3"])
def test_buffers_of_another_batch_equal_llama_cpp_s(name: str, batch: int, tmp_path: Path) -> None:
    path = build(name, tmp_path)
    settings: dict[str, Any] = {"n_ctx": 4096, "n_batch": batch, "n_ubatch": batch}
    with memory.watch() as ledger:
        Llama(path, offload=OffloadConfig(device="none", profile="off"), **settings).close()
    planned = opening.needs_of(gguf.read(path), settings).compute_bytes(4096)
    assert ledger.buffers["compute", "CPU"] <= planned


def test_settings_of_the_context_are_planned_for(wide: Path) -> None:
    def made(**settings: Any) -> Placement:
        file, machine = gguf.read(wide), MachineRates("sim", 40 << 20, 40 << 20, 64 * GIB, 64 * GIB, 1)
        model = opening.needs_of(file, settings)
        context = opening.context_of(file, settings)
        return next(opening.attempts(context, model, OffloadConfig(device="sim"), machine, settings)).placement

    usual = made(n_ctx=1024)
    assert made(n_ctx=1024, type_k=0, type_v=0).kv_bytes == 2 * usual.kv_bytes
    assert made(n_ctx=1024, type_k=8, type_v=8, flash_attn=True).kv_bytes * 16 == usual.kv_bytes * 8.5
    assert made(n_ctx=4096, n_batch=2048, n_ubatch=2048).compute_bytes > made(n_ctx=4096).compute_bytes
    assert not made(n_ctx=1024, offload_kqv=False).kv_on_device and not made(n_ctx=1024, offload_kqv=False).reason
    assert made(n_ctx=1 << 20, offload_kqv=True, n_gpu_layers=-1).kv_on_device, "it was asked for"
    assert made(n_ctx=1 << 20, n_gpu_layers=-1).kv_on_device, "and is llama_cpp's default"
    assert not made(n_gpu_layers=0).dense_on_device


def is_what_llama_cpp_takes(name: str, folder: Path) -> None:
    path = build(name, folder)
    model = model_needs.of(gguf.read(path))
    with memory.watch() as ledger:
        Llama(path, n_ctx=2048, offload=OffloadConfig(device="none", profile="off")).close()
    found = ledger.buffers
    cache = sum(size for (kind, _), size in found.items() if kind in ("KV", "RS"))
    rounding = 3 * 5243  # rounding: 0.01 MiB
    assert model.kv_bytes(2048) == pytest.approx(cache, rel=0.01, abs=rounding)
    assert found["compute", "CPU"] <= model.compute_bytes(2048)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with wide_model(tmp_path_factory.mktemp("plan")) as path:
        yield path


def loaded(path: Path, capacity: int, vram: str | int = "auto") -> tuple[Placement, Any]:
    """Load a model on a sim device of this size, and give the placement and the open model."""
    config = OffloadConfig(device="sim", vram=vram, profile="off", sim=SimConfig(capacity=capacity))
    machine = MachineRates("sim", capacity, capacity, 64 * GIB, 64 * GIB, 1)
    made = place(machine, model_needs.of(gguf.read(path)), 512, config.budget)
    return made, Llama(path, n_ctx=512, n_threads=1, offload=config)


@pytest.mark.parametrize("mebibytes", [0, 1, 3, 10, 16, 17, 18, 19, 20, 22, 24, 32])
def test_every_plan_loads_on_a_device_of_that_size(mebibytes: int, wide: Path) -> None:
    capacity = mebibytes << 20
    made, llm = loaded(wide, capacity)
    try:
        llm.eval(list(range(1, 201)))  # too many tokens per expert for the CPU to take some: the stage takes all
        llm.eval([5])
        free, total = llm._native.device_memory()
        stats = llm.experts.stats()
        assert total == capacity and total - free <= max(made.device_bytes, capacity - reserve_of(capacity))
        assert stats.slot_bytes >= made.hot_bytes * 0.9, "and what is planned is used"
        assert not made.stream_slots or stats.prefill_streamed + stats.prefill_hits > 0
        assert stats.failed_uploads == stats.device_fallbacks == 0
        assert not any("had no room" in note for note in llm.experts.notes)
    finally:
        llm.close()
