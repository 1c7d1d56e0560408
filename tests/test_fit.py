"""``edgemoe fit``: the forecast's arithmetic, the command, and headers on a hub."""

from __future__ import annotations

import json
import mmap
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.cli import fit
from edgemoe.cli.main import main
from edgemoe.config import Budget, OffloadConfig
from edgemoe.errors import BadGguf, EdgeMoEError
from edgemoe.machine import hardware, trial_run, truncated_model
from edgemoe.models import gguf
from edgemoe.models.hub import RemoteFile, plan_download
from edgemoe.models.hub.ranges import opened
from edgemoe.models.remote_header import MOST_BYTES, Part, header_from
from edgemoe.planning import model_needs
from edgemoe.planning.forecast import BAND, Run, forecast, from_runs, hit_rate, step_seconds
from edgemoe.planning.placement import GIB, MachineRates, ModelNeeds, place
from edgemoe.planning.typical import typical_hit_rate
from edgemoe.types import ModelShape
from tests.hub_server import HubServer, Repository, Sparse
from tests.routing import wide_model
from tests.zoo import ARCHITECTURES, build

MODEL = ModelNeeds(ModelShape(10, 32, 4, (1_000_000,) * 10), 10, 10**8, 10**8, 10**8, 5 * 10**7, 10**6)
MACHINE = MachineRates(
    "CUDA0", 8 * GIB, 8 * GIB, 32 * GIB, 32 * GIB, 8, 8, cpu_expert_rate=1e10, cpu_operation_rate=1e11,
    upload_pinned_rate=2e10, device_rate=1e11, device_operation_rate=1e13, join_ns=50_000.0,
)  # fmt: skip


def test_a_step_is_the_sum_of_its_parts() -> None:
    dense = 10**8 / 1e11
    assert step_seconds(MACHINE, MODEL, 40, 0, 0) == pytest.approx(dense + 40e6 / 1e11 + 10 * 50e-6)
    assert step_seconds(MACHINE, MODEL, 0, 40, 0) == pytest.approx(dense + 40e6 / 1e10), "no hit, no join"
    assert step_seconds(MACHINE, MODEL, 20, 20, 0) == pytest.approx(dense + 20e6 / 1e10 + 10 * 50e-6), "at once"
    assert step_seconds(MACHINE, MODEL, 40, 0, 1000) == pytest.approx(1e9 / 2e10), "the link is the limit"


def test_a_simulated_device_shares_the_cores() -> None:
    sim = replace(MACHINE, device_is_cpu=True, device_rate=1e10, cores=2, threads=2, device_dense_rate=1e11)
    alone = step_seconds(sim, MODEL, 20, 0, 0)
    both = step_seconds(sim, MODEL, 20, 20, 0)
    assert alone is not None and both is not None and both - alone == pytest.approx(20e6 / 1e10 / 2)
    apart = step_seconds(replace(sim, cores=3), MODEL, 20, 20, 0)
    assert apart is not None and both - apart == pytest.approx(20e6 / 1e10 / 2)


def test_what_was_not_measured_is_not_invented() -> None:
    bare = MachineRates("CUDA0", 8 * GIB, 8 * GIB, 32 * GIB, 32 * GIB)
    expected = forecast(bare, MODEL, place(bare, MODEL, 512, Budget()), 0.9)
    assert expected.decode is None and expected.prefill is None
    assert step_seconds(replace(MACHINE, join_ns=None), MODEL, 1, 0, 0) is None
    assert step_seconds(replace(MACHINE, cpu_expert_rate=None), MODEL, 40, 0, 0) is not None, "it is not needed"


def test_more_memory_and_more_hits_are_never_slower() -> None:
    speeds, machine = [], replace(MACHINE, device_rate=1e12)
    for share in np.linspace(0, 1, 9):
        made = place(machine, MODEL, 512, Budget(share=float(share)))
        decode = forecast(machine, MODEL, made, hit_rate(made, MODEL, None)).decode
        assert decode is not None
        speeds.append(decode)
    assert speeds[1:] == sorted(speeds[1:]) and speeds[-1] > 2 * speeds[0]


