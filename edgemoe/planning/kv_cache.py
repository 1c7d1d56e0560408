"""The memory of a context: KV cache and recurrent states, counted as llama.cpp allocates them.

The KV cache follows from the shapes of the attention's weights. A layer without a key projection keeps no keys. A layer
with a compressed projection (latent attention) keeps the compressed row. Metadata decides what the weights leave open.

**Source**: sizes of cache and state are those of llama.cpp 0.5.0 (llama-kv-cache*.cpp, llama-memory-recurrent.cpp,
llama-hparams.cpp), compared with its reports for every architecture of tests/zoo and every type of cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from ..models.gguf import GgufArray, GgufFile

F32 = 4


class CacheType(NamedTuple):
    """A type that a cache can have: its name in ggml, and the bytes (``size``) of a block of ``block`` elements."""

    name: str
    size: int
    block: int


# By ggml's number.
CACHE_TYPES = {
    0: CacheType("f32", 4, 1),
    1: CacheType("f16", 2, 1),
    2: CacheType("q4_0", 18, 32),
    3: CacheType("q4_1", 20, 32),
    6: CacheType("q5_0", 22, 32),
    7: CacheType("q5_1", 24, 32),
    8: CacheType("q8_0", 34, 32),
    20: CacheType("iq4_nl", 18, 32),
    30: CacheType("bf16", 2, 1),
}
USUAL_TYPE = 1
_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")
# Weights that only a recurrent layer has: state-space models, gated delta nets, short convolutions, RWKV.
_RECURRENT = ("ssm_", "shortconv", "time_mix")
# Architectures with a recurrent state and a cache in one layer.
_BOTH = ("falcon-h1",)
_ATTENTION = ("attn_k.weight", "attn_qkv.weight", "attn_kv_a_mqa.weight", "attn_kv.weight", "attn_kv_latent.weight")
# Architectures whose layers have a window in a fixed pattern, unless the file says otherwise: every so many layers one
# sees all of the context; True if it is the first of them, else it is the last.
_PATTERNS = {
    **dict.fromkeys(("gemma2", "gpt-oss"), (2, False)),
    **dict.fromkeys(("afmoe", "cohere2", "exaone-moe", "exaone4", "llama4", "mellum", "olmo2"), (4, False)),
    **{"muse-glimmer": (4, False), "gemma3n": (5, False), "gemma3": (6, False), "plamo3": (8, False)},
    **dict.fromkeys(("cohere2moe", "laguna", "smallthinker"), (4, True)),
}
# Architectures with a window in every layer that has a cache.
_ALL_WINDOWED = ("deepseek4", "lfm2", "lfm2moe")
# Windows that llama.cpp does not read from the file.
_FIXED_WINDOWS = {"llama4": 8192, "smallthinker": 4096, "phi3": 0}
# DeepSeek-V4 compresses keys: tokens of one cell in a layer with an indexer, and in one without.
_INDEXED_RATIO, _PLAIN_RATIO = 4, 128
# In a hybrid of this architecture, every so many layers one has softmax attention.
LIGHTNING, LIGHTNING_INTERVAL = "minimax-01", 8
Shape: TypeAlias = tuple[int, ...]
Tensors: TypeAlias = dict[str, Shape]


@dataclass
class ContextMemory:
    """The memory of a context, in bytes.

    Attributes:
        token_bytes: of one token, in layers that keep all of the context.
        window_bytes: of one token, in layers with a sliding window.
        compressed: of a cell that holds so many tokens, by that number.
        state_bytes: of the recurrent states of one sequence.
    """

    token_bytes: int = 0
    window_bytes: int = 0
    compressed: dict[int, int] = field(default_factory=dict)
    state_bytes: int = 0


class Heads(NamedTuple):
    """One kind of attention heads.

    Attributes:
        queries: number of heads of queries.
        pairs: number of heads of keys and values.
        key: numbers of a key.
        value: numbers of a value.
        softcap: limit of the scores, 0 for none.
        sinks: the scores have learnt sinks.
    """

    queries: int
    pairs: int
    key: int
    value: int
    softcap: float = 0.0
    sinks: bool = False


def of(file: GgufFile, flash: bool, types: tuple[int, int]) -> ContextMemory:
    """Count the memory of a context.

    Args:
        file: the header.
        flash: flash attention. Without it, values are kept transposed, and every layer's cache is as wide as the
            widest.
        types: ggml's numbers for the types of keys and values.
    """
    found = ContextMemory()
    rows = layer_rows(file)
    widest = max((values for _, values in rows), default=0)
    for layer, (tensors, (keys, values)) in enumerate(zip(_layers(file), rows, strict=True)):
        size = _row(keys, types[0]) + _row(widest if values and not flash else values, types[1])
        if _windowed(file, layer):
            found.window_bytes += size
        else:
            found.token_bytes += size
        if file.architecture == "deepseek4":
            _add_compressed(found, file, layer, types[0])
        else:
            found.token_bytes += sum(map(_row, _index(file, layer, tensors), types))
        if _recurrent(file, layer, tensors):
            found.state_bytes += F32 * _state_width(file, layer)
    return found


def cache_type(number: int) -> CacheType:
    """Give the type of a cache by ggml's number; an unknown one counts as f16."""
    return CACHE_TYPES.get(number, CACHE_TYPES[USUAL_TYPE])


