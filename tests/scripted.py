"""Real chat formats without real weights: a tiny random model that speaks a script.

The model has the family's real template and its special tokens, with the types that llama.cpp's converter gives them.
Its answers are scripted. The raw text of an answer is tokenised with its special tokens, and a logits processor forces
these tokens one after another. Tokenising the prompt, sampling, stopping, detokenising, the chat format, the
worker and the chat are therefore real.

The converter makes a token CONTROL if its tokenizer_config says ``special`` or if it looks like ``<|...|>`` or
``<｜...｜>``. It makes any other token of a family USER_DEFINED. An answer's text shows USER_DEFINED tokens, but
llama.cpp drops CONTROL tokens from it.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import shared
from gguf import GGUFReader, GGUFWriter, TokenType
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from zoo import build

import edgemoe
from edgemoe import OffloadConfig

CONTEXT = 8192
CPU = OffloadConfig(device="none", profile="off")
_PAIRS = ("t h", "i n", "e r", "a n", "o u", "s t", "Ġ t", "Ġt h", "Ġth e", "in g", "e n", "o r", "e s")
_VISIBLE_BYTES = (*range(33, 127), *range(161, 173), *range(174, 256))
ORDINARY = 256 + len(_PAIRS)
"""Tokens that are bytes and merges; the special ones follow."""


# Templates and metadata of the families' files.


@dataclass(frozen=True)
class Family:
    """Describe one family's vocabulary and template.

    Attributes:
        template: file name in the shared folder of templates.
        architecture: the zoo's name of the architecture.
        control: tokens that llama.cpp's converter marks as CONTROL.
        visible: tokens that the converter marks as USER_DEFINED.
        bos: token that begins a text; empty for none.
        eos: token that ends an answer.
        eot: token that ends a turn, if the file names one besides ``eos``.
        eom: token that ends a message before a tool's result, if the file names one.
        add_bos: True if llama.cpp puts ``bos`` before a plain text.
    """

    template: str
    architecture: str
    control: tuple[str, ...]
    visible: tuple[str, ...] = ()
    bos: str = ""
    eos: str = ""
    eot: str = ""
    eom: str = ""
    add_bos: bool = False

    @property
    def types(self) -> dict[str, TokenType]:
        """Type of each special token."""
        types = dict.fromkeys(self.control, TokenType.CONTROL)
        return types | dict.fromkeys(self.visible, TokenType.USER_DEFINED)


_THINK = ("<think>", "</think>")
_HERMES = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_QWEN = Family(
    "",
    "qwen3moe",
    # Qwen's converter names <|endoftext|> as the beginning of text. Tags of tools and thinking are not ``special``.
    control=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    visible=(*_HERMES, *_THINK),
    bos="<|endoftext|>",
    eos="<|im_end|>",
)
_DEEPSEEK_TOOLS = tuple(
    f"<｜tool▁{name}｜>"
    for name in (
        *("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"),
        *("outputs▁begin", "outputs▁end", "output▁begin", "output▁end"),
    )
)
_DEEPSEEK = Family(
    "",
    "deepseek2-v3",
    # Every marker looks special, so that tool calls vanish from plain text. <think> is not ``special``; V3 has none.
    control=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", *_DEEPSEEK_TOOLS),
    bos="<｜begin▁of▁sentence｜>",
    eos="<｜end▁of▁sentence｜>",
    add_bos=True,
)
_GLM = Family(
    "",
    "glm4moe",
    # [gMASK] and <sop> are ``special``, the tags of tools and thinking are not. An answer ends with the next role.
    control=("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    visible=(*_THINK, *_HERMES, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink"),
    bos="[gMASK]",
    eos="<|endoftext|>",
    eot="<|user|>",
    eom="<|observation|>",
)
_KIMI = Family(
    "",
    "deepseek2-v3",
    # Tiktoken files have no other kind: the converter marks every added token as CONTROL, tool markers included.
    control=(
        *("[BOS]", "[EOS]", "[EOT]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
        "<|tool_call_argument_begin|>",
    ),
    bos="[BOS]",
    eos="<|im_end|>",
)


def _like(base: Family, template: str, **changes: Any) -> Family:
    return Family(
        **({name: getattr(base, name) for name in base.__dataclass_fields__} | {"template": template} | changes)
    )


FAMILIES: dict[str, Family] = {
    "gpt-oss": Family(
        "openai-gpt-oss-120b.jinja",
        "gpt-oss",
        # CONTROL in files. At load llama.cpp makes channel, message, start, constrain and end USER_DEFINED.
        control=(
            *("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>"),
            *("<|end|>", "<|message|>", "<|call|>", "<|endofprompt|>"),
        ),
        bos="<|startoftext|>",
        eos="<|return|>",
    ),
    "qwen3": _like(_QWEN, "Qwen3-30B-A3B.jinja"),
    "qwen3-thinking": _like(_QWEN, "Qwen3-30B-A3B-Thinking-2507.jinja"),
    "qwen3-coder": _like(_QWEN, "Qwen3-Coder.jinja"),
    "qwen3.5": _like(_QWEN, "Qwen3.5-4B.jinja", architecture="qwen35moe"),
    "deepseek-v3": _like(_DEEPSEEK, "DeepSeek-V3.jinja"),
    "deepseek-r1": _like(_DEEPSEEK, "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", visible=_THINK),
    "deepseek-v3.1": _like(_DEEPSEEK, "deepseek-ai-DeepSeek-V3.1.jinja", visible=_THINK),
    "gemma4": Family(
        "google-gemma-4-31B-it.jinja",
        "gemma4",
        # The converter shows the markers of channels and tools (USER_DEFINED), though they are ``special``. At load
        # llama.cpp makes <|tool_response> CONTROL again: it ends an answer that calls a tool.
        control=("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|think|>", "<|tool>", "<tool|>", "<|image|>"),
        visible=(
            *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
            '<|"|>',
        ),
        bos="<bos>",
        eos="<eos>",
        eot="<turn|>",
        add_bos=True,
    ),
    "glm-4.6": _like(_GLM, "GLM-4.6.jinja"),
    "glm-4.7": _like(_GLM, "GLM-4.7-Flash.jinja"),
    "kimi-k2": _like(_KIMI, "Kimi-K2-Instruct.jinja"),
    # There are two ways to convert it, and this is the harder case: the tags of thinking are CONTROL, as all tokens
    # that tiktoken adds.
    "kimi-k2-thinking": _like(_KIMI, "Kimi-K2-Thinking.jinja", control=(*_KIMI.control, *_THINK)),
    "minimax-m2": Family(
        "MiniMax-M2.jinja",
        "minimax-m2",
        control=("]~!b[", "]~b]", "[e~["),
        visible=(*_THINK, "<minimax:tool_call>", "</minimax:tool_call>"),
        bos="]~!b[",
        eos="[e~[",
    ),
    "lfm2": Family(
        "LFM2-8B-A1B.jinja",
        "lfm2moe",
        control=(
            *("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
            *("<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>", "<|tool_call_end|>"),
            *("<|tool_response_start|>", "<|tool_response_end|>"),
        ),
        bos="<|startoftext|>",
        eos="<|im_end|>",
        add_bos=True,
    ),
    "granite4": Family(
        "ibm-granite-granite-4.0.jinja",
        "granitehybrid",
        control=("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        visible=(*_THINK, *_HERMES),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
    ),
    "nemotron3": Family(
        "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja",
        "nemotron_h_moe",
        # From memory. As CONTROL the tags of thinking are the harder case.
        control=("<s>", "</s>", "<|im_start|>", "<|im_end|>", *_THINK),
        visible=_HERMES,
        bos="<s>",
        eos="<|im_end|>",
    ),
    "llama4": Family(
        "Llama-4.jinja",
        "llama4",
        control=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|eom|>", "<|eot|>", "<|header_start|>", "<|header_end|>"),
            *("<|python_start|>", "<|python_end|>", "<|image|>"),
        ),
        bos="<|begin_of_text|>",
        eos="<|eot|>",
        add_bos=True,
    ),
    # [INST] and [/INST] are ordinary text in Mixtral 8x7B.
    "mixtral": Family(
        "Mixtral-8x7B.jinja", "llama", control=("<unk>", "<s>", "</s>"), bos="<s>", eos="</s>", add_bos=True
    ),
}
"""The families by the names that outputs.jsonl and these tests use."""


def template_of(family: Family) -> str:
    """Read the family's real template. Without it the test is skipped."""
    return shared.template(family.template)


