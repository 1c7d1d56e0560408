"""``edgemoe profile`` on a device with its own memory: llama.cpp's placements of whole layers, at equal memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.cli.main import main
from edgemoe.machine import hardware
from tests.routing import wide_model
from tests.test_rpc import device, pytestmark  # noqa: F401


def test_whole_layers_are_measured_at_equal_memory(
    device: str,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with wide_model(tmp_path) as path:
        run = ["-p", "8", "-n", "4", "-r", "2", "--device", device, "--vram", "50%", "--threads", "1", "-o", "json"]
        assert main(["profile", str(path), *run]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ["edgemoe", "llama.cpp, experts on CPU", "llama.cpp, last 2 layers"]
    assert list(dict.fromkeys(row["placement"] for row in found["rows"])) == names
    assert len(found["rows"]) == 6 and "best placement of whole layers" in found["verdict"]
    assert any("one after the other" in note for note in found["notes"])


def test_a_remote_device_can_be_measured(device: str) -> None:  # noqa: F811
    rates = hardware.measure(device, 1, memory=False)
    assert rates["device_rate"] > 0 and rates["device_operation_rate"] > 0 and rates["join_ns"] > 0
