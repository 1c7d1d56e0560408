"""The tables of a predictor: log-linear, so that a prediction is a sum of rows. One small file per model.

*Soon*: the probability that one of the next few tokens uses an expert. It decides which experts stay on the device.
*Next*: the probability that the token under way uses an expert of a layer that has not run yet. It decides which
experts are fetched ahead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...types import FloatArray
from ..trace import read_npz, write_npz

VERSION = 2
# The weight of a use one token later: from "a moment ago" to "the taste of this model".
DECAYS = (0.5, 0.8, 0.95, 0.99, 0.998)
# Two decays also remember *which* experts were used, by rows of a table: over a few tokens, and over a conversation.
MEMORY_RATES = (0.8, 0.99)
# *Soon* is a discounted count of uses: 0.8 looks about five tokens ahead. Hit rates on held-out sequences, a quarter
# resident, of gpt-oss-20b, then of DeepSeek-V2-Lite. 0.8: .727, .636; 0.9: .720, .625; 0.95: .711, .607.
HORIZON = 0.8
# Step of learning from every token. Hit rates, a quarter resident, at most 2 loads:
#   step                                     0   0.01   0.03   0.05
#   gpt-oss-20b, domain of the training   .842   .847   .850   .852
#   DeepSeek-V2-Lite, the same domain     .803   .805   .805   .802
#   DeepSeek-V2-Lite, a second domain     .575   .734   .766   .769
#   DeepSeek-V2-Lite, a third domain      .627   .773   .794   .795
RATE = 0.03
# Weights of the decayed frequencies before any learning: logistic regressions on both models' training halves.
PRIOR = (0.6, 0.8, 1.5, 3.0, 1.5)
# Weight and constant for the share of a token id's earlier uses in which it used an expert. The three pairs are for ids
# that came once before, 2 to 4 times, and more often.
TOKEN_PRIOR = ((3.0, -0.9), (4.0, -1.2), (5.0, -1.4))
# Weight of a router that is run ahead; the first tokens correct it.
ROUTER_PRIOR = 1.5
LEADS = 2
REACH = 3  # layers of the token under way that a prediction reads


@dataclass(frozen=True)
class Tables:
    """Weights of a predictor; L layers, E experts, D decays, M memories, A leads. Probabilities are sigmoids of sums.

    Attributes:
        used: experts a token uses in a layer.
        decay: ``(D,)``.
        keep_bias: ``(L, E)``, constant term of *soon*.
        keep_decay: ``(L, D)``, weights of the expert's own decayed frequencies in *soon*.
        keep_again: ``(L, E, E)``, a row of *soon* for each expert that the latest token used in the layer.
        memory_rate: ``(M,)``, decays of the memories.
        keep_memory: ``(M, L, E, E)``, rows as in ``keep_again``, summed over all tokens with decay ``memory_rate``.
        next_bias: ``(A, L, E)``, constant term of *next*, known a + 1 layers ahead.
        next_decay: ``(A, L, D)``, weights of the expert's own decayed frequencies in *next*.
        next_again: ``(A, L, E, E)``, a row of *next* for each expert that the token before used in the layer.
        next_rows: ``(A, R, L, E, E)``, a row of *next* for each expert that the token under way used in layer
            l - a - 1 - r.
        next_token: ``(A, L, 3, 2)``, weight and constant as in `TOKEN_PRIOR`.
        next_router: ``(A, L)``, weight of the layer's router, run ahead. The router tells how far an expert is above
            the border of being chosen, in standard deviations.
        tokens: number of tokens that the tables have learnt from.
        report: figures of the training, see ``train.py``.
    """

    used: int
    decay: FloatArray
    keep_bias: FloatArray
    keep_decay: FloatArray
    keep_again: FloatArray
    memory_rate: FloatArray
    keep_memory: FloatArray
    next_bias: FloatArray
    next_decay: FloatArray
    next_again: FloatArray
    next_rows: FloatArray
    next_token: FloatArray
    next_router: FloatArray
    tokens: int = 0
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """Count the layers with routed experts."""
        return len(self.keep_bias)

    @property
    def experts(self) -> int:
        """Count the experts of a layer."""
        return int(self.keep_bias.shape[1])

    @property
    def leads(self) -> int:
        """Give the most layers ahead that a prediction can be made."""
        return len(self.next_bias)

    def only(self, lead: int) -> Tables:
        """Return tables that predict ``lead`` layers ahead at most. They take less memory and less time."""
        nexts = ("next_bias", "next_decay", "next_again", "next_rows", "next_token", "next_router")
        return replace(self, **{name: getattr(self, name)[:lead] for name in nexts})

    @property
    def reach(self) -> int:
        """Count the layers of the token under way that a prediction reads."""
        return int(self.next_rows.shape[1])


def untrained(layers: int, experts: int, used: int, leads: int = LEADS) -> Tables:
    """Make tables that use decayed frequencies only."""

    def zeros(*shape: int) -> FloatArray:
        return np.zeros(shape, dtype=np.float32)

    share = min(used / experts, 0.99)
    bias = np.log(share / (1 - share)) - share * sum(PRIOR)
    decays, memories = len(DECAYS), len(MEMORY_RATES)
    return Tables(
        used=used,
        decay=np.array(DECAYS, dtype=np.float32),
        keep_bias=zeros(layers, experts) + np.float32(bias),
        keep_decay=zeros(layers, decays) + np.array(PRIOR, dtype=np.float32),
        keep_again=zeros(layers, experts, experts),
        memory_rate=np.array(MEMORY_RATES, dtype=np.float32),
        keep_memory=zeros(memories, layers, experts, experts),
        next_bias=zeros(leads, layers, experts) + np.float32(bias),
        next_decay=zeros(leads, layers, decays) + np.array(PRIOR, dtype=np.float32),
        next_again=zeros(leads, layers, experts, experts),
        next_rows=zeros(leads, REACH, layers, experts, experts),
        next_token=zeros(leads, layers, 3, 2) + np.array(TOKEN_PRIOR, dtype=np.float32),
        next_router=zeros(leads, layers) + np.float32(ROUTER_PRIOR),
    )


_ARRAYS = tuple(f.name for f in fields(Tables) if f.name not in ("used", "tokens", "report"))
_NUMBERS = ("version", "identity", "used", "tokens", "report")
# The tables of rows take nearly all of the memory. Half precision moves a probability by less than 0.001.
_HALVES = ("keep_again", "keep_memory", "next_again", "next_rows")


def path_of(identity: str, folder: Path) -> Path:
    """Give the file of the predictor of the model with this identity."""
    return folder / f"{identity}.predictor.npz"


def save(tables: Tables, identity: str, folder: Path) -> Path:
    """Write a predictor, whole or not at all.

    Raises:
        OSError: the disk refused the file.
    """
    path = path_of(identity, folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, npt.NDArray[Any]] = {
        name: getattr(tables, name).astype(np.float16 if name in _HALVES else np.float32) for name in _ARRAYS
    }
    arrays |= {
        "version": np.array(VERSION),
        "identity": np.array(identity),
        "used": np.array(tables.used),
        "tokens": np.array(tables.tokens),
        "report": np.array(json.dumps(tables.report)),
    }
    write_npz(path, arrays, compressed=False)  # weights are noise to a compressor: it takes seconds and saves nothing
    return path


def load(identity: str, folder: Path, shape: tuple[int, int, int], notes: list[str]) -> Tables | None:
    """Read the predictor of a model; None if no file can be used. No file raises an error.

    Args:
        identity: key of the model.
        folder: where predictors are kept.
        shape: ``(layers, experts, used)`` that it must have.
        notes: gets a sentence for the user when a file could not be used.
    """
    path = path_of(identity, folder)
    try:
        arrays = read_npz(path, (*_ARRAYS, *_NUMBERS))
        return _checked(arrays, identity, shape)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        notes.append(f"The predictor {path.name} was not used: {error}. `edgemoe train` makes a new one.")
        return None


def _checked(arrays: Any, identity: str, shape: tuple[int, int, int]) -> Tables:
    if missing := [name for name in (*_ARRAYS, *_NUMBERS) if name not in arrays]:
        raise ValueError(f"{missing[0]} is missing")
    if int(arrays["version"]) != VERSION:
        raise ValueError(f"version {arrays['version']} instead of {VERSION}")
    if str(arrays["identity"]) != identity:
        raise ValueError("it was made for another model")
    values = {name: np.ascontiguousarray(arrays[name], dtype=np.float32) for name in _ARRAYS}
    report = json.loads(str(arrays["report"]))
    tables = Tables(int(arrays["used"]), **values, tokens=int(arrays["tokens"]), report=report)
    layers, experts, used = shape
    decays, memories, leads, reach = (
        len(tables.decay), len(tables.memory_rate), values["next_bias"].shape[0], values["next_rows"].shape[1],
    )  # fmt: skip
    wanted = {
        "keep_bias": (layers, experts),
        "keep_decay": (layers, decays),
        "keep_again": (layers, experts, experts),
        "keep_memory": (memories, layers, experts, experts),
        "next_bias": (leads, layers, experts),
        "next_decay": (leads, layers, decays),
        "next_again": (leads, layers, experts, experts),
        "next_rows": (leads, reach, layers, experts, experts),
        "next_token": (leads, layers, len(TOKEN_PRIOR), 2),
        "next_router": (leads, layers),
    }
    for name, expected in wanted.items():
        if values[name].shape != expected or tables.used != used:
            raise ValueError(f"{name} has the shape {values[name].shape} instead of {expected}")
    if not all(np.isfinite(value).all() for value in values.values()):
        raise ValueError("it holds values that are no numbers")
    return tables