def test_hit_rates_are_typical_until_the_model_is_known() -> None:
    made = place(MACHINE, MODEL, 512, Budget(share=0.5))
    assert hit_rate(made, MODEL, None) == pytest.approx(typical_hit_rate(0.5), abs=0.01)
    even, one = np.ones((10, 32), dtype=np.float32), np.eye(10, 32, dtype=np.float32)
    assert hit_rate(made, MODEL, even) == pytest.approx(0.5, abs=0.04) and hit_rate(made, MODEL, one) == 1.0
    assert hit_rate(place(MACHINE, MODEL, 512, Budget(bytes=0)), MODEL, one) == 0.0


def test_a_disk_that_must_be_read_slows_down() -> None:
    poor = replace(MACHINE, device="", ram_free_bytes=300 << 20, disk_rate=1e9)
    made = place(poor, MODEL, 512, Budget())
    expected = forecast(poor, MODEL, made, 0.0)
    assert not made.fits and expected.prefill is not None
    assert expected.prefill <= 512 / (made.ram_short_bytes / 1e9), "a prompt reads the missing experts once"
    rich = replace(MACHINE, device="")
    enough = forecast(rich, MODEL, place(rich, MODEL, 512, Budget()), 0.0)
    assert expected.decode is not None and enough.decode is not None and 1 < expected.decode < enough.decode


def test_every_further_layer_costs_the_same() -> None:
    made = place(MACHINE, MODEL, 512, Budget(share=0.5))
    runs = [Run(1, 0.3, 0.002), Run(4, 0.6, 0.005)]
    found = from_runs(runs, MACHINE, MODEL, made, 0.8)  # 10 layers
    assert found.prefill == pytest.approx(512 / 1.2) and found.decode == pytest.approx(1 / 0.011)
    assert found.band == BAND <= 0.25 and found.hit_rate == 0.8
    whole = from_runs([Run(10, 0.3, 0.002)], MACHINE, MODEL, made, 0.8)
    assert whole.decode == pytest.approx(500) and whole.prefill == pytest.approx(512 / 0.3)
    odd = from_runs([Run(1, 0.3, 0.005), Run(4, 0.3, 0.004)], MACHINE, MODEL, made, 0.8)
    assert odd.decode == pytest.approx(250), "more layers never take less time"


def test_a_run_does_not_hide_the_disk() -> None:
    poor = replace(MACHINE, device="", ram_free_bytes=300 << 20, disk_rate=1e9)
    made, runs = place(poor, MODEL, 512, Budget()), [Run(10, 0.3, 0.002)]
    found = from_runs(runs, poor, MODEL, made, 0.0)
    assert found.prefill == pytest.approx(512 / max(0.3, made.ram_short_bytes / 1e9))
    assert found.decode is not None and found.decode < 250, "without the disk it would be 500"
    assert from_runs(runs, replace(poor, disk_rate=None), MODEL, made, 0.0).decode is None


# Copies of few layers.


