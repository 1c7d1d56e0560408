"""Regrouping of the core's routing events."""

from __future__ import annotations

import numpy as np

from edgemoe.engine.routing import Routing
from edgemoe.types import IdArray

BLOCKS = (1, 2, 4)


def events(ids: IdArray) -> IdArray:
    """Make events in the core's form, for one batch ``(tokens, layers, used)``."""
    tokens, _, used = ids.shape
    records = [[block, tokens, used, *ids[:, row].ravel()] for row, block in enumerate(BLOCKS)]
    return np.concatenate(records).astype(np.int32)


def some(tokens: int, seed: int = 0) -> IdArray:
    return np.random.default_rng(seed).integers(0, 8, (tokens, 3, 2)).astype(np.int32)


def test_single_tokens_that_waited_and_a_batch_between_them() -> None:
    routing = Routing(BLOCKS, 8, 2, 4)
    parts = [some(1, 1), some(1, 2), some(6, 3), some(1, 4)]
    routing.expect([5, 6, *range(10, 16), 7])
    batches = routing.take(np.concatenate([events(part) for part in parts]))
    assert [len(ids) for ids, _ in batches] == [1, 1, 6, 1]
    assert [tokens.tolist() for _, tokens in batches] == [[5], [6], list(range(10, 16)), [7]]
    for part, (ids, _) in zip(parts, batches, strict=True):
        np.testing.assert_array_equal(ids, part)
    every = np.concatenate(parts)
    for row in range(3):
        np.testing.assert_array_equal(routing.heat[row], np.bincount(every[:, row].ravel(), minlength=8))
    recent, tokens = routing.recent()
    assert tokens.tolist() == [5, 6, 7] and len(recent) == 3, "a prefill is no decode history"
    np.testing.assert_array_equal(routing.last, parts[-1][0])


def test_what_was_cut_short_shifts_no_later_token() -> None:
    routing = Routing(BLOCKS, 8, 2, 4)
    routing.expect(range(100))
    ((ids, tokens),) = routing.take(events(some(3)))
    assert len(ids) == 3 and tokens.tolist() == [0, 1, 2]
    routing.expect([42])
    ((_, tokens),) = routing.take(events(some(1)))
    assert tokens.tolist() == [42]


def test_a_layer_that_computed_the_last_token_only() -> None:
    routing = Routing(BLOCKS, 8, 2, 4)
    ids = some(5)
    cut = np.concatenate([events(ids)[: 2 * (3 + 10)], [4, 1, 2, *ids[4, 2]]]).astype(np.int32)
    routing.expect(range(5))
    ((found, _),) = routing.take(cut)
    np.testing.assert_array_equal(found[:, :2], ids[:, :2])
    assert (found[:4, 2] == -1).all() and (found[4, 2] == ids[4, 2]).all()


def test_a_recording_has_tokens_from_its_begin_to_its_end() -> None:
    routing = Routing(BLOCKS, 8, 2, 4)
    routing.take(events(some(1, 1)))
    routing.record()
    routing.expect([3])
    routing.take(events(some(1, 2)))
    ((ids, tokens),) = routing.recorded()
    np.testing.assert_array_equal(ids, some(1, 2))
    assert tokens.tolist() == [3]
    routing.take(events(some(1, 3)))
    assert routing.recorded() == []
