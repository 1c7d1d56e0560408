"""GGUF headers: the layout of a model file, and checks of it.

llama.cpp ends the process on some malformed headers. ``check`` refuses such a file, with the reason, before llama.cpp
sees it. Only the header is read, through a memory map, and a few samples of the data for the model's identity.

**Source**: the layout is that of ``docs/gguf.md`` of ggml, versions 2 and 3, and block sizes are those of ggml 0.25.3.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..errors import BadGguf, EdgeMoEError, ModelNotFound, UnsupportedModel
from ..types import FloatArray, ModelShape

HINT = "the file may be damaged: download it again"
OTHER_FILE = "download another file of the model: this one is not damaged, but made for other programs"

# Type number -> name, values per block, bytes per block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
# Types that ggml had once: files with them are from 2023 and 2024.
_FORMER_TYPES = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4"}
# A newer program may use type numbers below this limit. A larger number is damage.
_MOST_TYPES = 128
# Types that ggml cannot multiply with. A weight of such a type crashes ggml.
NOT_WEIGHTS = {9, 15, 24, 25, 27, 28}
F32, I32 = 0, 26

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_TENSORS, _MAX_KEYS, _MAX_NAME, _MAX_KEY = 1 << 17, 1 << 16, 63, 65535
_MOST_SCALES = 1 << 16
# Of layers that choose experts by the token's id.
_EXPERT_TABLE = "ffn_gate_tid2eid.weight"
_MAX_LAYERS = 512  # llama.cpp's own limit
_SHARD = re.compile(r"^(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")
# Layer and kind (weight or bias) of a tensor of routed experts.
EXPERTS = re.compile(r"^blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.(weight|bias)$")
_BLOCK = re.compile(r"^blk\.(\d+)\.")
# One tensor per expert: files of 2023.
_SINGLE_EXPERT = re.compile(r"^blk\.\d+\.ffn_(?:gate|up|down)\.\d+\.weight$")
# Projections of attention: a layer with one of them has heads.
_ATTENTION = re.compile(r"^blk\.(\d+)\.attn_(?:q|k|v|qkv|kv|output)(?:_|\.)(?!norm)")
# Weights of one dimension that ggml adds or scales by, which it does in F32 only. It multiplies by all others.
_ELEMENTWISE = re.compile(
    r"norm|lerp|scale|sinks|rope_f|score|exp_probs_b|gamma|hc_|kpool|conv|_act\b"
    r"|time_mix_(?:ln|first|decay\.|[awv]0|k_[ak]|r_k)|ssm_[ad]\."
)


@dataclass(frozen=True)
class GgufArray:
    """Locate an array in the metadata.

    Attributes:
        type: GGUF value type of the elements.
        length: number of elements.
        offset: position of the first element, in bytes from the start of the file.
        values: the elements, if they are numbers and the array is short enough for one value per layer.
    """

    type: int
    length: int
    offset: int
    values: tuple[float, ...] = ()


Value: TypeAlias = bool | int | float | str | GgufArray


@dataclass(frozen=True)
class GgufTensor:
    """Describe one tensor.

    Attributes:
        name: name of the tensor.
        shape: extents in ggml's order: the row length comes first.
        type: number of the ggml type.
        offset: position of the data, in bytes from the start of the shard.
        bytes: size of the data.
        shard: index of the file that holds the data.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    bytes: int
    shard: int = 0

    @property
    def elements(self) -> int:
        """Count the numbers in the tensor."""
        return math.prod(self.shape)

    @property
    def type_name(self) -> str:
        """Give ggml's name of the type."""
        return TYPES[self.type][0]


