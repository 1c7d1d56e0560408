"""Write model files anew with other tensors: in shards, unstacked, or without tensors."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader

U16, U32, I32, TEXT = 2, 4, 5, 8
ALIGNMENT = 32


@dataclass(frozen=True)
class Tensor:
    """Hold a tensor of a file: shape in ggml's order, ggml's number of the type, content."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: bytes


def tensors_of(path: Path) -> list[Tensor]:
    """Read all tensors of a file."""
    return [
        Tensor(t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), t.data.tobytes())
        for t in GGUFReader(path).tensors
    ]


def rewrite(source: Path, path: Path, tensors: Sequence[Tensor], more: Mapping[str, tuple[int, Any]] = {}) -> Path:
    """Write the metadata of ``source`` with other tensors; ``more`` has further keys: GGUF type and value."""
    raw = source.read_bytes()
    end = GGUFReader(source).tensors[0].field.offset
    count = struct.unpack_from("<Q", raw, 16)[0]
    keys = raw[24:end]
    for key, (kind, value) in more.items():
        raw_value = _text(value) if kind == TEXT else struct.pack({U16: "<H", U32: "<I", I32: "<i"}[kind], value)
        keys += _text(key) + struct.pack("<I", kind) + raw_value
    infos, offset = b"", 0
    for tensor in tensors:
        extents = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        infos += _text(tensor.name) + extents + struct.pack("<IQ", tensor.type, offset)
        offset += math.ceil(len(tensor.data) / ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count + len(more)) + keys + infos
    body = b"".join(tensor.data + bytes(-len(tensor.data) % ALIGNMENT) for tensor in tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + body)
    return path


def shards(source: Path, folder: Path, count: int = 3, stem: str = "model") -> list[Path]:
    """Split a file as llama.cpp's gguf-split does. The first shard has no tensors, as in some published models."""
    tensors, paths = tensors_of(source), []
    step = math.ceil(len(tensors) / (count - 1))
    for no in range(count):
        part = tensors[(no - 1) * step : no * step] if no else []
        more = {"split.no": (U16, no), "split.count": (U16, count), "split.tensors.count": (I32, len(tensors))}
        paths.append(rewrite(source, folder / f"{stem}-{no + 1:05d}-of-{count:05d}.gguf", part, more))
    return paths


def unstacked(source: Path, path: Path) -> Path:
    """Write a file in the form of 2023, with one tensor for each expert."""
    found: list[Tensor] = []
    for tensor in tensors_of(source):
        if "_exps.weight" not in tensor.name:
            found.append(tensor)
            continue
        *shape, experts = tensor.shape
        size = len(tensor.data) // experts
        for expert in range(experts):
            name = tensor.name.replace("_exps.weight", f".{expert}.weight")
            part = tensor.data[expert * size : (expert + 1) * size]
            found.append(Tensor(name, tuple(shape), tensor.type, part))
    return rewrite(source, path, found)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
