"""Models with an MTP head: the answers equal llama.cpp's, and no count includes the head's blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgemoe import Llama, OffloadConfig
from edgemoe.cli import fit
from edgemoe.cli.main import main
from edgemoe.config import Budget
from edgemoe.errors import UnsupportedModel
from edgemoe.machine.truncated_model import copies, short_copy, write
from edgemoe.models import gguf
from edgemoe.models.catalog import load
from edgemoe.models.page_cache import Residence
from edgemoe.planning import model_needs
from edgemoe.planning.placement import MachineRates, place
from edgemoe.profiling import memory
from tests import parity
from tests.zoo import SPECS, WITH_MTP, build
from tests.zoo.reference import plain

CPU = OffloadConfig(device="none", profile="off")
GIB = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mtp")


@pytest.mark.parametrize("name", WITH_MTP)
def test_answers_are_llama_cpps_and_only_layers_that_run_have_slots(name: str, folder: Path) -> None:
    path = build(name, folder, mtp=True)
    reference = plain(path)
    tokens, logits = parity.answer(reference)
    reference.close()
    layers = gguf.moe_shape(gguf.read(build(name, folder))).layers  # type: ignore[union-attr]
    for share in (0, 50, 100):
        for gpu_layers in (-1, 0):
            got = parity.ours(path, share=share, gpu_layers=gpu_layers)
            assert got.tokens == tokens and got.difference(logits) == 0
            assert got.stats.slots == layers * SPECS[name].experts * share // 100
            assert got.stats.fused_layers == layers and got.stats.plain_layers == 0


@pytest.mark.parametrize("name", WITH_MTP)
def test_every_count_is_that_of_the_model_without_its_head(name: str, folder: Path) -> None:
    bare, headed = gguf.check(build(name, folder)), gguf.check(build(name, folder, mtp=True))
    assert (headed.mtp_blocks, headed.run_blocks) == (1, bare.run_blocks) and bare.mtp_blocks == 0
    assert headed.run_tensors.keys() == bare.tensors.keys() and len(headed.tensors) > len(bare.tensors)
    assert gguf.moe_shape(headed) == gguf.moe_shape(bare)
    assert model_needs.of(headed) == model_needs.of(bare)
    machine = MachineRates("sim", GIB, GIB, GIB, GIB)
    assert place(machine, model_needs.of(headed), 512, Budget()) == place(machine, model_needs.of(bare), 512, Budget())
    assert copies(headed, GIB) == copies(bare, GIB)
    placed = place(machine, model_needs.of(bare), 512, Budget(share=0.5))
    flags = [fit.llama_cpp_flags(file, machine, placed, {"flash_attn": False}).split()[3:] for file in (bare, headed)]
    assert flags[0] == flags[1]


@pytest.mark.parametrize("name", WITH_MTP)
def test_the_cache_equals_llama_cpp_s(name: str, folder: Path) -> None:
    path = build(name, folder, mtp=True)
    with memory.watch() as ledger:
        Llama(path, n_ctx=2048, offload=CPU).close()
    cache = sum(size for (kind, _), size in ledger.buffers.items() if kind in ("KV", "RS"))
    assert abs(cache - model_needs.of(gguf.read(path)).kv_bytes(2048)) <= 3 * 5243  # rounding: 0.01 MiB


@pytest.mark.parametrize("name", ["qwen35moe", "hy_v3"])
def test_the_engine_and_the_map_know_nothing_of_the_head(name: str, folder: Path) -> None:
    path = build(name, folder, mtp=True)
    shape = gguf.moe_shape(gguf.read(path))
    assert shape is not None
    llm = Llama(path, n_ctx=64, offload=OffloadConfig(device="sim", vram="100%", profile="off"))
    try:
        llm.experts.wait()
        llm.eval([1, 2, 3])
        assert llm.experts.shape == shape
        assert llm.experts.residency().shape == llm.experts.heat().shape == (shape.layers, shape.experts)
        assert llm.experts.residency().all(), "the budget is that of the layers which run"
    finally:
        llm.close()


def test_the_share_in_ram_is_that_of_experts_that_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf.read(build("glm4moe", folder, mtp=True))
    seen: list[int] = []
    monkeypatch.setattr(Residence, "__init__", lambda self, stretches: seen.extend(size for _, _, size in stretches))
    Residence.of_experts(file)
    bare = gguf.read(build("glm4moe", folder))
    assert sum(seen) == sum(tensor.bytes for name, tensor in bare.tensors.items() if "_exps" in name)


@pytest.mark.parametrize("name", ["qwen35moe", "glm4moe", "hy_v3"])
def test_a_short_copy_has_no_head_and_runs(name: str, folder: Path) -> None:
    file = gguf.check(build(name, folder, mtp=True))
    with short_copy(file, file.run_blocks, SPECS[name].experts) as path:
        copied = gguf.check(path)
        assert copied.mtp_blocks == 0 and copied.run_blocks == file.run_blocks
        assert gguf.moe_shape(copied) == gguf.moe_shape(file)
        Llama(path, n_ctx=64, offload=CPU).close()


def test_show_names_the_head_as_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, headed = build("qwen3next", folder), build("qwen3next", folder, mtp=True)
    facts = []
    for path in (bare, headed):
        assert main(["show", str(path), "--json"]) == 0
        facts.append(json.loads(capsys.readouterr().out))
    assert facts[0]["not_run"] is None
    assert facts[1]["not_run"] == {"layers": 1, "bytes": facts[1]["bytes"] - facts[0]["bytes"]}
    for key in ("experts", "dense_bytes", "layers"):
        assert facts[0][key] == facts[1][key], key
    assert main(["show", str(headed)]) == 0
    out = capsys.readouterr().out
    assert "not run" in out and "an MTP head of 1 layer" in out
    assert main(["show", str(bare)]) == 0
    assert "MTP" not in capsys.readouterr().out


def test_fit_counts_the_layers_that_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build("glm4moe", folder, mtp=True)
    assert main(["fit", str(path), "--json", "--quick", "--device", "none"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert (model["layers"], model["expert_layers"]) == (3, 2)


def test_the_catalogue_knows_a_model_with_its_head() -> None:
    model = load().resolve("glm-air")[0]
    keys = {"block_count": 47, "nextn_predict_layers": 1, "expert_used_count": model.experts_used}
    metadata = {"general.architecture": "glm4moe", **{f"glm4moe.{key}": value for key, value in keys.items()}}
    names = [f"blk.{layer}.ffn_up_exps.weight" for layer in range(1, 47)]
    tensors = {name: gguf.GgufTensor(name, (32, 32, model.experts), 0, 0, 4096 * model.experts) for name in names}
    file = gguf.GgufFile(Path("model.gguf"), 3, 32, metadata, tensors)
    assert model.differences(gguf.moe_shape(file)) == []
    without = replace(file, metadata=metadata | {"glm4moe.nextn_predict_layers": 0})
    assert model.differences(gguf.moe_shape(without)) == ["layers with experts: 46 in the file, 45 in the catalogue"]


def test_a_head_without_its_model_is_named(folder: Path, tmp_path: Path) -> None:
    file = gguf.read(build("qwen35moe", folder, mtp=True))
    path = tmp_path / "draft.gguf"
    kept = {key: value for key, value in file.metadata.items() if not isinstance(value, gguf.GgufArray)}
    write(
        path,
        kept,
        [tensor for name, tensor in file.tensors.items() if name not in file.run_tensors or "blk" not in name],
    )
    with pytest.raises(UnsupportedModel, match="MTP head without its model"):
        gguf.check(path)
