"""Lookahead with routers: the folded weights, and more hits than with history alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemoe import OffloadConfig
from edgemoe.config import SimConfig
from edgemoe.engine.routers import look_ahead
from edgemoe.models.gguf import check, values
from edgemoe.types import ExpertStats, FloatArray
from tests import parity
from tests.routing import wide_model
from tests.zoo.reference import last_logits


def answer(path: Path, prefetch: str, sim: SimConfig | None = None) -> tuple[ExpertStats, FloatArray, list[str]]:
    offload = OffloadConfig(
        device="sim", vram="40%", prefetch=prefetch, profile="off", synchronous=sim is None, sim=sim or SimConfig()
    )
    llm = parity.open_ours(path, offload)
    for token in np.random.default_rng(0).integers(0, 100, 100):
        llm.eval([int(token)])
    found = llm.experts.stats(), last_logits(llm, llm.n_vocab()), llm.experts.notes
    llm.close()
    return found


@pytest.mark.parametrize("like", ["qwen3moe", "gpt-oss", "dbrx", "glm4moe"])
def test_routers_foretell_more_than_a_short_history(tmp_path: Path, like: str) -> None:
    with wide_model(tmp_path, like=like) as path:
        (off, plain, _), (history, one, _), (lookahead, other, notes) = (
            answer(path, prefetch) for prefetch in ("off", "history", "lookahead")
        )
    assert lookahead.hits > history.hits > off.hits and not notes
    assert lookahead.prefetch_useful > history.prefetch_useful
    np.testing.assert_array_equal(one, plain)
    np.testing.assert_array_equal(other, plain)


def test_looking_ahead_changes_no_number_whenever_it_is_ready(tmp_path: Path) -> None:
    """The lookahead runs in its own thread, with a link that fails, and with a slow and unsteady link."""
    with wide_model(tmp_path) as path:
        _, plain, _ = answer(path, "off")
        hurried, logits, _ = answer(path, "lookahead", SimConfig(fail_copy=11))
        _, late, _ = answer(path, "lookahead", SimConfig(bandwidth=500_000_000, jitter_us=200, fail_copy=11))
    np.testing.assert_array_equal(logits, plain)
    np.testing.assert_array_equal(late, plain)
    assert hurried.prefetch_late + hurried.prefetch_useful + hurried.prefetch_wasted > 0


def test_a_folded_router_agrees_with_the_router(tmp_path: Path) -> None:
    """If attention and experts add nothing, the lookahead predicts the next layer's router exactly."""
    with wide_model(tmp_path, like="gpt-oss") as path:
        file = check(path)
        first, *others = look_ahead(file, range(4), 1)
        norms = [values(file, f"blk.{block}.post_attention_norm.weight") for block in range(4)]
        gates = [values(file, f"blk.{block}.ffn_gate_inp.{kind}") for block in range(4) for kind in ("weight", "bias")]
    assert first is None
    hidden = np.random.default_rng(1).normal(size=norms[0].shape[0])
    for block, router in enumerate(others, start=1):
        assert router is not None and router.select is None
        seen = hidden * norms[block - 1]
        weight = (router.weight.astype(np.uint32) << 16).view(np.float32)
        wanted = gates[2 * block] @ (hidden * norms[block]) + gates[2 * block + 1]
        np.testing.assert_allclose(weight @ seen + router.bias, wanted, atol=0.02 * np.abs(wanted).max())