def layer_rows(file: GgufFile) -> list[tuple[int, int]]:
    """List the numbers that each layer keeps of one token: of keys, and of values; without the index of a layer."""
    sharing = _count(file) - (file.number("attention.shared_kv_layers") or 0)  # the last layers read other layers' rows
    return [_kept(file, n, tensors) if n < sharing else (0, 0) for n, tensors in enumerate(_layers(file))]


def heads(file: GgufFile) -> list[Heads]:
    """List the kinds of heads that the layers with attention have."""
    found: set[Heads] = set()
    softcap = file.metadata.get(f"{file.architecture}.attn_logit_softcapping")
    for layer, (tensors, (keys, values)) in enumerate(zip(_layers(file), layer_rows(file), strict=True)):
        if not keys:
            continue
        widths = (_head(file, layer, "key"), _head(file, layer, "value"))
        found.add(
            Heads(
                _heads_at(file, layer),
                max(1, keys // widths[0]) if values and widths[0] else 1,
                *widths,
                float(softcap) if isinstance(softcap, float) else 0.0,
                "attn_sinks.weight" in tensors,
            )
        )
    return sorted(found)


def most_heads(file: GgufFile) -> int:
    """Count the attention heads of the layer with the most heads."""
    return max(_per_layer(file, "attention.head_count"), default=0)


def keeps_keys_only(file: GgufFile) -> bool:
    """Tell whether values are a view of the keys, so that both have one type."""
    return bool(file.number("attention.key_length_mla")) or file.architecture == "deepseek4"


def window(file: GgufFile) -> int:
    """Give the tokens that a layer with a sliding window sees; 0 if there is no such layer."""
    given, name = file.number("attention.sliding_window"), file.architecture
    if name in _FIXED_WINDOWS and (given or (given is None and name == "llama4")):
        return _FIXED_WINDOWS[name]
    return given or 0


def _count(file: GgufFile) -> int:
    return file.run_blocks or 1 + max((int(m[1]) for name in file.run_tensors if (m := _BLOCK.match(name))), default=-1)


def _layers(file: GgufFile) -> list[Tensors]:
    """List the shapes of each layer's tensors by name."""
    found: list[Tensors] = [{} for _ in range(_count(file))]
    for name, tensor in file.run_tensors.items():
        if (match := _BLOCK.match(name)) and int(match[1]) < len(found):
            found[int(match[1])][match[2]] = tensor.shape
    return found


def _row(numbers: int, kind: int) -> int:
    """Count the bytes of ``numbers`` numbers of a type."""
    _, size, block = cache_type(kind)
    return -(-numbers // block) * size


def _recurrent(file: GgufFile, layer: int, tensors: Tensors) -> bool:
    if file.architecture == LIGHTNING:
        given = file.metadata.get(f"{LIGHTNING}.attention.recurrent_layers")
        if isinstance(given, GgufArray):
            return layer < len(given.values) and bool(given.values[layer])
        return (layer + 1) % (file.number("full_attention_interval") or LIGHTNING_INTERVAL) != 0
    return any(name.startswith(_RECURRENT) for name in tensors)


def _kept(file: GgufFile, layer: int, tensors: Tensors) -> tuple[int, int]:
    """Count the elements that the cache of a layer keeps for one token: those of its keys, and of its values."""
    if not any(name in tensors for name in _ATTENTION):
        return 0, 0
    if _recurrent(file, layer, tensors) and file.architecture not in _BOTH:
        return 0, 0
    if "attn_kv_a_mqa.weight" in tensors and "attn_k_b.weight" in tensors:
        return tensors["attn_kv_a_mqa.weight"][1], 0  # latent attention: the values are a view of the keys
    heads = _at(file, "attention.head_count_kv", layer)
    keys, values = (heads * _head(file, layer, kind) for kind in ("key", "value"))
    if file.architecture == "deepseek4":
        return keys, 0
    if "attn_k.weight" in tensors:
        keys = tensors["attn_k.weight"][1]
        values = tensors["attn_v.weight"][1] if "attn_v.weight" in tensors else values or keys
    return keys, values


def _index(file: GgufFile, layer: int, tensors: Tensors) -> tuple[int, int]:
    """Count the numbers that the index of a layer keeps of one token: of keys, and of values."""
    if not any("indexer." in name for name in tensors):
        return 0, 0
    width = file.number("attention.indexer.key_length") or 0
    if file.number("attention.indexer.kpool"):
        width *= 3  # key, gate and pooled value
    return width, _head(file, layer, "value") if file.architecture == "minimax-m3" else 0


def _add_compressed(found: ContextMemory, file: GgufFile, layer: int, kind: int) -> None:
    """Add the compressed keys of a layer of DeepSeek-V4, and the states of their compressors."""
    ratios = _per_layer(file, "attention.compress_ratios")
    ratio = ratios[layer] if layer < len(ratios) else 0
    keys, index = _head(file, layer, "key"), file.number("attention.indexer.key_length") or 0
    if ratio == _INDEXED_RATIO:  # two windows overlap
        found.compressed[ratio] = found.compressed.get(ratio, 0) + _row(keys, kind) + _row(index, kind)
        found.state_bytes += 2 * F32 * 2 * (keys + index) * 2 * ratio
    elif ratio == _PLAIN_RATIO:
        found.compressed[ratio] = found.compressed.get(ratio, 0) + _row(keys, kind)
        found.state_bytes += 2 * F32 * keys * ratio


def _head(file: GgufFile, layer: int, kind: str) -> int:
    """Count the numbers of one head's key or value."""
    own = file.number(f"attention.{kind}_length_swa") if _windowed(file, layer) else None
    plain = (file.number("embedding_length") or 0) // (_heads_at(file, layer) or 1)
    return own or file.number(f"attention.{kind}_length") or plain


def _state_width(file: GgufFile, layer: int) -> int:
    """Count the numbers that a recurrent layer keeps of a sequence."""
    width = file.number("embedding_length") or 0
    if file.architecture == LIGHTNING:
        return int(_heads_at(file, layer) * _head(file, layer, "key") ** 2)
    if head := file.number("wkv.head_size"):
        return width * (head + (file.number("token_shift_count") or 2))
    if cells := file.number("shortconv.l_cache"):
        return width * (cells - 1)
    kernel = max(0, (file.number("ssm.conv_kernel") or 0) - 1)
    if head := file.number("kda.head_dim"):
        return most_heads(file) * head * (3 * kernel + head)
    inner, size = file.number("ssm.inner_size") or 0, file.number("ssm.state_size") or 0
    return kernel * (inner + 2 * (file.number("ssm.group_count") or 0) * size) + size * inner


def _windowed(file: GgufFile, layer: int) -> bool:
    if not window(file):
        return False
    if file.architecture in _ALL_WINDOWED:
        return True
    pattern = file.metadata.get(f"{file.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, GgufArray):
        return layer < len(pattern.values) and bool(pattern.values[layer])
    period, first = _PATTERNS.get(file.architecture, (1, False))
    period = pattern if isinstance(pattern, int) else period
    return not period or (layer % period != 0 if first else layer % period < period - 1)


def _per_layer(file: GgufFile, key: str) -> list[int]:
    value = file.metadata.get(f"{file.architecture}.{key}")
    if isinstance(value, GgufArray):
        return [int(v) for v in value.values]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _at(file: GgufFile, key: str, layer: int) -> int:
    values = _per_layer(file, key)
    if not values and key == "attention.head_count_kv":
        return _heads_at(file, layer)
    return (values[layer] if layer < len(values) else values[0]) if values else 0


def _heads_at(file: GgufFile, layer: int) -> int:
    return _at(file, "attention.head_count", layer)
