"""Makes the README's picture: the chat on the demo model, asked two questions, with the experts panel open.

python docs/screenshot.py [FILE.svg] [--size COLUMNSxROWS]
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from textual.pilot import Pilot

from edgemoe import Llama, OffloadConfig
from edgemoe.models.demo import build_demo
from edgemoe.tui.app import ChatApp
from edgemoe.tui.records import ChatSettings
from edgemoe.tui.screens.chat import ChatScreen
from edgemoe.tui.session import InThisProcess
from edgemoe.tui.widgets.prompt import Prompt

QUESTIONS = ("What is the capital of France?", "Which gas do plants take in for photosynthesis?")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).with_name("chat.svg"))
    parser.add_argument("--size", default="160x50")
    options = parser.parse_args()
    columns, rows = (int(part) for part in options.size.split("x"))
    model = build_demo()
    config = OffloadConfig(device="sim", vram="50%", profile="off")
    settings = ChatSettings(model.stem, "", {"temperature": 0.0, "max_tokens": 120}, look="dark")
    app = ChatApp(InThisProcess(lambda: Llama(model, n_ctx=4096, offload=config)), settings)
    async with app.run_test(size=(columns, rows)) as pilot:
        await _idle(app, pilot)
        for question in QUESTIONS:
            app.screen.query_one(Prompt).text = question
            await pilot.press("enter")
            await pilot.pause(0.5)
            await _idle(app, pilot)
        await pilot.pause(0.5)
        app.save_screenshot(str(options.file))


async def _idle(app: ChatApp, pilot: Pilot[object]) -> None:
    while not isinstance(app.screen, ChatScreen) or app.screen.state != "idle":
        await pilot.pause(0.1)


if __name__ == "__main__":
    asyncio.run(main())
