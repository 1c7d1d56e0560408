"""``edgemoe doctor``: its findings, its measurements, and the file that keeps them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgemoe.cli.main import main
from edgemoe.config import SimConfig
from edgemoe.engine import host
from edgemoe.errors import BackendMismatch
from edgemoe.machine import hardware

Captured = pytest.CaptureFixture[str]
RATES = {"cpu_expert_rate": 1e10, "ram_rate": 2e10}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "measure", lambda *arguments, **keywords: dict(RATES))


def report(capsys: Captured, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--threads", "1", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_this_machine_is_measured_within_its_time(capsys: Captured) -> None:
    host.core().configure_sim(SimConfig())  # the core is one for the whole process
    started = time.monotonic()
    code, found = report(capsys, "--device", "sim")
    assert code == 0 and found["schema"] == "edgemoe.doctor.v1" and found["ok"]
    assert 0 < found["seconds"] <= time.monotonic() - started
    expected = {"cpu_expert_rate", "cpu_operation_rate", "ram_rate", "device_rate", "upload_pageable_rate", "join_ns"}
    assert expected <= found["rates"].keys()
    assert "upload_pinned_rate" not in found["rates"], "sim has no pinned memory: absent, not invented"
    assert all(1e8 < value < 1e12 for name, value in found["rates"].items() if name.endswith("_rate"))
    assert all(
        finding["action"] or finding["state"] == "ok" or "could not" in finding["value"]
        for finding in found["findings"]
    )
    assert hardware.load("sim", 1).rates == found["rates"]  # type: ignore[union-attr]


def test_measurements_are_kept_for_this_machine_only(quick: None, capsys: Captured) -> None:
    report(capsys, "--device", "none")
    kept = hardware.load("", 1)
    assert kept is not None and kept.rates == RATES and kept.at <= time.time()
    notes: list[str] = []
    assert hardware.load("", 7, notes) is None, "another number of threads is another measurement"
    assert "belongs to another machine or setting" in notes[0]
    assert list(hardware.path_of("").parent.glob("*.bad-1")) and not hardware.path_of("").exists()


NEGATIVE = {"schema": hardware.SCHEMA, "key": "x", "at": 0, "seconds": 1, "rates": {"ram_rate": -1}}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "other"}', json.dumps(NEGATIVE)])
def test_a_damaged_file_is_set_aside(content: str, quick: None, capsys: Captured) -> None:
    path = hardware.path_of("")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert main(["doctor", "--device", "none", "--threads", "1"]) == 0
    assert "was kept as" in capsys.readouterr().err
    assert Path(f"{path}.bad-1").read_text() == content and hardware.load("", 1) is not None


def test_a_wrong_backend_is_a_problem_with_its_cure(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def mismatch() -> None:
        raise BackendMismatch("another", "the tested one")

    monkeypatch.setattr(host, "core", mismatch)
    code, found = report(capsys)
    assert code == 1 and not found["ok"] and found["rates"] == {}
    (bad,) = (finding for finding in found["findings"] if finding["state"] == "bad")
    assert "pip install" in bad["action"]


def test_a_device_that_is_not_there_is_a_problem(quick: None, capsys: Captured) -> None:
    code, found = report(capsys, "--device", "CUDA7")
    assert code == 1 and any("CUDA7" in finding["value"] for finding in found["findings"])


def test_people_get_a_table_and_advice(quick: None, capsys: Captured) -> None:
    assert main(["doctor", "--device", "none", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "| RAM" in out and "- devices: " in out
