"""The computed beginning of a prompt: the longest beginning that the memory or a kept state holds.

The memory of a plain model can be cut behind any token. The memory of a hybrid, recurrent or sliding-window model
cannot: it holds one state, or a window, and each token overwrites it. For such a model, states are kept at places where
conversations are likely to part (*marks*), and put back. A conversation that another conversation displaces is kept
whole, in RAM and, if there is a folder, on disk.

Ordering: everything happens in the thread that computes, between computations.

**Source**: llama.cpp's ``llama_state_seq_*``; a *partial* state is the part that cannot be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from ..types import IdArray
from .kept import TAIL, Folder, Header, Kept, Mark, State, common, key_of

PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
# Tokens between two marks of an answer under way.
SPACING = 256
# A shorter conversation is not kept when it is displaced: computing it again is faster.
LEAST_KEPT = 64
# A file is read when it saves more tokens than this.
LEAST_READ = 200
# Settings of a context that change the meaning of its states. Its length does not, except for long ropes.
_SETTINGS = (
    *("n_seq_max", "rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type", "type_k"),
    *("type_v", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast"),
    *("yarn_beta_slow", "yarn_orig_ctx", "embeddings", "swa_full", "kv_unified"),
)


class Prefix:
    """Keeps the computed beginning of one sequence of one context.

    Args:
        llm: the model, or one of several sequences; its ``input_ids`` and ``n_tokens`` are the tokens in the context.
        budget: bytes for marks and kept conversations.
        whole_window: layers with a sliding window keep all of the context.
        folder: where conversations are kept on disk, None for nowhere.
        sequence: number of the sequence, None if it is the only one of its context.
        kept: conversations that several sequences share.

    Attributes:
        cuttable: the memory can be cut behind any token.
        snapshots: tokens of the latest batch that llama.cpp can take back from a memory that cannot be cut.
    """

    def __init__(
        self,
        llm: Any,
        budget: int,
        whole_window: bool,
        folder: Folder | None = None,
        sequence: int | None = None,
        kept: list[Kept] | None = None,
    ) -> None:
        """Begin with an empty context."""
        self._llm, self._budget, self._whole_window, self._folder = llm, budget, whole_window, folder
        self._sequence, self._alone = sequence or 0, sequence is None
        model = llm.model
        recurrent = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
        # Among several sequences, llama.cpp gives the cells behind a window to others, also in a cache of full size.
        windowed = llama_cpp.llama_model_n_swa(model) != 0
        self.cuttable = not recurrent and (not windowed or (whole_window and self._alone))
        rolled = getattr(llama_cpp, "llama_n_rs_seq", None)  # newer versions of llama.cpp
        self.snapshots = int(rolled(llm.ctx)) if recurrent and rolled else 0
        self._batch = 1  # tokens of the latest batch, if llama.cpp can take them back
        self._memory = llama_cpp.llama_get_memory(llm.ctx)
        self._marks: list[Mark] = []
        self._marks_fit = True  # False if a single mark is larger than the budget
        self._kept: list[Kept] = [] if kept is None else kept  # in the order of their last use
        self._asked = 0  # tokens of the last prompt
        self._seen = 0  # tokens of the context at the latest look of this object
        self._foreign: int | None = None  # from this token on, other code has computed: images, raw batches
        self._on_disk: IdArray | None = None

    def of_sequence(self, llm: Any, number: int, share: float, kept: list[Kept]) -> Prefix:
        """Make the object of one of several sequences of this context, with a share of the budget."""
        return Prefix(llm, int(self._budget * share), self._whole_window, self._folder, number, kept)

    @property
    def bytes(self) -> int:
        """Count the bytes of marks and kept conversations."""
        marks = {id(mark): mark.bytes for kept in self._kept for mark in kept.marks}
        marks |= {id(mark): mark.bytes for mark in self._marks}
        return sum(marks.values()) + sum(kept.state.nbytes + kept.tokens.nbytes for kept in self._kept)

    def begin(self, tokens: Sequence[int]) -> int:
        """Make the context hold the beginning of ``tokens``; return its length. The rest remains to be computed."""
        prompt = np.asarray(tokens, dtype=np.intc)
        self._take_back()
        reach = self.reach(prompt)
        if (other := self._elsewhere(prompt, reach)) is not None:
            self._displace(0)
            reach = other[1] if self._restore(other[0]) else 0
        else:
            self._displace(reach)
        self._cut(reach)
        self._asked = len(prompt)
        return reach

    def reach(self, prompt: IdArray) -> int:
        """Count the tokens of ``prompt`` that the memory holds and that ``begin`` would leave there."""
        held = self._held()
        length = len(held) if self._is_intact() and len(held) == self._llm.n_tokens else None
        return self._reach(common(held, prompt), length, [mark.position for mark in self._marks], len(prompt))

    def forget(self) -> None:
        """Drop the marks, because the context has lost their tokens or got other ones."""
        self._marks.clear()
        self._seen, self._foreign = self._llm.n_tokens, None

    def void(self) -> None:
        """Give up all that was computed, because other weights, as of another adapter, compute now."""
        self._kept.clear()
        self._folder = None  # the folder's key does not name the adapter
        self._llm.n_tokens = self._asked = 0
        self._clear()
        self._llm._requires_eval = True
        self.forget()

    def keep(self) -> None:
        """Copy the conversation in the context, and write it to the folder in the background."""
        if self._folder is None or self._llm.n_tokens < LEAST_KEPT or not self._is_whole():
            return
        if not self._is_on_disk() and (kept := self._copy()) is not None:
            self._to_disk(kept)

    def close(self, seconds: float) -> None:
        """Write the conversation in the context to the folder, and wait for it, at most ``seconds``."""
        self.keep()
        if self._folder is not None:
            self._folder.wait(seconds)

    def failed(self) -> None:
        """Note that a computation ended half-way: the tokens up to here are computed."""
        self._seen = self._llm.n_tokens

    def cut_back(self) -> None:
        """Drop all that was computed behind ``n_tokens``, before computing goes on there.

        Such tokens remain after a computation that failed half-way, after a refused draft, or if a program sets
        ``n_tokens``. A memory that cannot be cut there is put back to its last mark, and the tokens from the mark on
        are computed again.
        """
        here = self._llm.n_tokens
        if self._marks and self._marks[-1].position > here:
            self._marks = [mark for mark in self._marks if mark.position <= here]
        if self._foreign is not None and here <= self._foreign:
            self._foreign = None
        elif self._foreign is None and here > self._seen:
            self._foreign = self._seen
        if self.cuttable or self._foreign is not None or self._take_back():
            return
        again = self._llm.input_ids[:here].tolist()
        self._cut(max((mark.position for mark in self._marks), default=0))
        at = self._llm.n_tokens
        for count in self.stops(here - at) if at < here else ():
            self._llm._eval_part(again[at : at + count])
            self.passed()
            at += count

    def stops(self, count: int) -> list[int]:
        """Cut the next ``count`` tokens into parts, so that `passed` can set a mark after each part."""
        if self.cuttable or count == 1 or not self._budget:
            return [count]
        begin, batch = self._llm.n_tokens, self._llm.n_batch
        end = begin + count
        # llama_cpp computes a batch at a time, so a part that ends with a batch costs nothing. Only the last batch is
        # cut smaller.
        last = begin + (count - 1) // batch * batch
        wanted = {*range(begin + batch, end, batch), *range(last, end, SPACING), self._asked - TAIL, self._asked}
        places = [*sorted(place for place in wanted if begin < place < end), end]
        return [place - before for before, place in zip([begin, *places], places, strict=False)]

    def passed(self, batch: int = 1) -> None:
        """Note that the tokens up to here are computed; set a mark here if one is due.

        Args:
            batch: tokens of the latest batch, if some of them may be taken back.
        """
        self._batch = batch
        here = self._seen = self._llm.n_tokens
        if self.cuttable or not self._budget or not self._marks_fit or self._foreign is not None:
            return
        last = self._marks[-1].position if self._marks else 0
        if last < here and (here in (self._asked - TAIL, self._asked) or here - last >= SPACING):
            state = self._state(PARTIAL)
            self._marks_fit = state.nbytes <= self._budget
            if self._marks_fit:
                self._marks.append(Mark(here, state))
                self._shrink()

    # The tokens in the context.

    def _held(self) -> IdArray:
        """Give the tokens in the context, without tokens that other code computed."""
        count = self._llm.n_tokens
        end = self._seen if count > self._seen else count
        held: IdArray = self._llm.input_ids[: end if self._foreign is None else min(end, self._foreign)]
        return held

    def _is_intact(self) -> bool:
        """Tell whether the memory ends at ``n_tokens``; a memory that can be cut may go further."""
        end = llama_cpp.llama_memory_seq_pos_max(self._memory, self._sequence) + 1
        return bool(end >= self._llm.n_tokens if self.cuttable else end == self._llm.n_tokens)

    def _take_back(self) -> bool:
        """Make the memory end at ``n_tokens`` by llama.cpp's snapshots; return whether it ends there."""
        if self._is_intact():
            return True
        here = self._llm.n_tokens
        back = llama_cpp.llama_memory_seq_pos_max(self._memory, self._sequence) + 1 - here
        if self.cuttable or not 0 < back < min(self._batch, self.snapshots + 1):
            return False
        self._batch = 1
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, self._sequence, here, -1))

    def _is_whole(self) -> bool:
        """Tell whether the tokens in the context tell everything about its state."""
        return len(self._held()) == self._llm.n_tokens and self._is_intact()

    def _is_on_disk(self) -> bool:
        return self._on_disk is not None and np.array_equal(self._on_disk, self._held())

    # The usable part of a memory.

    def _reach(self, agreed: int, length: int | None, marks: Sequence[int], asked: int) -> int:
        """Count the tokens of a memory that a prompt can use.

        Args:
            agreed: length of the common beginning of memory and prompt.
            length: tokens of the memory, None if its end is uncertain.
            marks: positions of its marks.
            asked: tokens of the prompt.
        """
        most = min(agreed, asked - 1)  # the last token must be computed, for its logits
        if self.cuttable:
            end = llama_cpp.llama_memory_seq_pos_max(self._memory, self._sequence) + 1 if length is None else length
            return int(min(most, end))
        if length is not None and length <= most:
            return length
        return max((position for position in marks if position <= most), default=0)

    def _elsewhere(self, prompt: IdArray, reach: int) -> tuple[Kept, int] | None:
        """Find a kept conversation, in RAM or on disk, that reaches further than the context; also give its reach."""
        asked = len(prompt)
        if self._llm._logits_all:  # rows of logits are not kept, and the caller may ask for the rows of a whole prompt
            return None
        best: Kept | None = None
        furthest = reach + LEAST_KEPT
        for kept in self._kept:
            marks = [mark.position for mark in kept.marks]
            further = self._reach(common(kept.tokens, prompt), len(kept.tokens), marks, asked)
            if further > furthest:
                best, furthest = kept, further
        beyond = furthest if best is not None else reach
        if self._folder is not None and asked - beyond > LEAST_READ:

            def reach_of(header: Header) -> int:
                if len(header.tokens) > self._llm.n_ctx():  # of a longer context: there are too few cells
                    return 0
                return self._reach(common(header.tokens, prompt), len(header.tokens), header.places, asked)

            header, further = self._folder.find(reach_of)
            if header is not None and further > beyond + LEAST_READ:
                kept_there = self._folder.read(header)
                if kept_there is not None:
                    return kept_there, further
        return (best, furthest) if best is not None else None

    # Changing the context.

    def _displace(self, reach: int) -> None:
        """Keep the conversation in the context if the new prompt drops more of it than its last answer."""
        llm = self._llm
        if not self._budget or reach >= self._asked - TAIL or llm.n_tokens - reach < LEAST_KEPT:
            return
        if llm._logits_all or not self._is_whole() or (kept := self._copy()) is None:
            return
        if self._folder is not None and not self._is_on_disk():
            self._to_disk(kept)
        if kept.bytes <= self._budget:
            self._kept[:] = [other for other in self._kept if common(other.tokens, kept.tokens) < len(other.tokens)]
            self._kept.append(kept)
            self._shrink()

    def _copy(self) -> Kept | None:
        """Copy the conversation in the context; None if neither RAM nor a folder has room for it."""
        size = llama_cpp.llama_state_seq_get_size(self._llm.ctx, self._sequence)
        if size <= 0 or (self._folder is None and size > self._budget):
            return None
        return Kept(self._held().copy(), self._state(0), list(self._marks), self._asked)

    def _to_disk(self, kept: Kept) -> None:
        assert self._folder is not None
        self._on_disk = kept.tokens
        self._folder.write(Kept(kept.tokens, kept.state, _thinned(kept), kept.asked))

    def _restore(self, kept: Kept) -> bool:
        """Put a conversation in the place of the one in the context; return False if llama.cpp refuses it."""
        llm = self._llm
        self._clear()
        taken = llama_cpp.llama_state_seq_set_data(llm.ctx, _pointer(kept.state), kept.state.nbytes, self._sequence)
        self._kept[:] = [other for other in self._kept if other is not kept]
        length = len(kept.tokens) if taken else 0
        self._marks = list(kept.marks) if taken else []
        llm.input_ids[:length] = kept.tokens[:length]
        llm.n_tokens, llm._requires_eval = length, True
        self._seen, self._foreign = length, None
        if taken and not self._is_intact():
            llm.n_tokens = self._seen = 0
        return bool(llm.n_tokens)

    def _clear(self) -> None:
        if self._alone:
            llama_cpp.llama_memory_clear(self._memory, True)
        else:
            llama_cpp.llama_memory_seq_rm(self._memory, self._sequence, -1, -1)

    def _cut(self, reach: int) -> None:
        llm = self._llm
        if reach > 0 and not self.cuttable and (reach < llm.n_tokens or not self._is_intact()):
            mark = next((mark for mark in self._marks if mark.position == reach), None)
            if mark is None or not llama_cpp.llama_state_seq_set_data_ext(
                llm.ctx, _pointer(mark.state), mark.bytes, self._sequence, PARTIAL
            ):
                reach = 0
        if reach == 0 or not llama_cpp.llama_memory_seq_rm(self._memory, self._sequence, reach, -1):
            self._clear()
            reach = 0
        self._marks = [mark for mark in self._marks if mark.position <= reach]
        if reach < llm.n_tokens or reach == 0:
            llm._requires_eval = True
        llm.n_tokens = self._seen = reach
        if self._foreign is not None and reach <= self._foreign:
            self._foreign = None

    def _state(self, flags: int) -> State:
        context = self._llm.ctx
        size = llama_cpp.llama_state_seq_get_size_ext(context, self._sequence, flags)
        state = np.empty(size, np.uint8)
        llama_cpp.llama_state_seq_get_data_ext(context, _pointer(state), size, self._sequence, flags)
        return state

    def _shrink(self) -> None:
        """Give up states until the rest fits the budget: first the oldest conversations, then crowded marks."""
        while self.bytes > self._budget and self._kept:
            self._kept.pop(0)
        while self.bytes > self._budget and self._marks:
            del self._marks[_most_crowded(self._marks)]


