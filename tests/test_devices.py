"""Which device is used, and what a device means that shares its memory with the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemoe import OffloadConfig, limits
from edgemoe.cli import doctor
from edgemoe.config import Budget, SimConfig
from edgemoe.engine import host, opening
from edgemoe.errors import ConfigError
from edgemoe.machine import hardware
from edgemoe.planning.placement import GIB, LAYER_OVERHEAD, MachineRates, ModelNeeds, place
from edgemoe.types import ModelShape
from tests.parity import open_ours, ours
from tests.zoo import build

AUTO = OffloadConfig()
CARD, INTEGRATED, CPU, OTHER = 1, 2, 0, 3
LAPTOP = [("Vulkan0", INTEGRATED), ("Vulkan1", CARD), ("CPU", CPU)]


def seen(monkeypatch: pytest.MonkeyPatch, found: list[tuple[str, int]]) -> None:
    monkeypatch.setattr(host, "_all_devices", lambda: found)


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (LAPTOP, ["Vulkan1", "Vulkan0"]),
        ([("Vulkan0", INTEGRATED), ("CPU", CPU)], ["Vulkan0"]),
        ([("BLAS", OTHER), ("CPU", CPU)], []),
        ([("CUDA0", CARD), ("CUDA1", CARD), ("Vulkan0", INTEGRATED)], ["CUDA0", "CUDA1", "Vulkan0"]),
    ],
)
def test_a_card_comes_before_integrated_graphics(
    found: list[tuple[str, int]], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(monkeypatch, found)
    assert host.devices() == names
    assert opening.resolve_device(AUTO, {}) == next(iter(names), "")
    assert [host.shares_ram(name) for name in names] == [dict(found)[name] == INTEGRATED for name in names]


def test_metal_of_an_apple_processor_shares_its_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, [("MTL0", CARD)])
    assert not host.shares_ram("MTL0")
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert host.shares_ram("MTL0")


@pytest.mark.parametrize("settings", [{"main_gpu": 1, "split_mode": 0}, {"tensor_split": [0, 1]}])
def test_integrated_graphics_beside_a_card_have_no_number(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(monkeypatch, LAPTOP)
    with pytest.raises(ConfigError, match=r"chooses device 1, and these are used: Vulkan1$"):
        opening.resolve_device(AUTO, settings)
    assert opening.resolve_device(AUTO, {"tensor_split": [1, 1]}) == "Vulkan1"  # as llama.cpp, which sees one device


def test_an_idle_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, [("CUDA0", CARD), ("CUDA1", CARD), ("Vulkan0", INTEGRATED)])
    assert opening.idle_notes("CUDA0", AUTO)[0].startswith("CUDA1 stays unused: a model is on one device, here CUDA0.")
    assert opening.idle_notes("CUDA1", AUTO)[0].startswith("CUDA0 stays unused")
    assert opening.idle_notes("CUDA0", OffloadConfig(device="CUDA0")) == []
    seen(monkeypatch, LAPTOP)
    assert opening.idle_notes("Vulkan1", AUTO) == []


@pytest.mark.parametrize(
    ("found", "state"), [([("CUDA0", CARD), ("CUDA1", CARD)], "note"), (LAPTOP, "ok"), ([("CUDA0", CARD)], "ok")]
)
def test_the_doctor_says_that_a_model_is_on_one_device(
    found: list[tuple[str, int]], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(monkeypatch, found)
    devices = next(f for f in doctor._device_findings(host.devices(), "auto") if f.name == "devices")
    assert devices.state == state and ("CUDA0 unless --device" in devices.action) == (state == "note")


def test_the_doctor_says_that_memory_is_shared() -> None:
    for shared in (False, True):
        findings = doctor._memory_findings(replace(MACHINE, device_shares_ram=shared))
        finding = next(found for found in findings if found.name == "memory of Vulkan0")
        assert finding.value.endswith("GiB free, shared with the CPU") == shared


# ---- memory that is shared ----

NEEDS = ModelNeeds(
    ModelShape(16, 32, 2, (GIB // 64,) * 16), 16, GIB, GIB, GIB // 2, kv_token_bytes=1 << 16, width=64,
    expert_width=64, heads=1, vocabulary=1000,
)  # fmt: skip
MACHINE = MachineRates(
    "Vulkan0", 15 * GIB, 16 * GIB, ram_free_bytes=12 * GIB, ram_total_bytes=16 * GIB, device_shares_ram=True
)


def test_shared_memory_is_counted_once() -> None:
    shared = place(MACHINE, NEEDS, 4096, Budget())
    apart = place(replace(MACHINE, device_shares_ram=False), NEEDS, 4096, Budget())
    buffers = shared.compute_bytes + shared.staging_bytes + shared.pinned_bytes
    whole = NEEDS.expert_bytes + NEEDS.dense_bytes + shared.kv_bytes + buffers + 16 * LAYER_OVERHEAD
    whole += NEEDS.mask_bytes(4096)  # the CPU makes them, the device has a copy
    assert shared.slots == apart.slots == (32,) * 16
    assert apart.ram_private_bytes + apart.ram_mapped_bytes < GIB
    assert shared.ram_private_bytes + shared.ram_mapped_bytes == whole


@pytest.mark.parametrize("free", [0, 2, 6, 9, 10, 12, 15])
def test_no_more_than_the_free_ram_is_given_to_a_device_that_shares_it(free: int) -> None:
    placed = place(replace(MACHINE, ram_free_bytes=free * GIB), NEEDS, 4096, Budget())
    assert placed.device_bytes + placed.reserve_bytes <= max(free, 1) * GIB
    needed = placed.ram_private_bytes + placed.ram_mapped_bytes
    assert placed.fits == (needed <= free * GIB) and placed.fits == (free >= 10)


@pytest.mark.parametrize("integrated", [False, True])
def test_experts_take_no_more_of_a_shared_memory_than_the_ram_has(
    integrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build("llama", tmp_path)
    monkeypatch.setattr(limits, "memory", lambda: limits.Memory(4 * GIB, GIB))  # no more than the reserve
    llm = open_ours(path, OffloadConfig(device="sim", profile="off", sim=SimConfig(integrated=integrated)))
    assert (llm.experts.stats().slot_bytes == 0) == integrated
    assert (llm._scheduler.memory()[0] <= GIB) == integrated
    llm.close()


def test_sim_stands_for_an_integrated_device(tmp_path: Path) -> None:
    file = build("llama", tmp_path)
    for integrated in (False, True):
        machine = opening.machine_of("sim", OffloadConfig(device="sim", sim=SimConfig(integrated=integrated)))
        assert machine.device_shares_ram == integrated
    assert not hardware.machine("sim", 1).device_shares_ram
    parts = [ours(file, share=50, sim=SimConfig(integrated=integrated)) for integrated in (False, True)]
    assert parts[0].tokens == parts[1].tokens
