"""The catalogue: models by name, with their files and published facts. It is data only and never uses the network.

``models.toml`` is the built-in part; a file of the same name in the user's configuration folder is merged over it. Both
files are read into the records below. An entry that does not match is refused, with the file, the key and the nearest
known word. ``models.schema.json`` has the same rules for editors. If a GGUF header and the catalogue give different
shapes, the header counts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..config import OffloadConfig, home
from ..errors import ConfigError, ModelNotFound
from . import toml

if TYPE_CHECKING:
    from ..types import ModelShape

NAME = "models.toml"
CAPABILITIES = ("chat", "thinking", "tools")

_ID = re.compile(r"^[a-z0-9][a-z0-9.-]*$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_REPOSITORY = re.compile(r"^\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?$")
_DATE = re.compile(r"^20\d\d-\d\d-\d\d$")
_BITS = re.compile(r"^(?:UD-)?(?:I?Q|TQ|MXFP|NVFP|BF|F)(\d+)")
# A quantisation named for n bits takes a little more per weight: it has scales, and some tensors keep more bits.
MOST_EXTRA_BITS = 1.7
# Published parameter counts are rounded. Counts of active parameters often leave out some parts, such as embeddings.
ROUNDING = 0.04


# ---- records ----


@dataclass(frozen=True)
class CatalogueFile:
    """Describe one file of a repository.

    Attributes:
        name: path of the file inside the repository.
        bytes: size of the file, or None if it is not known for certain.
        sha256: hash of the file in lower-case hexadecimal, or None if it is not known for certain.
    """

    name: str
    bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse a name that could leave its folder, and impossible figures."""
        path = PurePosixPath(self.name)
        strange = not self.name.isprintable() or {"\\", ":"} & set(self.name)
        if strange or path.is_absolute() or ".." in path.parts or path.suffix.lower() != ".gguf":
            raise ConfigError(f"name {self.name!r} is no GGUF file inside a repository")
        _check_count("bytes", self.bytes)
        if self.sha256 is not None and not _SHA256.match(self.sha256):
            raise ConfigError(f"sha256 {self.sha256!r} is not 64 hexadecimal digits in lower case")


@dataclass(frozen=True)
class Variant:
    """Describe a model in one quantisation, in one repository.

    Attributes:
        quantisation: llama.cpp's name of the quantisation, such as ``Q4_K_M``.
        repository: repository on the Hugging Face hub, ``organisation/name``.
        files: all shards, in order.
        source: source of the names, sizes and hashes.
        checked: day that the source was read, ``YYYY-MM-DD``.
        revision: branch, tag or commit.
        total_bytes: size of all files together, if it is known but the single sizes are not.
    """

    quantisation: str
    repository: str
    files: tuple[CatalogueFile, ...]
    source: str
    checked: str
    revision: str = "main"
    total_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that no hub can serve."""
        if not self.quantisation or not self.quantisation.isprintable() or ":" in self.quantisation:
            raise ConfigError(f"quantisation {self.quantisation!r} is no name")
        if not _REPOSITORY.match(self.repository) or "--" in self.repository or ".." in self.repository:
            raise ConfigError(f"repository {self.repository!r} is not of the form organisation/name")
        if not self.files:
            raise ConfigError("files is empty")
        _check_count("total_bytes", self.total_bytes)
        _check_date(self.checked)

    @property
    def bytes(self) -> int | None:
        """Give the size of all files together, or None if it is not known."""
        sizes = [file.bytes for file in self.files if file.bytes is not None]
        return sum(sizes) if len(sizes) == len(self.files) else self.total_bytes


@dataclass(frozen=True)
class Sampling:
    """Hold the sampling settings that the publisher recommends; None without a recommendation."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that no sampler accepts, such as not-a-number."""
        for field in fields(self):
            value, most = getattr(self, field.name), 1.0 if field.name in ("top_p", "min_p") else 1e9
            if value is not None and not 0 <= value <= most:
                raise ConfigError(f"{field.name} is {value}")


