"""Readers of model outputs: every family, whole and in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe import formats
from edgemoe.formats.styles import CALLS, HARMONY, THINKING
from tests import shared, templates

OSLO = [("get_weather", {"city": "Oslo"})]
SIZES = (0, 1, 3, 7)

# Family, prompt's end, text, thinking, answer, calls.
Case = tuple[str, str, str, str, str, list[tuple[str, Any]]]
CASES: list[Case] = [
    ("ministral", "", "[THINK]I am\nthinking[/THINK]Hello", "I am\nthinking", "Hello", []),
    ("ministral", "", '[THINK]T[/THINK][TOOL_CALLS]get_weather[ARGS]{"city":"Oslo"}</s>', "T", "", OSLO),
    ("mistral", "", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city":"Oslo"}, "id": "123456789"}]', "", "", OSLO),
    ("mistral", "", '[TOOL_CALLS]get_weather[CALL_ID]123456789[ARGS]{"city":"Oslo"}', "", "", OSLO),
    ("mistral", "", 'So.[TOOL_CALLS]get_weather[ARGS]{"city":"Oslo"}[TOOL_CALLS]b[ARGS]{"x": [1]}', "", "So.", [*OSLO, ("b", {"x": [1]})]),
    ("deepseek", "<think>\n", "T\n</think>\n\nHi", "T", "Hi", []),
    ("deepseek", "", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "", "", [*OSLO, ("b", {})]),
    ("deepseek", "", 'Look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "", "Look.", OSLO),
    ("kimi", "", '<think>T</think><|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city":"Oslo"}<|tool_call_end|><|tool_calls_section_end|>', "T", "", OSLO),
    ("kimi", "", '<think>T<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city":"Oslo"}<|tool_call_end|><|tool_calls_section_end|>', "T", "", OSLO),
    ("k3", "<|open|>think<|sep|>", "T<|close|>think<|sep|><|open|>response<|sep|>Hello<|close|>response<|sep|>", "T", "Hello", []),
    ("k3", "", '<|open|>response<|sep|><|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Oslo<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>', "", "", OSLO),
    ("gemma", "", "<|channel>thought\nT\n<channel|>Hello<turn|>", "T", "Hello", []),
    ("gemma", "", "<|channel>thought<channel|>Hello<|channel>thought\n<channel|><channel|>", "", "Hello", []),
    ("gemma", "", '<|tool_call>call:set{a:{b:<|"|>x, y<|"|>,n:-3},l:[<|"|>p<|"|>,true,null],e:1.5e10}<tool_call|><|tool_call>call:none{}<tool_call|><|tool_response>', "", "", [("set", {"a": {"b": "x, y", "n": -3}, "l": ["p", True, None], "e": 1.5e10}), ("none", {})]),
    ("lfm", "", 'Let me look.<|tool_call_start|>[get_weather(city="Oslo"), b(x=[1, true], y={"k": None})]<|tool_call_end|>', "", "Let me look.", [*OSLO, ("b", {"x": [1, True], "y": {"k": None}})]),
    ("llama", "", '[get_weather(city="Oslo")]<|eot|>', "", "", OSLO),
    ("llama", "", '{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eom_id|>', "", "", OSLO),
    ("llama", "", "[1, 2, 3] is a list; [a link](x) too.", "", "[1, 2, 3] is a list; [a link](x) too.", []),
    ("llama", "", '{"answer": 42}', "", '{"answer": 42}', []),
    ("minimax-m3", "", '<mm:think>T</mm:think>]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="get_weather">]<]minimax[>[<city>Oslo]<]minimax[>[</city>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>', "T", "", OSLO),
    ("minimax-m3", "", "</mm:think>Hello", "", "Hello", []),
    ("seed", "", "<seed:think>T</seed:think>\nHello", "T", "Hello", []),
    ("seed", "", "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Oslo</parameter>\n</function>\n</seed:tool_call>", "", "", OSLO),
    ("command", "", '<|START_THINKING|>T<|END_THINKING|><|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city":"Oslo"}}\n]<|END_ACTION|>', "T", "", OSLO),
    ("command", "", "<|START_THINKING|>T<|END_THINKING|><|START_RESPONSE|>Hello<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "T", "Hello", []),
    ("nemotron-2", "<think>\n", 'T\n</think>\n<TOOLCALL>[{"name": "get_weather", "arguments": {"city":"Oslo"}}]</TOOLCALL>', "T", "", OSLO),
    ("apertus", "", '<|inner_prefix|>T<|inner_suffix|><|tools_prefix|>[{"get_weather": {"city": "Oslo"}}]<|tools_suffix|>', "T", "", OSLO),
    ("apriel", "", '<tool_calls>[{"name": "get_weather", "arguments": {"city":"Oslo"}}]</tool_calls>', "", "", OSLO),
    ("hy3", "", "<think:opensource>T</think:opensource><tool_calls:opensource>\n<tool_call:opensource>get_weather<tool_sep:opensource>\n<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>Oslo</arg_value:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>", "T", "", OSLO),
    ("granite", "", '<|tool_call|>[{"name": "get_weather", "arguments": {"city":"Oslo"}}]', "", "", OSLO),
    ("solar", "", '<|tool_calls|><|tool_call:begin|>a1<|tool_call:name|>get_weather<|tool_call:args|>{"city": "Oslo"}<|tool_call:end|>', "", "", OSLO),
    ("minicpm", "", '<think>T</think><function name="get_weather"><param name="city">Oslo</param></function>', "T", "", OSLO),
    ("HERMES", "", "<think>\nA\n</think>\n\nFirst.\n<think>\nB\n</think>\nSecond.", "A\n\nB", "First.\n\nSecond.", []),
    ("HERMES", "", '<tool_call>\n{"name": "w", "arguments": {"t": "a </tool_call> b", "q": "\\"<tool_call>\\""}}\n</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>', "", "", [("w", {"t": "a </tool_call> b", "q": '"<tool_call>"'}), *OSLO]),
    ("HERMES", "", '<tool_call>\n{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}\n<|im_end|>', "", "", OSLO),
    ("OPENED", "<think>\n", '"</think>" closes, `</think>` too.\n</think>\n\nHi', '"</think>" closes, `</think>` too.', "Hi", []),
    ("OPENED", "<think>\n", "<think>\nOnce more.\n</think>Hi", "Once more.", "Hi", []),
    ("OPENED", "<think>\n\n</think>\n\n", "Hi", "", "Hi", []),
    ("OPENED", "<think>\n", 'Need it.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>', "Need it.", "", OSLO),
    ("OPENED", "<think>\n", 'I could call\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\nor not.\n</think>\n\nHi', 'I could call\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\nor not.', "Hi", []),
    ("QWEN_XML", "", 'I will.\n<tool_call>\n<function=write>\n<parameter=path>\na.html\n</parameter>\n<parameter=text>\n<p>"x"</p>\n  </parameter>\n</tool_call>\n</parameter>\n</function>\n</tool_call>', "", "I will.", [("write", {"path": "a.html", "text": '<p>"x"</p>\n  </parameter>\n</tool_call>'})]),
    ("QWEN_XML", "", "<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>", "", "", OSLO),
    ("QWEN_XML", "", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", "", [("now", {})]),
    ("GLM", "", "\n<think>T\n</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call><|observation|>", "T", "", OSLO),
    ("GLM", "", "<tool_call>now</tool_call>", "", "", [("now", {})]),
    ("GLM", "", '<tool_call>f<arg_key>n</arg_key><arg_value>3</arg_value><arg_key>l</arg_key><arg_value>["a"]</arg_value></tool_call>', "", "", [("f", {"n": 3, "l": ["a"]})]),
    ("MINIMAX", "", '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n<invoke name="b">\n</invoke>\n</minimax:tool_call>', "", "", [*OSLO, ("b", {})]),
    ("DSML", "</think>", '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n<｜DSML｜parameter name="n" string="false">7</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>', "", "", [("get_weather", {"city": "Oslo", "n": 7})]),
    ("HARMONY", "<|start|>assistant", '<|channel|>analysis<|message|>T<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Oslo"}', "T", "", OSLO),
    ("HARMONY", "<|start|>assistant", ' to=functions.get_weather<|channel|>analysis<|message|>{"city": "Oslo"}<|call|>', "", "", OSLO),
    ("HARMONY", "<|start|>assistant", "<|channel|>commentary to=assistant<|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>", "T", "Hello", []),
    ("HARMONY", "<|start|>assistant", "<|channel|>final <|constrain|>json<|message|>{}<|return|>", "", "{}", []),
    ("HARMONY", "<|start|>assistant", "<|channel|>final<|message|>The `<|end|>` token ends.<|return|>", "", "The `<|end|>` token ends.", []),
    ("HARMONY", "<|start|>assistant<|channel|>analysis<|message|>", "T<|end|><|start|>assistant<|channel|>final<|message|>Hi", "T", "Hi", []),
    ("HARMONY", "<|start|>assistant", "Plain words.", "", "Plain words.", []),
    ("", "", "<think>\nT\n</think>\n\nHi", "T", "Hi", []),
    ("", "", '<tool_call>{"name": "x"}</tool_call>', "", '<tool_call>{"name": "x"}</tool_call>', []),
]  # fmt: skip

# The inside of an answer is text, even if it looks like a marker.
TEXTS = [
    ("HERMES", "Use `<think>` and\n```\n<tool_call>\n{\"name\": \"x\"}\n</tool_call>\n```\nThe <think> tag. The <tool_call> tag."),
    ("HERMES", "~~~html\n<think>\n</think>\n~~~\nis code, and `x </think>` too"),
    ("HERMES", '<tool_call>\n{"name": "broken", "arguments": {\n</tool_call>\nSorry.'),
    ("HERMES", "<tool_call> begins a call"),
    ("HERMES", "a <s>struck</s> word and <|im_end|> more"),
    ("HERMES", "    indented code\n\n\nwith   space "),
    ("QWEN_XML", "`<function=x>` is how it begins"),
    ("GLM", "<tool_call> is a tag, </tool_call> another"),
    ("gemma", "a '<channel|>' b"),
    ("mistral", "a list [1, 2] and [/INST]"),
    ("HARMONY", "Nothing <|but|> text"),
]  # fmt: skip


def template_of(family: str) -> str:
    return templates.MENTIONED.get(family) or getattr(templates, family, "")


def fed(reader: formats.Reader, text: str, size: int) -> tuple[str, str, list[tuple[str, Any]]]:
    """Read ``text`` in pieces of ``size`` characters, and check that deltas and message agree."""
    step = size or max(len(text), 1)
    deltas = [delta for at in range(0, len(text), step) for delta in reader.feed(text[at : at + step])]
    deltas += reader.end()
    message = reader.message()
    thought, content = message.get("reasoning_content", ""), message["content"]
    assert "".join(delta.text for delta in deltas if delta.kind == "reasoning") == thought
    assert "".join(delta.text for delta in deltas if delta.kind == "content") == content
    assert [json.loads(delta.text) for delta in deltas if delta.kind == "tool_call"] == message["tool_calls"]
    assert "reasoning_content" not in message or thought
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    return thought, content, calls


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=[f"{case[0] or 'none'}-{number}" for number, case in enumerate(CASES)])
def test_reads_every_family_whole_and_in_pieces(case: Case, size: int) -> None:
    family, prompt, text, thought, content, calls = case
    reader = formats.reader(template_of(family), prompt or "x")
    assert fed(reader, text, size) == (thought, content, calls)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("family", "text"), TEXTS)
def test_what_stands_in_an_answer_is_no_marker(family: str, text: str, size: int) -> None:
    assert fed(formats.reader(template_of(family), "x"), text, size) == ("", text, [])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("row", shared.outputs(), ids=lambda row: f"{row['family']}: {row['case']}")
def test_reads_answers_of_real_models(row: dict[str, Any], size: int) -> None:
    template = shared.template(row["template"])
    opening = next(iter(formats.style_of(template).thinking), ("", ""))[0]
    calls = [(call["name"], call["arguments"]) for call in row["tool_calls"]]
    wanted = (
        row["reasoning"] if row["reasoning"] in row["text"] else row["text"].split("\n")[1]
    )  # one row has more than its text
    for prompt in (f"{opening}\n" if row["prompt_opens_thinking"] else "x", ""):
        assert fed(formats.reader(template, prompt), row["text"], size) == (wanted, row["content"], calls)


RENAMED = {
    "Qwen3-30B-A3B.jinja": {"<think>": "<|muse|>", "</think>": "<|/muse|>", "<tool_call>": "<|do|>", "</tool_call>": "<|done|>"},
    "GLM-4.6.jinja": {"<think>": "«m»", "</think>": "«/m»", "tool_call>": "act>", "arg_key": "k", "arg_value": "v"},
    "Kimi-K2-Thinking.jinja": {"think>": "ponder>", "tool_calls_section_": "acts_", "tool_call_begin": "a0", "tool_call_end": "a1", "tool_call_argument_begin": "a2"},
    "deepseek-ai-DeepSeek-V3.1.jinja": {"tool▁calls": "acts", "tool▁call": "act", "tool▁sep": "mid"},
    "Qwen3-Coder.jinja": {"tool_call>": "act>", "<function=": "<fn:", "</function>": "</fn>", "<parameter=": "<par:", "</parameter>": "</par>"},
    "MiniMax-M2.jinja": {"think>": "ponder>", "minimax:tool_call": "act", "<invoke name=": "<run fn=", "</invoke>": "</run>", "<parameter name=": "<p n=", "</parameter>": "</p>"},
}  # fmt: skip


@pytest.mark.parametrize("row", [row for row in shared.outputs() if row["template"] in RENAMED], ids=lambda r: f"{r['family']}: {r['case']}")  # fmt: skip
def test_takes_the_markers_of_an_unknown_family_from_its_template(row: dict[str, Any]) -> None:
    def renamed(text: str) -> str:
        for old, new in RENAMED[row["template"]].items():
            text = text.replace(old, new)
        return text

    template = renamed(shared.template(row["template"]))
    opening = formats.style_of(template).thinking[0][0]
    reader = formats.reader(template, f"{opening}\n" if row["prompt_opens_thinking"] else "x")
    calls = [(call["name"], call["arguments"]) for call in row["tool_calls"]]
    assert fed(reader, renamed(row["text"]), 3) == (row["reasoning"], row["content"], calls)


def test_schemas_give_parameters_their_types() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"code": {"type": "string"}, "n": {"type": "integer"}}}}}]  # fmt: skip
    text = "<tool_call>f<arg_key>code</arg_key><arg_value>42</arg_value><arg_key>n</arg_key><arg_value>42</arg_value></tool_call>"
    assert fed(formats.reader(templates.GLM, "x", tools=tools), text, 5)[2] == [("f", {"code": "42", "n": 42})]


def test_calls_of_one_conversation_have_ids_of_their_own() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' * 2
    ids = set()
    for prompt in ("first question", "second question"):
        reader = formats.reader(templates.HERMES, prompt)
        fed(reader, text, 0)
        ids |= {call["id"] for call in reader.message()["tool_calls"]}
    assert len(ids) == 4 and all(len(identity) == 9 and identity.isalnum() for identity in ids)


def test_end_markers_are_text_where_the_engine_spells_none() -> None:
    assert fed(formats.reader(templates.HERMES, "x", ends=False), "Write </s>", 1) == ("", "Write </s>", [])


def test_old_texts_are_read_without_their_template() -> None:
    assert formats.read("<think>\nT\n</think>\n\nHi")["reasoning_content"] == "T"
    assert formats.read("T\n</think>\n\nHi") == {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "T",
        "tool_calls": [],
    }
    assert (
        formats.read("<|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>final<|message|>Hi")["content"]
        == "Hi"
    )
    assert formats.read("The `</think>` tag closes thinking.")["content"] == "The `</think>` tag closes thinking."
    assert formats.read("Hello")["content"] == "Hello"


_FRAGMENTS = [*(marker for pair in THINKING for marker in pair), *(call.start for call in CALLS), *(call.end for call in CALLS if call.end), *HARMONY]  # fmt: skip
_FRAGMENTS += [
    "\n",
    " ",
    "```\n",
    "`",
    '"',
    "a",
    "{",
    "}",
    '{"name": "f", "arguments": {}}',
    "<",
    "|",
    ">",
    "<|im_end|>",
    "f(x=1)",
    "[",
    "final",
    "Ωμ",
]


@settings(max_examples=400)
@given(
    family=st.sampled_from([*templates.MENTIONED, "HERMES", "OPENED", "QWEN_XML", "GLM", "HARMONY", ""]),
    parts=st.lists(st.sampled_from(_FRAGMENTS), max_size=12),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
def test_a_reading_does_not_depend_on_how_the_text_was_cut(family: str, parts: list[str], cuts: list[int]) -> None:
    text, prompt = "".join(parts), "<think>\n" if family == "OPENED" else "x"
    whole = fed(formats.reader(template_of(family), prompt), text, 0)
    reader, at, turn = formats.reader(template_of(family), prompt), 0, 0
    while at < len(text):
        reader.feed(text[at : at + cuts[turn % len(cuts)]])
        at, turn = at + cuts[turn % len(cuts)], turn + 1
    reader.end()
    assert reader.end() == []
    message = reader.message()
    assert (message.get("reasoning_content", ""), message["content"]) == whole[:2]
    assert [call["function"]["name"] for call in message["tool_calls"]] == [name for name, _ in whole[2]]