def test_copies_are_as_long_as_memory_allows(model: Path) -> None:
    file = gguf.read(model)
    whole = sum(tensor.bytes for tensor in file.tensors.values())
    layers, experts = 4, 32
    assert truncated_model.copies(file, 2 * whole) == [(layers, experts)]
    assert truncated_model.copies(file, int(0.8 * whole)) == [(1, experts), (3, experts)]
    (_, fewest), (longest, fewer) = truncated_model.copies(file, whole // 8)
    assert longest == 2 and 2 * 4 <= fewer == fewest < experts, "fewer experts before no layer at all"
    grouped = replace(file, metadata=file.metadata | {"qwen3moe.expert_group_count": 16})
    assert {count for _, count in truncated_model.copies(grouped, 1)} == {16}, "whole groups, and an end to it"


def test_without_a_place_for_a_copy_rates_are_all_there_is(
    model: Path, rates: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGEMOE_HOME", str(tmp_path / "file"))
    found = fit.assess(gguf.check(model), "", OffloadConfig(), 512)
    assert found["forecast"]["band"] is None and found["forecast"]["decode"] > 0


@pytest.mark.parametrize(
    "name", [*ARCHITECTURES[:3], *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES[3:])]
)
def test_llama_cpp_runs_a_copy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_HOME", str(tmp_path / "home"))
    file = gguf.check(build(name, tmp_path))
    bare = MachineRates("sim", 8 * GIB, 8 * GIB, 8 * GIB, 8 * GIB)
    placed = place(bare, model_needs.of(file), 512, Budget(share=0.5))
    whole = sum(tensor.bytes for tensor in file.tensors.values())
    runs = trial_run.run(file, "sim", placed, 0.5, 1, int(0.95 * whole / trial_run.RAM_SHARE))
    assert runs and all(run.prefill_s > 0 and run.decode_s > 0 for run in runs)
    assert [run.layers for run in runs] == sorted({run.layers for run in runs})
    assert not list((tmp_path / "home").rglob("*.gguf")), "nothing stays on the disk"


def test_a_made_up_trace_has_the_hit_rate_asked_for() -> None:
    resident = np.zeros((3, 32), dtype=bool)
    resident[:, 5:20] = True
    for rate in (0.0, 0.3, 1.0):
        ids = trial_run.routes(resident, 4, 400, rate, np.random.default_rng(0))
        assert all(len(set(row)) == 4 for row in ids.reshape(-1, 4).tolist())
        assert resident[0, ids].mean() == pytest.approx(rate, abs=0.03)
    assert trial_run.routes(np.ones((1, 4), dtype=bool), 4, 2, 0.0, np.random.default_rng(0)).shape == (2, 1, 4)


# The command.


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Give a machine without measuring it."""
    found = {"cpu_expert_rate": 1e10, "cpu_operation_rate": 1e11, "device_rate": 1e10, "join_ns": 1e4}
    found |= {"upload_pageable_rate": 1e10, "device_operation_rate": 1e11, "disk_rate": 1e9}
    monkeypatch.setattr(hardware, "measure", lambda *arguments, **keywords: dict(found))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with wide_model(tmp_path_factory.mktemp("fit")) as path:
        yield path


def test_json_says_where_everything_goes(
    model: Path, rates: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(model), "--device", "sim", "--vram", "50%", "--ctx", "1024", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "edgemoe.fit.v1" and found["routing"] == "typical"
    weights = sum(tensor.bytes for tensor in gguf.read(model).tensors.values())
    assert found["model"]["dense_bytes"] + found["model"]["expert_bytes"] == weights
    assert found["plan"]["slots"] == [16] * 4 and found["plan"]["kv_bytes"] == found["model"]["kv_bytes"]
    for test in ("prefill", "decode"):
        assert found["forecast"][test] > 0 and found["forecast"]["band"] == BAND
    assert "--n-cpu-moe 2" in found["llama_cpp"] and "-ngl 99 " in found["llama_cpp"]


def test_people_read_a_table_and_a_verdict(
    model: Path, rates: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(model), "--device", "none"]) == 0
    out = capsys.readouterr().out
    assert "It fits: everything in RAM" in out and "| KV cache, 512 tokens, f16" in out and "-ngl 0" in out
    assert "512 context, all that the model was trained for, about " in out


def test_the_cache_that_is_asked_for_is_planned(
    model: Path, rates: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["fit", str(model), "--device", "sim", "--json", "--quick"]

    def found(*more: str) -> Any:
        assert main([*options, *more]) == 0
        return json.loads(capsys.readouterr().out)

    plain, small = found("--ctx", "1024"), found("--ctx", "1024", "--kv", "q8_0")
    assert plain["context"]["types"] == ["f16", "f16"] and not plain["context"]["flash"]
    assert "trained for" in plain["context"]["note"] and not plain["context"]["automatic"]
    assert small["plan"]["kv_bytes"] * 32 == plain["plan"]["kv_bytes"] * 17
    assert "-fa on -ctk q8_0 -ctv q8_0" in small["llama_cpp"] and "-fa off" in plain["llama_cpp"]
    assert found("--ctx", "1024", "--kv", "q8_0,f16", "--flash", "off")["context"]["types"] == ["q8_0", "f16"]
    assert main([*options, "--kv", "q4_0", "--flash", "off"]) == 2
    assert "needs flash attention" in capsys.readouterr().err


def test_what_does_not_fit_has_an_exit_code(
    model: Path, rates: dict[str, float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "machine", lambda device, threads: MachineRates(ram_free_bytes=4 << 20))
    assert main(["fit", str(model), "--device", "none", "--ctx", "256"]) == 4
    out = capsys.readouterr().out
    assert "RAM is too small" in out and "It fits" not in out


def test_what_the_disk_costs_is_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = place(MachineRates(ram_free_bytes=GIB), model_needs.of(gguf.read(model)), 512, Budget())
    poor = MachineRates(ram_free_bytes=asked.ram_private_bytes + asked.ram_mapped_bytes // 2)
    monkeypatch.setattr(hardware, "machine", lambda device, threads: poor)
    monkeypatch.setattr(hardware, "disk_rate", lambda folder: 1e9)
    found = fit.assess(gguf.check(model), "", OffloadConfig(), 512)
    assert not found["plan"]["fits"] and "s per token" in found["verdict"] and found["forecast"]["decode"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["missing.gguf"], 3, "no file"),
        (["{model}", "--device", "CUDA9"], 2, "CUDA9"),
        (["{model}", "--vram", "much"], 2, "not a size"),
        (["{model}", "--ctx", "0"], 2, "--ctx"),
    ],
)
def test_refusals(arguments: list[str], code: int, says: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *(argument.format(model=model) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert says in error and error.count("error:") == 1


def test_a_dense_model_is_planned_too(tmp_path: Path, rates: dict[str, float]) -> None:
    file = gguf.read(build("llama", tmp_path))
    without = replace(file, tensors={n: t for n, t in file.tensors.items() if not gguf.EXPERTS.match(n)})
    found = fit.assess(without, "sim", OffloadConfig(), 512)
    assert found["model"]["experts"] == 0 and found["plan"]["slots"] == () and found["forecast"]["decode"]
    assert found["forecast"]["band"] is None, "llama.cpp runs no such file: rates are all there is"


# Headers from afar.


class Ranges(BaseHTTPRequestHandler):
    """Serve a file in parts, and count the served bytes."""

    path_of_file: Path
    given = 0

    def do_GET(self) -> None:
        first, last = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
        with self.path_of_file.open("rb") as stream:
            stream.seek(first)
            data = stream.read(last - first + 1)
        type(self).given += len(data)
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Drop log lines."""


@contextmanager
def served(path: Path) -> Iterator[tuple[Any, type[Ranges]]]:
    handler = type("Handler", (Ranges,), {"path_of_file": path})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def read_range(offset: int, length: int) -> bytes:
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        url = f"http://127.0.0.1:{server.server_port}/model"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            data: bytes = answer.read()
            return data

    try:
        yield read_range, handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def grown(path: Path, target: Path, size: int, vocabulary: int) -> Path:
    """Write a model with a long vocabulary and a last tensor that ends at ``size``. The weights are a hole."""
    from gguf import GGUFReader, GGUFWriter

    source = GGUFReader(path)
    writer = GGUFWriter(target, "qwen3moe")
    for field in source.fields.values():
        if field.name.startswith("qwen3moe.") and len(field.types) == 1:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_array("general.tags", [f"a token of the vocabulary, the {i}th" for i in range(vocabulary)])
    for tensor in source.tensors:
        writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.n_bytes, tensor.tensor_type)
    rows = size // 4096
    writer.add_tensor_info("big.weight", (rows, 1024), np.dtype(np.float32), rows * 4096)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(target, target.stat().st_size + sum(t.n_bytes + 64 for t in source.tensors) + rows * 4096 + 4096)
    return target


