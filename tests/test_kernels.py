"""Families of CPU kernels: the choice of a family, equal results of all families, and a run without any.

core_test compares every kernel with ggml's. These tests compare whole models.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_cpp
import pytest

from edgemoe import Llama, OffloadConfig
from edgemoe.engine import host, opening
from edgemoe.errors import ConfigError
from tests import parity
from tests.zoo import build
from tests.zoo.reference import plain

Choose = Callable[[str], None]


@pytest.fixture
def choose() -> Iterator[Choose]:
    yield host.core().choose_kernels
    host.core().choose_kernels("auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def test_unknown_kernels_are_refused(choose: Choose) -> None:
    with pytest.raises(ConfigError, match=r"EDGEMOE_KERNELS: there are no kernels 'best'; choose auto, off, avx2"):
        choose("best")


def test_kernels_of_another_processor_are_refused(choose: Choose) -> None:
    other = "neon" if host.core().kernels.startswith("avx") else "avx2"
    with pytest.raises(ConfigError, match=f"this processor cannot run the kernels '{other}'"):
        choose(other)


@pytest.mark.parametrize(("asked", "said"), [("off", "off"), ("tpu", "ConfigError: EDGEMOE_KERNELS: there are no")])
def test_the_environment_chooses(asked: str, said: str) -> None:
    code = "from edgemoe.engine import host; print(host.core().kernels)"
    environment = dict(os.environ, EDGEMOE_KERNELS=asked)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("quant", ["Q4_K/Q6_K", "Q4_0/Q8_0", "MXFP4", "IQ3_S", "IQ2_XXS/Q2_K"])
def test_every_family_gives_what_llama_cpp_gives(quant: str, choose: Choose, folder: Path) -> None:
    path = build("qwen3moe", folder, quant)
    reference = plain(path)
    tokens, logits = parity.answer(reference)
    reference.close()
    for family in ("off", "avx2", "avxvnni", "avx512", "neon"):
        try:
            choose(family)
        except ConfigError:
            continue
        got = parity.ours(path, share=0, gpu_layers=-1)
        assert (family, got.tokens, got.difference(logits)) == (family, tokens, 0)


def test_without_kernels_llama_cpp_keeps_the_experts(choose: Choose, folder: Path) -> None:
    choose("off")
    path = build("qwen3moe", folder, "Q4_0/Q8_0")
    settings = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    with_own_layout = llama_cpp.Llama(str(path), **settings)
    tokens, logits = parity.answer(with_own_layout)
    with_own_layout.close()
    llm = Llama(path, offload=OffloadConfig(device="none", profile="off"), **settings)
    got = parity.answer(llm)
    assert opening.NOT_TAKEN in llm.experts.notes and llm.experts.shape is None
    assert got[0] == tokens and (got[1] == logits).all()
    llm.close()


def test_floats_are_read_as_they_lie_in_the_file(choose: Choose, folder: Path) -> None:
    choose("off")
    llm = Llama(build("qwen3moe", folder, "F16"), offload=OffloadConfig(device="none", profile="off"), n_ctx=64)
    assert llm.experts.shape is not None and opening.NOT_TAKEN not in llm.experts.notes
    llm.close()
