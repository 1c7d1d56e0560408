"""Routing traces: round trips, foreign files, and every kind of faulty file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgemoe.errors import EdgeMoEError
from edgemoe.routing import trace


def sound(**changes: Any) -> dict[str, Any]:
    """Make the arrays of a small sound file. Arguments replace arrays; None leaves an array out."""
    arrays: dict[str, Any] = {
        "ids": np.arange(24, dtype=np.uint8).reshape(4, 3, 2) % 8,
        "seq_start": np.array([0, 3, 4]),
        "w": np.ones((4, 3, 2), dtype=np.float16),
        "tok": np.arange(4),
        "n_expert": np.array(8),
        "expert_bytes": np.array([10, 20, 30]),
        "is_decode": np.array([0, 1, 1, 1], dtype=np.uint8),
        "meta": np.array('{"model": "x"}'),
        "vocab": np.array("[]"),
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def saved(folder: Path, **changes: Any) -> Path:
    path = folder / "trace.npz"
    np.savez_compressed(path, **sound(**changes))
    return path


def test_round_trip(tmp_path: Path) -> None:
    ids = np.array([[[0, 7], [1, 2]], [[-1, -1], [3, 4]], [[5, 6], [7, 0]]], dtype=np.int32)
    path = tmp_path / "run.trace"  # no suffix is added
    weights = np.full(ids.shape, 0.25, dtype=np.float32)
    trace.write(
        path,
        ids,
        [0, 2, 3],
        n_expert=8,
        weights=weights,
        tokens=np.array([5, 6, 7]),
        expert_bytes=[100, 200],
        is_decode=np.array([False, True, True]),
        meta='{"a": 1}',
    )
    back = trace.read(path)
    np.testing.assert_array_equal(back.ids, ids)
    assert back.ids.dtype == np.int32
    assert back.seq_start.tolist() == [0, 2, 3]
    assert back.n_expert == 8
    assert back.weights is not None and back.weights.dtype == np.float32 and (back.weights == 0.25).all()
    assert back.tokens is not None and back.tokens.tolist() == [5, 6, 7]
    assert back.expert_bytes is not None and back.expert_bytes.tolist() == [100, 200]
    assert back.is_decode.tolist() == [False, True, True]
    assert back.meta == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.trace"]


@settings(max_examples=30)
@given(n_expert=st.sampled_from([1, 2, 255, 256, 257, 65535, 65536]), seed=st.integers(0, 2**31))
@example(n_expert=65536, seed=0)
def test_every_expert_survives_the_small_types(
    n_expert: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.npz"
    ids = np.random.RandomState(seed).randint(-1, n_expert, (5, 2, 1)).astype(np.int32)
    ids[0, 0, 0] = n_expert - 1
    trace.write(path, ids, [0, 5], n_expert=n_expert)
    np.testing.assert_array_equal(trace.read(path).ids, ids)


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "bare.npz"
    np.savez(path, ids=np.array([[[3, 1]], [[0, 255]]], dtype=np.uint8), seq_start=np.array([0, 2]))
    back = trace.read(str(path))
    assert back.ids.tolist() == [[[3, 1]], [[0, -1]]]
    assert back.n_expert == 4
    assert (back.weights, back.tokens, back.expert_bytes, back.meta) == (None, None, None, None)
    assert back.is_decode.tolist() == [True, True]


def test_number_of_experts_from_meta(tmp_path: Path) -> None:
    path = saved(tmp_path, n_expert=None, meta=np.array('{"n_expert": "128"}'))
    assert trace.read(path).n_expert == 128


def test_largest_number_is_an_expert_when_the_file_says_so(tmp_path: Path) -> None:
    ids = np.array([[[255, 0]]], dtype=np.uint8)
    path = tmp_path / "t.npz"
    np.savez(path, ids=ids, seq_start=[0, 1], n_expert=256)
    assert trace.read(path).ids.tolist() == [[[255, 0]]]
    np.savez(path, ids=ids, seq_start=[0, 1], n_expert=128)
    assert trace.read(path).ids.tolist() == [[[-1, 0]]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": None}, "ids is missing"),
        ({"seq_start": None}, "seq_start is missing"),
        ({"ids": np.zeros((0, 3, 2), np.uint8), "seq_start": np.array([0, 0])}, "no tokens"),
        ({"ids": np.zeros((4, 3, 0), np.uint8)}, "no tokens"),
        ({"ids": np.zeros((4, 6), np.uint8)}, "not integer"),
        ({"ids": np.zeros((4, 3, 2), np.float32)}, "not integer"),
        ({"ids": np.full((4, 3, 2), 255, np.uint8)}, "no expert in it is known"),
        ({"ids": np.full((4, 3, 2), 8, np.uint8)}, "an expert id is 8, but there are 8 experts"),
        ({"n_expert": np.array(1), "ids": np.zeros((4, 3, 2), np.int32)}, "a token uses 2 experts of 1"),
        ({"n_expert": np.array(0)}, "n_expert=0"),
        ({"n_expert": np.array([1, 2])}, "n_expert="),
        ({"n_expert": None, "meta": np.array('{"n_expert": "many"}')}, "n_expert="),
        ({"seq_start": np.array([0, 5])}, "seq_start does not rise"),
        ({"seq_start": np.array([1, 4])}, "seq_start does not rise"),
        ({"seq_start": np.array([0, 3, 2, 4])}, "seq_start does not rise"),
        ({"seq_start": np.array([4])}, "seq_start is"),
        ({"seq_start": np.array([0.0, 4.0])}, "seq_start is"),
        ({"w": np.ones((4, 3, 1), np.float16)}, "w is"),
        ({"tok": np.arange(5)}, "tok is"),
        ({"expert_bytes": np.arange(4)}, "expert_bytes is"),
        ({"is_decode": np.ones(3)}, "is_decode is"),
        ({"meta": np.array("{")}, "meta is not JSON"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EdgeMoEError) as caught:
        trace.read(saved(tmp_path, **changes))
    assert words in str(caught.value) and "trace.npz" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a trace", b"\x93NUMPY\x01\x00", b"\x80\x04N."])
def test_files_that_are_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.npz"
    path.write_bytes(content)
    with pytest.raises(EdgeMoEError, match=r"trace\.npz is not a routing trace") as caught:
        trace.read(path)
    assert caught.value.hint


def test_a_plain_array_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(EdgeMoEError, match=r"not an \.npz archive"):
        trace.read(path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    np.savez(path, **sound(tok=np.array([print] * 4, dtype=object)))
    with pytest.raises(EdgeMoEError, match="not a routing trace"):
        trace.read(path)


def test_truncated_and_flipped_files_never_crash(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(EdgeMoEError):
            trace.read(path)
    for at in range(0, len(whole), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(EdgeMoEError):
            trace.read(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(EdgeMoEError, match="does not exist"):
        trace.read(tmp_path / "no.npz")
    with pytest.raises(EdgeMoEError, match="cannot be read"):
        trace.read(tmp_path)


def test_nothing_recorded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EdgeMoEError, match="no tokens"):
        trace.write(tmp_path / "t.npz", np.zeros((0, 3, 2), np.int32), [0, 0], n_expert=8)
    with pytest.raises(EdgeMoEError, match="an expert id is 9"):
        trace.write(tmp_path / "t.npz", np.full((1, 1, 1), 9, np.int32), [0, 1], n_expert=8)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EdgeMoEError, match="No space left"):
        trace.write(path, np.zeros((1, 1, 1), np.int32), [0, 1], n_expert=8)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace.npz"]
    with pytest.raises(EdgeMoEError, match="cannot be written"):
        trace.write(tmp_path / "no" / "t.npz", np.zeros((1, 1, 1), np.int32), [0, 1], n_expert=8)


@pytest.mark.skipif("EDGEMOE_TRACES" not in os.environ, reason="EDGEMOE_TRACES names no folder of routing traces")
def test_real_traces_are_read_as_they_are() -> None:
    root = Path(os.environ["EDGEMOE_TRACES"])
    expected = {"mmlu": 32, "mmlu_pro": 32, "misc": 32, "intent": 64, "summary": 64, "translation": 64}
    expected |= {"gemma": 128, "gptoss": 128, "qwen": 128}
    found = {path.stem: trace.read(path) for path in sorted(root.glob("*/*.npz"))}
    assert {name: read.n_expert for name, read in found.items()} == expected
    assert found["mmlu"].ids.shape == (125771, 24, 4) and found["mmlu"].meta[0]["category"]
    assert (found["qwen"].ids == -1).any() and not found["qwen"].is_decode.all()
