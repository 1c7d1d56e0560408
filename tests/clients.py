"""Run other programs on our class in place of llama_cpp's. The same calls run with both, and the answers are compared.

    python -m pip install langchain-community llama-index-llms-llama-cpp instructor outlines guidance lm-format-enforcer
    python tests/clients.py [MODEL.gguf]

A client that is not installed is left out and named. The program fails if an answer differs from plain llama_cpp's. If
plain llama_cpp gives an error, ours may answer, as with a JSON schema. tests/test_server_tools.py tests llama_cpp's own
server with the openai client.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("EDGEMOE_HOME", tempfile.mkdtemp())

import llama_cpp

from edgemoe import Llama, OffloadConfig
from edgemoe.models.demo import build_demo

PLAIN = llama_cpp.Llama
QUESTION = "The capital of France is"
SETTINGS: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False}


class Ours(Llama):
    """Open our class with a small simulated device."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        keywords.setdefault("offload", OffloadConfig(device="sim", vram="50%", profile="off"))
        super().__init__(*arguments, **keywords)


def langchain(path: str) -> list[Any]:
    """Test a completion, a stream and a chat with LangChain."""
    from langchain_community.chat_models import ChatLlamaCpp
    from langchain_community.llms import LlamaCpp

    options = {"model_path": path, "temperature": 0, "max_tokens": 12, "n_ctx": 512, "n_threads": 1, "verbose": False}
    llm, chat = LlamaCpp(**options), ChatLlamaCpp(**options)
    messages = [("system", "Be brief."), ("human", "What is the capital of France?")]
    return [llm.invoke(QUESTION), list(llm.stream(QUESTION)), chat.invoke(messages).content]


def langchain_embeddings(path: str) -> list[Any]:
    """Test embeddings with LangChain."""
    from langchain_community.embeddings import LlamaCppEmbeddings

    return [LlamaCppEmbeddings(model_path=path, n_ctx=128, n_threads=1, verbose=False).embed_query("Hello")]


def llama_index(path: str) -> list[Any]:
    """Test a completion, a stream and a chat with LlamaIndex."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.llama_cpp import LlamaCPP

    llm = LlamaCPP(model_path=path, temperature=0.0, max_new_tokens=12, context_window=512, model_kwargs=SETTINGS)
    chat = llm.chat([ChatMessage(role="user", content="What is the capital of France?")])
    pieces = [piece.delta for piece in llm.stream_complete(QUESTION)]
    return [llm.complete(QUESTION).text, "".join(map(str, pieces)), str(chat.message.content)]


def with_instructor(path: str) -> list[Any]:
    """Test a record by JSON schema with instructor."""
    import instructor
    from pydantic import BaseModel

    class Town(BaseModel):
        name: str
        country: str

    llm = llama_cpp.Llama(path, **SETTINGS)
    create = instructor.patch(create=llm.create_chat_completion_openai_v1, mode=instructor.Mode.JSON_SCHEMA)
    ask = [{"role": "user", "content": "Paris is in France. Give name and country."}]
    return [create(messages=ask, response_model=Town, temperature=0, max_tokens=60, max_retries=0).model_dump()]


def with_outlines(path: str) -> list[Any]:
    """Test a choice and a record with outlines."""
    import outlines

    model = outlines.from_llamacpp(llama_cpp.Llama(path, **SETTINGS))
    choose = outlines.Generator(model, outlines.types.regex(r"(Paris|Rome)"))
    return [choose(QUESTION + " ", max_tokens=8, temperature=0)]


def with_guidance(path: str) -> list[Any]:
    """Test a constrained answer with guidance, which calls ``llama_decode`` itself."""
    from guidance import gen, models, select

    model = models.LlamaCpp(llama_cpp.Llama(path, **SETTINGS), echo=False)
    model += QUESTION + " " + select(["Rome", "Paris"], name="town") + "." + gen("rest", max_tokens=6, temperature=0)
    return [model["town"], model["rest"]]


def enforcer(path: str) -> list[Any]:
    """Test JSON by lm-format-enforcer's logits processor."""
    from lmformatenforcer import JsonSchemaParser
    from lmformatenforcer.integrations.llamacpp import (
        build_llamacpp_logits_processor,
        build_token_enforcer_tokenizer_data,
    )

    llm = llama_cpp.Llama(path, **SETTINGS)
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}
    made = build_llamacpp_logits_processor(build_token_enforcer_tokenizer_data(llm), JsonSchemaParser(schema))
    processors = llama_cpp.LogitsProcessorList([made])
    return [llm("A town as JSON: ", logits_processor=processors, max_tokens=30, temperature=0)["choices"][0]["text"]]


CLIENTS: dict[str, Callable[[str], list[Any]]] = {
    "langchain_community": langchain,
    "langchain_community.embeddings": langchain_embeddings,
    "llama_index.llms.llama_cpp": llama_index,
    "instructor": with_instructor,
    "outlines": with_outlines,
    "lmformatenforcer": enforcer,
    "guidance": with_guidance,
}


def tried(client: Callable[[str], list[Any]], path: str, used: type) -> list[Any]:
    """Run the client with ``used`` in place of llama_cpp's class. An error counts as an answer."""
    modules = [module for module in list(sys.modules.values()) if getattr(module, "Llama", None) in (PLAIN, Ours)]
    for module in [llama_cpp, *modules]:
        if module.__name__ not in (__name__, "edgemoe", "edgemoe.engine", "edgemoe.engine.llama", "llama_cpp.llama"):
            module.Llama = used  # type: ignore[attr-defined]
    try:
        return client(path)
    except Exception as error:
        return [Failed(f"{type(error).__name__}: {error}"[:200])]


class Failed(str):
    """Describe an error in words."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="the demo model by default")
    path = parser.parse_args().model or str(build_demo())
    wrong = 0
    for name, client in CLIENTS.items():
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"{name}: left out ({error})")
            continue
        plain, ours = tried(client, path, PLAIN), tried(client, path, Ours)
        only_ours = isinstance(plain[0], Failed) and not isinstance(ours[0], Failed)
        wrong += plain != ours and not only_ours
        print(f"{name}: {'equal' if plain == ours else 'only ours answers' if only_ours else 'DIFFERENT'}")
        print(f"  plain: {str(plain)[:160]}\n  ours:  {str(ours)[:160]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
