"""The core's evaluator of ``predictor.Tables``: the same code in the engine and in a replay."""

from __future__ import annotations

import ctypes
from dataclasses import fields, replace
from typing import Any

import numpy as np

from ..errors import EdgeMoEError
from ..routing.predictor import HORIZON, RATE, Tables
from ..types import FloatArray, IdArray, Load
from .binding import library

_i32, _pointer = ctypes.c_int32, ctypes.c_void_p
_SIZES = ("struct_bytes", "layers", "experts", "used", "decays", "memories", "leads", "reach")
_TABLES = tuple(f.name for f in fields(Tables) if f.name not in ("used", "tokens", "report"))


class _Tables(ctypes.Structure):
    _fields_ = [
        *((name, _i32) for name in _SIZES),
        ("rate", ctypes.c_float),
        ("horizon", ctypes.c_float),
        ("tokens", ctypes.c_int64),
        *((name, _pointer) for name in _TABLES),
    ]


class NativePredictor:
    """State and evaluation of a predictor. Used by one thread at a time.

    Attributes:
        tables: the weights.
    """

    def __init__(self, tables: Tables, rate: float = RATE) -> None:
        """Copy the tables into the core and start with nothing seen; ``rate`` 0 leaves them as they are."""
        self.tables = tables
        self._lib = library()
        arrays = [np.ascontiguousarray(getattr(tables, name), dtype=np.float32) for name in _TABLES]
        sizes = (tables.layers, tables.experts, tables.used, len(tables.decay), len(tables.memory_rate))
        learning = (rate, HORIZON, tables.tokens)
        places = (array.ctypes.data for array in arrays)
        raw = _Tables(ctypes.sizeof(_Tables), *sizes, tables.leads, tables.reach, *learning, *places)
        self.handle: int | None = self._lib.em_predictor_new(ctypes.byref(raw))
        if not self.handle:
            raise EdgeMoEError("the core refused the predictor's tables")

    def close(self) -> None:
        """Free the predictor; no engine may use the predictor any more."""
        handle, self.handle = self.handle, None
        if handle:
            self._lib.em_predictor_free(handle)

    def __del__(self) -> None:
        """Free the predictor with its last owner."""
        self.close()

    def learnt(self) -> Tables:
        """Give a copy of the tables, with the corrections of all tokens so far."""
        names = ("keep_bias", "keep_again", "next_bias", "next_again", "next_rows", "next_token", "next_router")
        arrays: dict[str, Any] = {name: np.empty(getattr(self.tables, name).shape, dtype=np.float32) for name in names}
        tokens = self._lib.em_predictor_learnt(self.handle, *(array.ctypes.data for array in arrays.values()))
        return replace(self.tables, tokens=int(tokens), **arrays)

    def seed(self, use: FloatArray) -> None:
        """Start from uses per token so far, ``(layers, experts)``."""
        values = np.ascontiguousarray(use, dtype=np.float32)
        assert values.shape == (self.tables.layers, self.tables.experts)
        self._lib.em_predictor_seed(self.handle, values.ctypes.data)

    def token(self, ids: IdArray) -> None:
        """Learn from a computed token: its experts ``(layers, used)``, -1 if unknown."""
        values = np.ascontiguousarray(ids, dtype=np.int32)
        assert values.shape == (self.tables.layers, self.tables.used)
        self._lib.em_predictor_token(self.handle, values.ctypes.data)

    def begin(self, token_id: int) -> None:
        """Begin a token; -1 if its id is unknown."""
        self._lib.em_predictor_begin(self.handle, token_id)

    def seen(self, token_ids: IdArray, ids: IdArray) -> None:
        """Remember the experts of computed tokens.

        Args:
            token_ids: ``(tokens,)``.
            ids: their experts, ``(tokens, layers, used)``, -1 where unknown.
        """
        tokens, values = (np.ascontiguousarray(array, dtype=np.int32) for array in (token_ids, ids))
        assert values.shape == (len(tokens), self.tables.layers, self.tables.used)
        self._lib.em_predictor_seen(self.handle, tokens.ctypes.data, values.ctypes.data, len(tokens))

    def routed(self, layer: int, ids: IdArray) -> None:
        """Learn which experts ``(used,)`` the token under way uses in a layer."""
        values = np.ascontiguousarray(ids, dtype=np.int32)
        self._lib.em_predictor_routed(self.handle, layer, values.ctypes.data, len(values))

    def keep(self) -> FloatArray:
        """Give the probability that each expert is used soon, ``(layers, experts)``."""
        out = np.empty((self.tables.layers, self.tables.experts), dtype=np.float32)
        self._lib.em_predictor_keep(self.handle, out.ctypes.data)
        return out

    def next(self, layer: int, lead: int) -> FloatArray:
        """Give the probability that the token under way uses each expert of ``layer``, known ``lead`` layers ahead."""
        out = np.empty(self.tables.experts, dtype=np.float32)
        self._lib.em_predictor_next(self.handle, layer, lead, out.ctypes.data)
        return out

    def choose(self, layer: int, lead: int, state: np.ndarray, free: int, most: int, gain: float) -> list[Load]:
        """Choose exchanges for a layer that will run ``lead`` layers from now.

        Args:
            layer: the layer to load for.
            lead: layers ahead.
            state: COLD, PENDING or RESIDENT of each expert, uint8 ``(experts,)``.
            free: slots that hold nothing.
            most: most loads.
            gain: expected uses that an exchange must win.
        """
        out = (ctypes.c_int32 * (3 * most))()
        n = self._lib.em_predictor_choose(
            self.handle, layer, lead, state.ctypes.data, free, most, ctypes.c_float(gain), out
        )
        return [Load(*out[3 * i : 3 * i + 3]) for i in range(n)]
