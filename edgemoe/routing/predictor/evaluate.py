"""The quality of a predictor on routing that it was not trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...types import FloatArray, IdArray
from .tables import Tables
from .train import by_token, decayed, one_hot

BINS = 10


@dataclass(frozen=True)
class Quality:
    """Figures of one prediction.

    Attributes:
        recall_at_k: share of the experts that a layer uses that are among the k likeliest experts.
        recall_at_2k: the same share among the 2k likeliest experts.
        calibration: ``(predicted, observed, share of all)`` for each tenth of predicted probability; empty tenths are
            left out.
        calibration_error: mean distance between predicted and observed; each tenth weighs as much as its share.
    """

    recall_at_k: float
    recall_at_2k: float
    calibration: tuple[tuple[float, float, float], ...] = ()
    calibration_error: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Give the figures as a dictionary for JSON."""
        return asdict(self)


def next_layers(tables: Tables, ids: IdArray, lead: int, tokens: IdArray | None = None) -> Quality:
    """Judge the prediction of a layer ``lead`` layers before it, over all layers with so many layers before them.

    Args:
        tables: the predictor.
        ids: ``(tokens, layers, used)`` in running order.
        lead: 1 or 2.
        tokens: token ids, ``(tokens,)``, -1 where not known; with them every layer is judged, even without
            layers before it.
    """
    layers, used = ids.shape[1:]
    use = [one_hot(ids[:, layer], tables.experts) for layer in range(layers)]
    recall = np.zeros(2)
    bins = np.zeros((BINS, 3))
    known = tokens is not None and bool((tokens >= 0).any())
    judged = range(0 if known else lead, layers)
    for layer in judged:
        chance = _chances(tables, use, layer, lead, tokens if known else None)
        recall += [_recall(chance, use[layer], n) for n in (used, 2 * used)]
        tenth = np.minimum((chance * BINS).astype(int), BINS - 1).ravel()
        weights = (chance.ravel(), use[layer].ravel(), np.ones(chance.size))
        bins += np.stack([np.bincount(tenth, weight, BINS) for weight in weights], axis=1)
    recall /= len(judged)
    filled = bins[bins[:, 2] > 0]
    shares = filled[:, 2] / filled[:, 2].sum()
    predicted, observed = filled[:, 0] / filled[:, 2], filled[:, 1] / filled[:, 2]
    table = tuple((float(p), float(o), float(s)) for p, o, s in zip(predicted, observed, shares, strict=True))
    return Quality(float(recall[0]), float(recall[1]), table, float((np.abs(predicted - observed) * shares).sum()))


def plain_table(train: IdArray, ids: IdArray, experts: int) -> Quality:
    """Judge the simplest predictor: counts of expert pairs in successive layers, made on ``train``."""
    layers, used = ids.shape[1:]
    recall = np.zeros(2)
    for layer in range(1, layers):
        before, after = (one_hot(train[:, at], experts) for at in (layer - 1, layer))
        counts = before.T @ after + 0.5
        scores = one_hot(ids[:, layer - 1], experts) @ np.log(counts / counts.sum(axis=1, keepdims=True))
        recall += [_recall(scores, one_hot(ids[:, layer], experts), n) for n in (used, 2 * used)]
    recall /= layers - 1
    return Quality(float(recall[0]), float(recall[1]))


def _chances(tables: Tables, use: list[FloatArray], layer: int, lead: int, tokens: IdArray | None = None) -> FloatArray:
    """Evaluate the tables for all tokens at once: the reference for the core's evaluator."""
    past = decayed(use[layer], tables.decay)
    logits = np.tensordot(tables.next_decay[lead - 1, layer], past, axes=1) + tables.next_bias[lead - 1, layer]
    logits[1:] += use[layer][:-1] @ tables.next_again[lead - 1, layer]
    for back in range(tables.reach):
        if layer - lead - back >= 0:
            logits += use[layer - lead - back] @ tables.next_rows[lead - 1, back, layer]
    if tokens is not None:
        weights = tables.next_token[lead - 1, layer].ravel()
        logits += np.tensordot(weights, by_token(use[layer], tokens), axes=1)
    chance: FloatArray = 1 / (1 + np.exp(-logits))
    return chance


def _recall(scores: FloatArray, use: FloatArray, n: int) -> float:
    best = np.argpartition(-scores, min(n, scores.shape[1] - 1), axis=1)[:, :n]
    return float(np.take_along_axis(use, best, axis=1).sum() / use.sum())
