"""Files as publishers write them: a sound file runs, and any other file gives an error with a remedy."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.zoo.files as zoo_files
from edgemoe import BadGguf, Llama, ModelNotFound, OffloadConfig
from edgemoe.cli.choices import offered
from edgemoe.cli.main import main
from edgemoe.errors import ContextFailed, DoesNotFit, EdgeMoEError, UnsupportedModel
from edgemoe.machine.truncated_model import write
from edgemoe.models import families, gguf
from edgemoe.models.catalog import load
from edgemoe.models.find import find
from tests import parity
from tests.rewrite import rewrite, shards, unstacked
from tests.zoo import ARCHITECTURES, HEADLESS, SPECS, build
from tests.zoo.reference import forced, plain

CPU = OffloadConfig(device="none", profile="off")
SIM = OffloadConfig(device="sim", vram="50%", profile="off", policy="off")
# Plain llama.cpp gives other answers from load to load.
RESTLESS = {"rwkv7"}
Captured = pytest.CaptureFixture[str]


def same_as_plain(path: Path) -> None:
    reference = plain(path)
    tokens, logits = parity.answer(reference)
    reference.close()
    for share in (0, 50, 100):
        for gpu_layers in (-1, 0):
            got = parity.ours(path, share=share, gpu_layers=gpu_layers)
            assert got.tokens == tokens and got.difference(logits) == 0


# ---- tensors of one dimension ----


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["qwen2moe", "qwen3next", "qwen35moe"])
def test_a_gate_of_one_row_may_have_any_type(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = zoo_files._type
    monkeypatch.setattr(zoo_files, "_type", lambda t, *a: kind if "ffn_gate_inp_shexp" in t else usual(t, *a))
    path = build(name, tmp_path)
    gates = [t for n, t in gguf.check(path).tensors.items() if "ffn_gate_inp_shexp" in n]
    assert gates and all(len(gate.shape) == 1 and gate.type_name == kind for gate in gates)
    same_as_plain(path)


@pytest.mark.parametrize(
    "tensor", ["blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.bias", "blk.0.attn_sinks.weight", "blk.0.attn_q.bias"]
)
def test_what_ggml_adds_or_scales_with_is_f32(tensor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = zoo_files._type
    monkeypatch.setattr(zoo_files, "_type", lambda t, *a: "F16" if t == tensor else usual(t, *a))
    path = build("gpt-oss", tmp_path)
    with pytest.raises(UnsupportedModel, match=f"'{tensor}' has the type F16") as caught:
        gguf.check(path)
    assert "not damaged" in caught.value.hint


# ---- models without heads, windows or a context of their own ----


@pytest.mark.parametrize("name", HEADLESS)
def test_models_without_attention_heads_run_as_in_llama_cpp(name: str, tmp_path: Path, capsys: Captured) -> None:
    path = build(name, tmp_path)
    reference = plain(path)
    want = forced(reference, parity.PROMPT, 1)
    reference.close()
    llm = parity.open_ours(path, CPU)
    got = forced(llm, parity.PROMPT, 1)
    assert np.isfinite(got).all()
    assert name in RESTLESS or (got == want).all()
    llm.close()
    assert main(["show", str(path)]) == 0 and "a dense model" in capsys.readouterr().out
    assert main(["fit", str(path), "--quick", "--device", "none"]) == 0


def changed(path: Path, tmp_path: Path, key: str, value: int) -> Path:
    data = bytearray(path.read_bytes())
    at = data.index(f"{key}".encode() + struct.pack("<I", 4)) + len(key) + 4
    struct.pack_into("<I", data, at, value)
    (tmp_path / "changed.gguf").write_bytes(data)
    return tmp_path / "changed.gguf"


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gpt-oss", "qwen35moe", "deepseek2-v3"])
def test_no_heads_beside_attention_is_damage(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadGguf, match="head_count is 0, but there is"):
        gguf.check(changed(build(name, tmp_path), tmp_path, "attention.head_count", 0))


def test_a_context_length_of_0_is_no_damage(tmp_path: Path) -> None:
    path = changed(build("qwen3moe", tmp_path), tmp_path, "context_length", 0)
    same_as_plain(path)


@pytest.mark.parametrize("name", ["gpt-oss", "laguna", "mellum", "smallthinker", "mimo2", "granite_swa"])
def test_a_window_of_0_means_none_where_llama_cpp_says_so(name: str, tmp_path: Path) -> None:
    same_as_plain(changed(build(name, tmp_path), tmp_path, "attention.sliding_window", 0))


@pytest.mark.parametrize("name", ["gemma4", "step35", "cohere2moe", "exaone-moe", "maple", "dots3note", "afmoe"])
def test_a_window_in_which_nothing_is_seen_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadGguf, match="sliding_window is 0"):
        gguf.check(changed(build(name, tmp_path), tmp_path, "attention.sliding_window", 0))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("deepseek4", "attention.output_group_count"),
        ("qwen3next", "full_attention_interval"),
        ("minimax-01", "full_attention_interval"),
        ("grovemoe", "experts_per_group"),
        ("rwkv6", "wkv.head_size"),
        ("glm4moe", "rope.dimension_count"),
    ],
)
def test_a_number_that_llama_cpp_divides_by_is_not_0(name: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(BadGguf, match=f"{key} is 0"):
        gguf.check(changed(build(name, tmp_path), tmp_path, key, 0))


# ---- shards ----


def answers_alike(path: Path, whole: Path) -> None:
    reference = plain(whole)
    tokens, _ = parity.answer(reference)
    reference.close()
    assert parity.ours(path, share=50).tokens == tokens


def opened_everywhere(path: Path, first: Path, capsys: Captured) -> None:
    assert find(str(path)).samefile(first) and find(str(path)).name == first.name
    assert main(["show", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["file"] == first.name and facts["shards"] == 3
    assert main(["fit", str(path), "--quick", "--device", "none"]) == 0
    assert main(["run", str(path), "Hi", "--max-tokens", "2", "--device", "none"]) == 0
    assert "damaged" not in capsys.readouterr().err


def test_any_shard_means_its_model(tmp_path: Path, capsys: Captured) -> None:
    whole = build("llama", tmp_path)
    parts = shards(whole, tmp_path / "parts")
    for part in parts:
        answers_alike(part, whole)
    opened_everywhere(parts[1], parts[0], capsys)


def test_links_lead_to_the_other_shards(tmp_path: Path, capsys: Captured) -> None:
    whole = build("llama", tmp_path)
    parts = shards(whole, tmp_path / "parts")
    for name in ("other.gguf", parts[1].name):
        link = tmp_path / "links" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(parts[1])
        answers_alike(link, whole)
        opened_everywhere(link, parts[0], capsys)


@pytest.fixture
def cached(tmp_path: Path) -> list[Path]:
    """Lay out a split model as huggingface_hub does: links in a snapshot to content with hashes as names."""
    parts = shards(build("llama", tmp_path), tmp_path / "parts")
    folder = tmp_path / "hub" / "models--org--repo"
    links = []
    for number, part in enumerate(parts):
        blob, link = folder / "blobs" / f"{number:064x}", folder / "snapshots" / ("1" * 40) / "Q8_0" / part.name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        part.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
        links.append(link)
    return links


def test_content_in_the_hubs_cache_means_the_model_too(cached: list[Path], tmp_path: Path, capsys: Captured) -> None:
    for link in cached:
        blob = Path(os.path.realpath(link))
        assert blob.parent.name == "blobs"
        answers_alike(blob, build("llama", tmp_path))
        opened_everywhere(blob, cached[0], capsys)


def test_a_renamed_shard_gets_its_right_name(cached: list[Path], tmp_path: Path) -> None:
    blob = cached[0].resolve()
    for link in cached:
        link.unlink()
    with pytest.raises(ModelNotFound, match="shard 1 of 3 under another name") as caught:
        gguf.check(blob)
    assert "NAME-00001-of-00003.gguf" in caught.value.hint


def test_a_missing_shard_is_named(tmp_path: Path, capsys: Captured) -> None:
    parts = shards(build("llama", tmp_path), tmp_path / "parts")
    parts[2].unlink()
    for command in (["run", str(parts[1]), "Hi"], ["show", str(parts[0])], ["fit", str(parts[1]), "--quick"]):
        assert main(command) == 3
        err = capsys.readouterr().err
        assert f"shard {parts[2].name} is missing" in err and "damaged" not in err


# ---- layouts of other times ----


def test_experts_of_2023_are_named(tmp_path: Path, capsys: Captured) -> None:
    path = unstacked(build("llama", tmp_path), tmp_path / "old.gguf")
    assert "blk.0.ffn_gate.0.weight" in gguf.read(path).tensors
    for command in (["run", str(path), "Hi"], ["show", str(path)], ["fit", str(path), "--quick"]):
        assert main(command) == 1
        out, err = capsys.readouterr()
        assert "made before March 2024, with one tensor per expert" in err and "download a newer upload" in err
        assert "dense" not in out + err and "damaged" not in err


def version(number: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into("<I", data, 4, number)


def type_of_a_tensor(number: int) -> Callable[[bytearray], None]:
    name = b"blk.0.ffn_up_exps.weight"
    return lambda data: struct.pack_into("<I", data, data.index(name) + len(name) + 28, number)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (version(1), "version 1 of 2023"),
        (version(4), "newer GGUF version 4"),
        (version(3 << 24), "big-endian"),
        (type_of_a_tensor(99), "unknown type 99"),
        (type_of_a_tensor(31), "Q4_0_4_4"),
        (type_of_a_tensor(4), "Q4_2"),
    ],
)
def test_sound_but_unknown_is_not_called_damaged(
    change: Callable[[bytearray], None], says: str, tmp_path: Path
) -> None:
    data = bytearray(build("llama", tmp_path).read_bytes())
    change(data)
    (tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(UnsupportedModel, match=says) as caught:
        gguf.check(tmp_path / "other.gguf")
    assert "may be damaged" not in caught.value.hint and caught.value.hint


def test_an_unknown_architecture_is_not_called_damaged(tmp_path: Path) -> None:
    data = build("llama", tmp_path).read_bytes()
    (tmp_path / "new.gguf").write_bytes(data.replace(b"llama", b"ollie"))
    with pytest.raises(UnsupportedModel, match="unknown model architecture: 'ollie'"):
        Llama(tmp_path / "new.gguf", n_ctx=64, offload=CPU)


def test_what_is_made_for_a_model_is_not_one(tmp_path: Path) -> None:
    kept = {
        key: value for key, value in gguf.read(build("llama", tmp_path)).metadata.items() if key.startswith("llama")
    }
    tensors = [gguf.GgufTensor("blk.0.attn_q.weight.lora_a", (64, 8), 1, 0, 1024)]
    write(tmp_path / "lora.gguf", {"general.architecture": "llama", "general.type": "adapter", **kept}, tensors)
    with pytest.raises(UnsupportedModel, match="no model, but of the type 'adapter'"):
        Llama(tmp_path / "lora.gguf", n_ctx=64, offload=CPU)


# ---- files of another kind ----

FOREIGN = [
    (b"<!DOCTYPE html>\n<html class=''><head>", "a web page", "the file itself"),
    (b"\n\n<html>", "a web page", "the file itself"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer", "git lfs pull"),
    (b"PK\x03\x04" + bytes(40), "a PyTorch file", "GGUF"),
    (struct.pack("<Q", 64) + b'{"__metadata__":{}}', "a safetensors file", "GGUF"),
    (b"tjgg" + bytes(40), "a model in the form that came before GGUF", "newer upload"),
    (b"\x1f\x8b\x08" + bytes(40), "a packed file", "unpack"),
    (b'{"error": "Repository not found"}', "a text", "GGUF"),
    (b"", "an empty file", "download it again"),
    (b"\x7fELF" + bytes(40), "some other kind of file", "GGUF"),
]


@pytest.mark.parametrize(("content", "what", "helps"), FOREIGN, ids=[what for _, what, _ in FOREIGN])
def test_what_is_no_model_is_named(content: bytes, what: str, helps: str, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for command in (["run", str(path), "Hi"], ["show", str(path)], ["fit", str(path), "--quick"]):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert f"not a GGUF file: this is {what}" in err and helps in err
        assert "damaged" not in err or not content
    assert gguf.foreign(path) == what
    (choice,) = [choice for choice in offered([path]) if choice.name == str(path)]
    assert choice.detail.startswith(f"not a GGUF file: this is {what}")


def test_lists_tell_a_page_from_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = load().resolve("olmoe")[0]
    repo = tmp_path / "hub" / f"models--{model.variants[0].repository.replace('/', '--')}"
    file = repo / "snapshots" / ("1" * 40) / model.variants[0].files[0].name
    file.parent.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("1" * 40)
    file.write_text("<!doctype html><html></html>")
    assert main(["list", "olmoe"]) == 0
    assert "this is a web page" in capsys.readouterr().out
    assert any("this is a web page" in choice.detail for choice in offered([]))
    file.write_bytes(build("llama", tmp_path).read_bytes())
    assert main(["list", "olmoe"]) == 0
    assert "web page" not in capsys.readouterr().out


# ---- scales ----

SCALES = (
    r"ffn_down_exps\.scale",
    r"ffn_(gate|up|gate_up)_exps\.scale",
    r"ffn_(gate|up|down)_exps\.(scale|input_scale)",
)


def said_and_done(name: str, quant: str | None, scales: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that ``show`` describes a model with these scales as the engine runs it."""
    monkeypatch.setattr(zoo_files, "_SCALES", r"^$")
    monkeypatch.setitem(SPECS, name, replace(SPECS[name], keep=f"{SPECS[name].keep}|{scales}"))
    path = build(name, folder, quant)
    said, why = families.layers_split(gguf.check(path))
    llm = Llama(path, n_ctx=64, n_batch=64, n_threads=1, n_gpu_layers=-1, offload=SIM)
    llm.eval([1, 2, 3])
    llm.eval([4])
    stats = llm.experts.stats()
    llm.close()
    assert said == stats.fused_layers, why
    assert ("run as in llama.cpp" in why) == (stats.plain_layers > 0)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("quant", ["MXFP4", "NVFP4"])
