"""Limits of a process: containers, quotas and affinity, in trees that replace /proc and /sys."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from edgemoe import Llama, OffloadConfig, control_groups, limits
from edgemoe.cli.main import main
from edgemoe.config import Budget
from edgemoe.engine import opening
from edgemoe.planning.placement import MachineRates, ModelNeeds, place
from edgemoe.profiling import figures
from edgemoe.types import ModelShape
from edgemoe.worker import EngineDied, Worker, open_llama, parent
from edgemoe.worker.parent import _cause
from tests import parity
from tests.zoo import build

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
CPU = OffloadConfig(device="none", profile="off")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a tree of a machine with eight processors on four cores and 32 GiB."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * GIB, available=20 * GIB))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def topology() -> dict[str, str]:
    folder = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {folder.format(number): f"{number % 4},{number % 4 + 4}" for number in range(8)}


def test_a_whole_machine(tmp_path: Path) -> None:
    assert limits.processors(tree(tmp_path, topology())) == limits.Processors(8, 4)
    assert limits.memory(tmp_path) == limits.Memory(32 * GIB, 20 * GIB)


@pytest.mark.parametrize(("quota", "logical"), [("100000 100000", 1), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_quota_rounds_down_and_says_so(quota: str, logical: int, tmp_path: Path) -> None:
    tree(tmp_path, topology() | {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": quota})
    found = limits.processors(tmp_path)
    assert (found.logical, found.physical) == (logical, logical)
    assert f"{int(quota.split()[0]) / 100000:g} of 8 processors" in found.reason


def test_a_group_above_limits_too_and_a_namespace_hides_paths(tmp_path: Path) -> None:
    above = tree(tmp_path / "a", {"proc/self/cgroup": "0::/pod/box", "sys/fs/cgroup/pod/box/cpu.max": "max 100000"})
    tree(above, {"sys/fs/cgroup/pod/cpu.max": "200000 100000"} | topology())
    assert limits.processors(above).logical == 2
    hidden = tree(tmp_path / "b", {"proc/self/cgroup": "0::/../../host/path", "sys/fs/cgroup/cpu.max": "100000 100000"})
    assert limits.processors(hidden).logical == 1


def test_version_1(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(4 * GIB),
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 * GIB),
            "sys/fs/cgroup/memory/box/memory.stat": f"cache 1\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
        },
    )
    assert limits.processors(tmp_path).logical == 1
    found = limits.memory(tmp_path)
    assert (found.total, found.available) == (4 * GIB, 3 * GIB) and "4.0 GiB" in found.reason


def test_a_memory_limit_counts_pages_that_can_be_dropped(tmp_path: Path) -> None:
    box = "sys/fs/cgroup/box/"
    files = {"memory.max": str(8 * GIB), "memory.high": "max", "memory.current": str(7 * GIB)}
    stat = f"anon {GIB}\ninactive_file {4 * GIB}\nactive_file {GIB}"
    tree(tmp_path, {"proc/self/cgroup": "0::/box", box + "memory.stat": stat})
    tree(tmp_path, {box + name: text for name, text in files.items()})
    assert limits.memory(tmp_path) == limits.Memory(8 * GIB, 6 * GIB, "the container may use 8.0 GiB of RAM")


def test_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    found = limits.processors(tree(tmp_path, topology()))
    assert (found.logical, found.physical) == (3, 2) and "3 of 8" in found.reason


def test_only_quick_cores_of_a_hybrid_processor(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {folder.format(number): f"{number // 2 * 2}-{number // 2 * 2 + 1}" for number in range(4)}
    files |= {folder.format(number): str(number) for number in range(4, 8)}
    tree(tmp_path, files | {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"})
    assert limits.processors(tmp_path) == limits.Processors(8, 2)


def test_unknown_cores_are_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else None)
    assert limits.processors(tmp_path).physical == 4


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpuset.cpus.effective": "1,5-6"},
        {"proc/self/cgroup": "3:cpuset:/box", "sys/fs/cgroup/cpuset/box/cpuset.effective_cpus": "1,5-6"},
    ],
    ids=["v2", "v1"],
)
def test_a_cpuset(files: dict[str, str], tmp_path: Path) -> None:
    found = limits.processors(tree(tmp_path, topology() | files))
    assert (found.logical, found.physical) == (3, 2) and "3 of 8" in found.reason


def test_a_cpuset_and_an_affinity_that_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    files = {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpuset.cpus.effective": "4-7"}
    assert limits.processors(tree(tmp_path, topology() | files)).logical == 1


# ---- memory that may be locked or pinned ----


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_memory_that_may_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (8 << 20, resource.RLIM_INFINITY))
    ordinary = tree(tmp_path / "a", {"proc/self/status": "Name:\tpython\nCapEff:\t0000000000000000"})
    root = tree(tmp_path / "b", {"proc/self/status": "Name:\tpython\nCapEff:\t000001ffffffffff"})
    assert limits.lockable(ordinary) == 8 << 20 and limits.lockable(root) is None
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert limits.lockable(ordinary) is None


def test_what_is_not_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "lockable", lambda: 1 << 16)
    for asked in (False, True):
        llm = Llama(build("llama", tmp_path), n_ctx=64, n_threads=1, use_mlock=asked, offload=CPU)
        assert any(note.startswith("use_mlock=True: this process may lock 0 of") for note in llm.experts.notes) == asked
        llm.close()


NEEDS = ModelNeeds(ModelShape(10, 10, 2, (GIB // 10,) * 10), 10, GIB, GIB, GIB // 2, width=64, expert_width=64)
CARD = MachineRates("CUDA0", 6 * GIB, 6 * GIB, ram_total_bytes=64 * GIB)


@pytest.mark.parametrize(
    ("free", "least", "most"), [(60, 9.99, 10), (14, 9.7, 9.9), (9, 6, 6.3), (6, 0, 2.5), (4, 0, 0)]
)
def test_pages_are_pinned_as_far_as_all_else_fits_beside_them(free: int, least: float, most: float) -> None:
    machine = replace(CARD, ram_free_bytes=free * GIB)
    placed = place(machine, NEEDS, 512, Budget())
    pinned = opening.pin_bytes(NEEDS, placed, machine)
    assert least * GIB <= pinned <= most * GIB
    hot = placed.hot_bytes / NEEDS.expert_bytes
    assert not pinned or placed.ram_private_bytes + placed.ram_mapped_bytes + hot * pinned <= free * GIB


def test_nothing_is_pinned_without_a_device_or_experts() -> None:
    machine = replace(CARD, ram_free_bytes=60 * GIB)
    placed = place(machine, NEEDS, 512, Budget())
    assert opening.pin_bytes(replace(NEEDS, shape=None), placed, machine) == 0
    assert opening.pin_bytes(NEEDS, placed, replace(machine, device="")) == 0


@pytest.mark.parametrize(("layers", "direct"), [(0, False), (1, True), (99, True)])
def test_layers_are_pinned_one_by_one(
    layers: int, direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build("llama", tmp_path)
    outcome = parity.ours(path, share=50)
    assert outcome.stats.direct_bytes
    size: list[int] = []

    def pinned(model: ModelNeeds, placed: Any, machine: MachineRates) -> int:
        assert model.shape is not None
        size.append(max(model.shape.expert_bytes) * model.shape.experts)
        return size[0] * layers + size[0] // 2

    monkeypatch.setattr(opening, "pin_bytes", pinned)
    some = parity.ours(path, share=50)
    assert some.tokens == outcome.tokens and bool(some.stats.direct_bytes) == direct
    assert (some.stats.direct_bytes < outcome.stats.direct_bytes) == (layers < 2)


# ---- a model in a box ----


def boxed(root: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Let the process be in a control group with these files."""
    tree(root, topology() | {"proc/self/cgroup": "0::/box"})
    tree(root, {f"sys/fs/cgroup/box/{name.replace('_', '.')}": text for name, text in files.items()})
    monkeypatch.setattr(limits, "processors", partial(limits.processors, root))
    monkeypatch.setattr(limits, "memory", partial(limits.memory, root))