def test_a_header_is_read_without_its_20_gigabytes(model: Path, tmp_path: Path) -> None:
    path = grown(model, tmp_path / "big.gguf", 20 * 10**9, 150_000)
    assert path.stat().st_size > 20 * 10**9
    with served(path) as (read_range, handler):
        file = header_from([Part("big.gguf", path.stat().st_size, read_range)])
        assert 4 << 20 < handler.given <= MOST_BYTES < 32 << 20
    assert file.tensors == gguf.read(path).tensors and file.path == Path("big.gguf")
    assert model_needs.of(file) == model_needs.of(gguf.read(path))


def test_a_small_file_is_read_whole_and_once(model: Path) -> None:
    with served(model) as (read_range, handler):
        header_from([Part("model.gguf", model.stat().st_size, read_range)])
        assert handler.given <= model.stat().st_size


@pytest.mark.parametrize("content", [b"<html>no such file</html>" * 100_000, b"GGUF" + bytes(60 << 20), b"GG"])
def test_what_is_no_header_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    reads = []

    def read_range(offset: int, length: int) -> bytes:
        reads.append(length)
        return content[offset : offset + length]

    with pytest.raises(BadGguf, match=r"model\.gguf"):
        header_from([Part("model.gguf", len(content), read_range)])
    assert sum(reads) <= MOST_BYTES


# Models of the hub.

