"""llama.cpp's own placements for comparison: the CPU alone, or whole layers on a GPU at equal memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as binding

from ..models.gguf import EXPERTS, GgufFile

PLAIN = "llama.cpp"
SIMULATED = ("none", "sim")


@dataclass(frozen=True)
class Placement:
    """Describe one placement of a model.

    Attributes:
        name: name of the placement in rows of the profile.
        gpu_layers: value of ``n_gpu_layers``; -1 means all layers.
        on_cpu: blocks with experts that stay on the CPU.
    """

    name: str
    gpu_layers: int
    on_cpu: tuple[int, ...] = ()

    def open(self, path: Path, keywords: dict[str, Any]) -> Any:
        """Open the model with llama.cpp in this placement.

        Raises:
            ValueError: llama.cpp cannot load the model.
        """
        with _overridden(self.on_cpu):
            return llama_cpp.Llama(str(path), n_gpu_layers=self.gpu_layers, **keywords)


def placements(file: GgufFile, device: str, slot_bytes: int) -> list[Placement]:
    """Choose llama.cpp's placements for the comparison.

    Without a GPU it is the CPU alone. With a GPU there are two: all experts on the CPU, and the experts of the last N
    layers on the GPU.

    Args:
        file: header of the model.
        device: device with our resident experts.
        slot_bytes: device memory of our slots. The last N layers get no more than this.
    """
    if device in SIMULATED:
        return [Placement(PLAIN, 0)]
    size: dict[int, int] = {}
    for name, tensor in file.run_tensors.items():
        if match := EXPERTS.match(name):
            size[int(match[1])] = size.get(int(match[1]), 0) + tensor.bytes
    blocks = sorted(size)
    if not blocks:
        return [Placement(PLAIN, -1)]
    count = fitting([size[block] for block in blocks], slot_bytes)
    found = [Placement(f"{PLAIN}, experts on CPU", -1, tuple(blocks))]
    if count:
        found.append(Placement(f"{PLAIN}, last {count} layers", -1, tuple(blocks[: len(blocks) - count])))
    return found


def attention_of(llm: Any) -> dict[str, Any]:
    """Give llama_cpp's keywords for the attention that an open model has."""
    params = llm.context_params
    flash = params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    return {"flash_attn": flash, "type_k": params.type_k, "type_v": params.type_v}


def fitting(sizes: Sequence[int], most: int) -> int:
    """Count how many of the last ``sizes`` add up to at most ``most``."""
    count = total = 0
    for size in reversed(sizes):
        total += size
        if total > most:
            break
        count += 1
    return count


class _Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p)]


@contextmanager
def _overridden(blocks: Sequence[int]) -> Iterator[None]:
    """Change llama_cpp's default parameters for a while: they keep the experts of ``blocks`` in the CPU's buffers."""
    plain: Callable[[], Any] = binding.llama_model_default_params
    buffer_type = binding._lib.ggml_backend_cpu_buffer_type
    buffer_type.restype, buffer_type.argtypes = ctypes.c_void_p, []
    patterns = [rf"^blk\.({'|'.join(map(str, blocks))})\.ffn_(gate|up|down|gate_up)_exps\.".encode()] if blocks else []
    overrides = (_Override * 2)(*(_Override(pattern, buffer_type()) for pattern in patterns))

    def params() -> Any:
        found = plain()
        if patterns:
            found.tensor_buft_overrides = ctypes.addressof(overrides)
        return found

    binding.llama_model_default_params = params
    try:
        yield
    finally:
        binding.llama_model_default_params = plain
