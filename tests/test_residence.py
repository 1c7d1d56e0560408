"""The share of a model's experts in RAM, from the system's file cache."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from edgemoe.models import gguf
from edgemoe.models.page_cache import Residence
from tests.dense import write_dense
from tests.zoo import build

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the test cannot empty the cache here")


def forget(path: Path) -> None:
    """Let the system drop its pages of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_dropped_pages_are_on_the_disk_and_read_pages_in_ram(tmp_path: Path) -> None:
    path = build("llama", tmp_path)
    residence = Residence.of_experts(gguf.read(path))
    forget(path)
    dropped = residence.share_in_ram()
    path.read_bytes()
    assert residence.share_in_ram() == 1.0
    assert dropped is not None and dropped < 1.0


def test_a_dense_model_has_no_experts_anywhere(tmp_path: Path) -> None:
    assert Residence.of_experts(gguf.read(write_dense(tmp_path / "dense.gguf"))).share_in_ram() is None


def test_a_loaded_model_tells_of_its_own(tmp_path: Path) -> None:
    from edgemoe import Llama

    path = build("llama", tmp_path)
    with closing(Llama(path)) as llm:
        assert llm.experts.in_ram() == 1.0
    with closing(Llama(path, use_mmap=False)) as llm:
        assert llm.experts.in_ram() is None
