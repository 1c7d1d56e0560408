"""Write short copies of models: the first layers in their own shapes and types, with a hole in place of the weights.

A hole takes no space on the disk. In memory its pages behave like any others. Only the header of the model is needed.
"""

from __future__ import annotations

import math
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..config import home
from ..models import gguf
from ..models.gguf import EXPERTS, GgufArray, GgufFile, GgufTensor, Value, moe_shape
from ..planning import model_needs

ALIGNMENT = 32
_LAYER = re.compile(r"^blk\.(\d+)\.")
# Keys about the last layers, which a copy lacks.
_LEFT_OUT = ("nextn_predict_layers", "attention.shared_kv_layers")
_PER_EXPERT = re.compile(r"^blk\.\d+\.(?:ffn_(?:gate|up|down|gate_up)_exps|ffn_gate_inp|exp_probs_b)")
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BOOL, _U32, _I64, _F32, _STRING, _ARRAY = 7, 4, 11, 6, 8, 9


def copies(file: GgufFile, most_bytes: int, more: int = 0) -> list[tuple[int, int]]:
    """Choose layers and experts of the copies to run, the shorter copy first. A short model gives one whole copy.

    The shorter copy ends ``more`` layers after the first layer with routed experts. If even two layers take too many
    bytes, the copies have fewer experts, but at least twice as many as a token uses.
    """
    shape, layers = moe_shape(file), file.run_blocks or 1
    experts = shape.experts if shape else 0
    routed = sorted(int(match[1]) for name in file.run_tensors if (match := EXPERTS.match(name)))
    least = min(layers, (routed[0] if routed else 0) + 1 + more)
    step = max(1, file.number("expert_group_count") or 1)
    fewest = math.ceil(2 * shape.used / step) * step if shape else 0
    while experts > fewest and bytes_of(file, min(layers, least + 1), experts) > most_bytes:
        experts = max(fewest, experts // 2 // step * step)
    longer = next((n for n in range(layers, least, -1) if bytes_of(file, n, experts) <= most_bytes), least + 1)
    return [(layers, experts)] if longer >= layers else [(least, experts), (longer, experts)]


def bytes_of(file: GgufFile, layers: int, experts: int) -> int:
    """Compute the size of a copy."""
    return sum(_size(tensor) for tensor in _tensors(file, layers, experts))


@contextmanager
def short_copy(file: GgufFile, layers: int, experts: int) -> Iterator[Path]:
    """Write a temporary copy of the first ``layers`` of a model with ``experts`` in each. All weights are zero."""
    folder = home("cache")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="probe-") as inside:
        path = Path(inside) / "probe.gguf"
        write(path, metadata_of(file, layers, experts), _tensors(file, layers, experts))
        yield path


def metadata_of(file: GgufFile, layers: int, experts: int) -> dict[str, Value]:
    """Select the metadata that affects the computation, for a copy without vocabulary."""
    name = file.architecture
    kept: dict[str, Value] = {"general.architecture": name, "tokenizer.ggml.model": "no_vocab"}
    all_layers = file.number("block_count")
    for key, value in file.metadata.items():
        if not key.startswith(f"{name}.") or key.removeprefix(f"{name}.") in _LEFT_OUT:
            continue
        if isinstance(value, GgufArray):
            if value.length != len(value.values):
                continue
            if value.length == all_layers and not key.endswith("dimension_sections"):
                value = replace(value, length=layers, values=value.values[:layers])
        kept[key] = value
    kept[f"{name}.block_count"] = layers
    kept[f"{name}.vocab_size"] = model_needs.of(file).vocabulary
    if experts:
        kept[f"{name}.expert_count"] = experts
    return kept


def _tensors(file: GgufFile, layers: int, experts: int) -> list[GgufTensor]:
    counts = file.metadata.get(f"{file.architecture}.expert_count")  # some architectures have a count per layer
    kept, per_layer = [], counts.values if isinstance(counts, GgufArray) else (counts,)
    for tensor in file.run_tensors.values():
        layer = _LAYER.match(tensor.name)
        if layer and int(layer[1]) >= layers:
            continue
        if experts and tensor.shape[-1] in per_layer and _PER_EXPERT.match(tensor.name):
            tensor = replace(tensor, shape=(*tensor.shape[:-1], experts))
        kept.append(tensor)
    return kept


def _size(tensor: GgufTensor) -> int:
    _, block, size = gguf.TYPES[tensor.type]
    return tensor.elements // block * size


def write(path: Path, metadata: Mapping[str, Value], tensors: list[GgufTensor]) -> None:
    """Write a GGUF file with a hole in place of the weights: they read as zeros and take no space on the disk."""
    infos, offset = b"", 0
    for tensor in tensors:
        extents = struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        infos += _text(tensor.name) + struct.pack("<I", len(tensor.shape)) + extents
        infos += struct.pack("<IQ", tensor.type, offset)
        offset += math.ceil(_size(tensor) / ALIGNMENT) * ALIGNMENT
    keys = b"".join(_text(key) + _value(value) for key, value in metadata.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + keys + infos
    head += bytes(-len(head) % ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + offset)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    """Encode one value, in the type that llama.cpp expects for its own keys."""
    if isinstance(value, GgufArray):
        raw = struct.pack(f"<{value.length}{_CODES[value.type]}", *value.values)
        return struct.pack("<IIQ", _ARRAY, value.type, value.length) + raw
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    return struct.pack("<II", _U32, value) if 0 <= value < 1 << 32 else struct.pack("<Iq", _I64, value)
