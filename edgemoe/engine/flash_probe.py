"""Ask a ggml device whether it computes flash attention. Nothing is allocated on the device, and nothing computed."""

from __future__ import annotations

import ctypes

from ..planning.kv_cache import USUAL_TYPE, Heads

F32, F16 = 0, USUAL_TYPE
# Cells of the cache in the question. A cache has a multiple of 256.
CELLS = 256
MEMORY = 1 << 16  # of ggml's descriptions of seven tensors


class _Init(ctypes.Structure):
    """``struct ggml_init_params`` in ggml.h."""

    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def computes_flash(lib: ctypes.CDLL, device: str, heads: Heads, types: tuple[int, int]) -> bool:
    """Tell whether the device computes flash attention of one token.

    Args:
        lib: a library through which ggml's functions are found.
        device: ggml name of the device.
        heads: the heads of the model.
        types: ggml's numbers for the types of keys and values.
    """
    if heads.queries % heads.pairs:
        return False  # ggml would fail an assertion
    _declare(lib)
    place = lib.ggml_backend_dev_by_name(device.encode())
    context = lib.ggml_init(_Init(MEMORY, None, True))
    try:
        query = lib.ggml_new_tensor_4d(context, F32, heads.key, 1, heads.queries, 1)
        keys = lib.ggml_new_tensor_4d(context, types[0], heads.key, CELLS, heads.pairs, 1)
        values = lib.ggml_new_tensor_4d(context, types[1], heads.value, CELLS, heads.pairs, 1)
        mask = lib.ggml_new_tensor_4d(context, F16, CELLS, 1, 1, 1)
        made = lib.ggml_flash_attn_ext(context, query, keys, values, mask, 1.0, 0.0, heads.softcap)
        if heads.sinks:
            lib.ggml_flash_attn_ext_add_sinks(made, lib.ggml_new_tensor_4d(context, F32, heads.queries, 1, 1, 1))
        return bool(place) and bool(lib.ggml_backend_dev_supports_op(place, made))
    finally:
        lib.ggml_free(context)


def _declare(lib: ctypes.CDLL) -> None:
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    for name, result, arguments in (
        ("ggml_backend_dev_by_name", pointer, [ctypes.c_char_p]),
        ("ggml_init", pointer, [_Init]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_4d", pointer, [pointer, ctypes.c_int, *[number] * 4]),
        ("ggml_flash_attn_ext", pointer, [*[pointer] * 5, *[real] * 3]),
        ("ggml_flash_attn_ext_add_sinks", None, [pointer, pointer]),
        ("ggml_backend_dev_supports_op", ctypes.c_bool, [pointer, pointer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