@dataclass(frozen=True)
class OffloadHints:
    """Hold settings of :class:`edgemoe.OffloadConfig` that suit this model; None leaves the default."""

    vram: str | None = None
    policy: str | None = None
    prefetch: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that the engine would refuse."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        OffloadConfig(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Model:
    """Describe one model.

    Attributes:
        id: name of the model on the command line: lower-case letters, digits, ``.`` and ``-``.
        name: full name of the model.
        family: name of the architecture that all models of the family share.
        licence: SPDX identifier, or the licence's own name.
        description: one or two sentences for the model list.
        total_parameters: published number of parameters, rounded.
        active_parameters: published number of parameters that one token uses. Some publishers leave out embeddings.
        layers: number of transformer layers.
        expert_layers: number of layers with routed experts.
        experts: routed experts in each of these layers.
        experts_used: routed experts that a token uses in a layer.
        width: width of the hidden state.
        expert_width: width of the inner layer of one expert.
        vocabulary: number of tokens in the vocabulary.
        context: longest context, in tokens, that the model was made for.
        source: source of these facts.
        checked: day that the source was read, ``YYYY-MM-DD``.
        shared_experts: experts that every token uses.
        aliases: other names of the model.
        tags: words for search.
        capabilities: abilities of the model, from ``CAPABILITIES``.
        routing_profile: file of a routing history made on another machine, or empty.
        sampling: sampling settings that the publisher recommends.
        offload: settings of the engine that suit the model.
        variants: quantisations of the model that can be downloaded.
    """

    id: str
    name: str
    family: str
    licence: str
    description: str
    total_parameters: int
    active_parameters: int
    layers: int
    expert_layers: int
    experts: int
    experts_used: int
    width: int
    expert_width: int
    vocabulary: int
    context: int
    source: str
    checked: str
    shared_experts: int = 0
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    routing_profile: str = ""
    sampling: Sampling = Sampling()
    offload: OffloadHints = OffloadHints()
    variants: tuple[Variant, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that cannot be typed and counts that contradict each other."""
        for name in (self.id, *self.aliases):
            if not _ID.match(name):
                raise ConfigError(f"{name!r} is no name: lower-case letters, digits, '.' and '-'")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and field.name != "shared_experts":
                _check_count(field.name, value)
        _check_count("shared_experts", self.shared_experts, least=0)
        if self.experts_used > self.experts or self.expert_layers > self.layers:
            raise ConfigError("more experts used than there are, or more layers of experts than layers")
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise ConfigError(f"capability {capability!r} is unknown", f"one of: {', '.join(CAPABILITIES)}")
        _check_date(self.checked)

    @property
    def routed_parameters(self) -> int:
        """Count the parameters of all routed experts. Each expert has three matrices."""
        return self.expert_layers * self.experts * 3 * self.width * self.expert_width

    def variant(self, quantisation: str) -> Variant:
        """Find the variant with this quantisation, in upper or lower case.

        Raises:
            ModelNotFound: the model has no such variant; the hint names its variants.
        """
        for variant in self.variants:
            if variant.quantisation.lower() == quantisation.lower():
                return variant
        known = ", ".join(variant.quantisation for variant in self.variants) or "none"
        raise ModelNotFound(f"{self.id} is not in the catalogue as {quantisation}", f"there is: {known}")

    def check(self) -> list[str]:
        """List contradictions: experts against the total, active parameters, bytes against the quantisation."""
        wrong = []
        if self.routed_parameters > self.total_parameters * (1 + ROUNDING):
            wrong.append(f"experts of {self.routed_parameters:,} parameters in {self.total_parameters:,}")
        computed = self.total_parameters - self.routed_parameters * (1 - self.experts_used / self.experts)
        slack = ROUNDING * computed + 0.01 * self.total_parameters
        embeddings = 2 * self.vocabulary * self.width
        if not computed - embeddings - slack <= self.active_parameters <= computed + slack:
            wrong.append(f"{self.active_parameters:,} active parameters, {computed:,.0f} by the experts")
        for variant in self.variants:
            match, size = _BITS.match(variant.quantisation), variant.bytes
            if match and size is not None:
                bits = 8 * size / self.total_parameters
                if not int(match[1]) * (1 - ROUNDING) <= bits <= int(match[1]) + MOST_EXTRA_BITS:
                    wrong.append(f"{variant.quantisation}: {bits:.2f} bits per parameter")
        return wrong

    def differences(self, shape: ModelShape | None) -> list[str]:
        """List the differences between this model and a file with this shape. None is the shape of a dense file."""
        if shape is None:
            return ["the file has no routed experts"]
        pairs = [("experts per layer", shape.experts, self.experts), ("experts used", shape.used, self.experts_used)]
        pairs.append(("layers with experts", shape.layers, self.expert_layers))
        return [
            f"{what}: {there} in the file, {known} in the catalogue" for what, there, known in pairs if there != known
        ]


@dataclass(frozen=True)
class Catalogue:
    """Hold all models, in the order of the file."""

    models: tuple[Model, ...] = ()

    def names(self) -> list[str]:
        """List every id and alias."""
        return [name for model in self.models for name in (model.id, *model.aliases)]

    def knows(self, name: str) -> bool:
        """Tell whether the catalogue has a model of this name. A quantisation in ``name`` is not looked at."""
        return self._called(name.partition(":")[0]) is not None

    def _called(self, name: str) -> Model | None:
        wanted = name.strip().lower()
        return next((m for m in self.models if wanted in (m.id, m.name.lower(), *m.aliases)), None)

    def resolve(self, name: str) -> tuple[Model, Variant | None]:
        """Find the model with this id, name or alias, in upper or lower case. ``:QUANT`` after it names the variant.

        Raises:
            ModelNotFound: the catalogue has no such model; the hint gives the nearest names.
        """
        wanted, _, quantisation = name.strip().partition(":")
        if model := self._called(wanted):
            return model, model.variant(quantisation) if quantisation else None
        near = difflib.get_close_matches(wanted.lower(), self.names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "edgemoe list shows the names"
        raise ModelNotFound(f"there is no model {wanted!r} in the catalogue", hint)


def _check_count(name: str, value: int | None, least: int = 1) -> None:
    if value is not None and not least <= value < 2**63:
        raise ConfigError(f"{name} is {value}")


def _check_date(text: str) -> None:
    if not _DATE.match(text):
        raise ConfigError(f"checked {text!r} is not of the form YYYY-MM-DD")


# ---- reading ----


def builtin_path() -> Path:
    """Give the path of the built-in catalogue. In a checkout it is a link to the file at the top of the repository."""
    return Path(__file__).with_name(NAME)


def user_path() -> Path:
    """Give the path of the user's own catalogue, which need not exist."""
    return home("config") / NAME


def load() -> Catalogue:
    """Read the built-in catalogue and merge the user's catalogue over it.

    A user's entry with a known id replaces the keys that it names and keeps the other keys. Variants are matched by
    quantisation. Any other entry is added.

    Raises:
        ConfigError: a file cannot be read or an entry is wrong; the message names the file and the line or key.
    """
    builtin = _entries(builtin_path())
    if not user_path().exists():
        return _catalogue(builtin, builtin_path())
    return _catalogue(_merged(builtin, _entries(user_path())), user_path())


def read(path: Path) -> Catalogue:
    """Read one catalogue file on its own.

    Raises:
        ConfigError: as for :func:`load`.
    """
    return _catalogue(_entries(path), path)


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Read the tables of a file by id. Their other keys are not checked yet."""
    content = toml.read(path)
    for key in content:
        if key != "model":
            raise toml.unknown(f"{path}", key, ["model"])
    tables = content.get("model", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: model is not a list of tables", "write [[model]] above each model")
    entries: dict[str, dict[str, Any]] = {}
    for number, table in enumerate(tables, 1):
        identity = table.get("id")
        if not isinstance(identity, str):
            raise ConfigError(f"{path}: model {number} has no id", 'write id = "a-name" below [[model]]')
        if identity in entries:
            raise ConfigError(f"{path}: model {identity} is there twice")
        entries[identity] = table
    return entries


def _merged(under: Mapping[str, dict[str, Any]], over: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    merged = dict(under)
    for identity, table in over.items():
        old = under.get(identity, {})
        merged[identity] = {**old, **table}
        if isinstance(old.get("variants"), list) and isinstance(table.get("variants"), list):
            replaced = {_quantisation(variant) for variant in table["variants"]}
            kept = [variant for variant in old["variants"] if _quantisation(variant) not in replaced]
            merged[identity]["variants"] = [*table["variants"], *kept]
    return merged


def _quantisation(variant: Any) -> str:
    return str(variant.get("quantisation", "")).lower() if isinstance(variant, dict) else ""


def _catalogue(entries: Mapping[str, dict[str, Any]], path: Path) -> Catalogue:
    models = tuple(toml.record(Model, table, f"{path}: model {identity}") for identity, table in entries.items())
    owners: dict[str, str] = {}
    for model in models:
        for name in {model.id, model.name.lower(), *model.aliases}:
            if name in owners:
                raise ConfigError(f"{path}: {owners[name]} and {model.id} are both called {name!r}")
            owners[name] = model.id
    return Catalogue(models)
