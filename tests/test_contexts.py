"""Several contexts of one model: they compute side by side, and may be freed in any order."""

from __future__ import annotations

import ctypes
import itertools
import threading
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from edgemoe import Llama, OffloadConfig
from edgemoe.errors import ContextFailed
from tests import zoo

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43]
NONE = OffloadConfig(device="none", profile="off")
PLACES = pytest.mark.parametrize(
    ("offload", "layers"),
    [
        (NONE, 0),
        (OffloadConfig(device="sim", profile="off", vram="50%"), 0),
        (OffloadConfig(device="sim", profile="off", vram="50%"), -1),
        (OffloadConfig(device="sim", profile="off", vram="100%"), -1),
    ],
    ids=["none", "sim", "whole graph", "all resident"],
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.build("qwen3moe", tmp_path_factory.mktemp("contexts"))


def opened(path: Path, offload: OffloadConfig = NONE, layers: int = 0) -> Llama:
    return Llama(path, offload=offload, n_gpu_layers=layers, n_ctx=128, n_threads=1, n_threads_batch=1)


def greedy(context: int, vocabulary: int, prompt: list[int], count: int) -> list[int]:
    """Decode in a context as a C program would, after emptying its memory."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    made, batch = [], list(prompt)
    for _ in range(count):
        tokens = (ctypes.c_int32 * len(batch))(*batch)
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(batch))) == 0
        row = llama_cpp.llama_get_logits_ith(context, -1)
        made.append(int(np.ctypeslib.as_array(row, shape=(vocabulary,)).argmax()))
        batch = made[-1:]
    return made


def ids(llm: Llama, prompt: list[int], count: int) -> list[int]:
    return [token for token, _ in zip(llm.generate(prompt, temp=0), range(count), strict=False)]


@PLACES
def test_a_second_context_while_the_first_answers(offload: OffloadConfig, layers: int, model: Path) -> None:
    llm = opened(model, offload, layers)
    other = [int(token) for token in np.random.default_rng(1).integers(5, 250, 20)]
    wanted = ids(llm, PROMPT, 24), ids(llm, other, 24)
    second = llm.contexts.open(n_ctx=64)
    got: list[list[int]] = []

    def work() -> None:
        for _ in range(4):
            got.append(greedy(second, llm.n_vocab(), other, 24))

    thread = threading.Thread(target=work)
    thread.start()
    mine = []
    while thread.is_alive() or not mine:
        llm.reset()
        mine.append(ids(llm, PROMPT, 24))
    thread.join()
    assert all(answer == wanted[0] for answer in mine) and got == [wanted[1]] * 4
    if offload is NONE:
        assert llm.experts.stats().misses > 0
    llm.close()


@PLACES
def test_the_routing_of_contexts_is_told_apart(offload: OffloadConfig, layers: int, model: Path) -> None:
    llm = opened(model, offload, layers)
    second = llm.contexts.open(n_ctx=64)
    alone = routing(llm, [lambda: greedy(second, llm.n_vocab(), PROMPT[::-1], 12)])
    both = routing(
        llm,
        [lambda: greedy(second, llm.n_vocab(), PROMPT[::-1], 12), lambda: greedy(llm.ctx, llm.n_vocab(), PROMPT, 12)],
    )
    # The last layer computes the last token of a prompt only. No other batch has a gap, so none is cut in two.
    gaps = [int((rows < 0).any(axis=(1, 2)).sum()) for rows in (alone, both)]
    assert gaps == [len(PROMPT) - 1, 2 * (len(PROMPT) - 1)]
    rows = [row.tobytes() for row in both]
    at = 0
    for row in alone:  # in this order among the rows of both contexts
        at = rows.index(row.tobytes(), at) + 1
    assert len(both) == 2 * len(alone)
    llm.close()


def routing(llm: Llama, works: list[Any]) -> Any:
    """Give the routing, ``(tokens, layers, used)``, of works that run in a thread each."""
    llm._scheduler._log.record()
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.concatenate([batch for batch, _ in llm._scheduler._log.recorded()])


@PLACES
def test_contexts_are_freed_in_every_order(offload: OffloadConfig, layers: int, model: Path) -> None:
    llm = opened(model, offload, layers)
    wanted = ids(llm, PROMPT, 3)
    for turn, order in zip(range(66), itertools.cycle(itertools.permutations(range(3))), strict=False):
        contexts = [llm.contexts.open(n_ctx=32) for _ in range(3)]
        for place in order:
            if (turn + place) % 2:
                assert greedy(contexts[place], llm.n_vocab(), PROMPT, 3) == wanted
            llm.contexts.close(contexts[place])
            llm.contexts.close(contexts[place])
        if turn % 8 == 0:
            llm.reset()
            assert ids(llm, PROMPT, 3) == wanted
    left = llm.contexts.open(n_ctx=32)
    assert greedy(left, llm.n_vocab(), PROMPT, 3) == wanted
    llm.close()  # frees the context that is left


def test_a_context_that_cannot_be_made_is_an_error(model: Path) -> None:
    llm = opened(model)
    with pytest.raises(ContextFailed, match="no further context"):
        llm.contexts.open(ctx_type=llama_cpp.LLAMA_CONTEXT_TYPE_MTP)
    assert len(ids(llm, PROMPT, 3)) == 3
    llm.close()
