"""Which files of a repository are meant by ``org/repo:QUANT``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..errors import DoesNotFit, EdgeMoEError, ModelNotFound

MAIN = "main"

_NAME = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quantisation>[^:/\s]+))?$", re.ASCII)
_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_QUANTISATION = re.compile(r"(?:UD-)?(?:I?Q\d\w*|TQ\d_\w+|MXFP\d\w*|NVFP\d\w*|BF16|F(?:P)?(?:16|32))", re.IGNORECASE)
_BETWEEN = re.compile(r"[-.](?!UD-)|(?<=UD)(?!-)")
# GGUF files beside a model that are none: projectors for images, importance matrices.
_NO_MODEL = ("mmproj", "imatrix")
# 4-bit mixes from the one preferred: four bits lose little, and half the bytes of eight bits are half the time per token.
FOUR_BITS = ("UD-Q4_K_XL", "Q4_K_M", "Q4_K_L", "Q4_K_XL", "MXFP4", "MXFP4_MOE", "UD-Q4_K_M", "Q4_K_S", "IQ4_XS", "IQ4_NL")
# Share of the free memory that weights may take; the rest is for the context and everybody else.
MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        name: path in the repository.
        bytes: size, None where nobody has said.
        sha256: of the content, None where nobody has said.
    """

    name: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Download:
    """A model on the hub: all its shards, in order.

    Attributes:
        repo: ``org/repo``.
        revision: branch, tag or commit.
        files: the shards, the first one first.
        quantisation: as the files name it, empty where they do not.
        choice: why these files, in one line; empty where the user named them.
        branch: the branch or tag that ``revision`` is the commit of, where it was asked for by that.
    """

    repo: str
    revision: str
    files: tuple[RemoteFile, ...]
    quantisation: str = ""
    choice: str = ""
    branch: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.bytes or 0 for file in self.files)


@dataclass(frozen=True)
class _Item:
    """One model in a repository: a file or all its shards."""

    quantisation: str
    stem: str
    files: tuple[RemoteFile, ...]
    shards: int

    @property
    def bytes(self) -> int:
        return sum(file.bytes or 0 for file in self.files)


def parse(name: str) -> tuple[str, str | None]:
    """Split ``org/repo:QUANT`` into repository and quantisation, None where none is named.

    Raises:
        ModelNotFound: it is no such name.
    """
    match = _NAME.match(name)
    if match is None or ".." in name:
        raise ModelNotFound(f"{name} is no model on the hub", "give org/repo or org/repo:QUANT, such as org/repo:Q4_K_M")
    return match["repo"], match["quantisation"]


def plan_download(
    repo: str, quantisation: str | None = None, free_bytes: int | None = None, revision: str = MAIN
) -> Download:
    """Choose the files of ``repo`` to download. Offline, those on the disk are all there is.

    Args:
        repo: ``org/repo``.
        quantisation: as in the file names, upper or lower case; None for the best that fits.
        free_bytes: memory for the weights; what the machine has free now when None.
        revision: branch, tag or commit.

    Raises:
        ModelNotFound: no such repository, no GGUF in it, or not this quantisation.
        DoesNotFit: none is named and the smallest is larger than the free memory.
        EdgeMoEError: the hub does not answer or refuses.
    """
    from huggingface_hub import constants

    from . import cache, fetch

    if constants.HF_HUB_OFFLINE:
        commit, files = cache.listing(repo, revision)
    else:
        commit, files = fetch.listing(repo, revision)
    if free_bytes is None:
        import psutil

        free_bytes = int(psutil.virtual_memory().available)
    branch = "" if commit == revision else revision
    return choose(Download(repo, commit, tuple(files), branch=branch), quantisation, free_bytes)


def choose(everything: Download, quantisation: str | None, free_bytes: int) -> Download:
    """Keep of ``everything`` a repository has the one model that is wanted. Pure; raises as :func:`plan_download`."""
    items = _items(everything.files)
    if not items:
        raise ModelNotFound(f"{everything.repo} has no GGUF files", "look for a repository whose name ends in -GGUF")
    item, choice = (_best(items, free_bytes), "") if quantisation is None else (_named(items, quantisation), None)
    if len(item.files) != item.shards:
        raise ModelNotFound(
            f"{everything.repo} has {len(item.files)} of the {item.shards} shards of {item.stem}",
            "the upload may be unfinished: choose another quantisation",
        )
    if choice is not None:
        choice = (
            f"{item.quantisation or item.stem}: {_gib(item.bytes)}, the best of {len(items)} "
            f"for {_gib(free_bytes)} of free memory"
        )
    return replace(everything, files=item.files, quantisation=item.quantisation, choice=choice or "")


def _items(files: Iterable[RemoteFile]) -> list[_Item]:
    """Models among ``files``, the largest first."""
    shards: dict[tuple[str, int], list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        base = file.name.rpartition("/")[2].lower()
        if base.endswith(".gguf") and not any(word in base for word in _NO_MODEL):
            stem = file.name[: -len(".gguf")]
            match = _SHARD.match(stem)
            key = (match["stem"], int(match["count"])) if match else (stem, 1)
            shards.setdefault(key, []).append(file)
    items = [_Item(quantisation_of(stem), stem, tuple(group), count) for (stem, count), group in shards.items()]
    return sorted(items, key=lambda item: (-item.bytes, item.stem))


def quantisation_of(stem: str) -> str:
    """The quantisation that a file name without its ending tells, empty where it tells none."""
    base = stem.rpartition("/")[2]
    found = ""
    for match in _QUANTISATION.finditer(base):
        before, after = base[: match.start()][-1:], base[match.end() :][:1]
        if before in ("", "-", ".", "_") and after in ("", "-", "."):
            found = match[0]
    return found


def _named(items: Sequence[_Item], quantisation: str) -> _Item:
    wanted = quantisation.lower()
    hits = [item for item in items if wanted in (item.quantisation.lower(), item.stem.rpartition("/")[2].lower())]
    if len(hits) == 1:
        return hits[0]
    if hits:
        names = ", ".join(item.stem.rpartition("/")[2] for item in hits)
        raise ModelNotFound(f"{quantisation} is the quantisation of several models there", f"name one: {names}")
    names = ", ".join(item.quantisation or item.stem.rpartition("/")[2] for item in items)
    raise ModelNotFound(f"there is no quantisation {quantisation}", f"there are: {names}")


def _best(items: Sequence[_Item], free_bytes: int) -> _Item:
    whole = [item for item in items if len(item.files) == item.shards]
    if not whole:
        return items[0]
    fitting = [item for item in whole if item.bytes <= free_bytes * MEMORY_SHARE]
    if not fitting:
        smallest = whole[-1]
        name = smallest.quantisation or smallest.stem.rpartition("/")[2]
        raise DoesNotFit(smallest.bytes, free_bytes, f"the smallest there is {name}; name it to download it all the same")
    preferred = [item for item in fitting if item.quantisation.upper() in FOUR_BITS]
    return min(preferred, key=lambda item: FOUR_BITS.index(item.quantisation.upper())) if preferred else fitting[0]


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