def folder_of(cache: str | Path, llm: Any, model: str, device: str) -> Folder | None:
    """Give the folder that ``OffloadConfig.cache`` names, None for ``auto`` and ``off``.

    Args:
        cache: the setting.
        llm: the model; its context settings and its adapter are part of the files' key.
        model: identity of the model.
        device: ggml name of the device; its kind is part of the key, because another kind rounds otherwise.
    """
    if str(cache) in ("auto", "off"):
        return None
    settings: dict[str, object] = {name: getattr(llm.context_params, name) for name in _SETTINGS}
    settings |= {
        "long ropes": _has_long_ropes(llm),
        "device": device.rstrip("0123456789"),
        "backend": llama_cpp.__version__,
    }
    settings["overrides"] = llm.kv_overrides
    if llm.lora_path:
        status = Path(llm.lora_path).stat()
        settings["adapter"] = [str(Path(llm.lora_path).resolve()), status.st_size, status.st_mtime_ns, llm.lora_scale]
    return Folder(Path(cache).expanduser(), key_of(model, settings))


def _has_long_ropes(llm: Any) -> bool:
    """Tell whether llama.cpp rotates by the factors for long contexts, where a model has two sets of factors."""
    name = llm.metadata.get("general.architecture")
    keys = (f"{name}.rope.scaling.original_context_length", f"{name}.context_length")
    short = next((int(llm.metadata[key]) for key in keys if key in llm.metadata), 0)
    return bool(llm.n_ctx() > (llm.context_params.yarn_orig_ctx or short))


def _pointer(state: State) -> Any:
    return state.ctypes.data_as(llama_cpp.ctypes.POINTER(llama_cpp.ctypes.c_uint8))


def _most_crowded(marks: Sequence[Mark]) -> int:
    """Give the index of the mark that its neighbours can replace best; the last two marks go last."""
    places = [0, *(mark.position for mark in marks)]
    return min(range(len(marks) - 2), key=lambda at: places[at + 2] - places[at], default=0)


def _thinned(kept: Kept) -> list[Mark]:
    """Choose marks for a file: no more bytes than the whole state has. The last two marks of the prompt always stay."""
    marks = [mark for mark in kept.marks if mark.position <= kept.asked]
    while len(marks) > 2 and sum(mark.bytes for mark in marks) > kept.state.nbytes:
        del marks[_most_crowded(marks)]
    return marks
