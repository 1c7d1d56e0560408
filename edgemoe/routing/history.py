"""Routing profiles: uses of a model's experts in earlier runs, one small file per model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..types import FloatArray, IdArray
from .trace import read_npz, write_npz

VERSION = 1
# Uses count half after so many tokens: some long chats, so that the profile follows its user.
HALF_LIFE_TOKENS = 20_000
# Tokens to train a predictor on: some hours of chat, a few MB.
RECENT_TOKENS = 16_384
_KEYS = ("version", "identity", "heat", "tokens", "runs", "recent", "recent_tokens")
_IDENTITY = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Profile:
    """Uses of each expert of one model; older runs fade.

    Attributes:
        identity: lower-case hexadecimal key of the model.
        heat: decayed use counts, ``(layers, experts)``, 0 or more.
        tokens: decayed number of tokens behind ``heat``.
        runs: runs merged so far.
        recent: routing of the latest decode tokens, ``(tokens, layers, used)``, -1 where missing; no more than
            `RECENT_TOKENS`.
        recent_tokens: their token ids, ``(tokens,)``, -1 where not known.
    """

    identity: str
    heat: FloatArray
    tokens: float
    runs: int = 1
    recent: IdArray = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.int32))
    recent_tokens: IdArray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))


def load(
    identity: str, folder: Path, shape: tuple[int, int] | None = None, notes: list[str] | None = None
) -> Profile | None:
    """Read the profile of a model; None if no file can be used. No file raises an error.

    A file that is damaged, of another version, model or shape is renamed to ``*.bad-N``: kept, but out of the
    way.

    Args:
        identity: key of the model.
        folder: where profiles are kept; may not exist.
        shape: ``(layers, experts)`` that the profile must have; None for any.
        notes: gets a sentence for the user when a file could not be used.
    """
    path = _path(identity, folder)
    note = ""
    try:
        return _checked(read_npz(path, _KEYS), identity, shape)
    except FileNotFoundError:
        pass
    except OSError as error:
        note = f"The routing profile {path.name} cannot be read: {error}."
    except (ValueError, TypeError, OverflowError) as error:
        note = f"The routing profile {path.name} was not used: {error}; {_set_aside(path)}."
    if note and notes is not None:
        notes.append(note)
    return None


def save(profile: Profile, folder: Path, notes: list[str] | None = None) -> None:
    """Write a profile, whole or not at all. An error of the disk is not raised.

    Args:
        profile: the profile; it replaces the file of the same model.
        folder: where profiles are kept; made when missing.
        notes: gets a sentence for the user when that failed.
    """
    path = _path(profile.identity, folder)
    arrays = {
        "version": np.array(VERSION),
        "identity": np.array(profile.identity),
        "heat": profile.heat.astype(np.float32),
        "tokens": np.array(profile.tokens, dtype=np.float64),
        "runs": np.array(profile.runs),
        "recent": profile.recent.astype(np.int16 if profile.heat.shape[1] < 1 << 15 else np.int32),
        "recent_tokens": profile.recent_tokens.astype(np.int32),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_npz(path, arrays)
    except OSError as error:
        if notes is not None:
            notes.append(f"The routing profile {path.name} was not saved: {error}.")


def merge(old: Profile | None, run: Profile) -> Profile:
    """Add one run to a profile. The old counts fade with the tokens of the run, so a short run changes little.

    Args:
        old: the profile before, or None. A profile of another shape is not used.
        run: the new run, with undecayed counts, of the same model.
    """
    if old is None or old.heat.shape != run.heat.shape:
        return run
    assert old.identity == run.identity
    recent, tokens = run.recent, run.recent_tokens
    if old.recent.shape[1:] == recent.shape[1:]:
        recent = np.concatenate([old.recent, recent])[-RECENT_TOKENS:]
        tokens = np.concatenate([old.recent_tokens, tokens])[-RECENT_TOKENS:]
    elif not len(recent):
        recent, tokens = old.recent, old.recent_tokens
    kept = 0.5 ** (run.tokens / HALF_LIFE_TOKENS)
    heat = (old.heat * kept + run.heat).astype(np.float32)
    return Profile(run.identity, heat, old.tokens * kept + run.tokens, old.runs + run.runs, recent, tokens)


def _checked(arrays: Mapping[str, npt.NDArray[Any]], identity: str, shape: tuple[int, int] | None) -> Profile:
    for key in _KEYS:
        if key.startswith("recent"):
            continue
        if key not in arrays:
            raise ValueError(f"{key} is missing")
        if key != "heat" and arrays[key].shape:
            raise ValueError(f"{key} is not a single value")
    if arrays["version"] != VERSION:
        raise ValueError(f"version {arrays['version']} instead of {VERSION}")
    if str(arrays["identity"]) != identity:
        raise ValueError("it was made for another model")
    heat = arrays["heat"].astype(np.float32)
    if heat.ndim != 2 or shape not in (None, heat.shape):
        raise ValueError(f"its shape is {heat.shape} instead of {shape}")
    recent = _checked_recent(arrays.get("recent", np.zeros((0, 0, 0), dtype=np.int32)), heat.shape)
    tokens = arrays.get("recent_tokens", np.full(len(recent), -1))
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or len(tokens[-RECENT_TOKENS:]) != len(recent):
        raise ValueError("its recent tokens are no array of ids")
    tokens = tokens[-RECENT_TOKENS:]
    profile = Profile(identity, heat, float(arrays["tokens"]), int(arrays["runs"]), recent, tokens.astype(np.int32))
    counts = np.append(heat, profile.tokens)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("it holds negative or endless counts")
    return profile


def _checked_recent(raw: npt.NDArray[Any], shape: tuple[int, ...]) -> IdArray:
    if raw.ndim != 3 or raw.dtype.kind not in "iu":
        raise ValueError("its recent routing is no array of ids")
    recent = raw.astype(np.int32)
    if recent.size and (recent.shape[1] != shape[0] or recent.min() < -1 or recent.max() >= shape[1]):
        raise ValueError("its recent routing is of another model")
    return recent[-RECENT_TOKENS:]


def _path(identity: str, folder: Path) -> Path:
    assert _IDENTITY.fullmatch(identity), f"{identity!r} is not a hexadecimal key"
    return folder / f"{identity}.profile.npz"


def _set_aside(path: Path) -> str:
    number = 1
    while (bad := path.with_name(f"{path.name}.bad-{number}")).exists():
        number += 1
    try:
        os.rename(path, bad)
    except OSError as error:
        return f"it could not be renamed: {error}"
    return f"it was kept as {bad.name}"