@dataclass(frozen=True)
class GgufFile:
    """Hold the header of a model, all shards together.

    Attributes:
        path: path of the first shard.
        version: version of the format, 2 or 3.
        alignment: alignment of the tensors' data, in bytes.
        metadata: keys and values of the first shard.
        tensors: tensors of all shards, by name.
        shards: paths of all shards, in order.
    """

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    shards: tuple[Path, ...] = field(default=())

    @property
    def architecture(self) -> str:
        """Give ``general.architecture``; empty if the key is missing."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """Give a whole number of this architecture, such as ``block_count``; None if absent or not a whole number."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def mtp_blocks(self) -> int:
        """Count the blocks of an MTP head, the last ones of the file. Plain decoding never runs them."""
        count = self.number("nextn_predict_layers") or 0
        first = (self.number("block_count") or 0) - count
        if self.architecture == "deepseek4" and f"blk.{first}.nextn.eh_proj.weight" not in self.tensors:
            return 0  # llama.cpp then runs all blocks
        return count

    @property
    def run_blocks(self) -> int:
        """Count the blocks that llama.cpp runs for a token: all but those of an MTP head."""
        return max(0, (self.number("block_count") or 0) - self.mtp_blocks)

    @cached_property
    def run_tensors(self) -> Mapping[str, GgufTensor]:
        """Give the tensors that llama.cpp runs, by name: all but those of an MTP head.

        Counts, sizes and placements use these tensors only.
        """
        if not self.mtp_blocks:
            return self.tensors
        return {name: tensor for name, tensor in self.tensors.items() if not self._is_mtp(name)}

    def _is_mtp(self, name: str) -> bool:
        """Tell whether the tensor of this name belongs to an MTP head."""
        block = _BLOCK.match(name) if self.mtp_blocks else None
        return block is not None and int(block[1]) >= self.run_blocks


def read(path: Path) -> GgufFile:
    """Read the header of a model and of its shards.

    Raises:
        ModelNotFound: the file or one of its shards does not exist.
        BadGguf: the header cannot be read.
    """
    paths = shards(path)
    first: GgufFile | None = None
    tensors: dict[str, GgufTensor] = {}
    for number, shard in enumerate(paths):
        part = read_one(shard)
        first = first or part
        if repeated := tensors.keys() & part.tensors.keys():
            what = f"{shard.name}: tensor {min(repeated)!r} is in two shards"
            raise BadGguf(what, "the shards are of different models: download all of them again")
        tensors |= {name: replace(tensor, shard=number) for name, tensor in part.tensors.items()}
    assert first is not None
    _check_name(first, paths)
    return GgufFile(paths[0], first.version, first.alignment, first.metadata, tensors, paths)


def _check_name(first: GgufFile, paths: tuple[Path, ...]) -> None:
    """Refuse a renamed shard: llama.cpp finds the other shards by their names."""
    number, count = (first.metadata.get(f"split.{key}") for key in ("no", "count"))
    if len(paths) == 1 and isinstance(number, int) and isinstance(count, int) and count > 1:
        name = f"NAME-{number + 1:05d}-of-{count:05d}.gguf"
        what = f"{paths[0].name}: this is shard {number + 1} of {count} under another name"
        raise ModelNotFound(what, f"call it {name} and put it beside the other shards")


def check(path: Path) -> GgufFile:
    """Read the header and refuse a file that would make llama.cpp crash.

    Raises:
        ModelNotFound: the file or one of its shards does not exist.
        BadGguf: the file is damaged; the message names the fault.
        UnsupportedModel: the file is sound, but llama.cpp does not run such files.
    """
    file = read(path)
    _check_layout(file)
    _check_numbers(file)
    _check_tensors(file)
    _check_experts(file)
    _check_expert_tables(file)
    _check_scales(file)
    return file


def check_weights(file: GgufFile) -> None:
    """Refuse a file that has a vocabulary only.

    Raises:
        UnsupportedModel: the file has no weights.
    """
    if not file.tensors:
        hint = "vocab_only=True tokenises with it"
        raise UnsupportedModel(f"{file.path.name}: there is a vocabulary, but no weights", hint)


def moe_shape(file: GgufFile) -> ModelShape | None:
    """Describe the routed experts that a token can use; None for a dense model."""
    expert_bytes: dict[int, int] = {}
    experts = 0
    for tensor in file.run_tensors.values():
        if match := EXPERTS.match(tensor.name):
            count = tensor.shape[-1]
            experts = max(experts, count)
            layer = int(match[1])
            expert_bytes[layer] = expert_bytes.get(layer, 0) + tensor.bytes // count
    if not expert_bytes:
        return None
    used = file.number("expert_used_count") or 1
    return ModelShape(len(expert_bytes), experts, used, tuple(expert_bytes[layer] for layer in sorted(expert_bytes)))


