"""Conversations with models that answer in the real formats of their families, in Python and in both chats.

Template, special tokens and raw answers are the families' own (see scripted.py). A plain Jinja environment renders the
expected later prompts here, from the answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scripted import FAMILIES, Asked, ScriptedLlama, build_family, open_scripted, recorded, rendered, special_in
from test_tui import Driver, shown

from edgemoe.cli.main import main
from edgemoe.tui.app import ChatApp
from edgemoe.tui.plain import PlainChat
from edgemoe.tui.records import ChatSettings
from edgemoe.tui.screens.chat import ChatScreen
from edgemoe.tui.session import InThisProcess
from edgemoe.tui.widgets.status_line import StatusLine
from edgemoe.worker import Worker

SYSTEM = "Answer in one or two lines."
CODE = '```python\nif a < b and "c" != \'d\':\n    print("<b>")\n```'


@dataclass(frozen=True)
class Exchange:
    """Hold a question, the model's thinking, and its answer."""

    question: str
    thought: str
    answer: str


TALK = (
    Exchange("Hi", "The user greets. I should answer.", "Hello! How can I help?"),
    Exchange("And in other words?", "First: 2 < 3.\n\nSecond: nothing.", "Grüße, 世界 🙂.\nThat is all."),
    Exchange("Show me <b>code</b>, please.", "Code it is. " * 30 + "Go.", f"Like this:\n\n{CODE}\n\nDone."),
    Exchange("What is 7 * 6?", "7 * 6 = 42.", "**42**"),
    Exchange("Bye", "The user leaves.", "Bye, see you soon."),
)

THINKS = {
    "gpt-oss": "<|channel|>analysis<|message|>{t}<|end|><|start|>assistant<|channel|>final<|message|>{a}<|return|>",
    "qwen3": "<think>\n{t}\n</think>\n\n{a}<|im_end|>",
    "qwen3-thinking": "{t}\n</think>\n\n{a}<|im_end|>",
    "qwen3.5": "{t}\n</think>\n\n{a}<|im_end|>",
    "deepseek-r1": "{t}\n</think>\n\n{a}<｜end▁of▁sentence｜>",
    "deepseek-v3.1": "{t}</think>{a}<｜end▁of▁sentence｜>",
    "gemma4": "<|channel>thought\n{t}\n<channel|>{a}<turn|>",
    "glm-4.6": "\n<think>{t}</think>\n{a}<|user|>",
    "glm-4.7": "{t}</think>{a}<|user|>",
    "kimi-k2-thinking": "<think>{t}</think>{a}<|im_end|>",
    "minimax-m2": "{t}\n</think>\n\n{a}[e~[",
    "nemotron3": "{t}\n</think>\n{a}<|im_end|>",
}
"""Raw answer of each family that thinks, with ``{t}`` for the thought and ``{a}`` for the answer."""

ANSWERS = {
    "gpt-oss": "<|channel|>final<|message|>{a}<|return|>",
    "qwen3-coder": "{a}<|im_end|>",
    "deepseek-v3": "{a}<｜end▁of▁sentence｜>",
    "deepseek-v3.1": "{a}<｜end▁of▁sentence｜>",
    "gemma4": "{a}<turn|>",
    "kimi-k2": "{a}<|im_end|>",
    "lfm2": "{a}<|im_end|>",
    "granite4": "{a}<|end_of_text|>",
    "llama4": "{a}<|eot|>",
    "mixtral": " {a}</s>",
}
"""Raw answer of each family without thinking."""

SWITCHED_ON: dict[str, dict[str, Any]] = {
    family: {"enable_thinking": True} for family in ("deepseek-r1", "deepseek-v3.1", "gemma4")
}
"""Keywords of the template without which a family does not think."""

IN_CHATS = ("gpt-oss", "qwen3.5", "deepseek-r1", "glm-4.7", "gemma4", "nemotron3", "kimi-k2-thinking")
"""Families whose conversations are also held in the full-screen and the plain chat."""


def raw(form: str) -> list[str]:
    """Write the five raw answers in the form of a family."""
    return [form.replace("{t}", turn.thought).replace("{a}", turn.answer) for turn in TALK]


def ask(llm: Any, messages: list[Any], stream: bool, **keywords: Any) -> tuple[dict[str, Any], str]:
    """Give the assistant's message and the reason of its end. A streamed message is joined from its deltas."""
    answer = llm.create_chat_completion([dict(message) for message in messages], stream=stream, **keywords)
    if not stream:
        choice = answer["choices"][0]
        return dict(choice["message"]), choice["finish_reason"]
    chunks = list(answer)
    return joined(chunks), chunks[-1]["choices"][0]["finish_reason"]


