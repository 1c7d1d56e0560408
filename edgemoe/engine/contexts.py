"""Further contexts of one model: each has a memory of its own, and all share the weights and the resident experts.

Ordering: a context is made and freed while nothing else is. Contexts may compute in several threads: the core takes the
layers or passes in turns. Each pass is one record of the routing history.
"""

from __future__ import annotations

import threading
from typing import Any

import llama_cpp

from ..errors import ContextFailed
from . import host
from .binding import NativeEngine


class Contexts:
    """The further contexts of one model."""

    def __init__(self, model: Any, settings: Any, native: NativeEngine, on_device: bool, verbose: bool) -> None:
        """Begin without a context.

        Args:
            model: address of the llama_model.
            settings: llama_context_params of the first context.
            native: the engine of the model.
            on_device: llama.cpp computes on the engine's device.
            verbose: llama.cpp's messages may be seen.
        """
        self._model, self._settings = model, settings
        self._native, self._on_device, self._verbose = native, on_device, verbose
        self._open: set[int] = set()
        self._lock = threading.Lock()

    def open(self, **changes: Any) -> int:
        """Make a context and return its address; `close` frees it, at the latest when the model closes.

        Args:
            **changes: fields of llama_context_params that differ from the first context.

        Raises:
            ContextFailed: llama.cpp cannot make it.
        """
        params = type(self._settings).from_buffer_copy(self._settings)
        for name, value in changes.items():
            setattr(params, name, value)
        trapped = host.core().trap_aborts()
        with self._lock, host.quiet(self._verbose) as errors, trapped, self._native.one_more_context(self._on_device):
            context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise ContextFailed(f"no further context could be made: {host.error_text(errors)}", "other settings of it")
        self._open.add(int(context))
        return int(context)

    def close(self, context: int) -> None:
        """Free a context; nothing happens if it is freed already."""
        with self._lock:
            if context in self._open:
                self._open.remove(context)
                llama_cpp.llama_free(context)

    def close_all(self) -> None:
        """Free every context that is left."""
        for context in list(self._open):
            self.close(context)
