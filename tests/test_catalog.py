"""The catalogue: its entries are consistent, and errors in a user's catalogue are named."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from edgemoe.errors import ConfigError, ModelNotFound
from edgemoe.models import catalog, toml
from edgemoe.models.catalog import Catalogue, CatalogueFile, Model, OffloadHints, Sampling, Variant
from edgemoe.types import ModelShape

SCHEMA = Path(catalog.__file__).with_name("models.schema.json")
BUILTIN = catalog.read(catalog.builtin_path())
FAMILIES = [
    "Mixtral 8x7B Instruct",
    "Mixtral 8x22B Instruct",
    "DBRX Instruct",
    "DeepSeek-V2-Lite",
    "DeepSeek-V2 ",
    "DeepSeek-V3",
    "Grok-1",
    "Gemma 4 26B-A4B",
    "Qwen3 30B-A3B",
    "Qwen3.6 35B-A3B",
    "Qwen3-Next 80B-A3B",
    "gpt-oss 20B",
    "gpt-oss 120B",
    "OLMoE",
    "Granite 3.1 1B-A400M",
    "Granite 3.1 3B-A800M",
    "GLM-4.5-Air",
    "Llama 4 Scout",
    "Phi-3.5-MoE",
    "LFM2 8B-A1B",
    "Kimi-Linear",
    "demo",
]
MINE = """
[[model]]
id = "mine"
name = "My own"
family = "Mixtral"
licence = "MIT"
description = "Fine-tuned at home."
total_parameters = 46_700_000_000
active_parameters = 12_900_000_000
layers = 32
expert_layers = 32
experts = 8
experts_used = 2
width = 4096
expert_width = 14336
vocabulary = 32000
context = 4096
source = "me"
checked = "2026-11-23"
"""
VARIANT = """
[[model.variants]]
quantisation = "Q4_0"
repository = "me/mine-GGUF"
source = "me"
checked = "2026-11-23"
files = [{ name = "mine.gguf", bytes = 26_000_000_000 }]
"""


def user(text: str) -> Catalogue:
    """Load the catalogue with this text as the user's file."""
    catalog.user_path().parent.mkdir(parents=True, exist_ok=True)
    catalog.user_path().write_text(text)
    return catalog.load()


# The entries.


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_of_the_mission_are_there(family: str) -> None:
    assert any(family in model.name for model in BUILTIN.models)


@pytest.mark.parametrize("model", BUILTIN.models, ids=lambda model: model.id)
def test_each_row_adds_up(model: Model) -> None:
    assert model.check() == []
    assert all(file.name.endswith(".gguf") for variant in model.variants for file in variant.files)
    for variant in model.variants:
        shards = [re.search(r"-(\d{5})-of-(\d{5})\.gguf$", file.name) for file in variant.files]
        if len(shards) > 1:
            numbers = [(int(shard[1]), int(shard[2])) for shard in shards if shard]
            assert numbers == [(i, len(shards)) for i in range(1, len(shards) + 1)]


