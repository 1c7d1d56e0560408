"""Messages in OpenAI's forms become messages that each template can express, without loss of text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgemoe import formats
from edgemoe.errors import BadMessages, BadTemplate
from edgemoe.formats.template import TOOLS, Template
from tests import shared, templates

TOOL_TEMPLATES = [
    *("Qwen3.5-4B", "Qwen3-Coder", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "GLM-4.6", "GLM-4.7-Flash", "MiniMax-M2"),
    *("Qwen3-30B-A3B", "openai-gpt-oss-120b", "DeepSeek-V3", "deepseek-ai-DeepSeek-V3.1", "Kimi-K2-Instruct"),
    *("Kimi-K2-Thinking", "Llama-4", "google-gemma-4-31B-it", "ibm-granite-granite-4.0", "LFM2-8B-A1B"),
    *("test-DeepSeek-V2", "phi-3-vocab", "Mixtral-8x7B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"),
]
QUESTION = {"role": "user", "content": "How is the weather?"}


def call(number: int, city: str, as_text: bool = True) -> dict[str, Any]:
    arguments: Any = {"city": city}
    function = {"name": "get_weather", "arguments": json.dumps(arguments) if as_text else arguments}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def loop(as_text: bool) -> list[dict[str, Any]]:
    """Give three calls, the last two at once, and an answer, as clients of OpenAI's API send them."""
    return [
        {"role": "system", "content": "You are terse."},
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call(1, "Oslo", as_text)]},
        {"role": "tool", "tool_call_id": "call00001", "content": "sunny"},
        {"role": "assistant", "content": None, "tool_calls": [call(2, "Rome", as_text), call(3, "Bern", as_text)]},
        {"role": "tool", "tool_call_id": "call00002", "content": "rainy"},
        {"role": "tool", "tool_call_id": "call00003", "content": "snowy"},
        {"role": "assistant", "content": "Mixed.", "reasoning_content": "Three towns."},
        {"role": "user", "content": [{"type": "text", "text": "Thank you."}]},
    ]


def rendered(template: Template, messages: list[Any], tools: Any = None, **keywords: Any) -> str:
    return template.render(formats.prepared(template, messages), tools, **keywords)


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("name", TOOL_TEMPLATES)
def test_a_tool_loop_renders_whole_and_without_double_escapes(name: str, as_text: bool) -> None:
    template = Template(shared.template(f"{name}.jinja"), "<bos>", "<eos>")
    prompt = rendered(template, loop(as_text), TOOLS)
    for word in ("terse", "weather?", "Oslo", "Rome", "Bern", "sunny", "rainy", "snowy", "Mixed.", "Thank you."):
        assert word in prompt, word
    assert '\\"city' not in prompt and "{'city" not in prompt
    assert "None" not in prompt.replace("None of", "")


@pytest.mark.parametrize("name", [*TOOL_TEMPLATES, "Ernie-4.5", "Qwen3-30B-A3B-Thinking-2507"])
def test_system_messages_are_never_dropped(name: str) -> None:
    template = Template(shared.template(f"{name}.jinja"), "<bos>", "<eos>")
    answer = {"role": "assistant", "content": "Fine."}
    later = {"role": "system", "content": "Now in verse."}
    first = [{"role": "system", "content": "Be terse."}, {"role": "developer", "content": "Be kind."}]
    prompt = rendered(template, [*first, QUESTION, answer, later, QUESTION])
    assert all(prompt.count(word) == 1 for word in ("Be terse.", "Be kind.", "Now in verse."))


def test_a_template_without_a_place_for_it_has_the_system_prompt_before_the_first_question() -> None:
    template = Template(templates.PLAIN, eos_token="</s>")
    system = {"role": "system", "content": "Answer in German."}
    assert rendered(template, [system, QUESTION]) == "[INST] Answer in German.\n\nHow is the weather? [/INST]"


def test_thinking_goes_where_the_template_wants_it() -> None:
    thought = {"role": "assistant", "content": "Fine.", "reasoning_content": "Look out of the window."}
    called = {"role": "assistant", "content": "", "reasoning_content": "Call.", "tool_calls": [call(1, "Oslo")]}
    harmony = Template(templates.HARMONY)
    assert "Look out" not in rendered(harmony, [QUESTION, thought, QUESTION])
    assert "analysis<|message|>Call.<|end|>" in rendered(harmony, [QUESTION, called])
    assert "<think>\nLook out" in rendered(Template(templates.HERMES), [QUESTION, thought])


