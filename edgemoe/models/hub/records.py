"""Records of the hub: files of a repository, a download, and the models that file names stand for. Pure."""

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
    """Describe one file of a repository.

    Attributes:
        name: path in the repository.
        bytes: size of the file, or None if unknown.
        sha256: hash of the content, or None if unknown.
    """

    name: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Download:
    """Describe a model on the hub, with all its shards.

    Attributes:
        repo: ``org/repo``.
        revision: branch, tag or commit.
        files: the shards, in order.
        quantisation: quantisation from the file names, or empty.
        choice: reason for the choice of files, in one line; empty if the user named them.
        branch: branch or tag that the user asked for, if ``revision`` is its commit; else empty.
    """

    repo: str
    revision: str
    files: tuple[RemoteFile, ...]
    quantisation: str = ""
    choice: str = ""
    branch: str = ""

    @property
    def bytes(self) -> int:
        """Add up the known sizes of the files."""
        return sum(file.bytes or 0 for file in self.files)


@dataclass(frozen=True)
class Item:
    """Describe one model in a repository.

    Attributes:
        stem: path of the model's files, without shard number and ending.
        files: the files of the model that the repository has.
        shards: number of files that the complete model has.
    """

    stem: str
    files: tuple[RemoteFile, ...]
    shards: int

    @property
    def bytes(self) -> int:
        """Add up the known sizes of the files."""
        return sum(file.bytes or 0 for file in self.files)

    @property
    def whole(self) -> bool:
        """Tell whether the repository has all shards."""
        return len(self.files) == self.shards

    @property
    def quantisation(self) -> str:
        """Give the quantisation from the file name, or empty."""
        return quantisation_of(self.stem)

    @property
    def label(self) -> str:
        """Give the name for users: the quantisation, or else the file name."""
        return self.quantisation or self.stem.rpartition("/")[2]

    def is_called(self, name: str) -> bool:
        """Tell whether ``name`` is the quantisation or the file name without its ending."""
        return name.lower() in (self.quantisation.lower(), self.stem.rpartition("/")[2].lower())


def names_of(files: Collection[RemoteFile], quantisation: str) -> set[str]:
    """Name all files of one quantisation among ``files``."""
    items = (item for item in items_of(files) if item.is_called(quantisation))
    return {file.name for item in items for file in item.files}


def whole_models(files: Iterable[RemoteFile]) -> list[tuple[str, tuple[RemoteFile, ...]]]:
    """List the models with all shards among ``files``: the label of each model, and its files in order."""
    return [(item.label, item.files) for item in items_of(files) if item.whole]


def quantisation_of(stem: str) -> str:
    """Read the quantisation from a file name without ending, or else from its folder; empty if neither has one."""
    for part in reversed(stem.split("/")):
        if found := _QUANTISATION.findall(part):
            return str(found[-1])
    return ""


def items_of(files: Iterable[RemoteFile]) -> list[Item]:
    """List the models among ``files``, the largest first."""
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
    """Tell whether a GGUF file is no model but accompanies one: a projector for images, an importance matrix."""
    base = stem.rpartition("/")[2].lower()
    return "mmproj" in base or ("imatrix" in base and not quantisation_of(base))