def test_the_check_sees_wrong_figures() -> None:
    model = BUILTIN.resolve("gpt-oss-20b")[0]
    small = dataclasses.replace(model.variants[0].files[0], bytes=1_210_956_656)
    wrong = {
        "in 2,091": {"total_parameters": model.total_parameters // 10},
        "active": {"active_parameters": 13_600_000_000},
        "active ": {"experts_used": 16},
        "bits per parameter": {"variants": (dataclasses.replace(model.variants[0], files=(small,)),)},
    }
    for words, change in wrong.items():
        assert any(words in line for line in dataclasses.replace(model, **change).check()), words


def test_the_size_of_all_files() -> None:
    sizes = {name: BUILTIN.resolve(name)[0].variants[0].bytes for name in ("gpt-oss-120b", "glm-air", "mixtral")}
    assert sizes == {"gpt-oss-120b": 63_387_346_464, "glm-air": 72_975_748_384, "mixtral": None}


def test_a_file_is_compared_with_its_entry() -> None:
    model = BUILTIN.resolve("glm-air")[0]
    shape = ModelShape(layers=45, experts=128, used=8, expert_bytes=(1,) * 45)
    assert model.differences(shape) == []
    assert model.differences(dataclasses.replace(shape, layers=46)) != []  # an MTP head is not part of the shape
    assert model.differences(dataclasses.replace(shape, layers=40)) == [
        "layers with experts: 40 in the file, 45 in the catalogue"
    ]
    assert len(model.differences(dataclasses.replace(shape, experts=64, used=4))) == 2
    assert model.differences(None) == ["the file has no routed experts"]


def test_the_schema_accepts_the_catalogue() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content = toml.read(catalog.builtin_path())
    jsonschema.Draft202012Validator(schema).validate(content)
    content["model"][0]["quants"] = []
    with pytest.raises(jsonschema.ValidationError, match="quants"):
        jsonschema.Draft202012Validator(schema).validate(content)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model", Model),
        ("variant", Variant),
        ("file", CatalogueFile),
        ("sampling", Sampling),
        ("offload", OffloadHints),
    ],
)
def test_schema_and_records_agree(name: str, kind: type) -> None:
    """List the keys, mark the required ones, and give their types."""
    schema = json.loads(SCHEMA.read_text())["$defs"][name]
    assert schema["additionalProperties"] is False
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert list(schema["properties"]) == list(fields)
    required = [field.name for field in fields.values() if field.default is dataclasses.MISSING]
    assert schema.get("required", []) == required
    for field, hint in typing.get_type_hints(kind).items():
        assert json_type(schema["properties"][field]) == hint_type(hint), field


def json_type(entry: dict[str, Any]) -> str:
    if "$ref" in entry:
        return "object"
    return "string" if "enum" in entry else str(entry["type"])


def hint_type(hint: Any) -> str:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    kind = options[0] if options and typing.get_origin(hint) is not tuple else hint
    names = {str: "string", int: "integer", float: "number"}
    return names.get(kind) or ("array" if typing.get_origin(kind) is tuple else "object")


# Names.


@pytest.mark.parametrize(
    "name", ["mixtral-8x7b-instruct", "MIXTRAL", "Mixtral 8x7B Instruct v0.1", "mixtral-8x7b:q4_k_m", " mixtral "]
)
def test_a_model_answers_to_its_names(name: str) -> None:
    model, variant = BUILTIN.resolve(name)
    assert model.id == "mixtral-8x7b-instruct"
    assert (variant is None) == (":" not in name)


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("mixtrall", "no model 'mixtrall'", "mixtral"),
        ("gptoss-20b", "gptoss", "gpt-oss-20b"),
        ("zzzzzz", "zzzzzz", "edgemoe list"),
        ("gpt-oss-20b:Q9", "as Q9", "MXFP4"),
        ("grok-1:Q4_K", "grok-1", "none"),
    ],
)
def test_a_name_that_is_not_there(name: str, says: str, hint: str) -> None:
    with pytest.raises(ModelNotFound, match=says) as caught:
        BUILTIN.resolve(name)
    assert hint in caught.value.hint


# The user's own.


def test_without_a_file_of_the_user_it_is_the_built_in_one() -> None:
    assert catalog.load() == BUILTIN


def test_the_user_adds_a_model() -> None:
    mine = user(MINE + VARIANT).resolve("mine")[0]
    assert mine.check() == [] and mine.variants[0].bytes == 26_000_000_000 and mine.variants[0].revision == "main"
    assert len(catalog.load().models) == len(BUILTIN.models) + 1


def test_the_user_changes_some_keys_and_adds_a_variant() -> None:
    changed = user('[[model]]\nid = "gpt-oss-20b"\naliases = ["oss"]\nsampling = { top_k = 5 }\n' + VARIANT)
    old, new = BUILTIN.resolve("gpt-oss-20b")[0], changed.resolve("oss")[0]
    assert [variant.quantisation for variant in new.variants] == ["Q4_0", "MXFP4"]
    assert new.sampling == Sampling(top_k=5)
    assert dataclasses.replace(new, aliases=old.aliases, sampling=old.sampling, variants=old.variants) == old
    assert [model.id for model in changed.models] == [model.id for model in BUILTIN.models]


