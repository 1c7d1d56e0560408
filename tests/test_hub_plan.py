"""The choice of files for a name and for free memory, and the progress of a download, without a network."""

from __future__ import annotations

from email.utils import formatdate
from time import time
from types import SimpleNamespace

import pytest

from edgemoe.errors import DoesNotFit, ModelNotFound
from edgemoe.models.hub import Download, RemoteFile, parse
from edgemoe.models.hub.choose import choose
from edgemoe.models.hub.failures import wait_asked_for
from edgemoe.models.hub.meter import Meter, Progress
from edgemoe.models.hub.records import quantisation_of


def test_names_are_split() -> None:
    assert parse("org/repo:q4_k_m") == ("org/repo", "q4_k_m")
    assert parse("org/repo.v2-GGUF") == ("org/repo.v2-GGUF", None)
    for wrong in ("repo", "org/repo/more", "../repo:Q4", "org/repo:", "org/re po", "org/..", "/org/repo"):
        with pytest.raises(ModelNotFound, match="no model on the hub"):
            parse(wrong)


@pytest.mark.parametrize(
    ("stem", "quantisation"),
    [
        ("Qwen3-30B-A3B-Q4_K_M", "Q4_K_M"),
        ("UD-Q4_K_XL/Qwen3-Next-80B-A3B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("mixtral-8x7b-instruct-v0.1.Q3_K_S", "Q3_K_S"),
        ("Model.i1-IQ2_XXS", "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4", "mxfp4"),
        ("gemma-4-26B-A4B-it-MXFP4_MOE", "MXFP4_MOE"),
        ("BF16/Grok-1", "BF16"),
        ("ggml-model-f16", "f16"),
        ("Q8_0", "Q8_0"),
        ("OLMoE-1B-7B", ""),
    ],
)
def test_quantisation_is_read_from_the_name(stem: str, quantisation: str) -> None:
    assert quantisation_of(stem) == quantisation


def repository(**gibs: float) -> Download:
    files = tuple(RemoteFile(f"m-{name}.gguf", int(size * 2**30)) for name, size in gibs.items())
    return Download("org/m", "main", files)


@pytest.mark.parametrize(
    ("free", "best"), [(64, "Q4_K_M"), (18, "Q3_K_M"), (12, "Q2_K")]
)  # Q4_K_M is preferred to larger ones; below it, the largest that fits
def test_the_best_quantisation_for_the_memory_is_chosen(free: int, best: str) -> None:
    plan = choose(repository(Q8_0=32, Q6_K=25, Q4_K_M=18, Q3_K_M=14, Q2_K=10), None, free << 30)
    assert plan.quantisation == best and [file.name for file in plan.files] == [f"m-{best}.gguf"]
    assert best in plan.choice and f"{free}.0 GiB" in plan.choice


def test_without_four_bits_the_largest_that_fits_is_chosen() -> None:
    assert choose(repository(BF16=60, Q8_0=32, Q2_K=10), None, 40 << 30).quantisation == "Q8_0"


def test_a_model_larger_than_the_memory_must_be_named() -> None:
    with pytest.raises(DoesNotFit) as caught:
        choose(repository(Q8_0=32, Q2_K=10), None, 8 << 30)
    assert "Q2_K" in caught.value.hint
    assert choose(repository(Q8_0=32, Q2_K=10), "q2_k", 8 << 30).quantisation == "Q2_K"


def test_an_unknown_quantisation_lists_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match="no quantisation Q5_K_M") as caught:
        choose(repository(Q4_K_M=3, Q8_0=6, IQ2_XS=1), "Q5_K_M", 1)
    assert caught.value.hint == "there are: Q8_0, Q4_K_M, IQ2_XS"


def test_two_models_of_one_quantisation_differ_by_name() -> None:
    both = Download("org/m", "main", (RemoteFile("base-Q4_0.gguf", 1), RemoteFile("chat-Q4_0.gguf", 1)))
    with pytest.raises(ModelNotFound, match="several") as caught:
        choose(both, "Q4_0", 100)
    assert "chat-Q4_0" in caught.value.hint
    assert choose(both, "chat-q4_0", 100).files[0].name == "chat-Q4_0.gguf"


def test_shards_and_folders_are_one_model_and_other_files_are_none() -> None:
    names = ["Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", "mmproj-Q8_0.gguf", "m.imatrix.gguf"]
    plan = choose(Download("org/m", "main", tuple(RemoteFile(name, 1) for name in names)), None, 100)
    assert [file.name[-19:] for file in plan.files] == ["00001-of-00002.gguf", "00002-of-00002.gguf"]
    assert plan.quantisation == "Q8_0" and "best of 1" in plan.choice


def test_a_repository_without_models_or_with_a_shard_short() -> None:
    with pytest.raises(ModelNotFound, match="no GGUF"):
        choose(Download("org/m", "main", (RemoteFile("mmproj-F16.gguf", 1), RemoteFile("x.safetensors", 1))), None, 9)
    with pytest.raises(ModelNotFound, match="1 of the 2 shards"):
        choose(Download("org/m", "main", (RemoteFile("m-Q8_0-00001-of-00002.gguf", 1),)), "Q8_0", 9)


def test_speed_and_time_left_follow_the_last_seconds() -> None:
    now, seen = [100.0], list[Progress]()
    meter = Meter({"a": 500}, 2500, seen.append, lambda: now[0])
    for size in (600, 700, 1500):
        now[0] += 5
        meter.at("a", size)
    assert [round(p.bytes_per_second) for p in seen] == [20, 20, 160]  # files on the disk do not count as speed
    assert seen[-1].seconds_left == pytest.approx(1000 / 160)


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (503, {"Retry-After": "12"}, 12),
        (503, {"Retry-After": "soon"}, None),
        (503, {}, None),
        (429, {"RateLimit": '"api";r=0;t=55', "Retry-After": "1"}, 55),
        (429, {"RateLimit": '"api";r=9;t=55'}, None),
    ],
)
def test_what_a_server_asks_for(status: int, headers: dict[str, str], wait: float | None) -> None:
    error = Exception()
    error.response = SimpleNamespace(status_code=status, headers=headers)  # type: ignore[attr-defined]
    assert wait_asked_for(error) == wait


def test_a_server_may_name_an_hour() -> None:
    for ahead, wait in ((100, 100), (-100, 0)):
        headers = {"Retry-After": formatdate(time() + ahead, usegmt=True)}
        error = Exception()
        error.response = SimpleNamespace(status_code=503, headers=headers)  # type: ignore[attr-defined]
        assert wait_asked_for(error) == pytest.approx(wait, abs=5)