def values(file: GgufFile, name: str) -> FloatArray | None:
    """Read the numbers of a tensor, rows first; None if there is no such tensor, or if its numbers are quantised."""
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type_name not in ("F32", "F16", "BF16"):
        return None
    kind = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[tensor.type_name]
    raw = np.fromfile(file.shards[tensor.shard], dtype=kind, count=tensor.elements, offset=tensor.offset)
    if tensor.type_name == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32).reshape(tensor.shape[::-1])


def model_identity(file: GgufFile) -> str:
    """Compute a lower-case hexadecimal key of the model's content. It does not depend on the file's name or folder."""
    digest = hashlib.sha256()
    for key, value in sorted(file.metadata.items()):
        digest.update(f"{key}={value.length if isinstance(value, GgufArray) else value}\n".encode())
    for tensor in file.tensors.values():
        digest.update(f"{tensor.name}{tensor.shape}{tensor.type}\n".encode())
    with file.path.open("rb") as stream:
        size = file.path.stat().st_size
        for part in (0.5, 0.9):  # two fine-tunes of one model have equal headers, but other weights
            stream.seek(int(size * part))
            digest.update(stream.read(4096))
    return digest.hexdigest()[:32]


# ---- reading ----


def shards(path: Path) -> tuple[Path, ...]:
    """Find all files of the model that ``path`` belongs to, the first shard first.

    ``path`` may be any shard of the model, or a link to one. Links are followed to the folder with the other shards.
    A file of the hub's cache is traced back to the link that carries its name.

    Raises:
        ModelNotFound: a shard is missing.
        BadGguf: the number in the name of ``path`` is above the number of shards.
    """
    if not path.is_file():
        raise ModelNotFound(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    places = _places(path)
    sets = [found for place in places if (found := _set_of(place))]
    if not sets:
        return (places[-1] if _is_blob(path) else path,)
    for found in sets:
        if all(shard.is_file() for shard in found):
            return found
    missing = next(shard for shard in sets[0] if not shard.is_file())
    raise ModelNotFound(f"shard {missing.name} is missing", f"put it beside {path.name}")


def _places(path: Path) -> list[Path]:
    """Give a file's names: its own, the names of the files that it links to, and its name in the hub's cache."""
    places = [path]
    while places[-1].is_symlink():
        target = places[-1].readlink()
        if (following := places[-1].parent / target) in places:
            break
        places.append(following)
    if _is_blob(places[-1]):
        real = places[-1].resolve()
        links = sorted((real.parent.parent / "snapshots").rglob("*.gguf"))
        places += [link for link in links if link.resolve() == real]
    return places


def _is_blob(path: Path) -> bool:
    """Tell whether ``path`` is content in huggingface_hub's cache, named by its hash. Snapshots link to content."""
    return path.parent.name == "blobs" and path.suffix != ".gguf" and (path.parent.parent / "snapshots").is_dir()


def _set_of(path: Path) -> tuple[Path, ...]:
    """List all shards of a file's set, from the file's own name; empty for a model in one file."""
    match = _SHARD.match(path.name)
    if not match:
        return ()
    count = int(match["count"])
    if not 1 <= int(match["no"]) <= count:
        raise BadGguf(f"{path.name}: there is no such shard of {count}", "give the file its own name again")
    return tuple(path.with_name(f"{match['stem']}-{no:05d}-of-{count:05d}.gguf") for no in range(1, count + 1))


class _Cursor:
    """Read values one after the other, never past the end."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def fail(self, what: str) -> BadGguf:
        return BadGguf(f"{self.name}: {what}", HINT)

    def take(self, size: int) -> int:
        start = self.at
        if size > len(self.data) - start:
            raise self.fail("the header is cut off")
        self.at = start + size
        return start

    def scalar(self, code: str) -> int:
        value: int = struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]
        return value

    def string(self, most: int, what: str) -> str:
        size = self.scalar("Q")
        if size > min(most, len(self.data)):
            raise self.fail(f"{what} is {size} bytes long")
        start = self.take(size)
        raw = self.data[start : start + size]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if most > _MAX_KEY:
                return raw.decode("utf-8", "replace")  # free text may be in any encoding
            raise self.fail(f"{what} is not UTF-8") from error


# Other files that users take for models: pattern of the first bytes, the kind of file, and a hint.
_FIRST_BYTES = 256
_GET = "edgemoe pull ORG/REPO:QUANT downloads a model"
_FOREIGN = (
    (
        rb"\s*(?i:<!doctype|<html|<head|<\?xml|<!--)",
        "a web page",
        f"download the file itself, not the page about it: {_GET}",
    ),
    (rb"version https://git-lfs", "a Git LFS pointer", f"git lfs pull fetches the file it stands for; {_GET}"),
    (rb"tjgg|fmgg|lmgg|algg", "a model in the form that came before GGUF", "download a newer upload of the model"),
    (rb"PK\x03\x04|\x80[\x02-\x05]", "a PyTorch file", f"only GGUF files can be run; {_GET}"),
    (rb".{6}\x00\x00\s*\{\s*\"", "a safetensors file", f"only GGUF files can be run; {_GET}"),
    (rb"\x1f\x8b|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd", "a packed file", "unpack it first"),
    (rb"[\t\r\n\x20-\x7e]{8}", "a text", f"only GGUF files can be run; {_GET}"),
    (rb"", "some other kind of file", f"only GGUF files can be run; {_GET}"),
)


def foreign(path: Path) -> str:
    """Name the kind of a file that is not GGUF, such as "a web page"; empty for GGUF and for an unreadable file."""
    try:
        with path.open("rb") as stream:
            what = _foreign(stream.read(_FIRST_BYTES))
    except OSError:
        return ""
    return what[0] if what else ""


def _foreign(beginning: bytes) -> tuple[str, str] | None:
    if not beginning:
        return "an empty file", HINT
    if b"GGUF".startswith(beginning[:4]):
        return None
    for pattern, what, hint in _FOREIGN:
        if re.match(pattern, beginning, re.DOTALL):
            return what, hint
    return None


def _other_version(name: str, version: int) -> EdgeMoEError:
    """Make the error for a version that is neither 2 nor 3: old, newer, in another byte order, or damaged."""
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version == 1:
        return UnsupportedModel(f"{name}: GGUF version 1 of 2023 is no longer read", "download a newer upload")
    if swapped in (1, 2, 3):
        return UnsupportedModel(f"{name}: GGUF for big-endian machines, version {swapped}", OTHER_FILE)
    if 3 < version < 100:
        hint = "it is not damaged: llama.cpp must learn that version first"
        return UnsupportedModel(f"{name}: this llama.cpp cannot read the newer GGUF version {version}", hint)
    return BadGguf(f"{name}: GGUF version {version} cannot be right", HINT)


def _unknown_type(name: str, tensor: str, kind: int) -> EdgeMoEError:
    if kind in _FORMER_TYPES or kind in (37, 38):
        what = _FORMER_TYPES.get(kind, "IQ4_NL in another order")
        return UnsupportedModel(f"{name}: {tensor!r} has the type {what}, which llama.cpp no longer reads", OTHER_FILE)
    if kind < _MOST_TYPES:
        hint = "it was made by a newer program: download another quantisation"
        return UnsupportedModel(f"{name}: {tensor!r} has the unknown type {kind}", hint)
    return BadGguf(f"{name}: tensor {tensor!r} has the unknown type {kind}", HINT)


def read_one(path: Path) -> GgufFile:
    """Read the header of one file only, even if the model has more shards.

    Raises:
        BadGguf: the header cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if what := _foreign(stream.read(_FIRST_BYTES)):
                raise BadGguf(f"{path.name}: not a GGUF file: this is {what[0]}", what[1])
            if path.stat().st_size < 24:
                raise BadGguf(f"{path.name}: too short for a GGUF file", HINT)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(data, path.name), path)
    except OSError as error:
        raise BadGguf(f"{path.name} cannot be read: {error}") from error