def test_the_user_replaces_a_variant() -> None:
    text = '[[model]]\nid = "gpt-oss-20b"\n' + VARIANT.replace("Q4_0", "mxfp4")
    (variant,) = user(text).resolve("gpt-oss-20b")[0].variants
    assert variant.repository == "me/mine-GGUF"


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[[model]]\nid = \n", "line 2", "TOML"),
        ("\xff", "", ""),
        ('[[models]]\nid = "x"', "unknown key 'models'", "'model'"),
        ("model = 3", "not a list of tables", "[[model]]"),
        ("[[model]]\nname = 'x'", "model 1 has no id", "id = "),
        (MINE + MINE, "model mine is there twice", ""),
        (MINE + "expert_used = 2", "model mine: unknown key 'expert_used'", "experts_used"),
        (MINE.replace("layers = 32\n", "layers = 'x'\n", 1), "model mine: layers is 'x', not a whole number", ""),
        (MINE.replace("layers = 32\n", "layers = true\n", 1), "model mine: layers is True", ""),
        (MINE.replace("layers = 32\n", "layers = 0\n", 1), "model mine: layers is 0", ""),
        (MINE.replace("experts_used = 2", "experts_used = 9"), "more experts used", ""),
        (MINE.replace('family = "Mixtral"\n', ""), "model mine: family is missing", ""),
        (MINE.replace('"mine"', '"Mine"'), "'Mine' is no name", ""),
        (MINE.replace("2026-11-23", "today"), "checked 'today'", ""),
        (MINE + "capabilities = ['fly']", "capability 'fly'", "thinking"),
        (MINE + "aliases = 'x'", "aliases is not a list", ""),
        (MINE + "aliases = [3]", "aliases 1 is 3, not a text", ""),
        (MINE + "aliases = ['mixtral']", "both called 'mixtral'", ""),
        (MINE + "sampling = 3", "sampling is not a table", ""),
        (MINE + "sampling = { temprature = 1 }", "sampling: unknown key 'temprature'", "temperature"),
        (MINE + VARIANT.replace("quantisation", "quant"), "variants 1: unknown key 'quant'", "quantisation"),
        (MINE + VARIANT.replace("bytes =", "size ="), "variants 1: files 1: unknown key 'size'", ""),
        (MINE + VARIANT.replace("mine.gguf", "../mine.gguf"), "no GGUF file inside a repository", ""),
        (MINE + VARIANT.replace("mine.gguf", "/etc/mine.gguf"), "no GGUF file inside a repository", ""),
        (MINE + VARIANT.replace("mine.gguf", "C:mine.gguf"), "no GGUF file inside a repository", ""),
        (MINE + VARIANT.replace("mine.gguf", "mine.py"), "no GGUF file inside a repository", ""),
        (MINE + VARIANT.replace("26_000_000_000", str(2**63)), "files 1: bytes is 9223372036854775808", ""),
        (MINE + VARIANT.replace("files", "total_bytes = 0\nfiles"), "total_bytes is 0", ""),
        (MINE + VARIANT.replace("me/mine-GGUF", "me/mine--GGUF"), "organisation/name", ""),
        (MINE + "sampling = { temperature = nan }", "sampling: temperature is nan", ""),
        (MINE + "sampling = { top_p = 1.5 }", "sampling: top_p is 1.5", ""),
        (MINE + "offload = { policy = 'guess' }", "policy='guess' is unknown", "adaptive"),
        (MINE + "shared_experts = -1", "shared_experts is -1", ""),
        ("x = " + "[" * 5000, "models.toml: ", "TOML"),
        (MINE + VARIANT.replace("26_000_000_000", "-1"), "files 1: bytes is -1", ""),
        (MINE + VARIANT.replace("bytes = 26_000_000_000", "sha256 = 'AB'"), "64 hexadecimal digits", ""),
        (MINE + VARIANT.replace("me/mine-GGUF", "mine"), "organisation/name", ""),
        (MINE + VARIANT.replace('"Q4_0"', '"a:b"'), "'a:b' is no name", ""),
        (MINE + VARIANT.replace('{ name = "mine.gguf", bytes = 26_000_000_000 }', ""), "files is empty", ""),
    ],
)
def test_a_broken_file_is_refused_by_name_and_place(text: str, says: str, hint: str) -> None:
    catalog.user_path().parent.mkdir(parents=True, exist_ok=True)
    catalog.user_path().write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        catalog.load()
    assert str(caught.value).startswith(str(catalog.user_path()))
    assert says in str(caught.value) and hint in caught.value.hint