@pytest.mark.parametrize("name", ["qwen3moe", "gemma4", "gpt-oss", "nemotron_h_moe"])
def test_what_is_split_is_known_by_the_scales(
    name: str, quant: str, scales: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_and_done(name, quant, scales, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_split_is_known_of_every_architecture(
    name: str, merged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if merged and not SPECS[name].merged:
        pytest.skip("its gate and up are always apart")
    monkeypatch.setitem(SPECS, name, replace(SPECS[name], merged=merged))
    try:
        plain(build(name, tmp_path, "NVFP4")).close()
    except (RuntimeError, ValueError):
        pytest.skip("llama.cpp does not load it in this form")
    said_and_done(name, "NVFP4", SCALES[2], tmp_path / "scaled", monkeypatch)


# ---- vocabularies ----


def test_the_vocabulary_alone_tokenises_as_in_llama_cpp(tmp_path: Path) -> None:
    path = build("llama", tmp_path)
    text = "Hello in there, über 100 €!".encode()
    reference = plain(path, vocab_only=True)
    for offload in (CPU, SIM, None):
        llm = Llama(path, vocab_only=True, offload=offload)
        tokens = llm.tokenize(text)
        assert tokens == reference.tokenize(text) and llm.detokenize(tokens) == text
        assert llm.metadata == reference.metadata and llm.n_vocab() == reference.n_vocab()
        assert llm.experts.shape is None and "Only the vocabulary is loaded" in llm.experts.notes[0]
        assert llm.experts.residency().size == llm.experts.heat().size == 0 and llm.experts.device == "none"
        llm.close()
    reference.close()


def test_a_file_without_weights(tmp_path: Path, capsys: Captured) -> None:
    path = rewrite(build("llama", tmp_path), tmp_path / "vocabulary.gguf", [])
    llm = Llama(path, vocab_only=True)
    assert llm.detokenize(llm.tokenize(b"The end.")) == b"The end."
    assert llm.experts.shape is None
    llm.close()
    assert main(["show", str(path)]) == 0
    assert "none: a vocabulary only" in capsys.readouterr().out
    assert main(["fit", str(path), "--quick", "--device", "none"]) == 1
    assert "a vocabulary, but no weights" in capsys.readouterr().err
    with pytest.raises(UnsupportedModel, match="a vocabulary, but no weights") as caught:
        Llama(path)
    assert "vocab_only" in caught.value.hint


# ---- contexts ----


@pytest.mark.parametrize(("keywords", "hint"), [({"n_ctx": 1 << 30}, "n_ctx="), ({"type_v": 2, "n_ctx": 64}, "f16")])
def test_a_context_that_cannot_be_made_is_no_damage(keywords: dict[str, Any], hint: str, tmp_path: Path) -> None:
    path = build("llama", tmp_path)
    with pytest.raises(DoesNotFit if "n_ctx" in hint else ContextFailed) as caught:
        Llama(path, offload=CPU, **keywords)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, EdgeMoEError)
    assert hint in caught.value.hint and "damaged" not in f"{caught.value}{caught.value.hint}"
    assert "gave no reason" not in str(caught.value)


def test_checks_of_llama_cpps_constructor_are_passed_on(tmp_path: Path) -> None:
    path = build("llama", tmp_path)
    with pytest.raises(ValueError, match="too long"):
        Llama(path, offload=CPU, n_ctx=64, kv_overrides={"a": "x" * 200})


def test_an_override_of_top_k_counts(tmp_path: Path) -> None:
    llm = Llama(build("llama", tmp_path), n_ctx=64, offload=SIM, kv_overrides={"llama.expert_used_count": 4})
    for token in (1, 2, 3):
        llm.eval([token])
    assert llm.experts.shape is not None and llm.experts.shape.used == 4
    assert llm.experts.last().shape == (2, 4) and llm.experts.heat().sum() == 3 * 2 * 4
    llm.close()


def test_a_header_with_text_that_is_no_utf8_is_damaged(tmp_path: Path) -> None:
    path = build("llama", tmp_path)
    path.write_bytes(path.read_bytes().replace(b"<|begin|>", b"<|\xffegin|>"))
    with pytest.raises(BadGguf, match="not UTF-8"):
        Llama(path, offload=CPU, n_ctx=64)
