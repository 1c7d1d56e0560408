"""llama.cpp's own ways to place a model, to compare with: the CPU alone, or whole layers on a GPU at equal memory."""

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
    """One way to place a model.

    Attributes:
        name: of its rows.
        gpu_layers: ``n_gpu_layers``, -1 for all.
        on_cpu: blocks whose experts stay on the CPU.
    """

    name: str
    gpu_layers: int
    on_cpu: tuple[int, ...] = ()

    def open(self, path: Path, keywords: dict[str, Any]) -> Any:
        """llama.cpp's model, placed so.

        Raises:
            ValueError: llama.cpp does not load it.
        """
        with _overridden(self.on_cpu):
            return llama_cpp.Llama(str(path), n_gpu_layers=self.gpu_layers, **keywords)


def placements(file: GgufFile, device: str, slot_bytes: int) -> list[Placement]:
    """What to compare with: the CPU alone without a GPU, else all experts on the CPU, and the last N layers.

    Args:
        file: the model.
        device: where our hot experts are.
        slot_bytes: the memory that they have there: the last N layers get no more.
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


def fitting(sizes: Sequence[int], most: int) -> int:
    """How many of the last ``sizes`` add up to no more than ``most``."""
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
    """While it lasts, llama_cpp's default parameters keep the experts of ``blocks`` in the CPU's buffers."""
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
