"""Choose the experts of a twin's tokens: from a recorded trace of the model, else artificial and marked as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemoe.replay import replay
from edgemoe.routing import trace
from edgemoe.types import FloatArray, IdArray

RECORDED = {
    "gpt-oss-20b": "gpt-oss-20b-fingerprinting/mmlu.npz",
    "deepseek-v2-lite": "deepseek-v2-lite-esft/summary.npz",
}
TOKENS = 4096  # tokens of a run; a longer run repeats them from the beginning
SYNTHETIC = "SYNTHETIC routing (two drifting topics, see bench/gpu/routing.py)"


@dataclass(frozen=True)
class Routing:
    """Hold the routing to force.

    Attributes:
        source: source of the routing in words, for every output.
        ids: expert ids, ``(tokens, layers, used)``.
        tokens: token ids, ``(tokens,)``; -1 if unknown.
        heat: use counts of other sequences, ``(layers, experts)``, as in a saved profile.
    """

    source: str
    ids: IdArray
    tokens: IdArray
    heat: FloatArray


def routing(model: str, traces: Path | None, layers: int, experts: int, used: int) -> Routing:
    """Give recorded routing of the model's first ``layers``, or artificial routing without a trace."""
    path = traces / RECORDED[model] if traces is not None and model in RECORDED else None
    if path is not None and path.exists():
        data = replay.split([trace.read(path)], [])
        assert data.test.shape[1] >= layers and data.test.shape[2] == used and data.experts == experts
        source = f"routing recorded from {model} ({path.name})"
        return Routing(source, data.test[:TOKENS, :layers], data.test_tokens[:TOKENS], data.heat[:layers])
    ids = synthetic(2 * TOKENS, layers, experts, used)
    heat = np.stack([np.bincount(ids[:TOKENS, layer].ravel(), minlength=experts) for layer in range(layers)])
    unknown = np.full(TOKENS, -1, dtype=np.int32)
    return Routing(SYNTHETIC, ids[TOKENS:], unknown, heat.astype(np.float32))


def synthetic(tokens: int, layers: int, experts: int, used: int, seed: int = 0) -> IdArray:
    """Make expert ids ``(tokens, layers, used)`` as local, skewed and predictable from layer to layer as Qwen3-30B's.

    A hidden state of a slow topic and a fast token, 12 numbers each, drifts from layer to layer. Every layer reads the
    state with its own matrix and prefers some experts. The constants were found by fitting a trace of Qwen3-30B-A3B:
    overlap, LRU
    curve, popularity and look-ahead within 3 points.
    """
    random = np.random.default_rng(seed)
    slow, fast, drift, width = 0.99, 0.5, 0.12, 12
    hidden = 0.6 * _drifting(tokens, width, slow, random) + 1.1 * _drifting(tokens, width, fast, random)
    out = np.empty((tokens, layers, used), dtype=np.int32)
    for layer in range(layers):
        reading, taste = random.normal(size=(width, experts)), random.normal(0, 0.9, experts)
        out[:, layer] = np.argsort(-(hidden @ reading + taste), axis=1)[:, :used]
        hidden = np.sqrt(1 - drift**2) * hidden + drift * random.normal(size=hidden.shape)
    return out


def _drifting(tokens: int, width: int, kept: float, random: np.random.Generator) -> np.ndarray:
    state, noise = random.normal(size=width), random.normal(size=(tokens, width))
    out = np.empty((tokens, width))
    for token in range(tokens):
        state = kept * state + np.sqrt(1 - kept**2) * noise[token]
        out[token] = state
    return out


def overlap(ids: IdArray) -> float:
    """Compute the share of a token's experts that the token before used, too."""
    same: Sequence[float] = [
        len(np.intersect1d(a, b)) / ids.shape[2]
        for layer in range(ids.shape[1])
        for a, b in zip(ids[:400, layer], ids[1:401, layer], strict=False)
    ]
    return float(np.mean(same))


def save(found: Routing, path: Path) -> None:
    """Write the routing for the processes that run the models."""
    np.savez_compressed(path, source=found.source, ids=found.ids, tokens=found.tokens, heat=found.heat)


def load(path: Path, layers: int | None = None) -> Routing:
    """Read a file that `save` wrote; of its first ``layers`` if a number is given."""
    with np.load(path) as found:
        return Routing(str(found["source"]), found["ids"][:, :layers], found["tokens"], found["heat"][:layers])
