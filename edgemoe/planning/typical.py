"""Typical routing: the share of a token's experts that some experts cover. Pure."""

from __future__ import annotations

import numpy as np

# Hit rates of the adaptive policy by share of experts resident: the mean of gpt-oss-20b's and DeepSeek-V2-Lite's, which
# were replayed on recorded routing with uploads on demand. The rate at 0.125 is that of LRU on larger models.
TYPICAL = ((0.0, 0.0), (0.125, 0.47), (0.25, 0.68), (0.5, 0.87), (0.75, 0.96), (1.0, 1.0))


def typical_hit_rate(resident_share: float) -> float:
    """Estimate the hit rate of decode for an unknown model, by the share of its experts that is resident."""
    shares, rates = zip(*TYPICAL, strict=True)
    return float(np.interp(resident_share, shares, rates))