@pytest.mark.parametrize(("quota", "threads"), [("50000 100000", 1), ("100000 100000", 1), ("250000 100000", 2)])
def test_a_model_takes_no_more_threads_than_the_quota(
    quota: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxed(tmp_path / "box", monkeypatch, cpu_max=quota)
    llm = Llama(build("llama", tmp_path), n_ctx=64, offload=CPU)
    assert llm.n_threads == llm.n_threads_batch == threads == figures.physical_cores()
    assert any(note.startswith("The container may use") and "of 8 processors" in note for note in llm.experts.notes)
    llm.close()


def test_a_memory_limit_decides_the_plan_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build("llama", tmp_path)
    size = path.stat().st_size
    boxed(tmp_path / "box", monkeypatch, memory_max=str(size // 2), memory_current="0", memory_stat="inactive_file 0")
    assert main(["fit", str(path), "--quick", "--device", "none"]) == 4
    assert "RAM is too small" in capsys.readouterr().out
    llm = Llama(path, n_ctx=64, n_threads=1, offload=replace(CPU, device="sim", vram=0))
    llm.eval([1, 2, 3])
    said = " ".join(llm.experts.notes)
    assert "The container may use" in said and "of RAM" in said and "RAM is too small" in said
    llm.close()
    assert figures.machine()["ram_bytes"] == size // 2
    assert _cause(-signal.SIGKILL, "", True)[0].startswith("memory ran out (the container may use")


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/memory.events": "low 0\noom 7\noom_kill 2"}, 2),
        ({"proc/self/cgroup": "4:memory:/box", "sys/fs/cgroup/memory/box/memory.oom_control": "oom_kill 3"}, 3),
        ({"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": "max 100000"}, 5),
    ],
    ids=["v2", "v1", "none"],
)
def test_kills_are_counted_in_the_own_group(files: dict[str, str], kills: int, tmp_path: Path) -> None:
    assert control_groups.memory_kills(tree(tmp_path, files | {"proc/vmstat": "oom_kill 5"})) == kills
    assert control_groups.memory_kills(tmp_path / "nothing") == 0


@pytest.mark.parametrize("here", [True, False], ids=["in this container", "in another container"])
def test_an_engine_that_a_memory_limit_killed_says_so(
    here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = tmp_path / "box"
    boxed(box, monkeypatch, memory_max=str(600 << 20), memory_current="0", memory_events="oom_kill 4")
    tree(box, {"proc/vmstat": "oom_kill 4"})
    monkeypatch.setattr(parent, "memory_kills", partial(control_groups.memory_kills, box))
    opener = partial(open_llama, str(build("llama", tmp_path)), n_ctx=64, n_threads=1, offload=CPU)
    engine = Worker(opener).open(lambda: None)
    tree(box, {"sys/fs/cgroup/box/memory.events" if here else "proc/vmstat": "oom_kill 5"})
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDied) as died:
        list(engine.create_chat_completion([{"role": "user", "content": "a"}]))
    said = str(died.value)
    assert said.startswith("memory ran out (the container may use 0.6 GiB of RAM)" if here else "the engine was killed")
    engine.close()


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """Make a control group with 300 MiB of memory."""
    above = next((folder for folder in control_groups.folders("memory") if (folder / "memory.stat").exists()), None)
    group = (above or Path("/nowhere")) / f"edgemoe-{os.getpid()}"
    try:
        group.mkdir()
        limit = next(group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists())
        limit.write_text(str(300 << 20))
        for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            if (group / name).exists():
                (group / name).write_text("0" if "swap.max" in name else str(300 << 20))
    except (OSError, StopIteration):
        pytest.skip("this user cannot make a control group")
    yield group
    group.rmdir()


def test_a_real_limit_kills_a_real_engine(memory_group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import operator, os, sys
from functools import partial
from pathlib import Path
Path(sys.argv[1]).write_text(str(os.getpid()))
from edgemoe.worker import Worker
try:
    Worker(partial(operator.mul, b"x", 1 << 30)).open(lambda: None)
except Exception as error:
    print(type(error).__name__, error)
"""
    monkeypatch.undo()  # the machine itself
    command = [sys.executable, "-c", code, str(memory_group / "cgroup.procs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("EngineDied memory ran out (the container may use 0.3 GiB of RAM): the kernel ended")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="no affinity here")
def test_on_one_of_several_processors_one_thread(tmp_path: Path) -> None:
    code = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from edgemoe import Llama, OffloadConfig
llm = Llama(sys.argv[1], n_ctx=64, offload=OffloadConfig(device="none", profile="off"))
print(llm.n_threads, llm.n_threads_batch, *llm.experts.notes)
llm.close()
"""
    path = build("llama", tmp_path)
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 1 ") and "This process may run on 1 of" in done.stdout
