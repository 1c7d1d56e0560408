"""Compare EdgeMoE with plain llama-cpp-python on one file: same tokens, same logits, with and without hot experts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from edgemoe import Llama, OffloadConfig
from edgemoe.types import ExpertStats, Load
from tests.zoo.reference import defaults, greedy

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 197] * 2
STEPS = 12


@dataclass(frozen=True)
class Outcome:
    """Hold the results of a run: greedy tokens, logits ``(steps, vocabulary)``, counters, and the engine's notes."""

    tokens: list[int]
    logits: npt.NDArray[np.float32]
    stats: ExpertStats
    notes: list[str]

    def difference(self, logits: npt.NDArray[np.float32]) -> float:
        """Compute the largest difference to ``logits``, as a share of the largest logit."""
        return float(np.abs(self.logits - logits).max() / np.abs(logits).max())


def answer(llm: llama_cpp.Llama) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Compute the prompt in one batch, then greedy steps."""
    return greedy(llm, PROMPT, STEPS)


def ours(path: Path, *, share: int, gpu_layers: int = -1, **offload: Any) -> Outcome:
    """Run ``path`` with ``share`` percent of each layer's experts hot, from the first token on."""
    settings: dict[str, Any] = {"device": "sim", "vram": 0, "policy": "off", "profile": "off", "stream_tokens": 4}
    llm = open_ours(path, OffloadConfig(**(settings | offload)), gpu_layers)
    try:
        heat(llm, share)
        tokens, logits = answer(llm)
        return Outcome(tokens, logits, llm.experts.stats(), list(llm.experts.notes))
    finally:
        llm.close()


def heat(llm: Llama, share: int) -> None:
    """Make exactly ``share`` percent of each layer's experts resident, even fewer than the policy would."""
    native, shape = llm._native, llm.experts.shape
    assert shape is not None, "the experts never reached our backend"
    slots = [info.experts * share // 100 for info in native.layers()]
    native.set_slots(np.array(slots, dtype=np.int32))
    native.submit([Load(layer, expert, -1) for layer, n in enumerate(slots) for expert in range(n)])
    assert native.wait_uploads(30)
    assert llm.experts.residency().sum() == sum(slots) or llm.experts.stats().failed_uploads


def open_ours(path: Path, config: OffloadConfig, gpu_layers: int = -1) -> Llama:
    """Open EdgeMoE with the sizes of ``tests.zoo.reference.plain``, also without repacked weights."""
    with defaults("model", use_extra_bufts=False):
        return Llama(
            path,
            offload=config,
            n_ctx=128,
            n_batch=128,
            n_ubatch=128,
            n_gpu_layers=gpu_layers,
            n_threads=1,
            n_threads_batch=1,
        )
