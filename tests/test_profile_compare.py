"""``--compare`` tells chance from a real difference, and refuses foreign files."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from edgemoe.cli.main import main
from edgemoe.profiling.compare import Pair, interval, p_value, superiority


def saved(folder: Path, name: str, speeds: list[float], **changes: Any) -> Path:
    row = {
        "model_filename": "m.gguf", "model_size": 1, "placement": "edgemoe", "n_prompt": 0, "n_gen": 8, "n_depth": 0,
        "gpu_info": "", "n_threads": 2, "samples_ts": speeds,
    }  # fmt: skip
    machine = {"cpu": "a processor", "cores": 2}
    found = {"schema": "edgemoe.profile.v1", "machine": machine, "rows": [row], "stopped": ""}
    for key, value in changes.items():
        (found if key in found else machine if key in machine else row)[key] = value
    path = folder / name
    path.write_text(json.dumps(found))
    return path


def said(capsys: pytest.CaptureFixture[str], *paths: Path) -> str:
    assert main(["profile", "--compare", *map(str, paths)]) == 0
    return capsys.readouterr().out


def test_a_real_difference_is_called_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = saved(tmp_path, "a.json", [10.0, 10.1, 10.2, 9.9, 10.05])
    b = saved(tmp_path, "b.json", [11.0, 11.2, 11.1, 10.9, 11.05])
    text = said(capsys, a, b)
    assert "B is 10.0% faster, and that is real (p = 0.0079, a large effect)" in text
    assert "9.0% slower" in said(capsys, b, a)
    assert "Apples" not in text


def test_chance_is_called_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = saved(tmp_path, "a.json", [10.0, 12.0, 9.0, 11.0, 10.5])
    b = saved(tmp_path, "b.json", [10.2, 11.5, 9.5, 12.5, 10.6])
    assert "no difference that chance would not give" in said(capsys, a, b)
    assert "too few repetitions (5 and 2)" in said(capsys, a, saved(tmp_path, "c.json", [20.0, 21.0]))


def test_p_bounds_the_false_alarms() -> None:
    """At most a share p of pairs that differ by chance alone is called different. Both ways of counting agree."""
    source = random.Random(1)
    drawn = [[source.gauss(10, 1) for _ in range(6)] for _ in range(600)]
    pairs = [Pair("", *two) for two in zip(drawn[::2], drawn[1::2], strict=True)]
    assert sum(p_value(pair) < 0.05 for pair in pairs) <= 0.075 * len(pairs)
    # A textbook case: ranks 1 2 3 4 against 5 6 7 8 9 happen once in 126 arrangements, twice with the mirror image.
    assert p_value(Pair("", [1, 2, 3, 4], [5, 6, 7, 8, 9])) == pytest.approx(2 / 126)
    many = Pair("", [float(i) for i in range(40)], [float(i) + 8.5 for i in range(40)])
    assert p_value(many) == pytest.approx(0.003495, abs=1e-6)  # U = 496 of 1600, spread 103.92, by hand
    assert p_value(Pair("", [5.0] * 30, [5.0] * 30)) == 1.0


def test_effect_and_interval() -> None:
    pair = Pair("", [10.0, 10.0, 10.0], [12.0, 12.0, 12.0])
    assert superiority(pair) == 1.0 and interval(pair) == pytest.approx((1.2, 1.2))
    assert superiority(Pair("", [1.0, 2.0], [1.0, 2.0])) == 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_size": 2}, "two models"),
        ({"cpu": "another processor"}, "two machines"),
        ({"n_threads": 4}, "two devices or threads"),
        ({"stopped": "interrupted"}, "ended early"),
        ({"n_gen": 9}, "no placement and test in common"),
    ],
)
def test_report_warns_of_profiles_that_do_not_compare(
    change: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = saved(tmp_path, "a.json", [10.0] * 5)
    assert says in said(capsys, a, saved(tmp_path, "b.json", [10.0] * 5, **change))


@pytest.mark.parametrize(
    "damage",
    [
        "[]",
        "{}",
        '{"schema": "edgemoe.replay.v1"}',
        '{"schema": "edgemoe.profile.v1", "rows": [{}]}',
        "no json",
        "[" * 9999,
    ],
)
def test_files_that_are_not_ours_are_refused(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.json").write_text(damage)
    assert main(["profile", "--compare", str(saved(tmp_path, "a.json", [1.0])), str(tmp_path / "b.json")]) == 2
    error = capsys.readouterr().err
    assert "b.json" in error and error.count("error:") == 1 and "hint:" in error


def test_a_file_of_another_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path, "a.json", [1.0])
    other = saved(tmp_path, "b.json", [1.0], schema="edgemoe.profile.v2")
    assert main(["profile", "--compare", str(good), str(other)]) == 2
    assert "not edgemoe.profile.v1" in capsys.readouterr().err


def test_rows_with_speeds_of_nothing_are_damaged(tmp_path: Path) -> None:
    good = saved(tmp_path, "a.json", [1.0])
    for speeds in ([], [0.0], ["fast"], [float("nan")]):
        assert main(["profile", "--compare", str(good), str(saved(tmp_path, "b.json", copy.copy(speeds)))]) == 2
