"""Signatures: a method of ours shows llama_cpp's parameters and its own to programs that inspect signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def shown_as(original: Callable[..., Any]) -> Callable[[F], F]:
    """Show the parameters of ``original``, then the parameters that only the decorated method has."""

    def decorate(method: F) -> F:
        theirs, ours = inspect.signature(original), inspect.signature(method)
        parameters = [p for p in theirs.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [p for p in ours.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in theirs.parameters]
        rest = [p for p in theirs.parameters.values() if p.kind is p.VAR_KEYWORD]
        setattr(method, "__signature__", theirs.replace(parameters=[*parameters, *added, *rest]))  # noqa: B010
        return method

    return decorate
