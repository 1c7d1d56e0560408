"""Faulty vocabularies and chat templates: long pieces, missing tokens, templates that do not compile."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from scripted import FAMILIES, ORDINARY, ScriptedLlama, build_family, build_scripted, rendered

from edgemoe.errors import EdgeMoEError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = dict.fromkeys(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), TokenType.CONTROL)
QUESTION = [{"role": "user", "content": "Hi"}]
PICTURE = "data:image/png;base64,iVBORw0KGgo="


def text_of(answer: Any) -> str:
    """Give the text of a completion, streamed or not."""
    if isinstance(answer, dict):
        return str(answer["choices"][0]["text"])
    return "".join(chunk["choices"][0]["text"] for chunk in answer)


# Pieces longer than llama_cpp's buffer of 32 bytes.

LONG = (" " * 64, "=" * 40, "é" * 33)


@pytest.mark.parametrize("kind", [TokenType.NORMAL, TokenType.USER_DEFINED])
def test_long_pieces_arrive_whole(kind: TokenType, tmp_path: Path) -> None:
    special = dict.fromkeys(LONG, kind) | CHATML_TOKENS
    path = build_scripted(tmp_path, CHATML, special, bos="<|endoftext|>", eos="<|im_end|>")
    ids = [ord("a"), *range(ORDINARY, ORDINARY + len(LONG)), ord("b")]  # a and b are their own bytes' tokens
    wanted = "a" + "".join(LONG) + "b"
    llm = ScriptedLlama(path, answers=[ids] * 4)
    for number, piece in enumerate(LONG):
        assert llm.detokenize([ORDINARY + number]) == piece.encode()
    assert llm.detokenize(ids) == wanted.encode()
    for stream in (True, False):
        assert text_of(llm.create_completion("x", max_tokens=20, stream=stream)) == wanted
    assert llm.create_chat_completion(QUESTION)["choices"][0]["message"]["content"] == wanted
    chunks = list(llm.create_chat_completion(QUESTION, stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == wanted
    llm.close()


# Templates that do not compile.

BROKEN = {
    "of another language": "{{- range .Messages }}{{ .Content }}{{- end }}",
    "unknown tag": "{% foo %}{{ messages[0]['content'] }}",
    "unknown filter": "{{ messages[0]['content'] | nosuchfilter }}",
}


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_a_template_that_does_not_compile_stops_only_the_chat(template: str, tmp_path: Path) -> None:
    path = build_scripted(tmp_path, template, CHATML_TOKENS, bos="<|endoftext|>", eos="<|im_end|>")
    llm = ScriptedLlama(path, answers=["Hello."] * 2)
    assert any("template" in note for note in llm.experts.notes)
    assert text_of(llm("x", max_tokens=20)) == text_of(llm("x", max_tokens=20, stream=True)) == "Hello."
    for stream in (True, False):
        with pytest.raises(EdgeMoEError) as caught:
            list(llm.create_chat_completion(QUESTION, stream=stream))
        said = f"{caught.value} {caught.value.hint}"
        assert "template" in said and "chat_format=" in said
    llm.close()


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_another_chat_format_replaces_a_broken_template(template: str, tmp_path: Path) -> None:
    path = build_scripted(tmp_path, template, CHATML_TOKENS, bos="<|endoftext|>", eos="<|im_end|>")
    llm = ScriptedLlama(path, answers=["Hello."], chat_format="chatml")
    assert llm.create_chat_completion(QUESTION)["choices"][0]["message"]["content"] == "Hello."
    assert llm.asked[0].text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    llm.close()


# Tokens that are missing, or of the wrong type.

WITH_TOKENS = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}assistant: "
)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("bos", "eos"), [("", "[END]"), ("[BEGIN]", ""), ("", "")], ids=["bos", "eos", "both"])
def test_missing_tokens_are_empty_in_the_prompt(bos: str, eos: str, stream: bool, tmp_path: Path) -> None:
    special = dict.fromkeys(("[BEGIN]", "[END]"), TokenType.CONTROL)
    path = build_scripted(tmp_path, WITH_TOKENS, special, bos=bos, eos=eos)
    llm = ScriptedLlama(path, answers=["one, two, three, four"])
    answer = llm.create_chat_completion(QUESTION, stream=stream, max_tokens=8)
    if stream:
        chunks = [chunk["choices"][0] for chunk in answer]
        content = "".join(choice["delta"].get("content") or "" for choice in chunks)
        reason = chunks[-1]["finish_reason"]
    else:
        content, reason = answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]
    assert (content, reason) == ("one, two,", "length")
    assert llm.asked[0].text == f"{bos}user: Hi{eos}\nassistant: "
    llm.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("end", ["<|im_end|>", "<|turn_over|>"])
def test_an_end_of_turn_that_is_an_ordinary_token_ends_the_answer(end: str, stream: bool, tmp_path: Path) -> None:
    """llama.cpp knows the first token by its name. Only the template tells that the second token ends a turn."""
    special = {"<|endoftext|>": TokenType.CONTROL, "<|im_start|>": TokenType.CONTROL, end: TokenType.NORMAL}
    template = CHATML.replace("<|im_end|>", end)
    path = build_scripted(tmp_path, template, special, bos="<|endoftext|>", eos="<|endoftext|>")
    script = [*b"Hello.", ORDINARY + 2, *b"and more"]
    llm = ScriptedLlama(path, answers=[script])
    answer = llm.create_chat_completion(QUESTION, stream=stream, max_tokens=40)
    choices = [chunk["choices"][0] for chunk in answer] if stream else [answer["choices"][0]]
    content = "".join((choice.get("delta") or choice.get("message", {})).get("content") or "" for choice in choices)
    assert content == "Hello." and choices[-1]["finish_reason"] == "stop"
    llm.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("stop", ["<|im_end|>", "<|im_start|>"])
def test_a_control_token_as_stop_string_stops(stop: str, stream: bool, tmp_path: Path) -> None:
    """llama.cpp drops control tokens from the text, so a comparison of texts never finds them."""
    path = build_scripted(tmp_path, CHATML, CHATML_TOKENS, bos="<|endoftext|>", eos="<|endoftext|>")
    llm = ScriptedLlama(path, answers=[f"Hello.{stop}and more"] * 2)
    answer = llm.create_completion("x", stop=[stop], max_tokens=40, stream=stream)
    assert text_of(answer) == "Hello."
    answer = llm.create_chat_completion(QUESTION, stop=stop, max_tokens=40)
    assert answer["choices"][0]["message"]["content"] == "Hello." and answer["choices"][0]["finish_reason"] == "stop"
    llm.close()


# Parts without a place in a template.


def test_a_system_prompt_is_put_before_the_first_question_where_the_template_takes_none(tmp_path: Path) -> None:
    llm = ScriptedLlama(build_family(tmp_path, "mixtral"), answers=["Hallo!", "Ja."])
    messages = [{"role": "system", "content": "Answer in German."}, {"role": "user", "content": "Hello"}]
    message = dict(llm.create_chat_completion(messages)["choices"][0]["message"])
    llm.create_chat_completion([*messages, message, {"role": "user", "content": "Really?"}])
    for asked in llm.asked:
        assert asked.text.count("Answer in German.") == 1 and asked.text.startswith("<s>[INST]")
        assert asked.text.index("Answer in German.") < asked.text.index("Hello") < asked.text.index("[/INST]")
    assert llm.asked[1].text.endswith("Hallo!</s>[INST] Really? [/INST]")
    llm.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("family", ["gemma4", "qwen3.5", "qwen3", "mixtral", "gpt-oss"])
def test_a_picture_for_a_model_that_reads_text_is_refused_by_name(family: str, stream: bool, tmp_path: Path) -> None:
    llm = ScriptedLlama(build_family(tmp_path, family), answers=["A cat."])
    content: list[Any] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PICTURE}},
    ]
    with pytest.raises(EdgeMoEError, match="image"):
        list(llm.create_chat_completion([{"role": "user", "content": content}], stream=stream))
    assert not llm.asked
    llm.close()


@pytest.mark.parametrize("family", ["gemma4", "qwen3.5", "qwen3", "mixtral", "gpt-oss", "deepseek-v3", "llama4"])
def test_text_in_parts_is_read_as_text(family: str, tmp_path: Path) -> None:
    llm = ScriptedLlama(build_family(tmp_path, family), answers=["Hello."])
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " this?"}]
    llm.create_chat_completion([{"role": "user", "content": parts}])
    right = [
        rendered(FAMILIES[family], [{"role": "user", "content": text}]) for text in ("What is this?", "What is\n this?")
    ]
    with contextlib.suppress(Exception):  # a template that knows parts joins them itself
        right.append(rendered(FAMILIES[family], [{"role": "user", "content": parts}]))
    assert llm.asked[0].text in right
    llm.close()
