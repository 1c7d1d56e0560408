"""``edgemoe show``: its figures agree with the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from edgemoe.cli.main import main
from tests.routing import wide_model
from tests.zoo import build


def test_figures_are_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build("llama", tmp_path, "Q4_K/Q6_K")
    assert main(["show", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    routed = sum(t.n_bytes for name, t in tensors.items() if "_exps" in name)
    assert facts["parameters"] == sum(t.n_elements for t in tensors.values())
    assert facts["bytes"] == sum(int(t.n_bytes) for t in tensors.values())
    assert facts["experts"]["bytes"] == routed == facts["bytes"] - facts["dense_bytes"]
    assert facts["experts"]["bytes_per_token"] == routed * facts["experts"]["used"] // facts["experts"]["per_layer"]
    assert [layer["types"] for layer in facts["experts"]["by_layer"]] == [["Q4_K"], ["Q6_K", "Q4_K"]]
    assert facts["learnt"] == {"history_tokens": 0, "runs": 0, "predictor": False}


def test_text_groups_layers_that_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with wide_model(tmp_path) as path:
        assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "32 in each of 4 layers, 4 used" in out and "| 0 to 3" in out and "nothing yet" in out


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path / "no.gguf")]) == 3
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    assert main(["show", str(tmp_path / "bad.gguf")]) == 1
    assert "version" in capsys.readouterr().err
