"""Opening and closing a model: facts are read once, preparing changes nothing, parts end in reverse order."""

from __future__ import annotations

import ast
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemoe import Llama, OffloadConfig, SimConfig
from edgemoe.config import Budget
from edgemoe.engine import Experts, host, llama, opening
from edgemoe.errors import EdgeMoEError
from edgemoe.models import gguf
from edgemoe.planning import model_needs
from tests.routing import wide_model

SIM = OffloadConfig(device="sim", vram="50%", profile="off")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with wide_model(tmp_path_factory.mktemp("opening")) as path:
        yield path


def opened(path: Path, config: OffloadConfig = SIM, **settings: Any) -> Any:
    return Llama(path, n_ctx=64, n_threads=1, offload=config, **settings)


def calls_of(functions: list[Callable[..., Any]], work: Callable[[], Any]) -> Counter[str]:
    """Count the calls of some functions, under every name that imports them."""
    found: Counter[str] = Counter()
    names = {function.__code__: function.__name__ for function in functions}

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in names:
            found[names[frame.f_code]] += 1

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def test_facts_of_a_model_are_read_once(wide: Path) -> None:
    functions = [gguf.moe_shape, model_needs.of, gguf.model_identity, gguf.check, opening.top_k]
    found = calls_of(functions, lambda: opened(wide).close())
    assert found == {function.__name__: 1 for function in functions}


def test_preparing_a_model_changes_nothing(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GGML_CUDA_REGISTER_HOST", raising=False)
    monkeypatch.setattr(host, "_all_devices", lambda: [("CUDA0", 1), ("CUDA1", 1)])
    given = {"n_ctx": 64, "main_gpu": 1, "split_mode": 0, "tensor_split": [0.0, 1.0], "logits_all": True}
    before, environment = dict(given), dict(os.environ)
    prepared = opening.prepare(opening.read(wide, vocab_only=False), OffloadConfig(), given)
    assert prepared.device == "CUDA1" and prepared.keywords["main_gpu"] == 0
    assert "tensor_split" not in prepared.keywords
    assert given == before and dict(os.environ) == environment


@pytest.mark.parametrize("vram", ["25%", "100%", 1 << 20, "auto"])
def test_the_slots_of_the_plan_are_the_slots_that_are_set(vram: str | int, wide: Path) -> None:
    config = OffloadConfig(device="sim", vram=vram, profile="off", sim=SimConfig(capacity=64 << 20))
    host.core().configure_sim(config.sim)
    planned = opening.prepare(opening.read(wide, vocab_only=False), config, {"n_ctx": 64}).attempts[0].placement
    llm = opened(wide, config)
    assert planned.slots and tuple(layer.slots for layer in llm._native.layers()) == planned.slots
    llm.close()


def test_the_budget_is_one_number_for_the_plan_and_for_the_hot_set() -> None:
    assert [Budget.parse(text).of(1000) for text in ("auto", "50%", 300, 2000)] == [1000, 500, 300, 1000]
    assert [Budget.parse(text).automatic for text in ("auto", "0%", 0)] == [True, False, False]


def test_parts_end_in_reverse_order_and_once(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def watch(owner: Any, name: str) -> None:
        end = getattr(owner, name)

        def ends(self: Any, *args: Any) -> Any:
            ended.append(f"{owner.__name__}.{name}")
            return end(self, *args)

        monkeypatch.setattr(owner, name, ends)

    llm = opened(wide)
    for owner, name in (
        *((llama.NativeEngine, "close"), (llama.NativeEngine, "stop"), (llama.Prefix, "close")),
        *((llama.Scheduler, "close"), (llama.Watchdog, "stop"), (llama.Turns, "close")),
    ):
        watch(owner, name)
    again = opened(wide)
    again.close()
    order = [
        "Turns.close",
        "Watchdog.stop",
        "Scheduler.close",
        "Prefix.close",
        "NativeEngine.stop",
        "NativeEngine.close",
    ]
    assert ended == order
    again.close()
    assert ended == order
    monkeypatch.undo()
    llm.close()


@pytest.mark.parametrize("broken", ["Prefix", "Scheduler", "Decode"])
def test_a_part_that_cannot_be_made_frees_the_others(broken: str, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    close = llama.NativeEngine.close
    monkeypatch.setattr(llama.NativeEngine, "close", lambda self: freed.append(True) or close(self))

    def fails(*args: Any) -> None:
        raise EdgeMoEError("no more of these")

    monkeypatch.setattr(llama, broken, fails)
    with pytest.raises(EdgeMoEError, match="no more of these"):
        opened(wide)
    assert freed == [True], "before the object is collected"


def test_experts_have_only_the_methods_for_users() -> None:
    shown = {name for name in vars(Experts) if not name.startswith("_")}
    figures = {"stats", "residency", "pending", "heat", "last", "in_ram", "automatic", "scheduler_ns"}
    assert shown == figures | {"resize", "pin", "pinned", "wait", "record", "force"}


def test_only_the_settings_read_the_environment() -> None:
    """Only edgemoe/setup may read it, too, because it looks up the variables of compilers."""
    root, found = Path(__file__).parent.parent, []
    for path in (*(root / "edgemoe").rglob("*.py"), *(root / "tui").rglob("*.py")):
        if "setup" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}) and path.name != "config.py":
                found.append(f"{path.name}:{node.lineno}")
    assert not found
