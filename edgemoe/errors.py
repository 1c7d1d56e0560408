"""Errors that reach the user. Each error carries a hint: an action that may help.

If llama_cpp would raise a ``ValueError`` or a ``RuntimeError``, our error is also an instance of that class. Code
written for llama_cpp therefore catches it.
"""

from __future__ import annotations


class EdgeMoEError(Exception):
    """Base class of all errors that EdgeMoE raises on purpose.

    Attributes:
        hint: one line with the action that may help, or an empty string.
    """

    hint: str = ""

    def __init__(self, message: str, hint: str = "") -> None:
        """Store ``message`` and, when given, a ``hint`` for the user."""
        super().__init__(message)
        if hint:
            self.hint = hint


class ModelNotFound(EdgeMoEError, ValueError):
    """The model file, catalogue name or repository does not exist."""


class BadGguf(EdgeMoEError, ValueError):
    """The file cannot be loaded as GGUF: it is damaged, truncated or hostile."""


class UnsupportedModel(EdgeMoEError, ValueError):
    """The GGUF file is sound, but this version of llama.cpp cannot run it."""


class ConfigError(EdgeMoEError, ValueError):
    """A setting has a value that cannot be honoured."""


class BadTemplate(EdgeMoEError, ValueError):
    """The chat template of a model cannot be compiled, or fails."""


class BadMessages(EdgeMoEError, ValueError):
    """The messages cannot be given to this model: for example, an image to a model that only reads text."""


class ContextFailed(ConfigError):
    """llama.cpp loaded the model, but cannot make a context with these settings."""


class LoadFailed(EdgeMoEError, ValueError):
    """llama.cpp could not load the model although its file is sound, for example for lack of memory."""


class ComputeFailed(EdgeMoEError, RuntimeError):
    """llama.cpp could not compute."""


class Cancelled(EdgeMoEError, RuntimeError):
    """``Llama.cancel`` was called during a computation outside a completion."""


class DoesNotFit(EdgeMoEError, ValueError):
    """The model does not fit the memory that was asked for.

    Attributes:
        needed_bytes: bytes that the request needs.
        free_bytes: bytes that are free.
        suggestion: a setting that would fit.
    """

    def __init__(self, needed_bytes: int, free_bytes: int, suggestion: str) -> None:
        """Build the message from the three figures."""
        super().__init__(
            f"needs {needed_bytes / 2**20:.0f} MiB, {free_bytes / 2**20:.0f} MiB are free",
            suggestion,
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.suggestion = suggestion

    def __reduce__(self) -> tuple[type[DoesNotFit], tuple[int, int, str]]:
        """Support pickling, so that the error crosses process boundaries."""
        return DoesNotFit, (self.needed_bytes, self.free_bytes, self.suggestion)


class BackendMismatch(EdgeMoEError):
    """llama-cpp-python is a version that the engine cannot work with.

    Attributes:
        found: the version that is installed, and its differences.
        tested: the versions that work, as pip reads them.
    """

    def __init__(self, found: str, tested: str) -> None:
        """Name both sides in the message."""
        super().__init__(
            f"this llama-cpp-python does not match the engine: found {found}, tested {tested}",
            f'pip install "{tested}"',
        )
        self.found = found
        self.tested = tested

    def __reduce__(self) -> tuple[type[BackendMismatch], tuple[str, str]]:
        """Support pickling, so that the error crosses process boundaries."""
        return BackendMismatch, (self.found, self.tested)
