"""Errors that reach the user. Each carries a hint: what to do about it.

An error that llama_cpp would raise as a ``ValueError`` or a ``RuntimeError`` is that as well, so that code written for
llama_cpp catches it.
"""

from __future__ import annotations


class EdgeMoEError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        hint: one line that says what to do, or an empty string.
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
    """The file is not a GGUF that can be loaded: damaged, truncated or hostile."""


class UnsupportedModel(EdgeMoEError, ValueError):
    """A sound GGUF that llama.cpp in this version cannot run."""


class ConfigError(EdgeMoEError, ValueError):
    """A setting has a value that cannot be honoured."""


class BadTemplate(EdgeMoEError, ValueError):
    """The chat template of a model cannot be compiled, or fails."""


class BadMessages(EdgeMoEError, ValueError):
    """Messages that cannot be given to this model, such as an image to a model that reads text."""


class ContextFailed(ConfigError):
    """llama.cpp loaded the model, but cannot make a context with these settings."""


class LoadFailed(EdgeMoEError, ValueError):
    """llama.cpp could not load a model whose file is sound, for example for lack of memory."""


class ComputeFailed(EdgeMoEError, RuntimeError):
    """llama.cpp could not compute."""


class Cancelled(EdgeMoEError, RuntimeError):
    """``Llama.cancel`` was called during a computation outside a completion."""


class DoesNotFit(EdgeMoEError, ValueError):
    """The model does not fit the memory that was asked for.

    Attributes:
        needed_bytes: bytes the request needs.
        free_bytes: bytes there are.
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
        """Cross process boundaries whole."""
        return DoesNotFit, (self.needed_bytes, self.free_bytes, self.suggestion)


class BackendMismatch(EdgeMoEError):
    """llama-cpp-python is a version that the engine cannot work with.

    Attributes:
        found: the version that is installed, and what differs.
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
        """Cross process boundaries whole."""
        return BackendMismatch, (self.found, self.tested)
