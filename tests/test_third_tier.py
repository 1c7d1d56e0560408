"""A model that is larger than the RAM: some experts in RAM of the engine, the others read from the disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgemoe import Llama, OffloadConfig
from edgemoe.config import Budget
from edgemoe.engine import third_tier
from edgemoe.errors import ComputeFailed, ConfigError
from edgemoe.limits import Memory
from edgemoe.models import gguf
from edgemoe.planning import model_needs
from edgemoe.planning.placement import GIB, MachineRates, place
from edgemoe.planning.third_tier import at_once, fitted, ram_for_experts
from edgemoe.types import ExpertStats
from tests import parity
from tests.zoo import ARCHITECTURES, build
from tests.zoo.reference import plain

FEW = ("qwen3moe", "gpt-oss", "llama4", "qwen3next", "deepseek2-v3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def same_as_plain(path: Path, ram: str, gpu_layers: int, **offload: object) -> ExpertStats:
    reference = plain(path)
    tokens, logits = parity.answer(reference)
    reference.close()
    got = parity.ours(path, share=50 if gpu_layers else 0, gpu_layers=gpu_layers, ram=ram, **offload)
    assert got.tokens == tokens
    assert got.difference(logits) == 0
    return got.stats


@pytest.mark.parametrize("gpu_layers", [0, -1])
@pytest.mark.parametrize("name", FEW)
def test_architecture(name: str, gpu_layers: int, folder: Path) -> None:
    stats = same_as_plain(build(name, folder), "20%", gpu_layers)
    assert stats.disk_bytes > 0 and stats.ram_budget > 0


@pytest.mark.slow
@pytest.mark.parametrize("ram", ["0", "20%", "60%"])
@pytest.mark.parametrize("gpu_layers", [0, -1])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, gpu_layers: int, ram: str, folder: Path) -> None:
    same_as_plain(build(name, folder), ram, gpu_layers)


def test_without_a_device(folder: Path) -> None:
    stats = same_as_plain(build("qwen3moe", folder), "20%", 0, device="none")
    assert stats.disk_bytes >= stats.missed_bytes > 0


def test_scales_are_unknown_and_stay_in_the_mapping(folder: Path) -> None:
    """The pattern of such layers is unknown; llama.cpp computes them, so their weights must be where it maps them."""
    stats = same_as_plain(build("llama", folder, "NVFP4"), "20%", 0)
    assert stats.plain_layers > 0


def test_enough_ram_reads_nothing(folder: Path) -> None:
    stats = same_as_plain(build("qwen3moe", folder), "auto", 0, device="none")
    assert stats.disk_bytes == stats.disk_reads == stats.ram_budget == 0


def test_one_copy_is_enough(folder: Path) -> None:
    """RAM and device hold every expert together: no expert is read again and again."""
    path = build("qwen3moe", folder)
    llm = parity.open_ours(path, OffloadConfig("sim", 0, "off", profile="off", ram="99%"))
    parity.heat(llm, 50)
    needs = model_needs.of(gguf.check(path))
    for token in range(10, 40):
        llm.eval([token])
    stats = llm.experts.stats()
    llm.close()
    assert stats.missed_bytes <= needs.expert_bytes
    assert stats.ram_bytes <= stats.ram_budget


def test_a_file_that_is_cut_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the file is missing for the experts alone: weights that llama.cpp maps would end the process."""
    path = build("qwen3moe", folder)
    found = third_tier.places(gguf.check(path))
    for place_ in found:
        place_.offset += path.stat().st_size
    monkeypatch.setattr(third_tier, "places", lambda _: found)
    llm = parity.open_ours(path, OffloadConfig("none", profile="off", ram=0))
    with pytest.raises(ComputeFailed, match=rf"{path.name}: the file is shorter than it was"):
        llm.eval(parity.PROMPT)
    llm.close()


def test_a_file_that_is_replaced_still_answers(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(build("qwen3moe", folder), tmp_path / "old.gguf"))
    reference = plain(path)
    tokens, _ = parity.answer(reference)
    reference.close()
    llm = parity.open_ours(path, OffloadConfig("none", profile="off", ram=0))
    path.unlink()
    path.write_bytes(b"another file")
    got, _ = parity.answer(llm)
    llm.close()
    assert got == tokens


def test_ram_for_experts(folder: Path) -> None:
    needs = model_needs.of(gguf.check(build("qwen3moe", folder)))
    assert needs.shape is not None
    large = replace(needs, shape=replace(needs.shape, experts=128, used=8, expert_bytes=(50 * 2**20,) * 2))
    machine = MachineRates(ram_free_bytes=32 * GIB, ram_total_bytes=32 * GIB)
    placed = place(machine, large, 512, Budget())
    assert ram_for_experts(machine, large, placed, Budget()) is None
    small = replace(machine, ram_free_bytes=8 * GIB)
    room = ram_for_experts(small, large, place(small, large, 512, Budget()), Budget())
    assert room is not None and 7 * GIB > room > 5 * GIB
    asked = ram_for_experts(machine, large, placed, Budget(bytes=4 * GIB))
    assert asked == 4 * GIB
    tiny = replace(machine, ram_free_bytes=0)
    least = ram_for_experts(tiny, large, place(tiny, large, 512, Budget()), Budget())
    assert least == at_once(large) * 50 * 2**20
    assert ram_for_experts(tiny, replace(large, shape=None), placed, Budget()) is None


def test_other_programs_come_first() -> None:
    budget, spare = 8 * GIB, GIB
    assert fitted(budget, budget, 7 * GIB, GIB, spare) == budget, "enough is free"
    assert fitted(budget, budget, 7 * GIB, GIB // 4, spare) == 7 * GIB - 3 * GIB // 4
    assert fitted(budget, budget, GIB // 2, 0, spare) == 0
    assert fitted(4 * GIB, budget, 4 * GIB, 3 * GIB, spare) == 5 * GIB, "the other program has ended"
    assert fitted(4 * GIB, budget, 4 * GIB, 60 * GIB, spare) == budget


def test_a_limit_that_shrinks_takes_experts_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build("qwen3moe", folder)
    reference = plain(path)
    tokens, _ = parity.answer(reference)
    reference.close()
    llm = parity.open_ours(path, OffloadConfig("none", profile="off", ram="90%"))
    before = llm.experts.stats()
    monkeypatch.setattr(third_tier, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(third_tier.limits, "memory", lambda: Memory(16 * GIB, 0))
    got, _ = parity.answer(llm)
    after, notes = llm.experts.stats(), list(llm.experts.notes)
    llm.close()
    assert got == tokens and after.ram_budget < before.ram_budget
    assert any("Other programs need the RAM" in note for note in notes)


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="ram='many' is not a size"):
        OffloadConfig(ram="many")


def test_the_note_says_it(folder: Path) -> None:
    llm = Llama(build("qwen3moe", folder), offload=OffloadConfig("none", profile="off", ram="20%"), n_ctx=64)
    notes = list(llm.experts.notes)
    share = llm.experts.in_ram()
    llm.close()
    assert any("the disk has the others" in note for note in notes)
    assert share is not None and 0 <= share < 1
