"""A file whose table from token ids to experts names experts that the model does not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemoe import BadGguf
from edgemoe.models import gguf
from tests.rewrite import rewrite, tensors_of
from tests.zoo import build

TABLE, F32 = "blk.0.ffn_gate_tid2eid.weight", 0


def doctored(folder: Path, expert: int, kind: int | None = None) -> Path:
    """DeepSeek-V4 of the zoo whose table sends every token to ``expert``; ``kind``: ggml's number of its type."""
    source, tensors = build("deepseek4", folder), []
    for tensor in tensors_of(source):
        if tensor.name == TABLE:
            ids = np.frombuffer(tensor.data, np.int32).copy()
            ids[::3] = expert  # the first of three
            tensor = replace(tensor, data=ids.tobytes(), type=tensor.type if kind is None else kind)
        tensors.append(tensor)
    return rewrite(source, folder / f"doctored-{expert}.gguf", tensors)


@pytest.mark.parametrize("expert", [-1, 8, 1 << 30, -(1 << 31)])
def test_a_table_with_experts_that_do_not_exist_is_refused(expert: int, tmp_path: Path) -> None:
    assert gguf.check(build("deepseek4", tmp_path)).number("expert_count") == 8
    with pytest.raises(BadGguf, match=f"'{TABLE}' names experts from .*, of 8"):
        gguf.check(doctored(tmp_path, expert))


def test_a_table_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGguf, match=f"'{TABLE}' has the type F32, not I32"):
        gguf.check(doctored(tmp_path, 0, F32))
