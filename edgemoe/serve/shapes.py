"""The requests of OpenAI's and Anthropic's interfaces, as far as this server reads them. Unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Choices of one request: each is an answer of its own.
MOST_CHOICES = 8

Text = Annotated[str, Field(max_length=1 << 24)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "on", "off"]
Stop = Text | Annotated[list[Text], Field(max_length=16)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Sampling(_Shape):
    """Hold the fields that choose the tokens of an answer."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1000)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0.1, le=5)
    stream: bool | None = None


class StreamOptions(_Shape):
    """Ask for the number of tokens at the end of a stream."""

    include_usage: bool | None = None


class _OpenAI(_Sampling):
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | None = None
    max_tokens: int | None = Field(None, ge=1)
    stream_options: StreamOptions | None = None


class CalledFunction(_Shape):
    """Name a function and its arguments as JSON text."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(_Shape):
    """One call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Part(_Shape):
    """One part of a message's content; only text can be read."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: str
    text: Text | None = None


class Message(_Shape):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: Text | None = None


class Function(_Shape):
    """Describe a function that the model may call."""

    name: str = Field(min_length=1, max_length=128)
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Shape):
    """Offer a function."""

    type: Literal["function"]
    function: Function


class _Name(_Shape):
    name: str


class NamedTool(_Shape):
    """Ask for a call of one function."""

    type: Literal["function"]
    function: _Name


class JsonSchema(_Shape):
    """Give the schema of an answer."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Shape):
    """Ask for text, for JSON, or for JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ChatRequest(_OpenAI):
    """Hold a body of ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(_OpenAI):
    """Hold a body of ``/v1/completions``."""

    prompt: Text | Tokens | Texts | Annotated[list[Tokens], Field(min_length=1)]
    suffix: Text | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)


class EmbeddingsRequest(_Shape):
    """Hold a body of ``/v1/embeddings``."""

    model: str | None = None
    input: Text | Tokens | Texts | Annotated[list[Tokens], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None


# OpenAI's Responses.


class TextFormat(_Shape):
    """Ask for text, for JSON, or for JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(_Shape):
    """Hold the wishes for the text of an answer."""

    format: TextFormat | None = None


class Reasoning(_Shape):
    """Hold the wishes for the thinking."""

    effort: Effort | None = None


class Item(_Shape):
    """One item of a conversation: a message, a call, the result of a call, or thinking."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Text | list[Part] | None = None


class ResponseTool(_Shape):
    """Offer a function."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedResponseTool(_Shape):
    """Ask for a call of one function."""

    type: Literal["function"]
    name: str


class ResponsesRequest(_Sampling):
    """Hold a body of ``/v1/responses``."""

    input: Text | Annotated[list[Item], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    previous_response_id: str | None = None
    metadata: dict[str, Any] | None = None


# Anthropic's Messages.


class Block(_Shape):
    """One block of a message's content."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: str
    text: Text | None = None
    thinking: Text | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Text | list[Part] | None = None


class AnthropicMessage(_Shape):
    """One message of a chat."""

    role: Literal["user", "assistant", "system"]
    content: Text | list[Block]


class AnthropicTool(_Shape):
    """Offer a function."""

    name: str = Field(min_length=1, max_length=128)
    description: Text | None = None
    input_schema: dict[str, Any]


class AnthropicChoice(_Shape):
    """Say whether a tool must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None


class AnthropicThinking(_Shape):
    """Switch the thinking on or off."""

    type: Literal["enabled", "disabled", "adaptive"]


class MessagesRequest(_Sampling):
    """Hold a body of ``/v1/messages``."""

    messages: list[AnthropicMessage] = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    system: Text | list[Block] | None = None
    stop_sequences: Annotated[list[Text], Field(max_length=16)] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: AnthropicThinking | None = None
