"""``--trace`` writes events that Perfetto accepts, and only measured events."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest

from edgemoe.cli.main import main
from tests.routing import wide_model

RUN = ["-p", "0", "-n", "12", "-r", "1", "--device", "sim", "--vram", "50%", "--threads", "1", "-o", "json"]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("trace")
    with wide_model(folder) as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMOE_HOME", str(folder / "home"))
        assert main(["profile", str(path), *RUN, "--trace", str(folder / "trace.json")]) == 0
    return json.loads((folder / "trace.json").read_text())


def test_events_follow_the_format(traced: dict[str, Any]) -> None:
    """Check the trace event format: phases, fields, numbers of microseconds, and spans that nest but never cross."""
    fields = {"X": {"ts", "dur"}, "C": {"ts", "args"}, "M": {"args"}, "i": {"ts", "s"}}
    open_spans: dict[tuple[int, int], list[float]] = defaultdict(list)
    last = 0.0
    named = {(e["pid"], e["tid"]) for e in traced["traceEvents"] if e["name"] == "thread_name"}
    for event in traced["traceEvents"]:
        assert event["ph"] in fields and fields[event["ph"]] | {"name", "pid", "tid"} <= event.keys()
        if event["ph"] == "M":
            continue
        assert isinstance(event["ts"], float) and event["ts"] >= last, "in rising order"
        last = event["ts"]
        if event["ph"] == "C":
            assert all(isinstance(value, (int, float)) for value in event["args"].values())
            continue
        track = event["pid"], event["tid"]
        assert track in named, "every track has a name"
        if event["ph"] == "X":
            assert event["dur"] >= 0
            while open_spans[track] and open_spans[track][-1] <= event["ts"] + 1e-3:
                open_spans[track].pop()
            end = event["ts"] + event["dur"]
            assert not open_spans[track] or end <= open_spans[track][-1] + 1e-3, "a span ends within the one around it"
            open_spans[track].append(end)


def test_tracks_name_missing_measurements(traced: dict[str, Any]) -> None:
    events = traced["traceEvents"]
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for part in ("device stream", "CPU workers", "joins"):
        assert next(name for name in tracks.values() if name.startswith(part)).endswith("(sum over layers)")
    assert any(name.startswith("copy stream") for name in tracks.values())
    assert {e["name"] for e in events if e["ph"] == "C"} >= {"hit rate", "bytes up", "experts"}
    assert "not measured" in traced["otherData"]["about"]
    assert len([e for e in events if e["name"].startswith("token ")]) == 12


def test_spans_equal_the_counters(traced: dict[str, Any]) -> None:
    tokens = [e for e in traced["traceEvents"] if e["name"].startswith("token ")]
    assert sum(e["args"]["hits"] + e["args"]["misses"] for e in tokens) == 12 * 4 * 4
    cold = [e for e in traced["traceEvents"] if e["name"] == "cold pairs"]
    assert [e["dur"] * 1e-3 for e in cold] == pytest.approx([e["args"]["sum_over_layers_ms"] for e in cold])
    assert all(c["dur"] <= t["dur"] for c, t in zip(cold, tokens, strict=True))
