"""Choose the files of a repository for ``org/repo:QUANT``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ...errors import DoesNotFit, ModelNotFound
from .records import MAIN, Download, Item, items_of

_NAME = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quantisation>[^:/\s]+))?$", re.ASCII)


# The best first. Four bits lose little quality, and a token then reads half as many bytes as with eight bits.
FOUR_BITS = ("UD-Q4_K_XL", "Q4_K_M", "Q4_K_XL", "Q4_K_L", "MXFP4_MOE", "MXFP4", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_0")
# Share of the free memory that weights may take. The context and other programs need the rest.
MEMORY_SHARE = 0.9


def parse(name: str) -> tuple[str, str | None]:
    """Split ``org/repo:QUANT`` into repository and quantisation. Without ``:QUANT`` the quantisation is None.

    Raises:
        ModelNotFound: the name has another form.
    """
    match = _NAME.match(name)
    if match is None or ".." in name:
        raise ModelNotFound(f"{name} is no model on the hub", "give org/repo or org/repo:QUANT, as in org/repo:Q4_K_M")
    return match["repo"], match["quantisation"]


def plan_download(
    repo: str, quantisation: str | None = None, free_bytes: int | None = None, revision: str = MAIN
) -> Download:
    """Choose the files of ``repo`` to download. Offline, only files on the disk are candidates.

    Args:
        repo: ``org/repo``.
        quantisation: quantisation from the file names, in upper or lower case. None: the best that fits.
        free_bytes: bytes of memory for the weights. None: the memory that is free now.
        revision: branch, tag or commit.

    Raises:
        ModelNotFound: the repository does not exist, or has no GGUF file, or lacks this quantisation.
        DoesNotFit: no quantisation is named, and the smallest is larger than the free memory.
        EdgeMoEError: the hub does not answer or refuses.
    """
    from huggingface_hub import constants

    from . import cache, download

    listing = cache.listing if constants.HF_HUB_OFFLINE else download.listing
    commit, files = listing(repo, revision)
    if free_bytes is None:
        from ... import limits  # imports psutil, which few calls need

        free_bytes = limits.memory().available
    branch = "" if commit == revision else revision
    return choose(Download(repo, commit, tuple(files), branch=branch), quantisation, free_bytes)


def choose(everything: Download, quantisation: str | None, free_bytes: int) -> Download:
    """Choose one model from ``everything``, all files of a repository. Pure; raises as :func:`plan_download`."""
    items = items_of(everything.files)
    if not items:
        raise ModelNotFound(f"{everything.repo} has no GGUF files", "look for a repository with -GGUF in its name")
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


def _named(items: Sequence[Item], quantisation: str, repo: str) -> Item:
    hits = [item for item in items if item.is_called(quantisation)]
    if len(hits) == 1:
        return hits[0]
    if hits:
        names = ", ".join(item.stem.rpartition("/")[2] for item in hits)
        raise ModelNotFound(f"{repo} has several models in {quantisation}", f"name one: {names}")
    names = ", ".join(item.label for item in items)
    raise ModelNotFound(f"{repo} has no quantisation {quantisation}", f"there are: {names}")


def _best(items: Sequence[Item], free_bytes: int) -> Item:
    whole = [item for item in items if item.whole]
    if not whole:
        return items[0]
    fitting = [item for item in whole if item.bytes <= free_bytes * MEMORY_SHARE]
    if not fitting:
        suggestion = f"name a quantisation to download it anyway; the smallest is {whole[-1].label}"
        raise DoesNotFit(whole[-1].bytes, free_bytes, suggestion)
    mixes = {item.quantisation.upper(): item for item in fitting}
    return next((mixes[name] for name in FOUR_BITS if name in mixes), fitting[0])


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
