"""Headers: their facts, refusals with reasons, and 10,000 damaged headers against the whole engine."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe import BadGguf, Llama, ModelNotFound, OffloadConfig
from edgemoe.engine import host
from edgemoe.errors import UnsupportedModel
from edgemoe.models import families
from edgemoe.models.gguf import check, model_identity, moe_shape, read
from tests.zoo import ARCHITECTURES, build

Change = Callable[[bytearray], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("gguf"), "Q8_0")


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Callable[[Change], Path]:
    def make(change: Change) -> Path:
        data = bytearray(model.read_bytes())
        change(data)
        path = tmp_path / "broken.gguf"
        path.write_bytes(data)
        return path

    return make


def write_at(at: int, code: str, value: float) -> Change:
    return lambda data: struct.pack_into("<" + code, data, at, value)


def write_after(text: str, skip: int, code: str, value: float) -> Change:
    """Overwrite the number ``skip`` bytes after ``text``: 4 for a key's value, 4 + 8 n for a tensor's extent."""

    def change(data: bytearray) -> None:
        at = data.index(text.encode()) + len(text) + skip
        struct.pack_into("<" + code, data, at, value)

    return change


def cut(size: int) -> Change:
    def change(data: bytearray) -> None:
        del data[size:]

    return change


WEIGHT = "blk.0.ffn_up_exps.weight"
DAMAGE: list[tuple[str, Change]] = [
    ("too short", cut(10)),
    ("not a GGUF file", write_at(0, "I", 7)),
    ("version 900 cannot be right", write_at(4, "I", 900)),
    ("tensors and", write_at(8, "Q", 1 << 40)),
    ("cut off", cut(3000)),
    ("cut off", cut(200_000)),
    ("block_count is 0", write_after("llama.block_count", 4, "I", 0)),
    ("embedding_length is", write_after("llama.embedding_length", 4, "I", 1 << 30)),
    ("embeddings of", write_after("llama.embedding_length", 4, "I", 96)),
    ("rms_epsilon is -1", write_after("attention.layer_norm_rms_epsilon", 4, "f", -1)),
    ("rms_epsilon is nan", write_after("attention.layer_norm_rms_epsilon", 4, "f", float("nan"))),
    ("rope.freq_base is not a number", write_after("llama.rope.freq_base", 4, "f", float("nan"))),
    ("experts used", write_after("llama.expert_used_count", 4, "I", 1000)),
    ("unknown type 77", write_after("llama.block_count", 0, "I", 77)),
    ("9 dimensions", write_after(WEIGHT, 0, "I", 9)),
    ("shape", write_after(WEIGHT, 4, "Q", 0)),
    ("whole blocks", write_after(WEIGHT, 4, "Q", 33)),
    ("unknown type 999", write_after(WEIGHT, 28, "I", 999)),
    ("head_count is 5000", write_after("llama.attention.head_count", 4, "I", 5000)),
    ("not aligned", write_after(WEIGHT, 32, "Q", 3)),
    ("overlaps", write_after(WEIGHT, 32, "Q", 0)),
]


@pytest.mark.parametrize(("says", "change"), DAMAGE, ids=[f"{i}-{says}" for i, (says, _) in enumerate(DAMAGE)])
def test_damage_is_named(says: str, change: Change, broken: Callable[[Change], Path]) -> None:
    path = broken(change)
    with pytest.raises(BadGguf) as error:
        check(path)
    assert says in str(error.value) and path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = build("qwen3moe", tmp_path, "NVFP4")
    file = check(path)
    scale = next(tensor for name, tensor in file.tensors.items() if name.endswith(".scale"))
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, scale.offset + 4, float("nan"))
    path.write_bytes(data)
    with pytest.raises(BadGguf, match=f"{scale.name}.*no numbers"):
        check(path)


def test_an_error_of_llama_cpp_keeps_its_text(broken: Callable[[Change], Path]) -> None:
    path = broken(lambda data: data.__setitem__(data.index(b"blk.1.ffn_norm"), ord("x")))
    with pytest.raises(BadGguf, match=r"missing tensor|tensor 'blk\.1\.ffn_norm\.weight' not found"):
        Llama(path, n_ctx=64, offload=OffloadConfig(device="none", profile="off"))


@pytest.mark.parametrize("kernels", ["auto", "off"])  # without a kernel llama.cpp keeps the experts
def test_an_assertion_of_ggml_is_an_error_and_the_next_model_loads(
    kernels: str, broken: Callable[[Change], Path], model: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: host.core().choose_kernels("auto"))
    host.core().choose_kernels(kernels)
    offload = OffloadConfig(device="none", profile="off")
    path = broken(write_after("llama.expert_used_count", 4, "I", 0))
    with pytest.raises(BadGguf, match="GGML_ASSERT"):
        Llama(path, n_ctx=64, offload=offload)
    llm = Llama(model, n_ctx=64, offload=offload)
    llm.eval([1, 2, 3])
    llm.close()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_refused_or_read(model: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(model.read_bytes()[:20_000])
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, 12_000))] = data.draw(st.integers(0, 255))
    path = tmp_path / "some.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with pytest.raises((BadGguf, UnsupportedModel)):  # the weights are cut off in any case
        check(path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_zoo_passes_and_is_read_like_ggufs_own_reader(name: str, tmp_path: Path) -> None:
    path = build(name, tmp_path)
    file, theirs = check(path), GGUFReader(path)
    ours = {t.name: (t.shape, t.type, t.offset, t.bytes) for t in file.tensors.values()}
    assert ours == {
        t.name: (tuple(int(n) for n in t.shape), int(t.tensor_type), int(t.data_offset), int(t.n_bytes))
        for t in theirs.tensors
    }
    shape = moe_shape(file)
    assert shape is not None and shape.experts > shape.used > 0


def test_missing_files(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelNotFound):
        check(tmp_path / "no.gguf")
    with pytest.raises(ModelNotFound, match="not a file"):
        check(tmp_path)
    shard = tmp_path / "model-00001-of-00003.gguf"
    shard.write_bytes(model.read_bytes())
    with pytest.raises(ModelNotFound, match="model-00002-of-00003"):
        check(shard)


def test_shards_are_one_model(tmp_path: Path) -> None:
    for no in (1, 2):
        writer = GGUFWriter(None, "llama")
        writer.add_key_value("llama.block_count", 1, GGUFValueType.UINT32)
        writer.add_tensor(f"blk.0.part{no}.weight", np.full((4, 32), no, dtype=np.float32))
        path = tmp_path / f"m-{no:05d}-of-00002.gguf"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    file = read(tmp_path / "m-00002-of-00002.gguf")
    assert set(file.tensors) == {"blk.0.part1.weight", "blk.0.part2.weight"} and len(file.shards) == 2


def test_what_runs_split_is_known_before(tmp_path: Path) -> None:
    def said(name: str, quant: str | None = None) -> tuple[int | None, str]:
        return families.layers_split(read(build(name, tmp_path, quant)))

    assert {read(build(name, tmp_path)).architecture for name in ARCHITECTURES} == families.TESTED
    assert said("qwen3moe") == (2, "all 2 layers, by a test of this architecture")
    whole, why = said("llama", "NVFP4")
    assert whole == 0 and "scales" in why
    unknown = replace(read(build("llama", tmp_path)), metadata={"general.architecture": "newmoe"})
    assert families.layers_split(unknown)[0] is None and "newmoe" in families.layers_split(unknown)[1]


def test_identity_follows_the_content(tmp_path: Path) -> None:
    one, same, other = (build("llama", tmp_path / part, seed=seed) for part, seed in (("a", 0), ("b", 0), ("c", 1)))
    moved = one.rename(tmp_path / "renamed.gguf")
    assert model_identity(read(moved)) == model_identity(read(same)) != model_identity(read(other))


@pytest.mark.parametrize("rounds", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_against_the_engine(rounds: int) -> None:
    """The fuzzer runs in its own process, because it forks for every file: other tests' threads would not survive."""
    command = [sys.executable, "-m", "tests.fuzz_gguf", str(rounds), "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
