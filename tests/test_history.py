"""Routing profiles are merged, small and atomic, and never make the engine fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.routing.history import HALF_LIFE_TOKENS, RECENT_TOKENS, Profile, load, merge, save
from edgemoe.types import FloatArray

KEY = "0123abcd"
SHAPE = (3, 8)


def heat(value: float = 1.0) -> FloatArray:
    counts: FloatArray = np.arange(24, dtype=np.float32).reshape(SHAPE) * np.float32(value)
    return counts


def file_of(folder: Path) -> Path:
    return folder / f"{KEY}.profile.npz"


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "profiles"
    notes: list[str] = []
    save(Profile(KEY, heat(), 123.5, 4), folder, notes)
    back = load(KEY, folder, SHAPE, notes)
    assert back is not None and notes == []
    np.testing.assert_array_equal(back.heat, heat())
    assert back.heat.dtype == np.float32
    assert (back.identity, back.tokens, back.runs) == (KEY, 123.5, 4)
    assert [entry.name for entry in folder.iterdir()] == [file_of(folder).name]


def test_a_large_model_stays_small(tmp_path: Path) -> None:
    counts = np.random.RandomState(0).poisson(300, (48, 128)).astype(np.float32)
    save(Profile(KEY, counts, 1e5), tmp_path)
    assert file_of(tmp_path).stat().st_size < 64_000


def test_nothing_known_yet(tmp_path: Path) -> None:
    notes: list[str] = []
    assert load(KEY, tmp_path / "absent", SHAPE, notes) is None
    assert notes == []


def test_merge_halves_the_past_per_half_life() -> None:
    first = merge(None, Profile(KEY, heat(), 100.0))
    assert first.runs == 1
    second = merge(first, Profile(KEY, heat(4.0), float(HALF_LIFE_TOKENS)))
    np.testing.assert_allclose(second.heat, heat(4.5))
    assert second.tokens == HALF_LIFE_TOKENS + 50.0
    assert second.runs == 2


def test_a_short_run_changes_little() -> None:
    long = Profile(KEY, heat(1000.0), 50_000.0)
    merged = merge(long, Profile(KEY, heat(), 10.0))
    np.testing.assert_allclose(merged.heat, heat(1001.0), rtol=1e-3)


def test_merge_drops_a_past_of_another_shape() -> None:
    run = Profile(KEY, heat(), 10.0)
    assert merge(Profile(KEY, heat()[:2], 10.0), run) is run


def arrays(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {"version": 1, "identity": KEY, "heat": heat(), "tokens": 5.0, "runs": 1}
    return {key: value for key, value in (whole | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 0}, "version 0 instead of 1"),
        ({"version": 2}, "version 2 instead of 1"),
        ({"version": [1, 1]}, "version is not a single value"),
        ({"identity": "ffff"}, "another model"),
        ({"heat": heat()[:2]}, "shape is (2, 8) instead of (3, 8)"),
        ({"heat": np.zeros(24)}, "shape is (24,)"),
        ({"heat": None}, "heat is missing"),
        ({"heat": np.full(SHAPE, np.nan)}, "negative or endless"),
        ({"heat": np.full(SHAPE, -1.0)}, "negative or endless"),
        ({"heat": np.full(SHAPE, "x")}, "not used"),
        ({"tokens": np.inf}, "negative or endless"),
        ({"tokens": "many"}, "not used"),
        ({"runs": np.inf}, "not used"),
        ({"recent": np.zeros((4, 2, 2), dtype=np.int16)}, "recent routing is of another model"),
        ({"recent": np.full((4, 3, 2), 8, dtype=np.int16)}, "recent routing is of another model"),
        ({"recent": np.zeros((4, 3, 2))}, "recent routing is no array of ids"),
    ],
)
def test_what_cannot_be_used_is_set_aside(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    np.savez(file_of(tmp_path), **arrays(**changes))
    content = file_of(tmp_path).read_bytes()
    notes: list[str] = []
    assert load(KEY, tmp_path, SHAPE, notes) is None
    assert len(notes) == 1 and words in notes[0] and ".bad-1" in notes[0]
    assert (tmp_path / f"{KEY}.profile.npz.bad-1").read_bytes() == content
    assert not file_of(tmp_path).exists()


def test_damaged_files_pile_up_beside_each_other(tmp_path: Path) -> None:
    save(Profile(KEY, heat(), 5.0), tmp_path)
    whole = file_of(tmp_path).read_bytes()
    for number, length in enumerate((0, 10, len(whole) // 2, len(whole) - 1), start=1):
        file_of(tmp_path).write_bytes(whole[:length])
        notes: list[str] = []
        assert load(KEY, tmp_path, SHAPE, notes) is None
        assert f"bad-{number}" in notes[0]
    assert len(list(tmp_path.iterdir())) == 4
    save(Profile(KEY, heat(), 5.0), tmp_path)
    assert load(KEY, tmp_path, SHAPE) is not None


def test_any_flipped_byte_is_survived(tmp_path: Path) -> None:
    save(Profile(KEY, heat(), 5.0), tmp_path)
    whole = file_of(tmp_path).read_bytes()
    for at in range(0, len(whole), 13):
        file_of(tmp_path).write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        load(KEY, tmp_path, SHAPE)


def test_a_disk_that_refuses_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    (tmp_path / "file").write_text("in the way")
    save(Profile(KEY, heat(), 5.0), tmp_path / "file", notes)
    assert "was not saved" in notes[0]
    save(Profile(KEY, heat(), 5.0), tmp_path)
    before = file_of(tmp_path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    save(Profile(KEY, heat(2.0), 5.0), tmp_path, notes)
    assert "No space left" in notes[1]
    assert file_of(tmp_path).read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_that_cannot_be_opened_or_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    file_of(tmp_path).mkdir()
    assert load(KEY, tmp_path, SHAPE, notes) is None
    assert "cannot be read" in notes[0]
    file_of(tmp_path).rmdir()
    file_of(tmp_path).write_bytes(b"damaged")

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "rename", refuse)
    assert load(KEY, tmp_path, SHAPE, notes) is None
    assert "could not be renamed" in notes[1]
    assert file_of(tmp_path).read_bytes() == b"damaged"


def test_recent_tokens_that_are_no_list_are_set_aside(tmp_path: Path) -> None:
    save(Profile(KEY, heat(), 5.0), tmp_path)
    arrays = dict(np.load(file_of(tmp_path)))
    np.savez(file_of(tmp_path), **(arrays | {"recent_tokens": np.array(3)}))
    notes: list[str] = []
    assert load(KEY, tmp_path, SHAPE, notes) is None and "no array of ids" in notes[0]


def test_a_key_that_is_no_key_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        load("../../etc/passwd", tmp_path, SHAPE)


def test_recent_routing_is_kept_and_the_oldest_goes(tmp_path: Path) -> None:
    def routing(first: int, tokens: int) -> Any:
        return np.broadcast_to((np.arange(first, first + tokens) % 8)[:, None, None], (tokens, 3, 2)).astype(np.int32)

    def run(first: int, tokens: int) -> Profile:
        words = np.arange(first, first + tokens, dtype=np.int32)
        return Profile(KEY, heat(), 5.0, recent=routing(first, tokens), recent_tokens=words)

    save(merge(run(0, 10), run(10, 7)), tmp_path)
    read = load(KEY, tmp_path, SHAPE)
    assert read is not None
    np.testing.assert_array_equal(read.recent, routing(0, 17))
    np.testing.assert_array_equal(read.recent_tokens, np.arange(17))
    full = merge(read, run(1, RECENT_TOKENS - 3))
    assert len(full.recent) == len(full.recent_tokens) == RECENT_TOKENS
    np.testing.assert_array_equal(full.recent_tokens[:4], [14, 15, 16, 1])
    np.testing.assert_array_equal(full.recent[:3], routing(14, 3))
