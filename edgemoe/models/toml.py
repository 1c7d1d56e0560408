"""Read TOML into dataclasses. Errors name the place, and the nearest known word.

A field's annotation gives the type of its value: ``str``, ``int``, ``float``, another dataclass, or a tuple of one of
these types. ``| None`` marks a key that may be left out.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Record = TypeVar("Record")

_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number"}


def read(path: Path) -> dict[str, Any]:
    """Read the content of a file.

    Raises:
        ConfigError: the file cannot be read or is no TOML; the message names the file and the line.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}", "it must be TOML in UTF-8") from error
    return content


def record(kind: type[Record], table: Mapping[str, Any], where: str) -> Record:
    """Read a table into a dataclass. Every error message begins with ``where``.

    Raises:
        ConfigError: a key is unknown, missing or of another type, or the dataclass refuses a value.
    """
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise unknown(where, key, hints)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in table and field.default is MISSING:
            raise ConfigError(f"{where}: {field.name} is missing")
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", error.hint) from None


def unknown(where: str, key: str, known: Iterable[str]) -> ConfigError:
    """Make the error for a key that is none of ``known``."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    return ConfigError(f"{where}: unknown key {key!r}", f"did you mean {near[0]!r}?" if near else "remove it")


def _value(wanted: Any, value: Any, where: str) -> Any:
    if isinstance(wanted, UnionType):  # "| None": TOML has no null, so a file leaves the key out
        wanted = get_args(wanted)[0]
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is not a list")
        return tuple(_value(get_args(wanted)[0], item, f"{where} {i}") for i, item in enumerate(value, 1))
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (str, int, float):
        if type(value) is not wanted:
            raise ConfigError(f"{where} is {value!r}, not {_TYPE_NAMES[wanted]}")
        return value
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a table")
    return record(wanted, value, where)