def joined(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the deltas of a stream to a message, as OpenAI's client does."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        if delta.get("reasoning_content"):
            assert not message["content"], "thinking came after the answer had begun"
            message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
        message["content"] += delta.get("content") or ""
    return message


def check_prompt(asked: Asked, family: str, messages: list[Any], **switch: Any) -> None:
    """Check that the prompt equals the template's render of the messages, and that each special token is one token."""
    expected = rendered(FAMILIES[family], messages, **switch)
    assert asked.text == expected
    assert list(asked.special) == list(special_in(FAMILIES[family], expected))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("family", THINKS)
def test_thinking_and_answers_are_separate_and_later_prompts_hold_the_answers(
    family: str, stream: bool, tmp_path: Path
) -> None:
    switch = SWITCHED_ON.get(family, {})
    keywords: dict[str, Any] = {"chat_template_kwargs": switch} if switch else {}
    llm = ScriptedLlama(build_family(tmp_path, family), answers=raw(THINKS[family]))
    messages: list[dict[str, Any]] = [] if stream else [{"role": "system", "content": SYSTEM}]
    for number, turn in enumerate(TALK):
        messages.append({"role": "user", "content": turn.question})
        message, reason = ask(llm, messages, stream, **keywords)
        assert message == {"role": "assistant", "content": turn.answer, "reasoning_content": turn.thought}
        assert reason == "stop"
        check_prompt(llm.asked[number], family, messages, **switch)
        messages.append(message)
    llm.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("family", ANSWERS)
def test_answers_without_thinking(family: str, stream: bool, tmp_path: Path) -> None:
    llm = ScriptedLlama(build_family(tmp_path, family), answers=raw(ANSWERS[family]))
    # Mixtral's own template refuses a system prompt; see test_templates.py.
    messages = [] if stream or family == "mixtral" else [{"role": "system", "content": SYSTEM}]
    for number, turn in enumerate(TALK):
        messages.append({"role": "user", "content": turn.question})
        message, reason = ask(llm, messages, stream)
        assert message == {"role": "assistant", "content": turn.answer} and reason == "stop"
        check_prompt(llm.asked[number], family, messages)
        messages.append(message)
    llm.close()


@pytest.mark.parametrize("family", ["gpt-oss", "qwen3.5", "kimi-k2-thinking"])
def test_thinking_and_answer_arrive_while_they_are_written(family: str, tmp_path: Path) -> None:
    form = THINKS[family].replace("{t}", "one two three four five").replace("{a}", "six seven eight nine ten")
    llm = ScriptedLlama(build_family(tmp_path, family), answers=[form])
    deltas = [
        chunk["choices"][0]["delta"]
        for chunk in llm.create_chat_completion([{"role": "user", "content": "Count."}], stream=True)
    ]
    assert deltas[0].get("role") == "assistant"
    assert sum(bool(delta.get("reasoning_content")) for delta in deltas) > 5
    assert sum(bool(delta.get("content")) for delta in deltas) > 5
    llm.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("family", ["gpt-oss", "qwen3", "qwen3.5", "kimi-k2-thinking"])
def test_thinking_that_is_cut_is_still_thinking(family: str, stream: bool, tmp_path: Path) -> None:
    llm = ScriptedLlama(build_family(tmp_path, family), answers=[THINKS[family].replace("{t}", "all so long " * 40)])
    message, reason = ask(llm, [{"role": "user", "content": "Hi"}], stream, max_tokens=90)
    assert reason == "length" and not message["content"]
    assert message["reasoning_content"].startswith("all so long all so long")
    llm.close()


@pytest.mark.parametrize("family", ["gpt-oss", "qwen3", "qwen3.5", "glm-4.7", "kimi-k2-thinking", "nemotron3"])
def test_tags_in_a_question_or_an_answer_are_text(family: str, tmp_path: Path) -> None:
    question = "What do </think> and <tool_call> do?"
    answer = "`<think>` opens thinking, </think> closes it, and <tool_call> begins a call."
    form = THINKS[family].replace("{t}", "Tags.").replace("{a}", answer)
    llm = ScriptedLlama(build_family(tmp_path, family), answers=[form] * 2)
    for stream in (True, False):
        message, _ = ask(llm, [{"role": "user", "content": question}], stream)
        assert message == {"role": "assistant", "content": answer, "reasoning_content": "Tags."}
    llm.close()


ENDS = {
    "gpt-oss": ("<|return|>", "<|endoftext|>"),
    "qwen3-coder": ("<|im_end|>", "<|endoftext|>"),
    "gemma4": ("<turn|>", "<eos>"),
    "glm-4.6": ("<|user|>", "<|observation|>", "<|endoftext|>"),
    "kimi-k2": ("<|im_end|>", "[EOS]"),
    "llama4": ("<|eot|>", "<|eom|>", "<|end_of_text|>"),
}


@pytest.mark.parametrize(("family", "end"), [(family, end) for family, ends in ENDS.items() for end in ends])
def test_every_end_token_of_a_family_ends_the_answer(family: str, end: str, tmp_path: Path) -> None:
    before = "<|channel|>final<|message|>" if family == "gpt-oss" else ""
    llm = ScriptedLlama(build_family(tmp_path, family), answers=[f"{before}Hello.{end}and more"])
    message, reason = ask(llm, [{"role": "user", "content": "Hi"}], stream=False, max_tokens=60)
    assert message["content"] == "Hello." and reason == "stop"
    llm.close()


def test_the_switches_of_a_template_reach_it(tmp_path: Path) -> None:
    question = [{"role": "user", "content": "Hi"}]
    harmony = ScriptedLlama(build_family(tmp_path, "gpt-oss"), answers=raw(THINKS["gpt-oss"]))
    ask(harmony, question, True)
    ask(harmony, question, False, reasoning_effort="low")
    ask(harmony, question, True, chat_template_kwargs={"reasoning_effort": "high"})
    for asked, effort in zip(harmony.asked, ("medium", "low", "high"), strict=True):
        assert f"Reasoning: {effort}\n" in asked.text
    harmony.close()
    hybrid = ScriptedLlama(build_family(tmp_path, "qwen3"), answers=["Hello!<|im_end|>"] * 2)
    for stream in (True, False):
        message, _ = ask(hybrid, question, stream, chat_template_kwargs={"enable_thinking": False})
        assert message == {"role": "assistant", "content": "Hello!"}
        assert hybrid.asked[-1].text.endswith("<think>\n\n</think>\n\n")
    hybrid.close()


@pytest.mark.parametrize(
    "family", ["qwen3", "qwen3.5", "deepseek-r1", "deepseek-v3.1", "gemma4", "glm-4.6", "glm-4.7", "nemotron3"]
)
def test_on_and_off_are_words_of_every_template_that_can_be_switched(family: str, tmp_path: Path) -> None:
    question = [{"role": "user", "content": "Hi"}]
    turn = TALK[0]
    unthought = ANSWERS.get(family, THINKS[family].rpartition("</think>")[2].strip())
    answers = [raw(THINKS[family])[0], unthought.replace("{a}", turn.answer)]
    llm = ScriptedLlama(build_family(tmp_path, family), answers=answers)
    message, _ = ask(llm, question, True, reasoning_effort="on")
    assert message == {"role": "assistant", "content": turn.answer, "reasoning_content": turn.thought}
    check_prompt(llm.asked[0], family, question, enable_thinking=True)
    message, _ = ask(llm, question, True, reasoning_effort="off")
    assert message == {"role": "assistant", "content": turn.answer}
    check_prompt(llm.asked[1], family, question, enable_thinking=False)
    llm.close()


THINKING = {
    "gpt-oss": (True, {"low", "medium", "high"}),
    "qwen3": (True, {"on", "off"}),
    "qwen3-thinking": (True, set()),
    "qwen3-coder": (False, set()),
    "qwen3.5": (True, {"on", "off"}),
    "deepseek-r1": (True, {"on", "off"}),
    "deepseek-v3.1": (True, {"on", "off"}),
    "gemma4": (True, {"on", "off"}),
    "glm-4.6": (True, {"on", "off"}),
    "glm-4.7": (True, {"on", "off"}),
    "kimi-k2-thinking": (True, set()),
    "minimax-m2": (True, set()),
    "nemotron3": (True, {"on", "off"}),
    "granite4": (False, set()),
    "mixtral": (False, set()),
}


@pytest.mark.parametrize("family", THINKING)
def test_how_a_model_thinks_is_read_from_its_template(family: str, tmp_path: Path) -> None:
    llm = ScriptedLlama(build_family(tmp_path, family))
    thinks, levels = THINKING[family]
    assert (llm.thinking.thinks, set(llm.thinking.levels)) == (thinks, levels)
    llm.close()


# On the terminal.


SHOWN = ("Hello! How can I help?", "That is all.", 'if a < b and "c"', "42", "Bye, see you soon.")
"""What a person sees of each answer."""


def chat_settings(family: str) -> ChatSettings:
    return ChatSettings(title="tiny", look="dark", think="on" if family in SWITCHED_ON else "")


def check_prompts(asked: list[Asked], family: str) -> None:
    """Check that each prompt equals the template's render of the questions and answers before it."""
    messages: list[dict[str, Any]] = []
    assert len(asked) == len(TALK)
    for prompt, turn in zip(asked, TALK, strict=True):
        messages.append({"role": "user", "content": turn.question})
        check_prompt(prompt, family, messages, **SWITCHED_ON.get(family, {}))
        messages.append({"role": "assistant", "content": turn.answer, "reasoning_content": turn.thought})


def no_markers(family: str, text: str) -> None:
    told = {token for token in FAMILIES[family].types if token in text}
    assert not told, f"markers on the screen: {told}"


@pytest.mark.parametrize("family", IN_CHATS)
async def test_five_messages_in_the_full_screen_chat(family: str, tmp_path: Path) -> None:
    path, record = build_family(tmp_path, family), tmp_path / "asked.jsonl"
    opener = partial(open_scripted, path, raw(THINKS[family]), record=record)
    # The engine's process takes seconds on two cores, so only two families use the real process.
    source = Worker(opener) if family in ("gpt-oss", "qwen3.5") else InThisProcess(opener)
    app = ChatApp(source, chat_settings(family))
    async with app.run_test(size=(100, 60)) as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and bool(driver.all(StatusLine)))
        await driver.ready()
        for number, turn in enumerate(TALK):
            await driver.send(turn.question)
            await driver.until(lambda number=number: len(recorded(record)) > number, "the question")  # type: ignore[misc]
            await driver.until(lambda number=number: SHOWN[number] in shown(driver), SHOWN[number])  # type: ignore[misc]
            await driver.ready()
            screen = shown(driver)
            no_markers(family, screen)
            assert "error" not in driver.notes().lower() and "thought" in screen
            assert turn.thought.splitlines()[0] not in screen, "the thinking is not folded"
        await pilot.press("ctrl+t")
        await driver.until(lambda: TALK[-1].thought in shown(driver), "the thinking, unfolded")
        no_markers(family, shown(driver))
    check_prompts(recorded(record), family)


