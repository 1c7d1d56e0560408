"""The same answers with the hot experts on a second ggml device with its own memory: RPC over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemoe import OffloadConfig
from tests import parity
from tests.zoo import ARCHITECTURES, build
from tests.zoo.reference import plain

LIBRARY = os.environ.get("EDGEMOE_RPC_LIB", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LIBRARY, reason="set EDGEMOE_RPC_LIB to a libggml-rpc; tests/rpc.py builds one"),
]


@pytest.fixture(scope="session")  # a device stays registered: the server must outlive every model of the process
def device() -> Iterator[str]:
    from tests.rpc import connect

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    root = Path(__file__).parent.parent
    server = subprocess.Popen([sys.executable, "-m", "tests.rpc", "serve", LIBRARY, endpoint], cwd=root)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", int(endpoint.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.05)
        connect(Path(LIBRARY), endpoint)
        yield "RPC0"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("gpu_layers", [0, -1])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_on_rpc(name: str, gpu_layers: int, folder: Path, device: str) -> None:
    path = build(name, folder)
    reference = plain(path)
    tokens, logits = parity.answer(reference)
    reference.close()
    for share in (25, 50, 100):
        got = parity.ours(path, share=share, gpu_layers=gpu_layers, device=device)
        assert got.stats.hits > 0
        assert got.tokens == tokens
        assert got.difference(logits) == 0  # the server computes with ggml-cpu too


def test_experts_move_while_it_computes(folder: Path, device: str) -> None:
    path = build("llama", folder)
    reference = plain(path)
    tokens, _ = parity.answer(reference)
    reference.close()
    config = OffloadConfig(device=device, vram="50%", profile="off")
    llm = parity.open_ours(path, config, gpu_layers=-1)
    for _ in range(20):
        assert parity.answer(llm)[0] == tokens
    stats = llm.experts.stats()
    llm.close()
    assert stats.uploads > stats.slots, "experts were exchanged"
