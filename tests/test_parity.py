"""Every architecture and quantisation of the zoo gives the results of plain llama-cpp-python, to the last bit.

Both sides run without llama.cpp's weight repacking. The same kernels then sum in the same order, hot or cold. ``sim``
computes with ggml-cpu's kernels, so a difference of any size is an error of EdgeMoE.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from edgemoe import OffloadConfig
from edgemoe.config import SimConfig
from tests import parity
from tests.zoo import ARCHITECTURES, MIXES, QUANTS, build
from tests.zoo.reference import forced, plain

# llama.cpp computes scales after the router's choice. Such layers run as in llama.cpp, and a note names them.
PLAIN_PATTERN = {"NVFP4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def same_as_plain(path: Path, shares: tuple[int, ...], gpu_layers: int, understood: bool = True) -> None:
    reference = plain(path)
    tokens, logits = parity.answer(reference)
    reference.close()
    for share in shares:
        got = parity.ours(path, share=share, gpu_layers=gpu_layers)
        assert got.tokens == tokens
        assert got.difference(logits) == 0
        assert (got.stats.plain_layers == 0) == understood
        if understood:
            assert got.stats.hits + got.stats.misses > 0
            assert (got.stats.hits > 0) == (share > 0)
            assert got.stats.misses == 0 or share < 100


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str, folder: Path) -> None:
    same_as_plain(build(name, folder), (50,), gpu_layers=-1)


@pytest.mark.slow
@pytest.mark.parametrize("gpu_layers", [0, -1])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_at_all_shares(name: str, gpu_layers: int, folder: Path) -> None:
    same_as_plain(build(name, folder), (0, 25, 50, 100), gpu_layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_with_fetched_misses(name: str, folder: Path) -> None:
    reference = plain(build(name, folder))
    tokens, logits = parity.answer(reference)
    reference.close()
    got = parity.ours(build(name, folder), share=50, gpu_layers=-1, sim=SimConfig(fetch_all=True))
    assert got.tokens == tokens and got.difference(logits) == 0
    assert got.stats.fetched == got.stats.misses > 0


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["ordered", "transfer"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_on_a_device_that_overlaps(
    name: str, streams: Literal["ordered", "transfer"], folder: Path
) -> None:
    reference = plain(build(name, folder))
    tokens, logits = parity.answer(reference)
    reference.close()
    for early, difference in ((False, 0.0), (True, 1e-5)):
        sim = SimConfig(streams=streams, early=early, jitter_us=50, fetch_all=2)
        got = parity.ours(build(name, folder), share=50, gpu_layers=-1, sim=sim)
        assert got.tokens == tokens and got.difference(logits) <= difference


@pytest.mark.parametrize("quant", ["F32", "Q4_0", "Q8_0", "MXFP4", "Q4_K/Q6_K", "Q5_K"])
def test_quantisation(quant: str, folder: Path) -> None:
    same_as_plain(build("llama", folder, quant), (0, 50, 100), gpu_layers=0)


@pytest.mark.slow
@pytest.mark.parametrize("gpu_layers", [0, -1])
@pytest.mark.parametrize("quant", [*QUANTS, *MIXES])
def test_every_quantisation(quant: str, gpu_layers: int, folder: Path) -> None:
    path = build("llama", folder, quant)
    same_as_plain(path, (0, 25, 50, 100), gpu_layers, understood=quant not in PLAIN_PATTERN)


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 8])
def test_small_batches_use_the_cache(batch: int, folder: Path) -> None:
    path = build("qwen3moe", folder, "Q4_K/Q6_K")
    text = [(7 * i * i + 3 * i) % 200 + 5 for i in range(40)]
    reference = plain(path)
    want = forced(reference, text, batch)
    reference.close()
    llm = parity.open_ours(path, OffloadConfig(device="sim", vram=0, policy="off", profile="off"))
    parity.heat(llm, 50)
    got = forced(llm, text, batch)
    stats = llm.experts.stats()
    llm.close()
    assert (got == want).all()
    assert stats.hits > 0 and stats.prefill_hits == 0


@pytest.mark.parametrize("gpu_layers", [0, -1])
def test_everything_hot_waits_and_copies_as_little_as_can_be(gpu_layers: int, folder: Path) -> None:
    config = OffloadConfig(device="sim", vram=0, policy="off", profile="off")
    llm = parity.open_ours(build("qwen3moe", folder), config, gpu_layers)
    parity.heat(llm, 100)
    llm.eval(parity.PROMPT)
    before = llm.experts.stats()
    for token in range(10, 30):
        llm.eval([token])
    after = llm.experts.stats()
    shape = llm.experts.shape
    llm.close()
    assert shape is not None
    assert after.joins - before.joins == (0 if gpu_layers else 20 * shape.layers)  # else once per layer
    assert after.misses == before.misses == 0
    assert after.upload_bytes == before.upload_bytes and after.streamed_bytes == before.streamed_bytes
