"""The attention of a context, decided before a model loads: types of the KV cache, and flash attention.

llama.cpp checks the same conditions, but only after it has loaded the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..config import OffloadConfig, needs_flash
from ..errors import ContextFailed
from ..models.gguf import GgufFile
from ..planning import kv_cache
from ..planning.kv_cache import CACHE_TYPES, USUAL_TYPE, Heads, cache_type

# Longest context without flash attention, unless it is asked for. In a longer one, the scores of all heads take more
# memory than any other buffer.
FLASH_CONTEXT = 8192
# llama.cpp turns flash attention off for it.
NEVER_FLASH = ("grok",)
# ggml's numbers of the types by name.
NUMBERS = {kind.name: number for number, kind in CACHE_TYPES.items()}

Computes = Callable[[Heads, tuple[int, int]], bool]


def settings(
    file: GgufFile, config: OffloadConfig, keywords: Mapping[str, Any], context: int, computes: Computes
) -> dict[str, Any]:
    """Choose llama_cpp's keywords ``type_k``, ``type_v`` and ``flash_attn``: the user's first, then by the settings.

    Args:
        file: the header.
        config: the settings.
        keywords: the keywords that the user gave.
        context: tokens of the context; 0 if the planner chooses them.
        computes: tells whether the device computes flash attention of these heads, with these types of the cache.

    Raises:
        ContextFailed: llama.cpp cannot make such a cache.
    """
    types = _types(config, keywords)
    _check_types(file, types)
    quantised = cache_type(types[1]).block > 1
    flash = keywords.get("flash_attn")
    if flash is None and config.flash != "auto":
        flash = config.flash == "on"
    if flash is None:
        long = not 0 < context <= FLASH_CONTEXT
        flash = quantised or (long and all(computes(heads, types) for heads in kv_cache.heads(file)))
    flash = bool(flash) and file.architecture not in NEVER_FLASH
    if quantised and not flash:
        raise ContextFailed(*needs_flash(cache_type(types[1]).name))
    chosen = {name: kind for name, kind in zip(("type_k", "type_v"), types, strict=True) if kind != USUAL_TYPE}
    return chosen | {"flash_attn": flash}


def _types(config: OffloadConfig, keywords: Mapping[str, Any]) -> tuple[int, int]:
    """Give ggml's numbers for the types of keys and values."""
    keys, values = (
        NUMBERS[wanted] if keywords.get(name) is None else int(keywords[name])
        for name, wanted in zip(("type_k", "type_v"), config.kv_types, strict=True)
    )
    return keys, values


def _check_types(file: GgufFile, types: tuple[int, int]) -> None:
    """Refuse types that llama.cpp cannot give to the cache of this model."""
    name = file.path.name
    if types[0] != types[1] and kv_cache.keeps_keys_only(file):
        raise ContextFailed(f"{name} keeps keys and values in one row: both have one type", "kv='q8_0' (--kv q8_0)")
    for heads in kv_cache.heads(file):  # without flash attention llama.cpp would read half blocks
        for what, number, width in (("keys", types[0], heads.key), ("values", types[1], heads.value)):
            kind = cache_type(number)
            if width % kind.block:
                text = f"{name}: heads of {width} numbers are no whole blocks of {kind.block} ({kind.name})"
                raise ContextFailed(f"{text}, so its {what} cannot have this type", "kv='f16' (--kv f16)")
