"""Routing traces: which experts every token used, in and out of ``.npz`` files.

Arrays of a file: ``ids`` integer (tokens, layers, used) and ``seq_start`` integer (sequences + 1); optional
``w`` (tokens, layers, used), ``tok`` (tokens,), ``n_expert`` (), ``expert_bytes`` (layers,), ``is_decode``
(tokens,), ``meta`` (JSON text). Anything else in the file is ignored. In ``ids`` a negative number marks an unknown
expert. The largest number of an unsigned type marks an unknown expert, too, unless ``n_expert`` makes it a real one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EdgeMoEError
from ..types import BoolArray, FloatArray, IdArray

AnyArray = npt.NDArray[Any]
IntArray = npt.NDArray[np.int64]

_KEYS = ("ids", "seq_start", "w", "tok", "n_expert", "expert_bytes", "is_decode", "meta")
_HINT = "a routing trace is an .npz with ids (tokens, layers, used) and seq_start (sequences + 1)"


@dataclass(frozen=True)
class Trace:
    """One routing trace, checked: all shapes agree and every id is an expert or -1.

    Attributes:
        ids: used experts, ``(tokens, layers, used)``, tokens in running order, -1 where not known.
        seq_start: first token of every sequence and, last, the number of tokens, ``(sequences + 1,)``.
        n_expert: routed experts per layer; one more than the largest id where the file does not say.
        weights: router weights like ``ids``, or None.
        tokens: token ids ``(tokens,)``, or None.
        expert_bytes: bytes of one expert ``(layers,)``, or None.
        is_decode: False for tokens of a prefill, ``(tokens,)``; all True where the file does not say.
        meta: the file's description of itself, from JSON; None without one.
    """

    ids: IdArray
    seq_start: IntArray
    n_expert: int
    weights: FloatArray | None
    tokens: IntArray | None
    expert_bytes: IntArray | None
    is_decode: BoolArray
    meta: Any


def read(path: str | os.PathLike[str]) -> Trace:
    """Read and check a trace.

    Raises:
        EdgeMoEError: the file is missing, damaged, empty, or its parts do not fit each other.
    """
    name = Path(path).name
    try:
        arrays = read_npz(path, _KEYS)
    except FileNotFoundError as error:
        raise EdgeMoEError(f"trace {name} does not exist", "check the path") from error
    except OSError as error:
        raise EdgeMoEError(f"trace {name} cannot be read: {error}", "check the file") from error
    except ValueError as error:
        raise EdgeMoEError(f"{name} is not a routing trace: {error}", _HINT) from error
    try:
        return _from_arrays(arrays)
    except ValueError as error:
        raise EdgeMoEError(f"trace {name}: {error}", _HINT) from error


def write(
    path: str | os.PathLike[str],
    ids: IdArray,
    seq_start: Sequence[int] | IntArray,
    *,
    n_expert: int,
    weights: AnyArray | None = None,
    tokens: AnyArray | None = None,
    expert_bytes: Sequence[int] | IntArray | None = None,
    is_decode: AnyArray | None = None,
    meta: str | None = None,
) -> None:
    """Check a trace and write it in one step: a reader sees the old file or the whole new one.

    Args:
        path: the file, overwritten.
        ids: ``(tokens, layers, used)``, -1 where not known.
        seq_start: see `Trace`.
        n_expert: routed experts per layer.
        weights: see `Trace`; stored with 16 bits.
        tokens: see `Trace`.
        expert_bytes: see `Trace`.
        is_decode: see `Trace`.
        meta: JSON text.

    Raises:
        EdgeMoEError: nothing was recorded, the parts do not fit each other, or the file cannot be written.
    """
    name = Path(path).name
    arrays: dict[str, AnyArray] = {
        "ids": np.asarray(ids),
        "seq_start": np.asarray(seq_start, dtype=np.int64),
        "n_expert": np.array(n_expert, dtype=np.int64),
    }
    if weights is not None:
        arrays["w"] = np.asarray(weights, dtype=np.float16)
    for key, value in (("tok", tokens), ("expert_bytes", expert_bytes)):
        if value is not None:
            arrays[key] = np.asarray(value, dtype=np.int64)
    if is_decode is not None:
        arrays["is_decode"] = np.asarray(is_decode, dtype=np.uint8)
    if meta is not None:
        arrays["meta"] = np.array(meta)
    try:
        checked = _from_arrays(arrays)
        arrays["ids"] = _smallest(checked.ids, n_expert)
        write_npz(path, arrays)
    except ValueError as error:
        raise EdgeMoEError(f"trace {name} was not written: {error}", _HINT) from error
    except OSError as error:
        raise EdgeMoEError(
            f"trace {name} cannot be written: {error}", "is the folder there, writable, not full?"
        ) from error


def read_npz(path: str | os.PathLike[str], keys: Sequence[str]) -> dict[str, AnyArray]:
    """Read some arrays of an ``.npz`` that may be damaged or hostile; absent keys are left out.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a sound ``.npz``.
    """
    with open(path, "rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("not an .npz archive")
            return {key: archive[key] for key in keys if key in archive.files}
        # A damaged archive fails in a dozen types: zip, zlib, struct, end of file, memory, key.
        except Exception as error:
            raise ValueError(f"not a sound .npz file ({error or type(error).__name__})") from error


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, AnyArray], compressed: bool = True) -> None:
    """Write an ``.npz`` through a temporary file in the same folder, so that it appears whole or not at all.

    Args:
        path: the file, overwritten.
        arrays: its contents.
        compressed: smaller and slower.

    Raises:
        OSError: the folder does not exist, is full or read-only. No temporary file stays behind.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=target.name + ".", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write = np.savez_compressed if compressed else np.savez
            write(file, **dict(arrays))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _from_arrays(arrays: Mapping[str, AnyArray]) -> Trace:
    for key in ("ids", "seq_start"):
        if key not in arrays:
            raise ValueError(f"{key} is missing")
    raw = arrays["ids"]
    if raw.ndim != 3 or raw.dtype.kind not in "iu":
        raise ValueError(f"ids is {raw.dtype} {raw.shape}, not integer (tokens, layers, used)")
    if not raw.size:
        raise ValueError("it holds no tokens")
    meta = _meta(arrays)
    ids, experts = _ids(raw, _said_experts(arrays, meta))
    tokens, layers, _ = ids.shape
    is_decode = _optional(arrays, "is_decode", (tokens,), "iub")
    return Trace(
        ids=ids,
        seq_start=_seq_start(arrays["seq_start"], tokens),
        n_expert=experts,
        weights=_optional(arrays, "w", ids.shape, "f", np.float32),
        tokens=_optional(arrays, "tok", (tokens,), "iu", np.int64),
        expert_bytes=_optional(arrays, "expert_bytes", (layers,), "iu", np.int64),
        is_decode=np.ones(tokens, dtype=np.bool_) if is_decode is None else is_decode.astype(np.bool_),
        meta=meta,
    )