REPO, NAME = "someone/Big-MoE-GGUF", "Big-MoE-Q4_K_M.gguf"
ENTRY = """
[[model]]
id = "big-moe"
name = "Big MoE"
family = "Big"
licence = "MIT"
description = "Made up."
total_parameters = 1_000
active_parameters = 1_000
layers = 4
experts = 32
experts_used = 4
expert_layers = 4
context = 512
width = 64
expert_width = 64
vocabulary = 99
source = "made up"
checked = "2026-11-23"

[[model.variants]]
quantisation = "Q4_K_M"
repository = "{repo}"
source = "made up"
checked = "2026-11-23"
files = [{{ name = "{name}" }}]
"""


def split(model: Path, folder: Path) -> list[bytes]:
    """Give a model in two shards: metadata and the first half of the tensors, then the other half."""
    from gguf import GGUFReader, GGUFWriter

    source, shards = GGUFReader(model), []
    half = len(source.tensors) // 2
    for number, tensors in enumerate((source.tensors[:half], source.tensors[half:])):
        path = folder / f"{number}.gguf"
        writer = GGUFWriter(path, "qwen3moe")
        for field in source.fields.values() if number == 0 else ():
            if field.name.startswith(("qwen3moe.", "tokenizer.")) and len(field.types) == 1:
                writer.add_key_value(field.name, field.contents(), field.types[0])
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        shards.append(path.read_bytes())
    return shards


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.serve_client(monkeypatch, tmp_path)
        yield server


def test_a_repository_of_20_gigabytes_is_judged_by_its_header(
    model: Path, hub: HubServer, rates: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = grown(model, tmp_path / "big.gguf", 20 * 10**9, 150_000)
    with path.open("rb") as stream, Sparse(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        hub.repositories[REPO] = Repository({NAME: content})
        code = main(["fit", f"{REPO}:Q4_K_M", "--device", "none", "--ctx", "512", "--quick", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["plan"]["fits"] else 4)
    assert found["model"]["file"] == NAME and found["model"]["expert_layers"] == 4
    assert found["model"]["dense_bytes"] > 19 * 10**9
    ranges = [r.range.removeprefix("bytes=").split("-") for r in hub.asked("/cdn/")]
    assert sum(int(last) - int(first) + 1 for first, last in ranges) < 32 << 20
    assert not list((tmp_path / "hub").rglob("*.gguf")), "nothing was downloaded"


def test_shards_on_the_hub_are_one_model(
    model: Path, hub: HubServer, rates: dict[str, float], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]
    hub.repositories[REPO] = Repository(dict(zip(names, split(model, tmp_path), strict=True)))
    options = ["--device", "none", "--ctx", "512", "--ram-free", "8GiB", "--json"]
    assert main(["fit", f"{REPO}:Q8_0", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["fit", str(model), *options]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert found["plan"] == alone["plan"] and found["forecast"]["band"] == BAND, "copies need the header only"


def test_offline_only_files_on_the_disk_can_be_judged(
    model: Path, hub: HubServer, rates: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    hub.repositories[REPO] = Repository({NAME: model.read_bytes(), "Big-MoE-Q8_0.gguf": model.read_bytes()})
    assert main(["pull", f"{REPO}:Q4_K_M"]) == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    for name in (f"{REPO}:Q4_K_M", REPO):
        assert main(["fit", name, "--device", "none", "--ctx", "512", "--quick"]) == 0
    assert main(["fit", f"{REPO}:Q8_0", "--device", "none", "--quick"]) == 3
    assert not hub.requests and "hint:" in capsys.readouterr().err


def test_a_name_of_the_catalogue_is_judged_without_its_file(
    model: Path, hub: HubServer, rates: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setenv("EDGEMOE_HOME", str(tmp_path / "home"))
    own = tmp_path / "home" / "config" / "models.toml"
    own.parent.mkdir(parents=True)
    own.write_text(ENTRY.format(repo=REPO, name=NAME))
    hub.repositories[REPO] = Repository({NAME: model.read_bytes()})
    assert main(["fit", "big-moe", "--device", "none", "--ctx", "512", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["file"] == NAME
    assert main(["fit", "big-mo", "--quick"]) == 3 and "big-moe" in capsys.readouterr().err


def test_a_server_without_ranges_is_not_read_whole(hub: HubServer, model: Path) -> None:
    content = model.read_bytes()
    hub.repositories[REPO] = Repository({NAME: content})
    hub.faults.ignore_ranges = True
    size, read = opened(plan_download(REPO, "Q4_K_M"), RemoteFile(NAME))
    assert size == len(content) and read(0, 100) == content[:100]
    with pytest.raises(EdgeMoEError, match="whole files"):
        read(100, 100)
