"""The open models of this process: the process closes them when it ends, and a forked child forgets them.

Ordering: at exit no model is freed while anything may still use it. A thread that computes is asked to stop, and gets
no further step. If another thread may still hold a model, the operating system frees its memory. A forked child has
copies of the models without their threads, so it forgets the models.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

# Longest time from a cancel to the end of a computation, on any machine that is not overloaded.
LEAVE_S = 5.0
OURS = "edgemoe-"


class Model(Protocol):
    """An open model."""

    def leave(self, seconds: float, others: bool) -> None:
        """Stop and keep the routing profile, because the program ends.

        Args:
            seconds: longest wait for threads that compute.
            others: other threads may still hold the model.
        """
        ...


_open: weakref.WeakSet[Any] = weakref.WeakSet()
# One model loads at a time, because a load changes llama_cpp for its duration.
load_lock = threading.Lock()


def opened(model: Model) -> Callable[[], None]:
    """Watch over ``model``; return a function that ends the watch. The function does not hold the model alive."""
    _open.add(model)
    reference = weakref.ref(model)

    def closed() -> None:
        if (still := reference()) is not None:
            _open.discard(still)

    return closed


def keep_for_good(model: Any) -> None:
    """Never free ``model``, not even at the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(model))


@atexit.register
def _leave_all() -> None:
    """Save routing profiles while the interpreter can still write files."""
    others = any(thread.daemon and not thread.name.startswith(OURS) for thread in threading.enumerate())
    for model in list(_open):
        model.leave(LEAVE_S, others)


def _forget_all() -> None:
    global load_lock
    load_lock = threading.Lock()  # a thread that does not exist in the child may have held the old lock
    for model in list(_open):
        keep_for_good(model)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