def _smallest(ids: IdArray, experts: int) -> AnyArray:
    """Store ids in the smallest unsigned type whose largest number is no expert; that number means unknown."""
    small = np.uint8 if experts < 256 else np.uint16 if experts < 65536 else np.uint32
    return np.where(ids < 0, np.iinfo(small).max, ids.astype(np.int64)).astype(small)


def _meta(arrays: Mapping[str, AnyArray]) -> Any:
    if "meta" not in arrays:
        return None
    try:
        return json.loads(str(arrays["meta"]))
    except ValueError as error:
        raise ValueError(f"meta is not JSON ({error})") from error


def _said_experts(arrays: Mapping[str, AnyArray], meta: Any) -> int | None:
    said = arrays.get("n_expert", meta.get("n_expert") if isinstance(meta, dict) else None)
    if said is None:
        return None
    try:
        experts = int(said)
    except (TypeError, ValueError) as error:
        raise ValueError(f"n_expert={said!r} is not a number") from error
    if experts < 1:
        raise ValueError(f"n_expert={experts} is below 1")
    return experts


def _ids(raw: AnyArray, said: int | None) -> tuple[IdArray, int]:
    """Give the ids with -1 for unknown, and the number of experts."""
    unknown = raw < 0
    if raw.dtype.kind == "u":
        largest = np.iinfo(raw.dtype).max
        if said is None or largest >= said:
            unknown = raw == largest
    top = int(raw.max(initial=0, where=~unknown))
    experts = top + 1 if said is None else said
    if unknown.all():
        raise ValueError("no expert in it is known")
    if top >= experts:
        raise ValueError(f"an expert id is {top}, but there are {experts} experts")
    if raw.shape[2] > experts:
        raise ValueError(f"a token uses {raw.shape[2]} experts of {experts}")
    ids = raw.astype(np.int32)
    ids[unknown] = -1
    return ids, experts


def _seq_start(raw: AnyArray, tokens: int) -> IntArray:
    if raw.ndim != 1 or raw.dtype.kind not in "iu" or len(raw) < 2:
        raise ValueError(f"seq_start is {raw.dtype} {raw.shape}, not integer (sequences + 1,)")
    starts = raw.astype(np.int64)
    if starts[0] != 0 or starts[-1] != tokens or (np.diff(starts) < 0).any():
        raise ValueError(f"seq_start does not rise from 0 to the {tokens} tokens")
    return starts


def _optional(
    arrays: Mapping[str, AnyArray], key: str, shape: tuple[int, ...], kinds: str, dtype: Any = None
) -> AnyArray | None:
    array = arrays.get(key)
    if array is None:
        return None
    if array.shape != shape or array.dtype.kind not in kinds:
        raise ValueError(f"{key} is {array.dtype} {array.shape}, but ids asks for {shape}")
    return array if dtype is None else array.astype(dtype)
