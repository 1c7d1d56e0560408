"""``/ctx``: another length of the context while the chat goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_engine import FakeLlama
from test_tui_commands import answers, ask, kept

from edgemoe.errors import DoesNotFit
from edgemoe.tui.records import Opened
from edgemoe.tui.session import InThisProcess


async def test_the_context_changes_and_the_chat_goes_on(tmp_path: Path) -> None:
    lengths: list[int | str] = []
    engines: list[FakeLlama] = []

    def with_context(length: int | str) -> Opened:
        def opened() -> FakeLlama:
            engines.append(FakeLlama("tiny", n_ctx=length, answers=["Lyon."]))
            return engines[-1]

        lengths.append(length)
        return Opened("tiny", InThisProcess(opened))

    services: dict[str, Any] = {"with_context": with_context}
    async with kept(tmp_path, services=services, answers=["Paris."]) as driver:
        await ask(driver, "capital of France?")
        await driver.send("/ctx much")
        await driver.until(lambda: "no length of a context" in driver.notes())
        await driver.send("/ctx 32k")
        await driver.until(lambda: driver.status.context_size == 32768 and driver.status.state == "idle")
        await driver.until(lambda: "the context has 32,768 tokens" in driver.notes())
        await driver.send("and the next largest?")
        await driver.until(lambda: answers(driver) == ["Paris.", "Lyon."])
        asked = [message["content"] for message in engines[0].asked[0]]
        assert asked == ["capital of France?", "Paris.", "and the next largest?"] and lengths == [32768]
        await driver.send("/ctx")
        await driver.until(lambda: "of the 32768 tokens" in driver.notes())


async def test_a_context_that_does_not_fit_is_said_and_the_planner_helps(tmp_path: Path) -> None:
    def with_context(length: int | str) -> Opened:
        def opened() -> FakeLlama:
            if length != "auto":
                raise DoesNotFit(9 << 30, 5 << 30, "a smaller context")
            return FakeLlama("tiny", n_ctx=length, answers=["Lyon."])

        return Opened("tiny", InThisProcess(opened))

    services: dict[str, Any] = {"with_context": with_context}
    async with kept(tmp_path, services=services, answers=["Paris."]) as driver:
        await ask(driver, "capital of France?")
        await driver.send("/ctx 1000k")
        await driver.until(lambda: "needs 9216 MiB, 5120 MiB are free" in driver.notes())
        assert driver.status.state == "failed" and answers(driver) == ["Paris."]
        await driver.send("/ctx auto")
        await driver.until(lambda: driver.status.state == "idle" and "the context has 4,096 tokens" in driver.notes())
        await driver.send("and the next largest?")
        await driver.until(lambda: answers(driver) == ["Paris.", "Lyon."])
