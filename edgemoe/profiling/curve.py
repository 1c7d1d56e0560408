"""Hit rates of caches of other sizes: the observed routing is replayed with the engine's own policies."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..replay.replay import UPLOADS, belady, simulate
from ..routing.predictor import untrained
from ..types import IdArray, ModelShape

SHARES = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
LEAST_TOKENS = 8  # with fewer tokens there is hardly any reuse to measure


def hit_rates(ids: IdArray, experts: int) -> dict[str, Any]:
    """Compute the hit rate by cache size, and the knee of the curve; empty if there are too few tokens.

    Every replay begins with an empty cache. The first use of an expert is left out, because no cache could have served
    it. In a short run the first uses would hide the later hits.

    Args:
        ids: expert ids, ``(tokens, layers, used)``.
        experts: routed experts per layer.
    """
    tokens, layers, used = ids.shape
    if tokens < LEAST_TOKENS:
        return {}
    shape = ModelShape(layers, experts, used, (1,) * layers)
    uses = int((ids >= 0).sum())
    repeated = max(uses - _distinct(ids), 1)
    points = []
    for slots in sorted({max(used, round(experts * share)) for share in SHARES}):
        lru = simulate("lru", ids, shape, slots, used).hits
        ours = simulate("adaptive", ids, shape, slots, UPLOADS, None, untrained(layers, experts, used)).hits
        best = round(belady(ids, experts, slots) * uses)
        hits = {"lru": lru, "adaptive": ours, "belady": best}
        rates = {name: min(count / repeated, 1.0) for name, count in hits.items()}
        points.append({"slots": slots, "share": slots / experts, **rates})
    knee = max(points[:-1] or points, key=lambda point: point["adaptive"] - point["share"])
    return {"tokens": tokens, "points": points, "knee": {"slots": knee["slots"], "hit_rate": knee["adaptive"]}}


def bounds(ids: IdArray, experts: int, slots: IdArray) -> list[float]:
    """Compute an upper limit of the hit rate in each layer, for any cache without prefetch and any initial content.

    The limit is Belady's optimum from an empty cache, plus one hit for every slot that may have held an expert.
    """
    found = []
    for layer, places in enumerate(slots):
        column = ids[:, layer : layer + 1]
        uses = max(int((column >= 0).sum()), 1)
        held = min(int(places), _distinct(column))
        found.append(min(1.0, belady(column, experts, int(places)) + held / uses) if places else 0.0)
    return found


def _distinct(ids: IdArray) -> int:
    return sum(len(np.unique(layer[layer >= 0])) for layer in np.moveaxis(ids, 1, 0))
