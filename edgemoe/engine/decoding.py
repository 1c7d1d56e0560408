"""The decode function of the context, in place of llama_cpp's: the scheduler sees every batch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp

from ..errors import ComputeFailed, EdgeMoEError
from . import host
from .binding import Core
from .scheduler import Scheduler
from .threads import Threads, Usage

FULL = 1  # llama_decode found no place in the KV cache


class ContextFull(ComputeFailed):
    """The memory of the context has no place for the batch; it is as it was before."""


class Decode:
    """Stands in for ``decode`` of llama_cpp's context.

    Reports every batch to the scheduler, from ``eval``, ``embed`` or a program that calls ``llm._ctx.decode``. A failed
    assertion of ggml is an error, not the end of the process. A program may call ``llama_cpp.llama_decode(llm.ctx,
    batch)`` itself, as image handlers do for their images. Such a batch bypasses this class. Its answers are right, and
    the next batch counts its routing, but no expert moves meanwhile.
    """

    def __init__(
        self,
        core: Core,
        context: int,
        scheduler: Scheduler,
        verbose: bool,
        threads: Threads | None = None,
        follow: Callable[[list[int], int], None] | None = None,
    ) -> None:
        """Decode in ``context``.

        Args:
            core: calls llama.cpp.
            context: address of a llama_context.
            scheduler: moves the experts.
            verbose: llama.cpp's messages may be seen.
            threads: chooses the number of threads for single tokens; None: the number stays as it is.
            follow: called with the tokens and the first position of each computed batch.
        """
        self._core, self._context, self._scheduler, self._verbose = core, context, scheduler, verbose
        self._threads, self._follow = threads, follow
        self._function, self._process = host.address_of("llama_decode"), os.getpid()
        self._next = 0  # position behind the latest batch
        self._broken = ""

    def __call__(self, batch: Any) -> None:
        """Compute one batch.

        Raises:
            ComputeFailed: llama.cpp could not.
            ContextFull: the context had no place for the batch.
        """
        if self._broken:
            raise ComputeFailed(f"the model is unusable after an error: {self._broken}", "open it again")
        if os.getpid() != self._process:
            raise EdgeMoEError("the model was opened in another process", "open it after the fork, or spawn")
        raw = batch.batch
        tokens: list[int] = raw.token[: raw.n_tokens] if raw.token else [-1] * raw.n_tokens
        started, usage = time.perf_counter_ns(), Usage.now()
        if raw.n_tokens and raw.pos and raw.pos[0] != self._next:
            self._scheduler.settle()  # a program may have computed by itself meanwhile
        self._scheduler.before_step(tokens)
        computed: list[int] = []
        try:
            with host.computing(self._verbose):
                status = self._core.decode(self._function, self._context, raw)
            computed = tokens if status == 0 else []
        except EdgeMoEError as error:
            self._broken = host.error_text([str(error)])
            raise ComputeFailed(f"llama.cpp failed to compute: {self._broken}") from error
        finally:
            self._scheduler.after_step(computed, time.perf_counter_ns() - started)
        if status != 0 and (disk := self._scheduler.disk_failure()):
            raise ComputeFailed(
                f"an expert could not be read: {disk}", "check the file and its disk, then open it again"
            )
        if status == FULL:
            raise ContextFull(f"llama_decode returned {status}", "the context is full: n_ctx= sets its size")
        if status != 0:
            raise ComputeFailed(f"llama_decode returned {status}")
        if self._follow is not None and raw.n_tokens and raw.pos:
            self._follow(list(tokens), raw.pos[0])
        if raw.n_tokens and raw.pos:
            self._next = raw.pos[raw.n_tokens - 1] + 1
        if self._threads is not None and raw.n_tokens == 1:
            self._adapt(self._threads, time.perf_counter_ns() - started, Usage.now().since(usage))

    def _adapt(self, threads: Threads, elapsed_ns: int, usage: Usage) -> None:
        """Use another number of threads for the next token if the controller says so."""
        before = threads.count
        if (count := threads.passed(elapsed_ns, usage)) != before:
            llama_cpp.llama_set_n_threads(self._context, count, llama_cpp.llama_n_threads_batch(self._context))


def decode_rows(llm: Any, tokens: Sequence[int]) -> None:
    """Do as llama_cpp's ``eval`` with ``logits_all``, but leave the logits in llama.cpp's memory."""
    before = llm.n_tokens
    llm._ctx.kv_cache_seq_rm(-1, before, -1)
    llm._batch.set_batch(batch=tokens, n_past=before, logits_all=True)
    llm._ctx.decode(llm._batch)
    llm.input_ids[before : before + len(tokens)] = tokens
    llm.n_tokens, llm._requires_eval = before + len(tokens), False
