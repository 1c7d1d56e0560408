"""The demo model is built whole or not at all, answers like the dense one, and routes locally and unevenly."""

from __future__ import annotations

import importlib.util
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgemoe import EdgeMoEError, Llama, OffloadConfig
from edgemoe.models import demo
from edgemoe.models.gguf import check, moe_shape
from edgemoe.routing import trace

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.build_demo(tmp_path_factory.mktemp("demo") / demo.NAME)


def test_a_permutation_of_neurons_keeps_the_function() -> None:
    random = np.random.default_rng(0)
    up, down, x = random.random((96, 8)), random.random((8, 96)), random.random(8)
    moved_up = demo.permuted(up, [2, 0, 1], columns=False)
    moved_down = demo.permuted(down, [2, 0, 1], columns=True)
    assert not np.array_equal(moved_up, up) and not np.array_equal(moved_down, down)
    assert np.allclose(down @ np.tanh(up @ x), moved_down @ np.tanh(moved_up @ x))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EdgeMoEError) as error:
        demo.build_demo(tmp_path / "m.gguf")
    assert "edgemoe[demo]" in error.value.hint


def test_a_build_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(source: Path, part: Path, report: object) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "_write", full)
    with pytest.raises(EdgeMoEError, match="No space left"):
        demo.build_demo(tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(source: Path, part: Path, report: object) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.build_demo(tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "_write", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    with pytest.raises(EdgeMoEError, match="100 MB left") as error:
        demo.build_demo(tmp_path / "m.gguf")
    assert "448 MB" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EdgeMoEError, match="cannot be written"):
        demo.build_demo(tmp_path / "file" / "m.gguf")


@pytest.mark.parametrize("first_fails", [False, True])
def test_builders_at_once_do_not_meet(first_fails: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    builds, under_way = [], threading.Lock()

    def write(source: Path, part: Path, report: object) -> None:
        assert under_way.acquire(blocking=False), "two builders write at once"
        builds.append(part)
        time.sleep(0.02)  # long enough for the others to reach the same place
        part.write_bytes(b"whole")
        under_way.release()
        if first_fails and len(builds) == 1:
            raise OSError(5, "Input/output error")

    def build(_: int) -> bool:
        try:
            return demo.build_demo(tmp_path / "m.gguf").read_bytes() == b"whole"
        except EdgeMoEError:
            return False

    monkeypatch.setattr(demo, "_write", write)
    with ThreadPoolExecutor(6) as pool:
        built = list(pool.map(build, range(6)))
    assert len(builds) == 1 + first_fails
    assert built.count(False) == first_fails
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_stale_part_is_overwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.gguf.part").write_bytes(b"left by a builder that was killed")
    monkeypatch.setattr(demo, "_write", lambda source, part, report: part.write_bytes(b"whole"))
    assert demo.build_demo(tmp_path / "m.gguf").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_finished_model_is_not_built_again(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(demo, "_write", None)
    assert demo.build_demo(model) == model


def test_the_experts_are_different_data(model: Path) -> None:
    file = check(model)
    shape = moe_shape(file)
    assert shape is not None and (shape.layers, shape.experts, shape.used) == (30, 8, 2)
    tensor = file.tensors["blk.3.ffn_down_exps.weight"]
    data = np.memmap(model, mode="r", offset=tensor.offset, shape=(tensor.bytes,)).reshape(8, -1)
    assert len({bytes(expert[:2000]) for expert in data}) == 8


@pytest.mark.parametrize("device", ["none", "sim"])
def test_it_answers_and_routes(device: str, model: Path, tmp_path: Path) -> None:
    llm = Llama(model, n_ctx=512, offload=OffloadConfig(device=device, vram="50%", profile="off"))
    with llm.experts.record(tmp_path / "t.npz"):
        answer = llm.create_chat_completion(QUESTION, temperature=0, max_tokens=40)
        llm.create_chat_completion([{"role": "user", "content": "Tell a story."}], temperature=0, max_tokens=40)
    stats = llm.experts.stats()
    llm.close()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert (stats.hits > 0) == (device == "sim")
    ids = np.asarray(trace.read(tmp_path / "t.npz").ids)
    ids = ids[(ids >= 0).all(axis=(1, 2))]
    repeats = (ids[1:, :, :, None] == ids[:-1, :, None, :]).any(axis=-1).mean()
    share = np.array(
        [np.sort(np.bincount(ids[:, row].ravel(), minlength=8))[-2:].sum() / ids[:, row].size for row in range(30)]
    )
    favourites = {int(np.bincount(ids[:, row].ravel()).argmax()) for row in range(30)}
    assert 0.35 < repeats < 0.7
    assert 0.4 < share.mean() < 0.75
    assert len(favourites) >= 4
