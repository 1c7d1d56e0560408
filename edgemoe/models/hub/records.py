"""Records of the hub: files of a repository, a download, and the models that file names tell. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

MAIN = "main"

_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_QUANTISATION = re.compile(
    r"(?<![^-._])(?:UD-)?(?:I?Q\d\w*|TQ\d_\w+|MXFP\d\w*|NVFP\d\w*|BF16|FP?16|FP?32)(?![^-.])", re.IGNORECASE
)


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
class Item:
    """One model in a repository: a file or all its shards."""

    stem: str
    files: tuple[RemoteFile, ...]
    shards: int

    @property
    def bytes(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.bytes or 0 for file in self.files)

    @property
    def whole(self) -> bool:
        """All shards are there."""
        return len(self.files) == self.shards

    @property
    def quantisation(self) -> str:
        """The quantisation as the file names it, empty where it does not."""
        return quantisation_of(self.stem)

    @property
    def label(self) -> str:
        """What a user calls it."""
        return self.quantisation or self.stem.rpartition("/")[2]

    def is_called(self, name: str) -> bool:
        """Tell whether ``name`` is the quantisation or the file name without its ending."""
        return name.lower() in (self.quantisation.lower(), self.stem.rpartition("/")[2].lower())


def names_of(files: Collection[RemoteFile], quantisation: str) -> set[str]:
    """Names of all files of one quantisation among ``files``."""
    items = (item for item in items_of(files) if item.is_called(quantisation))
    return {file.name for item in items for file in item.files}


def whole_models(files: Iterable[RemoteFile]) -> list[tuple[str, tuple[RemoteFile, ...]]]:
    """Models of which all shards are among ``files``: what a user calls each, and its files, the first one first."""
    return [(item.label, item.files) for item in items_of(files) if item.whole]


def quantisation_of(stem: str) -> str:
    """The quantisation that a file name without its ending tells, or else its folder; empty where neither does."""
    for part in reversed(stem.split("/")):
        if found := _QUANTISATION.findall(part):
            return str(found[-1])
    return ""


def items_of(files: Iterable[RemoteFile]) -> list[Item]:
    """Models among ``files``, the largest first."""
    shards: dict[tuple[str, int], list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        stem, ending = file.name[: -len(".gguf")], file.name[-len(".gguf") :]
        if ending.lower() == ".gguf" and ".." not in stem.split("/") and not _is_beside(stem):
            match = _SHARD.match(stem)
            key = (match["stem"], int(match["count"])) if match else (stem, 1)
            shards.setdefault(key, []).append(file)
    items = [Item(stem, tuple(group), count) for (stem, count), group in shards.items()]
    return sorted(items, key=lambda item: (-item.bytes, item.stem))


def _is_beside(stem: str) -> bool:
    """A GGUF file beside a model that is none: a projector for images, an importance matrix."""
    base = stem.rpartition("/")[2].lower()
    return "mmproj" in base or ("imatrix" in base and not quantisation_of(base))
