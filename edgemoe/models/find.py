"""Find the file for MODEL on the command line: a path, a name of the catalogue, or ``org/repo:QUANT``.

Nothing here uses the network. Files are searched in the Hugging Face cache; its own environment variables apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from ..errors import ConfigError, EdgeMoEError, ModelNotFound
from . import gguf
from .catalog import Model, Sampling, Variant, load

DEMO = "demo"
_REPOSITORY = re.compile(r"^(?P<repository>[\w.-]+/[\w.-]+):(?P<quantisation>[\w.-]+)$")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def find(name: str, build_demo: Callable[[], Path] | None = None) -> Path:
    """Find the file that ``name`` means. For a model in shards, the result is the first shard.

    Args:
        name: a path, a name of the catalogue with or without ``:QUANT``, ``org/repo:QUANT``, or ``demo``.
        build_demo: builds the demo model unless its file exists. None: the plain builder.

    Raises:
        ModelNotFound: there is no such file, or the model is known but not on this machine.
        ConfigError: the user's catalogue cannot be read.
    """
    build = build_demo or _build_demo
    if name == DEMO:
        return build()
    path = Path(name).expanduser()
    if path.is_file():
        return gguf.shards(path)[0]
    if match := _REPOSITORY.match(name):
        return _in_repository(name, match["repository"], match["quantisation"])
    if path.is_dir() and (_looks_like_a_path(name) or not load().knows(name)):
        raise ModelNotFound(f"{name} is a folder", "give the GGUF file in it")
    if _looks_like_a_path(name):
        raise ModelNotFound(f"there is no file {name}", "give a GGUF file, or 'demo' for a small model to try")
    model, variant = load().resolve(name)
    return build() if model.id == DEMO else _of_catalogue(model, variant)


def entry(name: str) -> Model | None:
    """Give the catalogue's model for ``name``; None if ``find`` takes ``name`` for a file or a repository."""
    if Path(name).expanduser().is_file() or not (catalogue := load()).knows(name):
        return None
    return catalogue.resolve(name)[0]


# Keys of a header from which llama.cpp's tools read sampling settings, and llama_cpp's names of these settings.
_SAMPLING_KEYS = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repeat_penalty",
}  # fmt: skip
# The quantisation in a file's name, and the rest of the name.
_QUANTISATION = re.compile(r"(?i)[-_. ](?:ud-)?(?:i?q\d|tq\d|mxfp\d|nvfp\d|bf16|fp?16|fp?32).*$")
_WORD = re.compile(r"[a-z0-9]+(?:\.[0-9]+)*")
# Words beside a model's name that do not change the model: publishers and converters of files.
_PUBLISHERS = frozenset({
    "ai", "allenai", "bartowski", "community", "databricks", "deepseek", "ggml", "gguf", "google", "hf", "ibm",
    "liquidai", "lmstudio", "meta", "microsoft", "mistralai", "moonshotai", "mtp", "openai", "org", "qwen", "unsloth",
    "zai",
})  # fmt: skip
# Words that mark another model made from the same base.
_RELATIVES = frozenset({
    "abliterated", "base", "chat", "code", "coder", "distill", "heretic", "instruct", "it", "math", "reasoning",
    "safeguard", "thinking", "uncensored", "vision", "vl",
})  # fmt: skip


def recommended_sampling(name: str, path: Path) -> dict[str, float | int]:
    """Give the settings recommended for a model, as keywords of llama_cpp. Only the header is read.

    The catalogue counts first: it holds the settings of the model's card, and the user's changes. A file's own settings
    (``general.sampling.*``) come from the converter of the file; they count if the catalogue has none. Settings belong
    together, so the two sources are never mixed.

    Args:
        name: the user's name of the model: a name of the catalogue, a path, or ``org/repo:QUANT``.
        path: the model's file. If the catalogue lacks ``name``, it is searched by the file's header and name.
    """
    try:
        model = entry(name)
    except ConfigError:
        model = None  # a file opens even if the catalogue cannot be read
    if model is not None and (settings := _given(model.sampling)):
        return settings
    try:
        file = gguf.read(path)
    except (EdgeMoEError, OSError):
        file = None
    model = model or published(path, file)
    return (_given(model.sampling) if model else {}) or (_own_sampling(file) if file else {})


