"""Errors as OpenAI and Anthropic write them, with the right status."""

from __future__ import annotations

import math
from typing import Any

from ..errors import (
    BackendMismatch,
    BadGguf,
    ConfigError,
    ContextFailed,
    DoesNotFit,
    EdgeMoEError,
    LoadFailed,
    ModelNotFound,
    UnsupportedModel,
)
from ..worker import EngineDied

# Errors of a model that cannot be loaded: no fault of the request.
_OF_THE_MODEL = (BackendMismatch, BadGguf, ContextFailed, DoesNotFit, LoadFailed, UnsupportedModel)
_KINDS = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    503: ("server_error", "overloaded_error"),
}


class Refused(EdgeMoEError):
    """A request that the server does not serve.

    Attributes:
        status: of the HTTP answer.
        code: OpenAI's short name of the reason.
        wait_seconds: after this time the request may be tried again; None if that does not help.
    """

    def __init__(
        self, status: int, message: str, hint: str = "", code: str | None = None, wait_seconds: float | None = None
    ) -> None:
        """Store the arguments."""
        super().__init__(message, hint)
        self.status, self.code, self.wait_seconds = status, code, wait_seconds


def refusal(error: BaseException) -> Refused:
    """Turn any error into a refusal with a status."""
    if isinstance(error, Refused):
        return error
    text, hint = str(error), getattr(error, "hint", "")
    if isinstance(error, ModelNotFound):
        return Refused(404, text, hint, "model_not_found")
    if isinstance(error, EngineDied):
        return Refused(500, text, hint, "engine_died")
    if isinstance(error, _OF_THE_MODEL):
        return Refused(503, text, hint, "model_unavailable")
    if isinstance(error, ConfigError):
        return Refused(400, text, hint)
    if isinstance(error, ValueError):
        code = "context_length_exceeded" if "exceed context window" in text else None
        return Refused(400, text, hint, code)
    if isinstance(error, EdgeMoEError):
        return Refused(500, text, hint)
    return Refused(500, f"{type(error).__name__}: {text}")


def openai_error(error: Refused) -> dict[str, Any]:
    """Write OpenAI's body of an error."""
    kind = _KINDS.get(error.status, ("server_error", ""))[0]
    return {"error": {"message": _sentence(error), "type": kind, "param": None, "code": error.code}}


def anthropic_error(error: Refused) -> dict[str, Any]:
    """Write Anthropic's body of an error."""
    kind = _KINDS.get(error.status, ("", "api_error"))[1]
    return {"type": "error", "error": {"type": kind, "message": _sentence(error)}}


def headers(error: Refused) -> dict[str, str]:
    """Give the headers of an error."""
    found = {} if error.wait_seconds is None else {"Retry-After": str(max(1, math.ceil(error.wait_seconds)))}
    return found | ({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})


def _sentence(error: Refused) -> str:
    return f"{error} (hint: {error.hint})" if error.hint else str(error)