# The model file.


def letters(text: str) -> str:
    """Write ``text`` as an ordinary token of a byte-level vocabulary, with GPT-2's letters for its bytes."""
    return "".join(_LETTERS[byte] for byte in text.encode())


_HIDDEN_BYTES = [byte for byte in range(256) if byte not in _VISIBLE_BYTES]
_LETTERS = {byte: chr(byte) for byte in _VISIBLE_BYTES}
_LETTERS |= {byte: chr(256 + index) for index, byte in enumerate(_HIDDEN_BYTES)}


def build_scripted(
    folder: Path,
    template: str | None,
    special: Mapping[str, TokenType],
    *,
    bos: str = "",
    eos: str = "",
    eot: str = "",
    eom: str = "",
    add_bos: bool = False,
    architecture: str = "llama",
    name: str = "scripted",
    keys: Mapping[str, int] | None = None,
) -> Path:
    """Write a tiny mixture-of-experts model with this template and these tokens, and return its path.

    Args:
        folder: folder of the file.
        template: the chat template, or None for a file without one.
        special: tokens and their types, besides the 256 bytes and a few merges. The text of a NORMAL token is
            encoded as the vocabulary wants it.
        bos: token that begins a text. An empty name leaves the key out, here and below.
        eos: token that ends a text.
        eot: token that ends a turn.
        eom: token that ends a message before a tool's result.
        add_bos: True if a plain text begins with ``bos``.
        architecture: name of the architecture in the zoo.
        keys: more numbers of the architecture, by their keys.
        name: name of the file.
    """
    source = GGUFReader(build(architecture, folder / "zoo"))
    path = folder / f"{name}.gguf"
    tokens = [_LETTERS[byte] for byte in range(256)] + [pair.replace(" ", "") for pair in _PAIRS]
    types = [TokenType.NORMAL] * len(tokens)
    ids = {}
    for text, kind in special.items():
        ids[text] = len(tokens)
        tokens.append(letters(text) if kind == TokenType.NORMAL else text)
        types.append(kind)
    arch = source.fields["general.architecture"].contents()
    writer = GGUFWriter(path, arch)
    writer.add_name(name)
    changed = {f"{arch}.vocab_size": len(tokens), f"{arch}.context_length": CONTEXT}
    for key, number in (keys or {}).items():
        writer.add_uint32(f"{arch}.{key}", number)
    for field in source.fields.values():
        if field.name.startswith(f"{arch}."):
            value = changed.get(field.name, field.contents())
            if len(field.types) > 1:
                writer.add_array(field.name, value)
            else:
                writer.add_key_value(field.name, value, field.types[0])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(list(_PAIRS))
    named = {"bos": bos, "eos": eos, "eot": eot, "eom": eom}
    for key, text in named.items():
        if text:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", ids[text])
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)
    for tensor in source.tensors:
        data = tensor.data
        if tensor.name in ("token_embd.weight", "output.weight"):
            data = np.resize(data, (len(tokens), data.shape[1]))
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def build_family(folder: Path, name: str) -> Path:
    """Write the tiny model of a family of `FAMILIES`. Without its template the test is skipped."""
    family = FAMILIES[name]
    return build_scripted(
        folder,
        template_of(family),
        family.types,
        bos=family.bos,
        eos=family.eos,
        eot=family.eot,
        eom=family.eom,
        add_bos=family.add_bos,
        architecture=family.architecture,
        name=name,
    )