def published(path: Path, file: gguf.GgufFile | None) -> Model | None:
    """Find the catalogue's model in a file by header and name. Its relatives, such as fine-tunes, do not match."""
    try:
        models = load().models
    except ConfigError:
        return None
    stem = _words(_QUANTISATION.sub("", _SHARD.sub("", path.name).removesuffix(".gguf")))
    headed = _names_in(file) if file else []
    shape = gguf.moe_shape(file) if file else None
    for model in models:
        own = [_words(text) for text in (model.id, model.name, *map(_stem, model.variants))]
        known = frozenset().union(*own)
        if any((words & _RELATIVES) - known or _dates(words) - known for words in (stem, *headed)):
            continue
        of_file = [stem] if model.differences(shape) else [stem, *headed]
        if any(name <= words and words <= known | _PUBLISHERS for words in of_file for name in own):
            return model
    return None


def _given(sampling: Sampling) -> dict[str, float | int]:
    return {key: value for key, value in asdict(sampling).items() if value is not None}


def _own_sampling(file: gguf.GgufFile) -> dict[str, float | int]:
    """Read the sampling settings of a header. Values that no sampler accepts are left out."""
    found: dict[str, float | int] = {}
    for key, keyword in _SAMPLING_KEYS.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                Sampling(**{keyword: value})  # type: ignore[arg-type]
            except ConfigError:
                continue
            found[keyword] = int(value) if keyword == "top_k" else value
    return found


def _names_in(file: gguf.GgufFile) -> list[frozenset[str]]:
    """Give the names in a header, as words: the full name, and the name made of its parts."""
    values = {
        key: file.metadata.get(f"general.{key}") for key in ("name", "basename", "finetune", "version", "size_label")
    }
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    full = texts.pop("name", "")
    return [words for text in (full, " ".join(texts.values())) if (words := _words(text))]


def _stem(variant: Variant) -> str:
    name = variant.files[0].name.rpartition("/")[2]
    return _QUANTISATION.sub("", _SHARD.sub("", name).removesuffix(".gguf"))


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower().replace("_", " ")))


def _dates(words: frozenset[str]) -> frozenset[str]:
    """Pick the words that are a month of a release, such as 2507."""
    return frozenset(word for word in words if re.fullmatch(r"2[3-9](?:0[1-9]|1[0-2])", word))


def _looks_like_a_path(name: str) -> bool:
    """Tell whether the user probably meant a file rather than a name."""
    return name.lower().endswith(".gguf") or "/" in name or "\\" in name or name.startswith(("~", "."))


def downloaded(variant: Variant) -> Path | None:
    """Give the first file of a variant if all its files are in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(variant.repository, file.name, revision=variant.revision) for file in variant.files]
    return Path(found[0]) if all(isinstance(file, str) for file in found) and isinstance(found[0], str) else None


def _build_demo() -> Path:
    from .demo import build_demo

    return build_demo()


def _of_catalogue(model: Model, variant: Variant | None) -> Path:
    for candidate in [variant] if variant else model.variants:
        if path := downloaded(candidate):
            return path
    if not model.variants:
        hint = "no file of it is known: edgemoe pull ORG/REPO:QUANT, or give a GGUF file"
    else:
        hint = f"edgemoe pull {model.id}" + (f":{variant.quantisation}" if variant else "")
    raise ModelNotFound(f"{model.name} is not on this machine", hint)


def _in_repository(name: str, repository: str, quantisation: str) -> Path:
    for snapshot in _snapshots(repository):
        # A removed file may leave a link to nothing.
        if path := pick((path for path in snapshot.rglob("*.gguf") if path.is_file()), quantisation):
            return path
    raise ModelNotFound(f"{name} is not on this machine", f"edgemoe pull {name}")


def _snapshots(repository: str) -> list[Path]:
    """List the folders of a repository's revisions in the cache: first the one of ``main``, then the latest."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    commit = main.read_text().strip() if main.is_file() else ""
    found = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)


def pick(paths: Iterable[Path], quantisation: str) -> Path | None:
    """Pick the GGUF file of this quantisation, or its first shard; None without one or if a shard is missing."""
    wanted = re.compile(rf"(?<!ud-)(?<![a-z0-9]){re.escape(quantisation.lower())}(?![a-z0-9_])")
    files = [path for path in paths if path.suffix == ".gguf" and not path.name.startswith("mmproj")]
    named = {path for path in files if wanted.search(path.name.lower())}
    for path in sorted(named, key=lambda path: (len(path.name), path.name)):
        shard = _SHARD.search(path.name)
        if shard is None:
            return path
        stem, count = path.name[: shard.start()], int(shard[2])
        shards = [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
        if set(shards) <= named:
            return shards[0]
    return None


def built_demo() -> Path | None:
    """Give the path of the demo model if it has been built."""
    from .demo import demo_path

    path = demo_path()
    return path if path.exists() else None
