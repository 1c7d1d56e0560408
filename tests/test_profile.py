"""``edgemoe profile`` on a tiny model: the figures add up, in every format, and after an interruption."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from edgemoe import OffloadConfig
from edgemoe.cli.main import main
from edgemoe.models.gguf import check
from edgemoe.profiling import Test, figures, measure, placements, profile
from edgemoe.profiling.suggest import suggestion
from tests import dense
from tests.routing import wide_model

SCHEMA = json.loads(Path(figures.__file__).with_name("profile.schema.json").read_text())
SMALL = ["-p", "24", "-n", "6", "-r", "2", "--device", "sim", "--vram", "50%", "--threads", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with wide_model(tmp_path_factory.mktemp("profile")) as path:
        yield path


def test_json_has_llama_benchs_fields_and_adds_up(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(model), *SMALL, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA, jsonschema.Draft202012Validator)
    assert found["schema"] == "edgemoe.profile.v1" and not found["interrupted"]
    assert [(r["placement"], r["n_prompt"], r["n_gen"]) for r in found["rows"]] == [
        ("llama.cpp", 24, 0), ("edgemoe", 24, 0), ("llama.cpp", 0, 6), ("edgemoe", 0, 6),
    ]  # fmt: skip
    for row in found["rows"]:
        assert {"model_type", "model_size", "model_n_params", "n_threads", "test_time", "stddev_ns"} <= row.keys()
        tokens = row["n_prompt"] or row["n_gen"]
        assert len(row["samples_ns"]) == 2
        assert row["samples_ts"] == pytest.approx([tokens / ns * 1e9 for ns in row["samples_ns"]])
    assert [(c["placement"], c["test"]) for c in found["cold"]] == [
        ("edgemoe", "pp24"), ("edgemoe", "tg8"), ("llama.cpp", "pp24"), ("llama.cpp", "tg8"),
    ]  # fmt: skip
    assert all(c["ts"] > 0 for c in found["cold"]), "what a first prompt costs is not hidden by the warm-up"
    generated = found["rows"][3]
    assert generated["cache"]["hits"] + generated["cache"]["misses"] == 2 * 6 * 4 * 4, "every use is counted once"
    (split,) = found["time"]
    assert sum(split["ms"].values()) == pytest.approx(sum(generated["samples_ns"]) / 12 / 1e6, rel=0.03)
    assert all(ms > 0 for name, ms in split["ms"].items() if "cold" not in name and "disk" not in name)
    assert {"logits and sampling", "scheduler"} <= split["ms"].keys()


@pytest.mark.parametrize("device", ["none", "sim"])
def test_memory_adds_up_to_the_system_s_count(device: str, model: Path) -> None:
    config = OffloadConfig(device=device, vram="50%", profile="off")
    memory = figures.as_dict(profile(model, [Test(prompt=64), Test(generate=2)], 1, config, 1))["memory"]
    assert sum(part["bytes"] for part in memory["resident"]) == pytest.approx(memory["resident_bytes"], rel=0.02)
    assert all(part["bytes"] >= 0 for part in memory["resident"])
    parts = {part["what"]: part["bytes"] for part in memory["resident"]}
    allocated = {(a["tier"], a["what"]): a["bytes"] for a in memory["allocated"]}
    experts = allocated["file", "routed experts"]
    assert sum(size for (tier, _), size in allocated.items() if tier == "file") < model.stat().st_size
    assert parts["routed experts, mapped from the file"] == pytest.approx(experts, rel=0.1)
    if device == "sim":
        held = next(size for (_, what), size in allocated.items() if "resident experts" in what)
        assert held == pytest.approx(experts / 2, rel=0.02)
        on_device = sum(size for (tier, _), size in allocated.items() if tier == "SIM")
        rows_of_a_batch = 1 << 19  # the engine sends these to the device; only in such a small model do they matter
        assert 0 <= memory["device_used_bytes"] - on_device <= 0.02 * on_device + rows_of_a_batch


@pytest.mark.parametrize("form", ["md", "jsonl", "csv"])
def test_other_formats_say_the_same(form: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["profile", str(model), "-p", "8", "-n", "0", "-r", "1", "--device", "none", "--threads", "1", "-o", form])
        == 0
    )
    out = capsys.readouterr().out
    if form == "md":
        assert "| llama.cpp" in out and "pp8" in out and "Against llama.cpp" in out
        return
    rows = list(csv.DictReader(io.StringIO(out))) if form == "csv" else [json.loads(line) for line in out.splitlines()]
    assert [row["placement"] for row in rows] == ["llama.cpp", "edgemoe"]
    assert all(float(row["avg_ts"]) > 0 for row in rows)


def test_an_interruption_keeps_the_measurements(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, calls = measure._sample, []

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 4 + 4:  # the first four warm up
            raise KeyboardInterrupt
        sample(*arguments)

    monkeypatch.setattr(measure, "_sample", interrupted)
    assert main(["profile", str(model), *SMALL, "-o", "json"]) == 130
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA, jsonschema.Draft202012Validator)
    assert found["interrupted"] and len(found["rows"]) == 3


@pytest.mark.parametrize("error", [RuntimeError("llama_decode returned -3"), MemoryError()])
def test_a_failure_on_the_way_keeps_the_measurements(
    error: Exception, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, calls = measure._sample, []

    def failing(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 4 + 3:
            raise error
        sample(*arguments)

    monkeypatch.setattr(measure, "_sample", failing)
    assert main(["profile", str(model), *SMALL, "-o", "json"]) == 1
    out, said = capsys.readouterr()
    found = json.loads(out)
    assert len(found["rows"]) == 2 and found["stopped"] and not found["interrupted"]
    assert said.count("error:") == 1 and "measurements until then" in said


def test_where_memory_suffices_for_one_model_ours_is_measured(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise ValueError("Failed to create llama_context")

    monkeypatch.setattr(placements.llama_cpp, "Llama", refuse)
    assert main(["profile", str(model), *SMALL, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["placement"] for row in found["rows"]} == {"edgemoe"}
    assert any("no row to compare" in note for note in found["notes"])


def test_a_model_without_experts_is_measured_without_their_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dense.write_dense(tmp_path / "dense.gguf")
    page = tmp_path / "page.html"
    assert (
        main(
            ["profile", str(path), "-p", "0", "-n", "4", "-r", "1", "--threads", "1", "-o", "json", "--html", str(page)]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA, jsonschema.Draft202012Validator)
    assert found["observed"] is None and any("no routed experts" in note for note in found["notes"])
    assert len(found["rows"]) == 2 and page.stat().st_size


def test_memory_of_a_system_that_does_not_tell(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemoe.profiling.memory.sys.platform", "darwin")
    assert main(["profile", str(model), "-p", "8", "-n", "0", "-r", "1", "--device", "none", "--threads", "1"]) == 0
    assert "this system does not list the parts" in capsys.readouterr().out


def test_last_layers_take_no_more_than_ours(model: Path) -> None:
    assert [placements.fitting([3, 5, 4], most) for most in (3, 4, 8, 9, 12)] == [0, 1, 1, 2, 3]
    file = check(model)
    each = sum(tensor.bytes for name, tensor in file.tensors.items() if name.startswith("blk.3.") and "_exps" in name)
    names = [p.name for p in placements.placements(file, "CUDA0", 2 * each)]
    assert names == ["llama.cpp, experts on CPU", "llama.cpp, last 2 layers"]
    assert placements.placements(file, "CUDA0", 2 * each)[1].on_cpu == (0, 1)
    assert [p.name for p in placements.placements(file, "none", 0)] == ["llama.cpp"]


def test_no_ratio_of_identical_placements(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = [*SMALL[:-4], "--vram", "0", *SMALL[-2:]]
    assert main(["profile", str(model), *nothing, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "No expert is on sim" in found["verdict"]
    assert "Against" not in found["verdict"]


def test_depth_is_computed_before_the_clock_starts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = ["-p", "8", "-n", "4", "-d", "0,32", "-r", "1", "--device", "none", "--threads", "1"]
    assert main(["profile", str(model), *deep, "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    tests = [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows if r["placement"] == "edgemoe"]
    assert tests == [(8, 0, 0), (8, 0, 32), (0, 4, 0), (0, 4, 32)]
    uses = [r["cache"]["misses"] for r in rows if r["placement"] == "edgemoe"]
    prefill = (8 * 3 + 1) * 4  # the last of four layers computes the last token only
    assert uses == [prefill, prefill, 4 * 4 * 4, 4 * 4 * 4], "what was computed for the depth is not counted"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no model"),
        (["{model}", "--html", "no/such/folder.html"], 2, "cannot be written"),
        (["--compare", "missing.json", "missing.json"], 2, "cannot be read"),
        (["--compare", "{model}", "{model}"], 2, "not JSON"),
        (["missing.gguf"], 3, "no file"),
        (["{model}", "-p", "x"], 2, "no number"),
        (["{model}", "-n", "-4"], 2, "not negative"),
        (["{model}", "-p", "0", "-n", "0"], 2, "nothing to measure"),
        (["{model}", "-r", "0"], 2, "below 1"),
        (["{model}", "--device", "CUDA9"], 2, "CUDA9"),
    ],
)
def test_refusals(arguments: list[str], code: int, says: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *(argument.format(model=model) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert says in error and error.count("error:") == 1


def curve(*rates: float) -> dict[str, Any]:
    points = [{"slots": 2 * (i + 1), "share": (i + 1) / len(rates), "adaptive": rate} for i, rate in enumerate(rates)]
    knee = max(points[:-1], key=lambda point: point["adaptive"] - point["share"])
    return {"points": points, "knee": {"slots": knee["slots"], "hit_rate": knee["adaptive"]}}


@pytest.mark.parametrize(
    ("slots", "rates", "says"),
    [
        (8, (0.3, 0.8, 0.9, 1.0), "--vram 16MiB (50% of the experts), the knee of the curve, would hit 80%"),
        (16, (0.3, 0.8, 0.9, 1.0), ""),
        (32, (0.3, 0.5, 0.99, 1.0), "--vram 24MiB (75% of the experts) would still hit 99%."),
        (32, (0.3, 0.5, 0.7, 1.0), ""),
        (8, (0.77, 0.8, 0.9, 1.0), ""),
    ],
)
def test_a_suggestion_is_worth_it(slots: int, rates: tuple[float, ...], says: str) -> None:
    seen = SimpleNamespace(hit_rate=np.zeros(4))
    result: Any = SimpleNamespace(device="CUDA0", slots=slots, slot_bytes=slots << 20, observed=seen)
    found = suggestion(result, curve(*rates), ["CUDA0"])
    assert found.startswith(says) and bool(found) == bool(says)


def test_a_gpu_that_is_not_used_is_mentioned() -> None:
    result: Any = SimpleNamespace(device="none", slots=0, slot_bytes=0, observed=None)
    assert "--device CUDA0" in suggestion(result, {}, ["CUDA0"]) and suggestion(result, {}, []) == ""


def test_drafts_that_were_asked_for_have_rows_of_their_own(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["profile", str(model), "-p", "32", "-n", "24", "-r", "1", "--device", "none", "-o", "json"]
    assert main([*flags, "--speculative", "ngram"]) == 0
    content = json.loads(capsys.readouterr().out)
    kinds = [(row["placement"], row["n_gen"]) for row in content["rows"]]
    assert kinds.count(("edgemoe, drafts", 24)) == 1 and ("edgemoe, drafts", 0) not in kinds
    assert any(note.startswith("Drafts, tg24: ") and "tokens a step" in note for note in content["notes"])
    assert main(flags) == 0
    assert "drafts" not in capsys.readouterr().out.lower()