def _parse(cursor: _Cursor, path: Path) -> GgufFile:
    cursor.take(4)
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise _other_version(path.name, version)
    tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
    if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
        raise cursor.fail(f"{tensor_count} tensors and {key_count} keys cannot be right")
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.string(_MAX_KEY, "a key")
        if not key or key in metadata:
            raise cursor.fail(f"key {key!r} is empty or there twice")
        metadata[key] = _value(cursor, key)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment > 1 << 20 or alignment & (alignment - 1):
        raise cursor.fail(f"alignment {alignment} is not a power of two from 8 up")
    infos = [_tensor(cursor) for _ in range(tensor_count)]
    start = (cursor.at + alignment - 1) // alignment * alignment
    tensors: dict[str, GgufTensor] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.fail(f"tensor {info.name!r} is there twice")
        if info.offset % alignment:
            raise cursor.fail(f"tensor {info.name!r} is not aligned")
        tensors[info.name] = GgufTensor(info.name, info.shape, info.type, start + info.offset, info.bytes)
    _check_places(cursor, list(tensors.values()))
    return GgufFile(path, version, alignment, metadata, tensors)


def _value(cursor: _Cursor, key: str) -> Value:
    kind = cursor.scalar("I")
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind]) if kind != 7 else cursor.scalar("B") != 0
    if kind == _STRING:
        return cursor.string(len(cursor.data), f"the value of {key}")
    if kind != _ARRAY:
        raise cursor.fail(f"key {key!r} has the unknown type {kind}")
    element, length = cursor.scalar("I"), cursor.scalar("Q")
    array = GgufArray(element, length, cursor.at)
    if element in _SCALARS:
        code = _SCALARS[element]
        start = cursor.take(struct.calcsize("<" + code) * length)
        if length <= _MAX_LAYERS:
            array = replace(array, values=struct.unpack_from(f"<{length}{code}", cursor.data, start))
    elif element == _STRING:
        if length > len(cursor.data) // 8:
            raise cursor.fail(f"key {key!r} has {length} strings")
        data, at, end, unpack = cursor.data, cursor.at, len(cursor.data), struct.Struct("<Q").unpack_from
        for _ in range(length):  # the hot loop of reading: a vocabulary has more than 100,000 strings
            if at + 8 > end:
                raise cursor.fail("the header is cut off")
            at += 8 + int(unpack(data, at)[0])
        if at > end:
            raise cursor.fail("the header is cut off")
        cursor.at = at
    else:
        raise cursor.fail(f"key {key!r} is an array of the type {element}")
    return array