# The engine.


@dataclass(frozen=True)
class Asked:
    """Hold one prompt that a scripted engine was asked to continue.

    Attributes:
        text: text of its tokens, with special tokens.
        special: special tokens of the prompt, in order.
    """

    text: str
    special: tuple[str, ...]


class ScriptedLlama(edgemoe.Llama):
    """Run the real engine with forced answers.

    Attributes:
        asked: every prompt so far.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        answers: Sequence[str | Sequence[int]] = (),
        record: Path | None = None,
        **keywords: Any,
    ) -> None:
        """Load the model.

        Args:
            model_path: a file of `build_scripted`.
            answers: raw text of each answer, or its tokens. The end token is forced after an answer that does not have
                it.
            record: file that gets every prompt as a line of JSON, for a process that cannot see `asked`.
            **keywords: keywords of `edgemoe.Llama`.
        """
        # One thread: on busy cores, two threads that wait for each other are far slower.
        usual = {"n_ctx": CONTEXT, "offload": CPU, "n_threads": 1, "n_threads_batch": 1}
        super().__init__(model_path, **(usual | keywords))
        self.asked: list[Asked] = []
        self._scripts = [self._script(answer) for answer in answers]
        self._record = record

    def create_completion(self, prompt: str | list[int], *args: Any, **keywords: Any) -> Any:
        """Answer as `edgemoe.Llama` does, but with the next script."""
        ids = self.tokenize(prompt.encode(), add_bos=False, special=True) if isinstance(prompt, str) else list(prompt)
        special = tuple(spelled(self, [token]) for token in ids if token >= ORDINARY)
        self._remember(Asked(spelled(self, ids), special))
        assert len(self.asked) <= len(self._scripts), "asked more often than there are scripts"
        forced = Forced(self._scripts[len(self.asked) - 1])
        given = keywords.pop("logits_processor", None) or []
        processors = llama_cpp.LogitsProcessorList([*given, forced])
        return super().create_completion(prompt, *args, logits_processor=processors, **keywords)

    def _script(self, answer: str | Sequence[int]) -> list[int]:
        ids = self.tokenize(answer.encode(), add_bos=False, special=True) if isinstance(answer, str) else list(answer)
        vocabulary = self._model.vocab
        ended = bool(ids) and llama_cpp.llama_vocab_is_eog(vocabulary, ids[-1])
        if not ended and self.token_eos() >= 0:
            ids.append(self.token_eos())
        return ids

    def _remember(self, asked: Asked) -> None:
        self.asked.append(asked)
        if self._record is not None:
            with self._record.open("a", encoding="utf-8") as file:
                file.write(json.dumps([asked.text, asked.special]) + "\n")


class Forced:
    """Allow only the next token of a script, as a logits processor. After the end of the script the model is free."""

    def __init__(self, script: Sequence[int]) -> None:
        self._script = script
        self._start = -1

    def __call__(self, ids: Any, scores: Any) -> Any:
        # The number of tokens is the position in the answer, even if a token is sampled twice.
        if self._start < 0:
            self._start = len(ids)
        done = len(ids) - self._start
        if done >= len(self._script):
            return scores
        only = np.full_like(scores, -np.inf)
        only[self._script[done]] = 0
        return only


def open_scripted(path: Path, answers: Sequence[str | Sequence[int]], **keywords: Any) -> ScriptedLlama:
    """Open the engine of a worker's child; see `ScriptedLlama`."""
    return ScriptedLlama(path, answers=answers, **keywords)


