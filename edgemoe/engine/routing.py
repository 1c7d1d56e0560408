"""Routing of the tokens computed so far: regrouped from the core's events, counted, recorded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from ..routing import history
from ..types import FloatArray, IdArray


class Routing:
    """The choices of the routers. Arrays belong to the caller, except for ``heat`` and ``last``.

    Attributes:
        heat: uses of each expert since the model was loaded, prefill included, ``(layers, experts)``.
        last: experts of the latest token, ``(layers, used)``, -1 where unknown.
    """

    def __init__(self, blocks: Sequence[int], experts: int, used: int, prefill_tokens: int) -> None:
        """Start with nothing computed.

        Args:
            blocks: numbers of the expert layers, in the order they run.
            experts: most experts of a layer.
            used: top-k.
            prefill_tokens: fewest tokens of a prefill.
        """
        self._blocks = np.array(blocks, dtype=np.int32)
        self._row_of = {block: row for row, block in enumerate(blocks)}
        self._used, self._prefill_tokens = used, prefill_tokens
        self.heat: FloatArray = np.zeros((len(blocks), experts), dtype=np.float32)
        self.last: IdArray = np.full((len(blocks), used), -1, dtype=np.int32)
        self._row_start = np.arange(len(blocks), dtype=np.int32)[:, None] * experts
        self._recent: deque[IdArray] = deque(maxlen=history.RECENT_TOKENS)
        self._recent_tokens: deque[int] = deque(maxlen=history.RECENT_TOKENS)
        self._expected: deque[int] = deque()  # token ids, until their events come
        self._recording: list[tuple[IdArray, IdArray]] | None = None

    def expect(self, tokens: Sequence[int]) -> None:
        """Say which token ids were computed."""
        self._expected.extend(tokens)

    def take(self, events: npt.NDArray[np.int32]) -> list[tuple[IdArray, IdArray]]:
        """Count the core's events; return one ``(ids, tokens)`` for each computed batch.

        ``ids`` has the shape ``(tokens, layers, used)``, -1 where unknown; ``tokens`` the token ids, -1 where unknown.
        """
        batches = [(ids, self._tokens(len(ids))) for ids in self._batches(events)]
        self._expected.clear()  # the step was cut short, so the other tokens were never computed
        if not batches:
            return batches
        self.last = batches[-1][0][-1]
        for ids, tokens in batches:
            if len(ids) < self._prefill_tokens:
                self._recent.extend(ids)
                self._recent_tokens.extend(tokens.tolist())
        every = np.concatenate([ids for ids, _ in batches]) if len(batches) > 1 else batches[0][0]
        flat = (every + self._row_start).ravel()
        if every.min() < 0:
            flat = flat[every.ravel() >= 0]
        self.heat += np.bincount(flat, minlength=self.heat.size).reshape(self.heat.shape)
        if self._recording is not None:
            self._recording += batches
        return batches

    def recent(self) -> tuple[IdArray, IdArray]:
        """Routing ``(tokens, layers, used)`` and ids ``(tokens,)`` of the latest decode tokens."""
        empty = np.zeros((0, *self.last.shape), dtype=np.int32)
        ids = np.stack(self._recent) if self._recent else empty
        return ids, np.array(self._recent_tokens, dtype=np.int32)

    def record(self) -> None:
        """Keep every batch from now on."""
        self._recording = []

    def recorded(self) -> list[tuple[IdArray, IdArray]]:
        """Stop keeping, and return the kept batches."""
        batches, self._recording = self._recording or [], None
        return batches

    def _tokens(self, count: int) -> IdArray:
        known = list(islice(self._expected, count))
        for _ in known:
            self._expected.popleft()
        return np.array(known + [-1] * (count - len(known)), dtype=np.int32)

    def _batches(self, events: npt.NDArray[np.int32]) -> Iterator[IdArray]:
        layers, k = self.last.shape
        tokens, rest = divmod(len(events), layers * (3 + k)) if layers else (0, 1)
        if tokens and not rest:  # single tokens through all layers: by far the most common
            table = events.reshape(tokens, layers, 3 + k)
            if (table[..., 0] == self._blocks).all() and (table[..., 1:3] == (1, k)).all():
                ids = table[..., 3:].copy()
                yield from (ids[token : token + 1] for token in range(tokens))
                return
        yield from self._irregular(events)

    def _irregular(self, events: npt.NDArray[np.int32]) -> Iterator[IdArray]:
        """Read batches of any kind. A batch ends before the layers start again; a layer may use fewer experts."""
        layers, k = self.last.shape
        batch: IdArray | None = None
        previous, at = -1, 0
        while at < len(events):
            block, tokens, used = (int(v) for v in events[at : at + 3])
            ids = events[at + 3 : at + 3 + tokens * used].reshape(tokens, used)
            at += 3 + tokens * used
            row = self._row_of.get(block)
            if row is None:
                continue
            if batch is None or row <= previous:
                if batch is not None:
                    yield batch
                batch = np.full((tokens, layers, k), -1, dtype=np.int32)
            n, width = min(tokens, len(batch)), min(used, k)  # the last layer may leave the first tokens out
            batch[len(batch) - n :, row, :width] = ids[tokens - n :, :width]
            previous = row
        if batch is not None:
            yield batch