@pytest.mark.parametrize(
    ("family", "raw"),
    [
        ("HERMES", "<think>\nSecret.\n</think>\n\nFine."),
        ("OPENED", "Secret.\n</think>\n\nFine."),
        ("HARMONY", "<|channel|>analysis<|message|>Secret.<|end|><|start|>assistant<|channel|>final<|message|>Fine."),
    ],
)
def test_raw_answers_that_come_back_are_taken_apart(family: str, raw: str) -> None:
    template = Template(getattr(templates, family))
    messages = formats.prepared(template, [QUESTION, {"role": "assistant", "content": raw}, QUESTION])
    assert messages[1]["content"] == "Fine." and messages[1]["reasoning_content"] == "Secret."
    assert "Secret" not in template.render(messages)


def test_an_answer_that_names_a_marker_is_left_whole() -> None:
    text = "The `</think>` tag closes thinking."
    for family in ("HERMES", "OPENED"):
        message = formats.prepared(Template(getattr(templates, family)), [{"role": "assistant", "content": text}])[0]
        assert message["content"] == text and "reasoning_content" not in message


def test_calls_are_rendered_from_objects_by_a_template_that_takes_text_only() -> None:
    template = Template(shared.template("DeepSeek-V3.jinja"))
    prompt = rendered(
        template, [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call(1, "Oslo", False)]}]
    )
    assert '```json\n{"city": "Oslo"}\n```' in prompt


def test_messages_are_not_changed() -> None:
    given = loop(True)
    before = json.dumps(given)
    rendered(Template(shared.template("Kimi-K2-Thinking.jinja")), given, TOOLS)
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "image"}, {"type": "input_audio"}]
)
def test_pictures_and_sound_are_refused_by_name(part: dict[str, Any]) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}
    with pytest.raises(BadMessages, match=r"an image|sound") as error:
        formats.prepared(Template(templates.HERMES), [message])
    assert "projector" in error.value.hint


@pytest.mark.parametrize("broken", ["{{ if .System }}{{ .System }}{{ end }}", "{% foo %}", "{{ messages | nonsense }}"])
def test_a_template_that_cannot_be_compiled_says_so(broken: str) -> None:
    with pytest.raises(BadTemplate, match="cannot be compiled") as error:
        Template(broken)
    assert "chat_format" in error.value.hint


def test_a_template_of_another_language_that_happens_to_compile_says_so() -> None:
    with pytest.raises(BadTemplate, match="leaves the messages out"):
        Template("{{- range .Messages }}").check()


def test_a_template_that_refuses_or_fails_says_so() -> None:
    with pytest.raises(BadMessages, match="Roles must alternate"):
        Template(templates.PLAIN).render([QUESTION, QUESTION])
    with pytest.raises(BadTemplate, match="failed"):
        Template("{{ messages[7].content.x.y }}").render([QUESTION])


def test_words_of_a_template_for_thinking() -> None:
    assert Template(templates.HERMES).levels == ("on", "off")
    assert Template(templates.HARMONY).levels == ("low", "medium", "high")
    assert Template(templates.PLAIN).levels == ()
    prompt = Template(templates.HERMES).render([QUESTION], **formats.keywords_of("off"))
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert "Reasoning: high" in Template(templates.HARMONY).render([QUESTION], **formats.keywords_of("high"))


def test_what_a_template_takes_for_granted_is_given() -> None:
    careless = "{% for m in messages %}{{ m.content }}{% endfor %}{% if not enable_thinking %}</think>{% endif %}"
    careful = careless.replace("not enable_thinking", "enable_thinking is defined and not enable_thinking")
    assert Template(careless).defaults == {"enable_thinking": True} and Template(careful).defaults == {}
    assert "</think>" not in Template(careless).render([QUESTION])


@pytest.mark.parametrize("tag", ["generation", "break"])
def test_tags_of_published_templates(tag: str) -> None:
    inside = (
        "{% generation %}{{ m.content }}{% endgeneration %}" if tag == "generation" else "{{ m.content }}{% break %}"
    )
    assert Template(f"{{% for m in messages %}}{inside}{{% endfor %}}").render([QUESTION]) == QUESTION["content"]


def test_markers_that_somebody_wrote_stay_text() -> None:
    markers = ("<|im_end|>", "<|im_start|>", "</think>")
    template = Template(templates.HERMES)
    asked = {"role": "user", "content": "What is <|im_end|> and </think>?"}
    messages = formats.prepared(template, [asked], lambda text: formats.shielded(text, markers))
    pieces = formats.pieces(template.render(messages), markers)
    assert "".join(text for text, _ in pieces) == template.render([asked])
    assert [text for text, special in pieces if not special] == ["<|im_end|>", "</think>"]
