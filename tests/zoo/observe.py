"""Observe llama.cpp from inside: the matrices that are multiplied by expert, and the chosen experts."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from .reference import defaults, plain
from .shapes import GGML

GGML.ggml_op_desc.restype = ctypes.c_char_p
GGML.ggml_op_desc.argtypes = [ctypes.c_void_p]


class _Tensor(ctypes.Structure):
    """The first fields of ``struct ggml_tensor`` in ggml.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    ]


GGML.ggml_get_data.restype = ctypes.c_void_p
GGML.ggml_get_data.argtypes = [ctypes.c_void_p]


@dataclass
class Observation:
    """Record the nodes of the graphs that ran.

    Attributes:
        multiplied: names of the MUL_MAT_ID nodes in running order, such as ``ffn_moe_up-1``.
        chosen: chosen experts per layer, ``(tokens, used)``, in the router's order.
    """

    multiplied: list[str] = field(default_factory=list)
    chosen: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)


def observe(path: Path, ids: Sequence[int]) -> Observation:
    """Evaluate ``ids`` as one batch with plain llama.cpp and note the work of its expert layers."""
    seen = Observation()

    def callback(tensor: int, ask: bool, _: int | None) -> bool:
        name = GGML.ggml_get_name(tensor).decode()
        if ask and GGML.ggml_op_desc(tensor) == b"MUL_MAT_ID":
            seen.multiplied.append(name)
        topk = re.fullmatch(r"ffn_moe_topk-(\d+)", name)
        if topk and not ask:
            # Adjugate experts come after the routed ones, with a name of the same form.
            seen.chosen.setdefault(int(topk[1]), _ids(tensor))
        return bool(topk) or not ask

    native = llama_cpp.ggml_backend_sched_eval_callback(callback)  # this object must outlive the context
    with defaults("context", cb_eval=native):
        llm = plain(path, logits_all=True)
    # A warm-up at creation uses every expert; its routing does not count.
    seen.multiplied.clear()
    seen.chosen.clear()
    llm.eval(list(ids))
    return seen


def _ids(tensor: int) -> npt.NDArray[np.int32]:
    head = _Tensor.from_address(tensor)
    used, tokens, stride = head.ne[0], head.ne[1], head.nb[1]
    data = GGML.ggml_get_data(tensor)
    rows = [(ctypes.c_int32 * used).from_address(data + token * stride) for token in range(tokens)]
    return np.array([list(row) for row in rows], dtype=np.int32)
