"""Ask llama.cpp itself for the tensors of an architecture, so that no shape is written down twice.

``llama_model_init_from_user`` builds a model from metadata alone and calls back for every tensor, optional
ones included. llama.cpp tests its own architectures in this way. Here the callback only records the tensors.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import pytest

from edgemoe.engine import host

from .reference import silent
from .spec import ALWAYS_OPTIONAL, Spec

GGML = ctypes.CDLL("libggml-base.so.0")
"""The copy that llama_cpp has loaded already: opening it by path would make a second one."""


class _TensorHead(ctypes.Structure):
    """The first fields of ``struct ggml_tensor`` in ggml.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
    ]


class _GgufInit(ctypes.Structure):
    """``struct gguf_init_params`` in gguf.h."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


GGML.ggml_get_name.restype = ctypes.c_char_p
GGML.ggml_get_name.argtypes = [ctypes.c_void_p]
GGML.ggml_n_dims.argtypes = [ctypes.c_void_p]
GGML.gguf_init_from_file.restype = ctypes.c_void_p
GGML.gguf_init_from_file.argtypes = [ctypes.c_char_p, _GgufInit]
GGML.gguf_free.argtypes = [ctypes.c_void_p]


@dataclass(frozen=True)
class TensorShape:
    """Describe a tensor of a model file.

    Attributes:
        name: name of the tensor in the file.
        shape: shape in numpy's order, with the contiguous dimension last.
    """

    name: str
    shape: tuple[int, ...]


def all_tensors(metadata_file: Path, mtp: bool = False) -> list[TensorShape]:
    """List every tensor that llama.cpp would read for this metadata, sorted by name.

    ``mtp`` adds the tensors of an MTP head.

    Raises:
        RuntimeError: llama.cpp rejects the metadata; the message has its reason.
    """
    found: dict[str, tuple[int, ...]] = {}

    def note(tensor: int, _: int | None) -> None:
        dims = GGML.ggml_n_dims(tensor)
        sizes = _TensorHead.from_address(tensor).ne[:dims]
        found[GGML.ggml_get_name(tensor).decode()] = tuple(reversed(sizes))

    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.load_mtp = 0, mtp
    file = GGML.gguf_init_from_file(str(metadata_file).encode(), _GgufInit(True, None))
    if not file:
        raise RuntimeError(f"{metadata_file} is no GGUF file")
    callback = llama_cpp.llama_model_set_tensor_data_t(note)
    with silent() as log:
        model = llama_cpp.llama_model_init_from_user(file, callback, None, params)
    GGML.gguf_free(file)
    if not model:
        said = "".join(log[-3:])
        if host.version() != f"llama-cpp-python=={host.NEWEST}":  # this file knows all tensors
            pytest.skip(f"{host.version()} does not know {metadata_file.name}: {said}")
        raise RuntimeError(f"llama.cpp rejects the metadata in {metadata_file}: {said}")
    llama_cpp.llama_model_free(model)
    return [TensorShape(name, shape) for name, shape in sorted(found.items())]


def tensors_of(spec: Spec, metadata_file: Path, mtp: bool = False) -> list[TensorShape]:
    """List the tensors of the zoo's file of ``spec``, without the optional tensors that it leaves out."""
    chosen = []
    for tensor in all_tensors(metadata_file, mtp):
        optional = re.search(ALWAYS_OPTIONAL, tensor.name) and not re.search(spec.keep, tensor.name)
        if optional or re.search(spec.drop, tensor.name):
            continue
        if "gate_up_exps" in tensor.name and not spec.merged:
            chosen += _split(tensor)
        else:
            chosen.append(tensor)
    return chosen


def _split(tensor: TensorShape) -> list[TensorShape]:
    # Without a file, llama.cpp asks for the merged form first, but hardly any file has it.
    experts, rows, columns = tensor.shape
    names = [tensor.name.replace("gate_up_exps", kind) for kind in ("gate_exps", "up_exps")]
    return [TensorShape(name, (experts, rows // 2, columns)) for name in names]