def _tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.string(_MAX_NAME, "a tensor's name")
    dims = cursor.scalar("I")
    if not 1 <= dims <= 4:
        raise cursor.fail(f"tensor {name!r} has {dims} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(dims))
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    if kind not in TYPES:
        raise _unknown_type(cursor.name, name, kind)
    _, block, block_bytes = TYPES[kind]
    count = 1
    for extent in shape:
        count *= extent
        if extent < 1 or count >= 1 << 62:
            raise cursor.fail(f"tensor {name!r} has the shape {shape}")
    if shape[0] % block:
        raise cursor.fail(f"tensor {name!r}: rows of {shape[0]} are no whole blocks of {block}")
    return GgufTensor(name, shape, kind, offset, count // block * block_bytes)


def _check_places(cursor: _Cursor, tensors: list[GgufTensor]) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise cursor.fail(f"tensor {tensor.name!r} overlaps another")
        end = tensor.offset + tensor.bytes
        if end > len(cursor.data):
            raise cursor.fail(f"the data of tensor {tensor.name!r} is cut off")


# ---- checking ----

# Hyper-parameters and their upper limits. Above the limit or below 1, llama.cpp runs out of memory or divides by zero.
_LIMITS = {
    "block_count": _MAX_LAYERS,
    "embedding_length": 1 << 17,
    "vocab_size": 1 << 21,
    # llama.cpp divides by these four.
    "attention.output_group_count": 1 << 12,
    "experts_per_group": 1 << 12,
    "full_attention_interval": 1 << 16,
    "wkv.head_size": 1 << 16,
}
# These may be 0, for a layer or a model without such a part.
_LIMITS_FROM_ZERO = {
    "feed_forward_length": 1 << 20,
    "expert_feed_forward_length": 1 << 20,
    "attention.head_count": 1 << 12,
    "attention.head_count_kv": 1 << 12,
    "context_length": 1 << 31,
    "nextn_predict_layers": _MAX_LAYERS,
}
# Architectures in which llama.cpp always applies the window. With a window of 0 no token sees another: useless answers.
_ALWAYS_WINDOWED = frozenset({
    "afmoe", "cohere2", "cohere2moe", "dots3note", "exaone-moe", "gemma2", "gemma3n", "gemma4", "gemma-embedding",
    "maple", "muse-glimmer", "step35",
})  # fmt: skip
# Values of ``general.type`` in files that accompany a model.
_NO_MODELS = ("adapter", "imatrix", "mmproj")


def _check_layout(file: GgufFile) -> None:
    """Refuse sound files that llama.cpp cannot read, or cannot read as a model."""
    if (kind := file.metadata.get("general.type")) in _NO_MODELS:
        what = f"{file.path.name}: this is no model, but of the type {kind!r}"
        raise UnsupportedModel(what, "open the model that it was made for")
    for name in file.tensors:
        if _SINGLE_EXPERT.match(name):
            what = "made before March 2024, with one tensor per expert, which llama.cpp no longer reads"
            raise UnsupportedModel(f"{file.path.name}: {what}", "download a newer upload of the model")
    if file.mtp_blocks and file.tensors and not any(_BLOCK.match(name) for name in file.run_tensors):
        what = "an MTP head without its model: it only guesses ahead for another file"
        raise UnsupportedModel(f"{file.path.name}: {what}", "open the model that it was made for")


def _check_numbers(file: GgufFile) -> None:
    if not file.architecture:
        raise BadGguf(f"{file.path.name}: general.architecture is missing", HINT)
    for limits, least in ((_LIMITS, 1), (_LIMITS_FROM_ZERO, 0)):
        for key, most in limits.items():
            for value in _values(file, key):
                if isinstance(value, (bool, str, float)) or not least <= value <= most:
                    raise BadGguf(f"{file.path.name}: {key} is {value!r}", HINT)
    blocks = file.number("block_count")
    if blocks is not None and file.mtp_blocks >= blocks:
        raise BadGguf(f"{file.path.name}: {file.mtp_blocks} of {blocks} blocks are an MTP head", HINT)
    for key in file.metadata:
        if key.endswith("epsilon"):
            for value in _values(file, key.removeprefix(file.architecture + ".")):
                if isinstance(value, str) or not 0 <= value < 1:
                    raise BadGguf(f"{file.path.name}: {key} is {value!r}", HINT)
    _check_heads(file)
    _check_rope(file)
    _check_layers(file)


def _check_heads(file: GgufFile) -> None:
    """Refuse an attention layer without heads. State-space models, RWKV and skipped layers have no attention."""
    heads = _values(file, "attention.head_count")
    if all(heads):
        return
    for name in file.tensors:
        if match := _ATTENTION.match(name):
            layer = int(match[1])
            if not (heads[layer] if layer < len(heads) > 1 else heads[0]):
                raise BadGguf(f"{file.path.name}: attention.head_count is 0, but there is {name!r}", HINT)


def _check_rope(file: GgufFile) -> None:
    width, heads = file.number("embedding_length"), file.number("attention.head_count")
    for suffix in ("", "_swa"):
        rotated = file.number(f"rope.dimension_count{suffix}")
        head = file.number(f"attention.key_length{suffix}") or file.number("attention.key_length")
        head = head or (width // heads if width and heads else None)
        least = 1 if any(_values(file, "attention.head_count")) else 0
        if rotated is not None and (rotated < least or rotated % 2 or (head is not None and rotated > head)):
            what = f"rope.dimension_count{suffix} is {rotated} in a head of {head}"
            raise BadGguf(f"{file.path.name}: {what}", HINT)
    sections = [value for value in _values(file, "rope.dimension_sections") if not isinstance(value, str)]
    if sections and not (min(sections) >= 0 and 0 < sum(sections) <= (file.number("rope.dimension_count") or 1 << 12)):
        raise BadGguf(f"{file.path.name}: rope.dimension_sections are {sections}", HINT)


def _check_layers(file: GgufFile) -> None:
    """Refuse lists with a value per layer that contradict each other. llama.cpp does not check them."""
    pattern = _values(file, "attention.sliding_window_pattern")
    if len(pattern) > 1 and not any(pattern):
        raise BadGguf(f"{file.path.name}: attention.sliding_window_pattern marks no layer", HINT)
    window = file.number("attention.sliding_window")  # in most architectures 0 means that there is no window
    if window is not None and not (1 if file.architecture in _ALWAYS_WINDOWED else 0) <= window <= 1 << 24:
        raise BadGguf(f"{file.path.name}: attention.sliding_window is {window}", HINT)
    lists = [_values(file, key) for key in ("feed_forward_length", "expert_feed_forward_length", "expert_used_count")]
    if lists[2] and all(len(values) > 1 for values in lists[::2]):
        widths = lists[1] if len(lists[1]) > 1 else lists[1] * len(lists[0])
        for layer, (dense, routed, used) in enumerate(zip(lists[0], widths or lists[0], lists[2], strict=False)):
            if dense and not used and not (widths and routed):
                raise BadGguf(f"{file.path.name}: layer {layer} is {dense} wide but uses no expert", HINT)


def _values(file: GgufFile, key: str) -> tuple[bool | int | float | str, ...]:
    """Read a key of the architecture: no value, one value, or one value per layer."""
    value = file.metadata.get(f"{file.architecture}.{key}")
    if value is None:
        return ()
    return value.values if isinstance(value, GgufArray) else (value,)


def _check_tensors(file: GgufFile) -> None:
    width = file.number("embedding_length")
    for tensor in file.tensors.values():
        # ggml computes with norms, biases, scales and some matrices of state-space models in F32 only.
        vector = len(tensor.shape) == 1 and _ELEMENTWISE.search(tensor.name)
        exact = vector or not tensor.name.endswith(".weight")
        if tensor.type in NOT_WEIGHTS or (exact and tensor.type not in (F32, I32)):
            what = f"{file.path.name}: {tensor.name!r} has the type {tensor.type_name}"
            raise UnsupportedModel(f"{what}, which llama.cpp cannot compute with there", OTHER_FILE)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or width is None:
        return
    if embedding.shape[0] != width:
        raise BadGguf(f"{file.path.name}: embeddings of {embedding.shape[0]} but embedding_length {width}", HINT)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, GgufArray) and len(embedding.shape) > 1 and tokens.length > embedding.shape[1]:
        raise BadGguf(f"{file.path.name}: {tokens.length} tokens but {embedding.shape[1]} embeddings", HINT)
    for key in ("token_type", "scores"):
        values = file.metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(values, GgufArray) and isinstance(tokens, GgufArray) and values.length < tokens.length:
            raise BadGguf(f"{file.path.name}: {values.length} values of {key} for {tokens.length} tokens", HINT)


def _check_scales(file: GgufFile) -> None:
    """Refuse not-a-number in metadata and scales: a single one makes every answer useless."""
    for key, value in file.metadata.items():
        given = value.values if isinstance(value, GgufArray) else (value,)
        if any(isinstance(number, float) and math.isnan(number) for number in given):
            raise BadGguf(f"{file.path.name}: {key} is not a number", HINT)
    for tensor in file.tensors.values():
        if not tensor.name.endswith("scale") or tensor.elements > _MOST_SCALES:
            continue
        numbers = values(file, tensor.name)
        if numbers is not None and not np.isfinite(numbers).all():
            raise BadGguf(f"{file.path.name}: tensor {tensor.name!r} holds values that are no numbers", HINT)


def _check_experts(file: GgufFile) -> None:
    count, used = file.number("expert_count"), file.number("expert_used_count")
    if count is not None and used is not None and not 0 <= used <= count:
        raise BadGguf(f"{file.path.name}: {used} of {count} experts used", HINT)
    for tensor in file.tensors.values():
        match = EXPERTS.match(tensor.name)
        if not match or match[2] != "weight":
            continue
        if len(tensor.shape) != 3 or (count and tensor.shape[2] > count * 64):
            raise BadGguf(f"{file.path.name}: {tensor.name!r} of shape {tensor.shape} for {count} experts", HINT)


def _check_expert_tables(file: GgufFile) -> None:
    """Refuse a table from token ids to experts that names experts which do not exist: ggml does not look."""
    count = file.number("expert_count") or 0
    for tensor in file.tensors.values():
        if not tensor.name.endswith(_EXPERT_TABLE):
            continue
        if tensor.type != I32:
            raise BadGguf(f"{file.path.name}: {tensor.name!r} has the type {tensor.type_name}, not I32", HINT)
        ids = np.fromfile(file.shards[tensor.shard], dtype="<i4", count=tensor.elements, offset=tensor.offset)
        if ids.min() < 0 or ids.max() >= count:
            what = f"{tensor.name!r} names experts from {ids.min()} to {ids.max()}, of {count}"
            raise BadGguf(f"{file.path.name}: {what}", HINT)
