"""Which files of a repository are meant by ``org/repo:QUANT``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from ..errors import DoesNotFit, ModelNotFound

MAIN = "main"

_NAME = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quantisation>[^:/\s]+))?$", re.ASCII)
_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_QUANTISATION = re.compile(
    r"(?<![^-._])(?:UD-)?(?:I?Q\d\w*|TQ\d_\w+|MXFP\d\w*|NVFP\d\w*|BF16|FP?16|FP?32)(?![^-.])", re.IGNORECASE
)
# From the one preferred. Four bits lose little, and a token reads half of what eight bits are.
FOUR_BITS = ("UD-Q4_K_XL", "Q4_K_M", "Q4_K_XL", "Q4_K_L", "MXFP4_MOE", "MXFP4", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_0")
# Of the free memory, what weights may take: the context and everybody else want some.
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

    stem: str
    files: tuple[RemoteFile, ...]
    shards: int

    @property
    def bytes(self) -> int:
        return sum(file.bytes or 0 for file in self.files)

    @property
    def whole(self) -> bool:
        return len(self.files) == self.shards

    @property
    def quantisation(self) -> str:
        return quantisation_of(self.stem)

    @property
    def label(self) -> str:
        """What a user calls it."""
        return self.quantisation or self.stem.rpartition("/")[2]

    def is_called(self, name: str) -> bool:
        return name.lower() in (self.quantisation.lower(), self.stem.rpartition("/")[2].lower())


def parse(name: str) -> tuple[str, str | None]:
    """Split ``org/repo:QUANT`` into repository and quantisation, None where none is named.

    Raises:
        ModelNotFound: it is no such name.
    """
    match = _NAME.match(name)
    if match is None or ".." in name:
        raise ModelNotFound(f"{name} is no model on the hub", "give org/repo or org/repo:QUANT, as in org/repo:Q4_K_M")
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

    listing = cache.listing if constants.HF_HUB_OFFLINE else fetch.listing
    commit, files = listing(repo, revision)
    if free_bytes is None:
        from .. import limits  # it costs a library, which few calls need

        free_bytes = limits.memory().available
    branch = "" if commit == revision else revision
    return choose(Download(repo, commit, tuple(files), branch=branch), quantisation, free_bytes)


def choose(everything: Download, quantisation: str | None, free_bytes: int) -> Download:
    """Keep of ``everything`` a repository has the one model that is wanted. Pure; raises as :func:`plan_download`."""
    items = _items(everything.files)
    if not items:
        raise ModelNotFound(f"{everything.repo} has no GGUF files", "look for a repository whose name ends in -GGUF")
    item = _best(items, free_bytes) if quantisation is None else _named(items, quantisation, everything.repo)
    if not item.whole:
        raise ModelNotFound(
            f"{everything.repo} has {len(item.files)} of the {item.shards} shards of {item.label}",
            "the upload may be unfinished: choose another quantisation",
        )
    choice = ""
    if quantisation is None:
        choice = f"{item.label}, {_gib(item.bytes)}: the best of {len(items)} for {_gib(free_bytes)} of free memory"
    return replace(everything, files=item.files, quantisation=item.quantisation, choice=choice)


def names_of(files: Collection[RemoteFile], quantisation: str) -> set[str]:
    """Names of all files of one quantisation among ``files``."""
    items = (item for item in _items(files) if item.is_called(quantisation))
    return {file.name for item in items for file in item.files}


def whole_models(files: Iterable[RemoteFile]) -> list[tuple[str, tuple[RemoteFile, ...]]]:
    """Models of which all shards are among ``files``: what a user calls each, and its files, the first one first."""
    return [(item.label, item.files) for item in _items(files) if item.whole]


def quantisation_of(stem: str) -> str:
    """The quantisation that a file name without its ending tells, or else its folder; empty where neither does."""
    for part in reversed(stem.split("/")):
        if found := _QUANTISATION.findall(part):
            return str(found[-1])
    return ""


def _items(files: Iterable[RemoteFile]) -> list[_Item]:
    """Models among ``files``, the largest first."""
    shards: dict[tuple[str, int], list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        stem, ending = file.name[: -len(".gguf")], file.name[-len(".gguf") :]
        if ending.lower() == ".gguf" and ".." not in stem.split("/") and not _is_beside(stem):
            match = _SHARD.match(stem)
            key = (match["stem"], int(match["count"])) if match else (stem, 1)
            shards.setdefault(key, []).append(file)
    items = [_Item(stem, tuple(group), count) for (stem, count), group in shards.items()]
    return sorted(items, key=lambda item: (-item.bytes, item.stem))


def _is_beside(stem: str) -> bool:
    """A GGUF file beside a model that is none: a projector for images, an importance matrix."""
    base = stem.rpartition("/")[2].lower()
    return "mmproj" in base or ("imatrix" in base and not quantisation_of(base))


def _named(items: Sequence[_Item], quantisation: str, repo: str) -> _Item:
    hits = [item for item in items if item.is_called(quantisation)]
    if len(hits) == 1:
        return hits[0]
    if hits:
        names = ", ".join(item.stem.rpartition("/")[2] for item in hits)
        raise ModelNotFound(f"{repo} has several models in {quantisation}", f"name one: {names}")
    names = ", ".join(item.label for item in items)
    raise ModelNotFound(f"{repo} has no quantisation {quantisation}", f"there are: {names}")


def _best(items: Sequence[_Item], free_bytes: int) -> _Item:
    whole = [item for item in items if item.whole]
    if not whole:
        return items[0]
    fitting = [item for item in whole if item.bytes <= free_bytes * MEMORY_SHARE]
    if not fitting:
        suggestion = f"name one to download it all the same; the smallest is {whole[-1].label}"
        raise DoesNotFit(whole[-1].bytes, free_bytes, suggestion)
    mixes = {item.quantisation.upper(): item for item in fitting}
    return next((mixes[name] for name in FOUR_BITS if name in mixes), fitting[0])


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
