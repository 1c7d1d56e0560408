"""``edgemoe fit``: the forecast's arithmetic, the command, and headers that are somewhere else."""

from __future__ import annotations

import json
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

from edgemoe import gguf, hardware, needs
from edgemoe.cli import main
from edgemoe.commands import fit
from edgemoe.config import Budget
from edgemoe.errors import BadGguf
from edgemoe.forecast import forecast, hit_rate, step_seconds, typical_hit_rate
from edgemoe.plan import GIB, Machine, ModelNeeds, plan
from edgemoe.remote import MOST_BYTES, header_from
from edgemoe.types import ModelShape
from tests.routing import wide_model
from tests.zoo import build

MODEL = ModelNeeds(ModelShape(10, 32, 4, (1_000_000,) * 10), 10, 10**8, 10**8, 10**8, 5 * 10**7, 10**6)
MACHINE = Machine(
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
    bare = Machine("CUDA0", 8 * GIB, 8 * GIB, 32 * GIB, 32 * GIB)
    expected = forecast(bare, MODEL, plan(bare, MODEL, 512, Budget()), 0.9)
    assert expected.decode is None and expected.prefill is None
    assert step_seconds(replace(MACHINE, join_ns=None), MODEL, 1, 0, 0) is None
    assert step_seconds(replace(MACHINE, cpu_expert_rate=None), MODEL, 40, 0, 0) is not None, "it is not needed"


def test_more_memory_and_more_hits_are_never_slower() -> None:
    speeds, machine = [], replace(MACHINE, device_rate=1e12)
    for share in np.linspace(0, 1, 9):
        made = plan(machine, MODEL, 512, Budget(share=float(share)))
        decode = forecast(machine, MODEL, made, hit_rate(made, MODEL, None)).decode
        assert decode is not None
        speeds.append(decode)
    assert speeds[1:] == sorted(speeds[1:]) and speeds[-1] > 2 * speeds[0]


def test_hit_rates_are_typical_until_the_model_is_known() -> None:
    made = plan(MACHINE, MODEL, 512, Budget(share=0.5))
    assert hit_rate(made, MODEL, None) == pytest.approx(typical_hit_rate(0.5), abs=0.01)
    even, one = np.ones((10, 32), dtype=np.float32), np.eye(10, 32, dtype=np.float32)
    assert hit_rate(made, MODEL, even) == pytest.approx(0.5, abs=0.04) and hit_rate(made, MODEL, one) == 1.0
    assert hit_rate(plan(MACHINE, MODEL, 512, Budget(bytes=0)), MODEL, one) == 0.0


def test_a_disk_that_must_be_read_slows_down() -> None:
    poor = replace(MACHINE, device="", ram_free_bytes=300 << 20, disk_rate=1e9)
    made = plan(poor, MODEL, 512, Budget())
    expected = forecast(poor, MODEL, made, 0.0)
    assert not made.fits and expected.prefill is None
    assert expected.decode is not None and 1 < expected.decode < 40


# The command.


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine that is measured in no time."""
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
        assert found["at_most"][test] > 0
    assert "--n-cpu-moe 2" in found["llama_cpp"] and "-ngl 99 " in found["llama_cpp"]


def test_people_read_a_table_and_a_verdict(
    model: Path, rates: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(model), "--device", "none"]) == 0
    out = capsys.readouterr().out
    assert "It fits: everything in RAM" in out and "| KV cache, 4096 tokens" in out and "-ngl 0" in out


def test_what_does_not_fit_has_an_exit_code(
    model: Path, rates: dict[str, float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "machine", lambda device, threads: Machine(ram_free_bytes=4 << 20))
    assert main(["fit", str(model), "--device", "none", "--ctx", "256"]) == 4
    out = capsys.readouterr().out
    assert "RAM is too small" in out and "It fits" not in out


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
    found = fit.assess(without, "sim", Budget(), 512)
    assert found["model"]["experts"] == 0 and found["plan"]["slots"] == () and found["at_most"]["decode"]


# Headers from afar.


class Ranges(BaseHTTPRequestHandler):
    """Serves a file in parts, and counts what it gave."""

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
        """Say nothing."""


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
    """A model with a long vocabulary and a last tensor that ends at ``size``; the weights are a hole."""
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
        file = header_from(read_range, path.stat().st_size, "big.gguf")
        assert 4 << 20 < handler.given <= MOST_BYTES < 32 << 20
    assert file.tensors == gguf.read(path).tensors and file.path == Path("big.gguf")
    assert needs.of(file) == needs.of(gguf.read(path))


def test_a_small_file_is_read_whole_and_once(model: Path) -> None:
    with served(model) as (read_range, handler):
        header_from(read_range, model.stat().st_size, "model.gguf")
        assert handler.given <= model.stat().st_size


@pytest.mark.parametrize("content", [b"<html>no such file</html>" * 100_000, b"GGUF" + bytes(60 << 20), b"GG"])
def test_what_is_no_header_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    reads = []

    def read_range(offset: int, length: int) -> bytes:
        reads.append(length)
        return content[offset : offset + length]

    with pytest.raises(BadGguf, match=r"model\.gguf"):
        header_from(read_range, len(content), "model.gguf")
    assert sum(reads) <= MOST_BYTES
