"""Plain llama-cpp-python as the reference, and greedy decoding on any ``llama_cpp.Llama``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp._internals as internals
import llama_cpp.llama as module
import llama_cpp.llama_cpp as binding
import numpy as np
import numpy.typing as npt


def greedy(llm: llama_cpp.Llama, prompt_ids: list[int], n: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Generate ``n`` greedy tokens after ``prompt_ids``, and give the logits after each, shape ``(n, n_vocab)``.

    The prompt is one batch, and every token after it is a decode step. The context is empty at first.
    """
    llm.reset()
    vocabulary = llm.n_vocab()
    tokens: list[int] = []
    rows = np.empty((n, vocabulary), dtype=np.float32)
    llm.eval(prompt_ids)
    for step in range(n):
        rows[step] = last_logits(llm, vocabulary)
        tokens.append(int(rows[step].argmax()))
        if step + 1 < n:
            llm.eval([tokens[-1]])
    return tokens, rows


def forced(llm: llama_cpp.Llama, ids: Sequence[int], batch: int) -> npt.NDArray[np.float32]:
    """Evaluate ``ids`` in batches from an empty context, and give the logits after each batch.

    Shape ``(len(ids) // batch, n_vocab)``. The ids are given, so a wrong token cannot hide the difference at the next.
    """
    llm.reset()
    vocabulary = llm.n_vocab()
    rows = np.empty((len(ids) // batch, vocabulary), dtype=np.float32)
    for index in range(len(rows)):
        llm.eval(list(ids[index * batch : (index + 1) * batch]))
        rows[index] = last_logits(llm, vocabulary)
    return rows


def plain(path: Path, **kw: Any) -> llama_cpp.Llama:
    """Open llama-cpp-python without weight repacking, on the CPU, without a log.

    Args:
        path: a GGUF file.
        kw: further arguments of ``llama_cpp.Llama``; they override the defaults here.
    """
    settings: dict[str, Any] = {"n_ctx": 128, "n_batch": 128, "n_ubatch": 128, "n_gpu_layers": 0}
    settings |= {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
    with defaults("model", use_extra_bufts=False), silent():
        return llama_cpp.Llama(model_path=str(path), **(settings | kw))


def last_logits(llm: llama_cpp.Llama, vocabulary: int) -> npt.NDArray[np.float32]:
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    row: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(vocabulary,)).copy()
    return row


@contextmanager
def defaults(kind: str, **fields: Any) -> Iterator[None]:
    """Change the ``fields`` that ``llama_model_default_params`` (or ``context`` for ``kind``) gives, for a while.

    The constructor of ``Llama`` reads the function from the module ``llama_cpp.llama_cpp``. The package has another
    reference to it; replacing that one has no effect.
    """
    name = f"llama_{kind}_default_params"
    original = getattr(binding, name)

    def changed() -> Any:
        params = original()
        for field, value in fields.items():
            setattr(params, field, value)
        return params

    setattr(binding, name, changed)
    try:
        yield
    finally:
        setattr(binding, name, original)


@contextmanager
def silent() -> Iterator[list[str]]:
    """Keep llama.cpp's log off the terminal, without the redirected file descriptors of ``verbose=False``.

    The context gives the list that gets the log.

    With redirected descriptors, output of the tests and the last lines of a crash would be lost.
    """
    lines: list[str] = []

    def collect(_level: int, text: bytes, _data: int | None) -> None:
        lines.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(collect)
    suppressors = (module.suppress_stdout_stderr, internals.suppress_stdout_stderr)
    module.suppress_stdout_stderr = internals.suppress_stdout_stderr = _do_nothing
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        module.suppress_stdout_stderr, internals.suppress_stdout_stderr = suppressors
        llama_cpp.llama_log_set(_llama_cpp_log(), ctypes.c_void_p(0))


def _do_nothing(disable: bool = True) -> nullcontext[None]:
    return nullcontext()


def _llama_cpp_log() -> Any:
    from llama_cpp._logger import llama_log_callback

    return llama_log_callback
