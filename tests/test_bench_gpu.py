"""``python -m bench.gpu``: order, deadline and resumption, refusal, verdicts; without a device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from bench import twin
from bench.gpu import __main__ as command
from bench.gpu import agreement, build, cells, devices, events, load, pack, report, routing, session, verdicts
from bench.gpu.cells import Cell, Contender, Scope, Size
from bench.gpu.journal import Journal
from edgemoe.errors import ConfigError
from edgemoe.profiling import Test, figures
from edgemoe.setup.build import Order, Result
from edgemoe.setup.cards import NvidiaDriver
from edgemoe.setup.programs import Missing
from tests.routing import wide_model

MODEL = "gpt-oss-20b"
SCOPE = Scope("CUDA0", (MODEL,), (25.0, 100.0), generate=2, prompts=(4, 8), first=3, depth=8)
STATS = {
    "hits": 6, "misses": 2, "cpu_ns": 2_000, "join_ns": 1_000, "schedule_ns": 100, "moe_ns": 5_000, "device_ns": 3_000,
    "upload_bytes": 10, "slots": 4, "uploads": 1, "prefetch_useful": 0, "prefetch_late": 0, "prefetch_wasted": 0,
    "prefill_hits": 0, "prefill_misses": 0, "prefill_streamed": 0,
}  # fmt: skip


class Fake:
    """Replace a child: answer at once, and let time pass by its figures."""

    def __init__(self, world: World) -> None:
        self._world, self._name = world, ""

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        world = self._world
        if do == "zoo":
            return {"agreed": world.agrees, "apart": 0.5, "words": "made up", "checked": []}
        if do in ("rates", "events"):
            return dict(world.events) if do == "events" else {}
        if do == "open":
            self._name = Contender(**request["contender"]).name
            world.now += world.load_s
            if self._name in world.broken:
                raise session.Failed("no memory")
            world.open += 1
            world.most_open = max(world.most_open, world.open)
            return {"load_s": 1.0, "whole_layers": 3, "slot_bytes": 100, "slots": 4, "stage_bytes": 50}
        if do == "answer":
            np.save(request["logits"], np.ones((2, 4), dtype=np.float32))
            return {"tokens": [1, 2]}
        world.asked.append((self._name, request["repetition"]))
        world.now += world.test_s
        ns = world.ns.get(self._name, 2_000)
        stats = STATS if self._name.startswith(cells.OURS) else None
        return {
            "ns": [ns], "first_ns": [ns], "between_ns": [ns // 2, ns // 2], "computing_ns": ns, "sampling_ns": 0,
            "scheduler_ns": 0, "stats": stats, "elapsed_s": world.test_s,
        }  # fmt: skip

    def close(self) -> None:
        self._world.closed += 1
        self._world.open -= bool(self._name)


class World:
    """Simulate a machine with an artificial clock and artificial answers."""

    def __init__(self, folder: Path) -> None:
        self.now, self.load_s, self.test_s = 0.0, 10.0, 1.0
        self.open = self.most_open = 0
        self.events: dict[str, float] = {}
        self.agrees, self.closed, self.started, self.there = True, 0, 0, True
        self.asked: list[tuple[str, int]] = []
        self.broken: set[str] = set()
        self.ns: dict[str, int] = {}
        self.folder = folder
        self.model = session.Model(MODEL, folder / "x.gguf", folder / "r.npz", Size(10, 8, 2), ("TWIN",))

    def journal(self) -> Journal:
        return Journal(self.folder / "journal.jsonl")

    def run(
        self,
        todo: list[Cell],
        deadline: float | None = None,
        repetitions: int = 5,
        room: int | None = None,
        events: bool = False,
    ) -> bool:
        device = {"device": "CUDA0", "backend": "", "rpc": False}
        setting = session.Setting(
            SCOPE, device, 1, repetitions, 4, self.folder, deadline, room=room, events=events, clock=lambda: self.now
        )
        return session.Session(setting, self.journal(), self._start, lambda text: None).run(
            todo, lambda name: self.model
        )

    def _start(self) -> Fake:
        if not self.there:
            raise session.Failed("there is no device CUDA0; ggml sees none")
        self.started += 1
        return Fake(self)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_most_telling_cell_comes_first_and_bars_before_the_rest() -> None:
    found = cells.cells(Scope("CUDA0"))
    assert (found[0].model, found[0].share, found[0].test) == ("gpt-oss-20b", 25.0, Test(generate=64))
    assert [c.placement for c in found[0].contenders] == [cells.OURS, cells.LAST]
    ends = [c for c in found if len(c.contenders) == 4]
    assert ends and {c.share for c in ends} == {25.0} and {c.model for c in ends} == set(cells.MODELS)
    assert len({cell.key for cell in found}) == len(found), "a key names one cell"
    bars = [i for i, c in enumerate(found) if c.kind == cells.STEADY and c.test in (Test(prompt=64), Test(prompt=4096))]
    switches = [i for i, c in enumerate(found) if c.kind == "on and off"]
    fresh = [i for i, c in enumerate(found) if c.kind == cells.FRESH]
    assert max(bars) < min(switches) < max(switches) < min(fresh)
    first = [c for c in found if c.share == 25.0 and c.kind == cells.STEADY][: 3 * len(cells.MODELS)]
    assert found[: len(first)] == first and {c.model for c in first} == set(cells.MODELS), (
        "a short lease sees every model"
    )
    assert {c.test.depth for c in found} == {0, 4096} and {c.share for c in found} == set(cells.SHARES)


def test_on_a_card_that_cannot_hold_all_they_take_turns_one_at_a_time(world: World) -> None:
    todo = cells.cells(SCOPE)[:1]
    assert world.run(todo, repetitions=2, room=int(1e12))
    together, most = list(world.asked), world.most_open
    assert most == 2
    (world.folder / "journal.jsonl").unlink()
    world.asked, world.most_open, world.started = [], 0, 0
    assert world.run(todo, repetitions=2, room=int(1e9))
    assert world.asked == together, "in the same order"
    assert world.most_open == 1 and world.open == 0
    (world.folder / "journal.jsonl").unlink()
    world.asked, world.now = [], 0.0
    assert not world.run(todo, deadline=50.0, repetitions=2, room=int(1e9)), "every turn has a load"
    assert 0 < len(world.asked) < 4 and world.now < 50.0


def test_what_the_device_did_is_added_up_and_shown(world: World) -> None:
    trace = [
        {"ph": "X", "cat": "kernel", "name": "mul_mat_vec_q", "ts": 10.0, "dur": 4.0, "args": {"stream": 7}},
        {"ph": "X", "cat": "kernel", "name": "rms_norm", "ts": 12.0, "dur": 4.0, "args": {"stream": 8}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "ts": 30.0, "dur": 2.0,
         "args": {"bytes": 4096}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pageable)", "ts": 31.0, "dur": 1.0,
         "args": {"bytes": 8}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1.0, "dur": 1.0},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch_v10000", "ts": 2.0, "dur": 1.0},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 3.0, "dur": 9.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 3.0, "dur": 9.0},
        {"ph": "i", "cat": "kernel", "name": "no span", "ts": 3.0},
    ]  # fmt: skip
    found = events.summary(trace)
    assert found == {
        "kernel_ns": 8000, "kernels": 2, "busy_ns": 8000, "to_device_ns": 2000, "to_device_bytes": 4096,
        "to_host_ns": 1000, "to_host_bytes": 8, "inside_ns": 0, "inside_bytes": 0, "sync_ns": 9000, "launches": 2,
    }  # fmt: skip
    world.events = found | {"tokens": 2, "clock_ns": 50_000}
    world.run(cells.cells(SCOPE)[:1], events=True)
    assert len(world.journal().of("events")) == 2, "once for each contender"
    page = report.page(world.journal(), SCOPE, [world.model], ["head"])
    row = next(line for line in page.splitlines() if line.startswith("| 25 %") and "(0.00 MiB)" in line)
    assert [cell.strip() for cell in row.split("|")][4:8] == ["0.025", "0.004", "0.004", "0.004"]


def test_without_a_source_of_events_the_run_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for torch in (None, SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))):
        monkeypatch.setitem(sys.modules, "torch", torch)
        ran: list[int] = []
        assert events.record(lambda ran=ran: ran.append(1)) == {} and ran == [1]


@pytest.mark.parametrize("device", ["sim", "none"])
def test_where_llama_cpp_cannot_use_the_device_the_missing_rows_are_named(device: str) -> None:
    placements = {c.placement for cell in cells.cells(Scope(device)) for c in cell.contenders}
    assert placements == {cells.OURS, cells.CPU_ALONE}
    (words,) = cells.missing_rows(device)
    assert all(name in words for name in (device, cells.IN_VRAM, cells.ON_CPU, cells.LAST))
    assert not cells.missing_rows("RPC0")


def test_contenders_take_turns(world: World) -> None:
    cell = cells.cells(SCOPE)[0]
    assert world.run([cell])
    names = [c.name for c in cell.contenders]
    assert world.asked == [(name, repetition) for repetition in range(5) for name in names]
    assert world.closed == world.started


def test_a_run_stops_before_the_deadline_and_the_next_goes_on(world: World) -> None:
    todo = cells.cells(SCOPE)[:2]
    assert not world.run(todo, deadline=35.0)
    assert world.now <= 35.0
    first = list(world.asked)
    assert 0 < len(first) < 20
    assert world.run(todo, deadline=world.now + 1000)
    assert len(world.asked) == 20 and len(set(world.asked[:10])) == 10, "nothing was measured twice"
    again = len(world.asked)
    assert world.run(todo, deadline=world.now + 1000)
    assert len(world.asked) == again, "a complete plan asks for nothing"


def test_no_time_at_all_starts_nothing(world: World) -> None:
    assert not world.run(cells.cells(SCOPE), deadline=5.0)
    assert not world.asked and not world.started


def test_what_does_not_agree_is_not_measured(world: World) -> None:
    world.agrees = False
    assert world.run(cells.cells(SCOPE))
    assert not world.asked
    (line,) = verdicts.lines(world.journal(), SCOPE)
    assert line.result == verdicts.MISS and "REFUSED" in line.figure
    assert world.run(cells.cells(SCOPE)) and not world.asked, "nor in the next run"


def test_a_device_that_is_not_there_is_an_error_and_no_disagreement(world: World) -> None:
    world.there = False
    with pytest.raises(session.Failed, match="no device CUDA0"):
        world.run(cells.cells(SCOPE))
    world.there = True
    assert world.run(cells.cells(SCOPE)[:1]) and world.asked


def test_a_twin_that_answers_otherwise_is_not_measured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = agreement.Verdict(False, 0.9, "token 1 differs")
    monkeypatch.setattr(agreement, "nearest", lambda verdicts: wrong)
    assert world.run(cells.cells(SCOPE)[:3])
    assert not world.asked


def test_what_is_as_far_apart_as_llama_cpp_from_itself_agrees() -> None:
    far = agreement.Verdict(False, 0.05, "logits are 5.00% apart")
    assert agreement.beside(far, 0.04).agreed and not agreement.beside(far, 0.03).agreed
    assert not agreement.beside(agreement.Verdict(False, float("inf"), "not finite"), 0.04).agreed
    assert not agreement.beside(far, 0.0).agreed, "one placement alone says nothing of others"


def test_a_contender_that_fails_costs_only_its_own_rows(world: World) -> None:
    world.broken = {cells.IN_VRAM}
    cell = next(cell for cell in cells.cells(SCOPE) if len(cell.contenders) == 4)
    assert world.run([cell])
    journal = world.journal()
    assert not journal.of("sample", contender=cells.IN_VRAM)
    assert len(journal.of("sample", contender=cells.ON_CPU)) == 5
    (failed,) = journal.of("failed")
    assert (failed["contender"], failed["words"]) == (cells.IN_VRAM, "no memory")
    started = world.started
    assert world.run([cell]) and world.started == started, "a cell without it is complete"


def test_cold_contenders_are_loaded_for_each_repetition(world: World) -> None:
    fresh = next(cell for cell in cells.cells(SCOPE) if cell.kind == cells.FRESH)
    assert world.run([fresh], repetitions=2)
    opened = world.journal().of("opened", contender=fresh.contenders[0].name)
    assert len(opened) == 2 and world.asked.count((fresh.contenders[0].name, 0)) == 1


def test_bars_are_judged_by_the_median_of_five(world: World) -> None:
    decode = cells.cells(SCOPE)[0]
    last = Contender(cells.LAST, 25.0).name
    world.ns = {"edgemoe 25%": 1_000, last: 1_499}
    assert world.run([decode], repetitions=4)
    assert _line(world, "tg2 at 25 % against last").result == verdicts.OPEN, "four repetitions are too few"
    assert world.run([decode])
    line = _line(world, "tg2 at 25 % against last")
    assert line.result == verdicts.MISS and line.figure.startswith("1.499 (1.499 .. 1.499, n = 5)")
    assert verdicts.judged(verdicts.Ratio((1.5,) * 5), 1.5, "x").result == verdicts.PASS
    assert _line(world, "tg2 at 100 % against all in VRAM").result == verdicts.OPEN
    assert _line(world, "200 load-answer-free").result == verdicts.OPEN


def _line(world: World, words: str) -> verdicts.Line:
    (found,) = (line for line in verdicts.lines(world.journal(), SCOPE) if words in line.bar)
    return found


def test_memory_that_grows_or_an_answer_that_changes_fails_a_soak() -> None:
    flat = [{"run": 1, "same": True, "rss": 100, "device": 50} for _ in range(20)]
    assert verdicts.soaked(flat, "x").result == verdicts.PASS
    assert verdicts.soaked([*flat[:10], *({**e, "rss": 110} for e in flat[10:])], "x").result == verdicts.MISS
    assert verdicts.soaked([*flat[:-1], {**flat[-1], "same": False}], "x").result == verdicts.MISS


def test_agreement_forgives_ties_only() -> None:
    logits = np.array([[10.0, 1, 0], [0, 9.9, 10.0]], dtype=np.float32)
    near = logits + np.array([[0, 0, 0], [0, 0.11, 0]], dtype=np.float32)
    assert agreement.compare([0, 2], logits, [0, 2], logits).agreed
    assert agreement.compare([0, 1], near, [0, 2], logits).agreed, "the reference all but tied"
    assert not agreement.compare([1, 2], logits, [0, 2], logits).agreed, "the reference was sure"
    assert not agreement.compare([0, 2], logits + 1, [0, 2], logits).agreed, "logits are far apart"
    assert not agreement.compare([0, 2], logits * np.nan, [0, 2], logits).agreed


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path).add("sample", cell="c", contender="a", repetition=0)
    with path.open("a") as file:
        file.write('{"kind": "sam')
    journal = Journal(path)
    journal.add("sample", cell="c", contender="a", repetition=1)
    assert Journal(path).repetitions("c", ["a"]) == 2
    assert Journal(path).repetitions("c", ["a", "b"]) == 0, "complete is what all have"


def test_made_up_routing_is_as_local_as_qwen3s_and_says_that_it_is_made_up() -> None:
    found = routing.routing("qwen3-30b-a3b", None, 4, 128, 8)
    assert "SYNTHETIC" in found.source
    assert found.ids.shape == (routing.TOKENS, 4, 8) and found.heat.shape == (4, 128)
    assert all(len(set(row)) == 8 for row in found.ids[:50, 0].tolist()), "a token uses an expert once"
    assert 0.35 < routing.overlap(found.ids) < 0.55


def test_records_are_edgemoe_profiles_own(world: World) -> None:
    with wide_model(world.folder) as path:
        world.model = replace(world.model, path=path)
        assert world.run(cells.cells(SCOPE)[:2])
        (named,) = report.records(world.journal(), SCOPE, world.model, 1, "llama-cpp-python==0")
    name, record = named
    assert name == f"profile-{MODEL}-25.json"
    schema = json.loads(Path(figures.__file__).with_name("profile.schema.json").read_text())
    record = json.loads(json.dumps(record))
    jsonschema.validate(record, schema, jsonschema.Draft202012Validator)
    assert {row["placement"] for row in record["rows"]} >= {"edgemoe", "llama.cpp, last 3 layers"}
    assert "TWIN" in record["notes"]
    page = report.page(world.journal(), SCOPE, [world.model], ["**DRY RUN**"])
    assert page.startswith("**DRY RUN**") and "TWIN" in page and "| 25 %   | tg2" in page
    assert "unexplained" in page and "- MISS" in page


def test_a_report_tells_threads_and_routing_of_the_run_and_no_run_mixes_routings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "none.jsonl")
    about = {"description": "", "machine": {}, "build": "llama-cpp-python==0", "python": "3", "date": "", "command": ""}
    journal.add("machine", **about, threads=123)
    journal.add("size", model=MODEL, file=4, experts=3, expert=1.0, dense=1, routing="routing of yesterday")
    cell = cells.cells(replace(SCOPE, device="none"))[0]
    sample = {"ns": [1, 2], "first_ns": [1], "between_ns": [1], "computing_ns": 1, "sampling_ns": 0, "scheduler_ns": 0}
    for contender in cell.contenders:
        told = {"contender": contender.name, "repetition": 0, "stats": STATS if contender.ours else None}
        journal.add("sample", cell=cell.key, model=MODEL, **told, **sample)
    asked = ["--device", "none", "--folder", str(tmp_path), "--models", MODEL, "--shares", "25", "--layers", "1"]
    asked += ["--generate", "2", "--prompts", "4,8", "--first", "3", "--depth", "8"]
    monkeypatch.setattr(sys, "argv", ["gpu", *asked, "--report"])
    assert command.main() == 0
    page = (tmp_path / "table.md").read_text()
    assert "Threads: 123" in page and "Decode: routing of yesterday." in page
    assert not list(tmp_path.glob("*.gguf")), "a report needs no twin"
    with wide_model(tmp_path) as path:
        monkeypatch.setattr(command.twin, "build", lambda *_: path)
        monkeypatch.setattr(command, "Session", lambda *_: SimpleNamespace(run=lambda todo, model: model(MODEL)))
        monkeypatch.setattr(sys, "argv", ["gpu", *asked])
        assert command.main() == 1
        assert "measured with another routing: routing of yesterday; now it is SYNTHETIC" in capsys.readouterr().err


def test_only_a_whole_model_on_a_gpu_is_published(tmp_path: Path) -> None:
    assert not any(map(devices.is_a_gpu, ["sim", "RPC0", "Vulkan0", "CUDA0"], ["x", "x", "llvmpipe (LLVM)", ""]))
    assert devices.is_a_gpu("CUDA0", "NVIDIA H200")
    page = tmp_path / "benchmarks.md"
    page.write_text(f"How to run it.\n\n{command.MARK}\n\nold figures\n")
    command.publish(page, "new figures\n")
    assert page.read_text() == f"How to run it.\n\n{command.MARK}\n\nnew figures\n"


def test_setup_reports_a_backend_that_does_not_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.kind_of("CUDA0") == "CUDA" and build.kind_of("none") == ""
    libraries = {"vulkan": tmp_path / "libggml-vulkan.so"}

    def compiled(order: Order) -> Result:
        if order.kind not in libraries:
            raise Missing("there is no hipcc", "install ROCm")
        return Result(libraries[order.kind], ())

    monkeypatch.setattr(build, "compiled", compiled)
    monkeypatch.setattr(sys, "argv", ["build", "Vulkan", "ROCm", "--folder", str(tmp_path)])
    build.main()
    said = capsys.readouterr().out.splitlines()
    assert said == [f"Vulkan: {libraries['vulkan']}", "ROCm: not compiled here: there is no hipcc; install ROCm"]
    monkeypatch.setattr(build, "nvidia_driver", NvidiaDriver)
    with pytest.raises(ConfigError, match="no card to compile CUDA for"):
        build.build("CUDA", tmp_path)


def test_a_small_twin_keeps_the_experts() -> None:
    whole, small = twin.TWINS["deepseek-v2-lite"], twin.small(twin.TWINS["deepseek-v2-lite"], 3)
    assert small.keys["block_count"] == 4, "one dense layer before those with experts"
    assert {key: value for key, value in whole.keys.items() if small.keys[key] != value} == {"block_count": 27}
    assert command._size("deepseek-v2-lite", 3).experts * 26 == command._size("deepseek-v2-lite", 0).experts * 3


# ---- a lease ----


def test_a_card_holds_the_experts_that_fit_beside_all_else() -> None:
    size = Size(file=20 * 10**9, experts=16 * 10**9, token=0)
    shares = [cells.share_in(gigabytes * 1e9, size) for gigabytes in (4, 6, 14, 22, 80)]
    assert shares == [0.0, 0.0, 50.0, 100.0, 100.0], "4 GB of dense part and 2 GB of reserve come first"


def test_every_cell_has_a_topic_and_some_can_be_chosen() -> None:
    scope = Scope("CUDA0")
    topics = [cells.topic(scope, cell) for cell in cells.cells(scope)]
    assert set(topics) == set(cells.TOPICS)
    assert topics[:3] == ["decode", "first", "prompts"], "the bars are measured first"


def test_routing_of_a_machine_with_traces_serves_one_without(tmp_path: Path) -> None:
    ids = routing.synthetic(20, 4, 8, 2)
    made = routing.Routing("recorded", ids, np.arange(20, dtype=np.int32), np.ones((4, 8), dtype=np.float32))
    routing.save(made, tmp_path / "routing.npz")
    whole, short = routing.load(tmp_path / "routing.npz"), routing.load(tmp_path / "routing.npz", 2)
    assert np.array_equal(whole.ids, ids) and whole.source == "recorded"
    assert np.array_equal(short.ids, ids[:, :2]) and short.heat.shape == (2, 8)


def test_packages_are_packed_without_the_files_of_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "PACKAGES", ("llama-cpp-python", "platformdirs"))
    monkeypatch.setattr(pack, "NEEDLESS", (*pack.NEEDLESS, "libllama", "libggml-cpu"))  # large ones
    pack.packages(tmp_path / "site.tar.xz")
    with tarfile.open(tmp_path / "site.tar.xz") as archive:
        names = {member.name: member for member in archive.getmembers()}
    assert {"llama_cpp/llama.py", "platformdirs/__init__.py"} <= set(names)
    libraries = [member for name, member in names.items() if "libggml-base" in name]
    assert sum(member.isfile() for member in libraries) == 1 and all(m.isfile() or m.issym() for m in libraries)
    assert not any(name.endswith((".h", ".hpp", ".cmake")) or name.startswith("..") for name in names)


def test_too_much_for_the_machine_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backend.tar.xz").write_bytes(b"x" * 4096)
    assert pack.report(tmp_path) == 0
    monkeypatch.setattr(pack, "LIMIT", 4096)
    assert pack.report(tmp_path) == "that is more than the machine takes"


def test_copies_run_beside_a_command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PIECE", 1 << 16)
    monkeypatch.setattr(sys, "argv", ["load", "--copiers", "1", "--", sys.executable, "-c", "print('ran'); exit(3)"])
    assert load.main() == 3
    assert "ran" in (said := capfd.readouterr().out) and "GB/s copied" in said


@pytest.mark.parametrize(("options", "code"), [(["--only", "nothing"], 0), (["--what"], 2)])
def test_the_script_of_a_lease_runs(options: list[str], code: int, tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "bench" / "gpu" / "lease.sh"
    command = ["bash", str(script), "--device", "sim", "--seconds", "60", "--archive", str(tmp_path), *options]
    done = subprocess.run(command, env=os.environ | {"OUT": str(tmp_path / "out")}, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert code or ((tmp_path / "out" / "lease.log").exists() and (tmp_path / "out" / "results.tar.gz").exists())
