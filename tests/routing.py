"""Artificial routing with a drifting topic: local, skewed, and predictable from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgemoe.types import IdArray
from tests.zoo import build, files


def drifting(tokens: int, layers: int, experts: int, used: int, seed: int = 0) -> IdArray:
    """Make expert ids ``(tokens, layers, used)``. A state of 8 numbers drifts, and every layer reads it differently."""
    rng = np.random.default_rng(seed)
    taste, reading = rng.normal(size=(layers, experts)), rng.normal(size=(layers, experts, 8))
    state = rng.normal(size=8)
    out = np.empty((tokens, layers, used), dtype=np.int32)
    for token in range(tokens):
        state = 0.8 * state + 0.6 * rng.normal(size=8)
        noise = 0.5 * rng.normal(size=(layers, experts))
        out[token] = np.argsort(-(reading @ state + taste + noise), axis=1)[:, :used]
    return out


def spoken(tokens: int, layers: int, experts: int, used: int, vocabulary: int = 60) -> tuple[IdArray, IdArray]:
    """Make expert ids and token ids ``(tokens,)``. A token's routing depends on its id, too."""
    rng = np.random.default_rng(7)
    words = rng.integers(0, vocabulary, size=tokens).astype(np.int32)
    meaning = rng.normal(size=(vocabulary, layers, experts))
    topic = drifting(tokens, layers, experts, used)
    scores = 1.5 * meaning[words] + 0.4 * rng.normal(size=(tokens, layers, experts))
    np.put_along_axis(scores, topic, np.take_along_axis(scores, topic, axis=2) + 1.0, axis=2)
    return np.argsort(-scores, axis=2)[:, :, :used].astype(np.int32), words


@contextmanager
def wide_model(
    folder: Path, experts: int = 32, used: int = 4, layers: int = 4, like: str = "qwen3moe"
) -> Iterator[Path]:
    """Describe a zoo model with more experts, so that some of them can be resident."""
    name = f"wide-{like}-{experts}-{used}-{layers}"
    files.SPECS[name] = replace(files.SPECS[like], experts=experts, used=used, layers=layers)
    try:
        yield build(name, folder)
    finally:
        del files.SPECS[name]
