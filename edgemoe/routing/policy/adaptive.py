"""``adaptive``: follows the conversation, but moves an expert only when that should pay for the upload."""

from __future__ import annotations

import numpy as np

from ...types import BoolArray, FloatArray, ModelShape
from .base import Indices, Scores
from .lfu import Frequency

# (decay per decode token, weight). The first four terms are the least-squares forecast of an expert's use over the next
# 8 tokens. They were fitted on the training halves of the gpt-oss-20b and DeepSeek-V2-Lite traces; the two fits differ
# by 0.1. The last term keeps a saved profile alive for thousands of tokens. With a profile it gives 0.15 points more
# hits with 12 % fewer uploads; from a cold start the same hits with 3 % fewer uploads.
TERMS = ((0.5, 0.05), (0.9, 0.28), (0.98, 0.45), (0.998, 0.2), (0.9998, 0.2))
# A newcomer's score is charged with this share of the demand of the moment. At 0 every expert looks hot just when it is
# missed. At 1 a single demand never displaces an expert. Measured on the training halves, at most 2 uploads, first four
# terms, mean over 12.5, 25 and 50 % resident:
#   charge                       LFU     0   0.15    0.3    0.6      1
#   hit rate                    .625  .625   .624   .623   .619   .613
#   uploads per layer and token 1.31  0.74   0.66   0.58   0.40   0.22
# Three alternatives were each worse at equal uploads: a ratio of 1.3 (hysteresis: .618, 0.41), a dwell time, and
# counting demands.
CHARGE = 0.15


class DecayScorer:
    """Scores an expert by its forecast use: a weighted sum of decaying frequencies, `demand.Scorer`.

    The fast term is recency, the slow one the taste of the model. Scores are uses per token, 0..1.
    """

    def __init__(self, shape: ModelShape) -> None:
        """Start with nothing used."""
        self._terms = [(Frequency(shape, decay), weight * (1.0 - decay)) for decay, weight in TERMS]
        self._margin = CHARGE * sum(unit for _, unit in self._terms)

    def seed(self, heat: FloatArray) -> None:
        """Start every frequency from the past."""
        for frequency, _ in self._terms:
            frequency.seed(heat)

    def use(self, used: Indices) -> None:
        """Count the experts of one token."""
        for frequency, _ in self._terms:
            frequency.use(used)

    def scores(self, layers: Indices) -> Scores:
        """Give the forecast uses per token."""
        total = np.zeros((len(layers), self._terms[0][0].scaled.shape[1]))
        for frequency, unit in self._terms:
            total += frequency.scaled[layers] * (unit / frequency.scale)
        return total

    def accept(self, newcomer: Scores, victim: Scores) -> BoolArray:
        """Swap when the newcomer, charged for the demand of this moment, still beats the victim."""
        pays: BoolArray = newcomer - self._margin > victim
        return pays