def recorded(path: Path) -> list[Asked]:
    """Read the prompts that a scripted engine of another process wrote to its ``record``."""
    if not path.exists():
        return []
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Asked(text, tuple(special)) for text, special in lines]


def spelled(llm: llama_cpp.Llama, ids: Sequence[int]) -> str:
    """Let llama.cpp write the text of ``ids``, with special tokens."""
    return b"".join(_piece(llm._model.vocab, token) for token in ids).decode("utf-8", "replace")


def _piece(vocabulary: Any, token: int) -> bytes:
    size = 512
    buffer = ctypes.create_string_buffer(size)
    length = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, size, 0, True)
    assert length >= 0, "a token of these tests is longer than its buffer"
    return buffer.raw[:length]


# Render a conversation with the template, without code of EdgeMoE or llama_cpp.


def rendered(
    family: Family, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, **keywords: Any
) -> str:
    """Render the prompt of transformers' ``apply_chat_template``, with a plain Jinja environment.

    Kimi's templates change lists of their own when tools are called, which transformers' sandbox forbids. These
    templates are rendered in a sandbox that allows it.
    """
    try:
        return _rendered(ImmutableSandboxedEnvironment, family, messages, tools, keywords)
    except SecurityError:
        return _rendered(SandboxedEnvironment, family, messages, tools, keywords)


def _rendered(
    sandbox: type[SandboxedEnvironment],
    family: Family,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    keywords: Mapping[str, Any],
) -> str:
    environment = sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template_of(family)).render(
        messages=messages,
        tools=tools,
        add_generation_prompt=True,
        bos_token=family.bos,
        eos_token=family.eos,
        **keywords,
    )


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **keywords: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **keywords)


def _raise_exception(message: str) -> None:
    raise ValueError(message)


def special_in(family: Family, text: str) -> Iterator[str]:
    """Find the family's special tokens in ``text``, in order. If several begin at one place, the longest counts."""
    by_length = sorted(family.types, key=len, reverse=True)
    place = 0
    while place < len(text):
        found = next((token for token in by_length if text.startswith(token, place)), "")
        if found:
            yield found
        place += len(found) or 1