@pytest.mark.parametrize("family", IN_CHATS)
def test_five_messages_in_the_plain_chat(family: str, tmp_path: Path) -> None:
    engines: list[ScriptedLlama] = []
    path = build_family(tmp_path, family)

    def opened() -> ScriptedLlama:
        engines.append(open_scripted(path, raw(THINKS[family])))
        return engines[-1]

    waiting, written = [turn.question for turn in TALK], []

    def read(prompt: str) -> str:
        written.append(prompt)
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    PlainChat(InThisProcess(opened), chat_settings(family), None, read, written.append).run()
    said = "".join(written)
    no_markers(family, said)
    assert "error" not in said
    for turn in TALK:
        assert turn.answer in said
    check_prompts(engines[0].asked, family)


CALLED = {
    "gpt-oss": (
        "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>'
    ),
    "qwen3.5": (
        "Look it up.\n</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "</function>\n</tool_call><|im_end|>"
    ),
}


@pytest.mark.parametrize("family", CALLED)
async def test_a_call_in_the_chat_is_shown_in_words(family: str, tmp_path: Path) -> None:
    path, record = build_family(tmp_path, family), tmp_path / "asked.jsonl"
    answers = [CALLED[family], raw(THINKS[family])[0]]
    app = ChatApp(InThisProcess(partial(open_scripted, path, answers, record=record)), chat_settings(family))
    async with app.run_test(size=(100, 40)) as pilot:
        driver = Driver(app, pilot, [])
        await driver.until(lambda: isinstance(app.screen, ChatScreen) and bool(driver.all(StatusLine)))
        await driver.ready()
        await driver.send("Is it raining?")
        await driver.until(lambda: "get_weather" in shown(driver) and "Oslo" in shown(driver), "the call")
        await driver.ready()
        no_markers(family, shown(driver))
        await driver.send("And now?")
        await driver.until(lambda: SHOWN[0] in shown(driver), "the answer")
        await driver.ready()
        no_markers(family, shown(driver))
        assert "error" not in driver.notes().lower()


@pytest.mark.parametrize("family", IN_CHATS)
def test_run_gives_the_answer_alone_on_stdout(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build_family(tmp_path, family)
    opened = partial(open_scripted, answers=raw(THINKS[family]))
    think = ["--think", "on"] if family in SWITCHED_ON else []
    assert main(["run", str(path), TALK[0].question, *think], opened) == 0
    assert capsys.readouterr().out == f"{TALK[0].answer}\n"
    assert main(["run", str(path), TALK[0].question, "--json", *think], opened) == 0
    message = json.loads(capsys.readouterr().out)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": TALK[0].answer, "reasoning_content": TALK[0].thought}
