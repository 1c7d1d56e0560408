"""The placement of a model on a machine, decided before anything is loaded: pure arithmetic on plain records.

KV cache and experts are planned together: the context's memory is set aside first, experts get the rest. A plan uses
free memory only, and leaves a reserve for the desktop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import Budget
from ..routing.policy import slots_for
from ..types import ModelShape
from .typical import typical_hit_rate

GIB = 1 << 30
# Memory left free on a device for the desktop and other programs; below 4 GiB, a quarter of the device.
RESERVE_BYTES = GIB
# Tokens that llama.cpp computes at once (its default n_ubatch); its buffers have this size.
BATCH = 512
# A smaller batch does not bring experts to the device as whole layers. llama.cpp has the same limit.
FEW_TOKENS = 32
# The length of llama.cpp's KV cache is a multiple of so many tokens.
CONTEXT_STEP = 256
# A prefill brings experts to staging places on the device. If all experts of a layer take no more than this share of
# the device's memory, each has a place. Otherwise the places are two halves: copies fill one half while the
# device computes with the other.
STAGE_SHARE = 1 / 8
STREAM_SLOTS = 16
# Bytes that alignment may add to the slots of a layer (8 tensors, 512 bytes each).
LAYER_OVERHEAD = 4096
# Margin on the estimate of llama.cpp's compute buffer; four measured buffers were 0 to 6 % smaller than the estimate.
COMPUTE_MARGIN = 1.1
# An indexer keeps so many scores per cell, and so many numbers per cell that it selects; measured on tests/zoo.
INDEX_SCORES, INDEX_CHOICES = 2, 5
# Linear attention compares the tokens of a batch with each other, so many times.
LINEAR_SCORES = 2
# States of earlier prompts take a share of the RAM that the model leaves, up to a limit. If the model leaves no RAM,
# the states still take a small share of all free RAM, because a hybrid without states reads every prompt from its
# beginning.
STATES_SHARE, STATES_BYTES, STATES_LEAST_SHARE = 1 / 4, 4 * GIB, 1 / 64

# Budgets that ask for no resident experts.
NOTHING = (Budget(bytes=0), Budget(share=0.0))


@dataclass(frozen=True)
class MachineRates:
    """The memory and the measured rates of one machine; a rate that was not measured is None.

    Attributes:
        device: ggml name of the device, empty for none.
        device_free_bytes: free memory of the device.
        device_total_bytes: all memory of the device.
        ram_free_bytes: memory that programs can still allocate; memory of the file cache counts as free.
        ram_total_bytes: all memory.
        cores: physical cores.
        threads: CPU threads that compute.
        cpu_expert_rate: bytes of experts per second that the CPU reads to compute one token.
        cpu_operation_rate: multiply-adds per second of the CPU on a batch of many tokens.
        ram_rate: bytes per second read from memory.
        upload_pinned_rate: bytes per second to the device, from pinned memory.
        upload_pageable_rate: bytes per second to the device, from ordinary memory.
        device_rate: bytes of weights per second that the device multiplies one token with.
        device_operation_rate: multiply-adds per second of the device on a batch.
        cpu_dense_rate: bytes of dense weights per second that the CPU multiplies one token with; None means the rate of
            experts.
        cpu_dense_operation_rate: multiply-adds per second of the CPU with dense weights on a batch.
        device_dense_rate: bytes of dense weights per second that the device multiplies one token with.
        device_dense_operation_rate: multiply-adds per second of the device with dense weights on a batch.
        disk_rate: bytes per second from the disk that holds the models, past the cache.
        join_ns: nanoseconds to start work on the device and wait for it.
        layer_ns: nanoseconds per layer and token beside the reading of weights.
        device_is_cpu: device and CPU share their cores (``sim``), so they take turns.
        device_shares_ram: the memory of the device is RAM, as with integrated graphics, and counts as RAM.
    """

    device: str = ""
    device_free_bytes: int = 0
    device_total_bytes: int = 0
    ram_free_bytes: int = 0
    ram_total_bytes: int = 0
    cores: int = 1
    threads: int = 1
    cpu_expert_rate: float | None = None
    cpu_operation_rate: float | None = None
    ram_rate: float | None = None
    upload_pinned_rate: float | None = None
    upload_pageable_rate: float | None = None
    device_rate: float | None = None
    device_operation_rate: float | None = None
    cpu_dense_rate: float | None = None
    cpu_dense_operation_rate: float | None = None
    device_dense_rate: float | None = None
    device_dense_operation_rate: float | None = None
    disk_rate: float | None = None
    join_ns: float | None = None
    layer_ns: float | None = None
    device_is_cpu: bool = False
    device_shares_ram: bool = False

    @property
    def device_room_bytes(self) -> int:
        """Count the device memory that a plan may use. If it is RAM, too, a plan uses at most the free RAM."""
        if not self.device:
            return 0
        return min(self.device_free_bytes, self.ram_free_bytes) if self.device_shares_ram else self.device_free_bytes


@dataclass(frozen=True)
class ModelNeeds:
    """The needs of a model, in bytes; ``edgemoe.planning.model_needs`` reads them from its header.

    Attributes:
        shape: geometry of the routed experts, None for a dense model.
        layers: all layers.
        dense_bytes: all weights but routed experts.
        dense_device_bytes: dense weights that a device holds, without the token embedding. If the output shares the
            embedding, the device holds a copy for the output.
        dense_read_bytes: weights outside of routed experts that one token reads.
        dense_operations: multiply-adds of one token outside of routed experts, attention to the context not counted.
        expert_operations: multiply-adds of one (token, expert) pair, mean of the layers.
        kv_token_bytes: KV cache of one token in layers that see all of the context.
        kv_window_bytes: KV cache of one token in layers that see a window.
        window: tokens that a layer with a window keeps. 0: such a layer keeps all tokens, llama-cpp-python's default.
        state_bytes: state of recurrent layers, the same for every context.
        width: elements of a hidden state.
        expert_width: neurons of one expert.
        heads: attention heads of the layer with the most heads.
        vocabulary: tokens the model knows.
        flash: flash attention, which never stores its scores.
        indexed: cells that an indexer selects for a token; 0 without one.
        linear_heads: heads of linear attention that compare the tokens of a batch with each other.
        batch: most tokens that llama.cpp computes at once (``n_ubatch``).
        kv_compressed: pairs: tokens that share a cell of a compressed cache, and the bytes of the cell.
    """

    shape: ModelShape | None
    layers: int
    dense_bytes: int
    dense_device_bytes: int
    dense_read_bytes: int
    dense_operations: int = 0
    expert_operations: int = 0
    kv_token_bytes: int = 0
    kv_window_bytes: int = 0
    window: int = 0
    state_bytes: int = 0
    width: int = 0
    expert_width: int = 0
    heads: int = 0
    vocabulary: int = 0
    flash: bool = False
    indexed: int = 0
    linear_heads: int = 0
    batch: int = BATCH
    kv_compressed: tuple[tuple[int, int], ...] = ()

    @property
    def expert_bytes(self) -> int:
        """Count the bytes of all routed experts."""
        return sum(self.shape.expert_bytes) * self.shape.experts if self.shape else 0

    @property
    def pair_bytes(self) -> float:
        """Give the bytes of one expert, mean of the layers; 0 for a dense model."""
        return sum(self.shape.expert_bytes) / self.shape.layers if self.shape else 0.0

    @property
    def pairs(self) -> int:
        """Count the (layer, expert) pairs that a token uses."""
        return self.shape.layers * self.shape.used if self.shape else 0

    def kv_bytes(self, context: int) -> int:
        """Count the bytes of KV cache and recurrent state for ``context`` tokens."""
        cells, kept = self._cells(context)
        compressed = sum(round_up(-(-cells // tokens), CONTEXT_STEP) * size for tokens, size in self.kv_compressed)
        return cells * self.kv_token_bytes + kept * self.kv_window_bytes + compressed + self.state_bytes

    def _cells(self, context: int) -> tuple[int, int]:
        """Count the cells of layers that keep all of the context, and of layers with a window."""
        cells = round_up(context, CONTEXT_STEP)
        return cells, min(cells, round_up(self.window + self.batch, CONTEXT_STEP)) if self.window else cells

    def compute_bytes(self, context: int) -> int:
        """Estimate llama.cpp's compute buffer: its masks and, beside them, its largest part.

        The largest part are logits, attention scores or pairs of a batch. Masks are there for the whole batch.
        """
        cells, _ = self._cells(context)
        scores = self.heads * cells
        if self.flash:
            scores = INDEX_SCORES * cells if self.indexed else 0
        scores += INDEX_CHOICES * min(self.indexed, cells)
        scores = max(scores, LINEAR_SCORES * self.linear_heads * self.batch) + 6 * self.width
        pairs = self.shape.used * (2 * self.width + 3 * self.expert_width) + 4 * self.width if self.shape else 0
        largest = max(self.vocabulary + self.width, scores, pairs)
        return int(COMPUTE_MARGIN * (4 * self.batch * largest + self.mask_bytes(context)))

    def mask_bytes(self, context: int) -> int:
        """Count the bytes of the attention masks of a batch; flash attention has them in half precision.

        Linear attention has a table of decays between the tokens of a batch.
        """
        cells, kept = self._cells(context)
        decays = 4 * self.batch * self.batch * self.linear_heads
        return (2 if self.flash else 4) * self.batch * (cells + (kept if self.kv_window_bytes else 0)) + decays

    def staging_bytes(self, stream_slots: int, rows: bool) -> int:
        """Count the device memory of a prefill: places for streamed experts of the largest size.

        Args:
            stream_slots: number of places.
            rows: True if inputs and results of all pairs are brought to the device, too.
        """
        if self.shape is None:
            return 0
        # Sizes share memory if rows are read in whole pieces, see core/residency/stage.cpp.
        sizes = set(self.shape.expert_bytes)
        shared = self.width % 256 == 0 == self.expert_width % 256
        places = (max(sizes) if shared else sum(sizes)) * min(stream_slots, self.shape.experts)
        tables = 2 * self.shape.layers * round_up(4 * self.shape.experts, 256)
        # Beside the experts there are the ids of a batch's pairs, the inputs of a few tokens, and the data of one
        # token's pairs. The core allocates a quarter more than it asks for: 5 bytes for each 4.
        pair = 2 * self.width + 3 * self.expert_width  # a pair has an input, an output and three rows of neurons
        aside = 5 * (self.batch * self.shape.used + FEW_TOKENS * self.width + self.shape.used * pair)
        return places + tables + aside + rows * self.batch * self.shape.used * 5 * pair


@dataclass(frozen=True)
class Placement:
    """The placement of one model. Sizes are bytes.

    Attributes:
        context: tokens.
        dense_on_device: attention, norms, routers and shared experts run on the device.
        kv_on_device: the KV cache is on the device, too.
        slots: number of slots of each layer with routed experts.
        hot_bytes: device memory of the slots, alignment included.
        dense_bytes: device memory of the dense weights.
        kv_bytes: KV cache, on the device or in RAM.
        compute_bytes: llama.cpp's compute buffer on the device, an estimate.
        staging_bytes: device memory that a prefill takes beside llama.cpp's buffer.
        stream_slots: staging places for experts that a prefill streams through the device.
        reserve_bytes: device memory that stays free for other programs.
        pinned_bytes: pinned memory for the staging of uploads.
        ram_private_bytes: host memory that the system cannot take back: KV cache and buffers outside the device,
            staging, and all memory of a device that shares the RAM.
        ram_mapped_bytes: weights that the CPU reads; pages of the file.
        ram_short_bytes: mapped weights beyond the free memory, which are read from the disk again and again.
        states_bytes: most host memory for states of prompts that were read; it is taken when there are states.
        fits: the model can be run without reading its weights from the disk for every token.
        parts: pairs of a subject, ``ram``, ``dense`` or ``experts``, and a sentence on the lack of memory there.
    """

    context: int
    dense_on_device: bool = False
    kv_on_device: bool = False
    slots: tuple[int, ...] = ()
    hot_bytes: int = 0
    dense_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    staging_bytes: int = 0
    stream_slots: int = 0
    reserve_bytes: int = 0
    pinned_bytes: int = 0
    ram_private_bytes: int = 0
    ram_mapped_bytes: int = 0
    ram_short_bytes: int = 0
    states_bytes: int = 0
    fits: bool = True
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def reason(self) -> str:
        """Join the sentences of all parts; the result is empty if nothing is missing."""
        return self.reason_without()

    def reason_without(self, *subjects: str) -> str:
        """Join the sentences of all parts but these subjects."""
        return " ".join(text for subject, text in self.parts if subject not in subjects)

    @property
    def device_bytes(self) -> int:
        """Count the device memory of the placement, without the reserve."""
        kv = self.kv_bytes if self.kv_on_device else 0
        return self.hot_bytes + self.dense_bytes + kv + self.compute_bytes + self.staging_bytes

    def stages_layers(self, shape: ModelShape | None) -> bool:
        """Tell whether a prefill brings all experts of a layer to the device. Otherwise some experts stay in RAM."""
        return shape is not None and self.dense_on_device and self.stream_slots >= shape.experts

    def staging_of(self, needs: ModelNeeds) -> int:
        """Count the device memory that a prefill takes with these staging places."""
        return needs.staging_bytes(self.stream_slots, rows=not self.stages_layers(needs.shape))


def round_up(value: int, step: int) -> int:
    """Return the least multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step


def reserve_of(total_bytes: int) -> int:
    """Count the bytes that a device of this size keeps free."""
    return min(RESERVE_BYTES, total_bytes // 4)


def place(
    machine: MachineRates,
    needs: ModelNeeds,
    context: int,
    budget: Budget,
    stream: bool = True,
    dense: bool | None = None,
    cache: bool | None = None,
) -> Placement:
    """Place a model: dense weights, then the KV cache, then as many experts as there is room for.

    If not all parts fit beside the reserve, the KV cache stays in RAM. If that is not enough, the dense weights stay
    there, too. A budget in bytes or as a share may use the reserve. An automatic budget leaves the reserve free.

    Args:
        machine: its free memory. Its rates serve for one thing only: the cost of a lack of memory in words.
        needs: the model.
        context: tokens.
        budget: device memory for experts.
        stream: a prefill may bring experts to the device.
        dense: True puts the dense weights on the device and False leaves them in RAM, even without room; None decides
            by the room.
        cache: the same for the KV cache; the cache is on the device only if the dense weights are.
    """
    reserve = reserve_of(machine.device_total_bytes) if budget.automatic else 0
    room = max(0, machine.device_room_bytes - reserve)
    best = Placement(
        context, kv_bytes=needs.kv_bytes(context), reserve_bytes=reserve if machine.device else 0
    )  # fmt: skip
    if machine.device:
        best, note = (best, "") if dense is False else _place_dense(best, needs, room, dense or False, cache)
        left = max(0, room - best.device_bytes)
        best = _place_experts(best, needs, left, budget, _stages(machine, needs, best, stream))
        parts = (("dense", note), ("experts", _shortage(best, needs, budget)))
        best = replace(best, parts=tuple((subject, text) for subject, text in parts if text))
    return _with_ram(best, machine, needs)


def bytes_for_experts(needs: ModelNeeds, room: int, budget: Budget) -> int:
    """Give the bytes that resident experts may take of ``room`` bytes of device memory: no more than the budget."""
    overhead = slots_overhead(needs.shape) if needs.shape else 0
    return max(0, min(budget.of(needs.expert_bytes), room - overhead))


def slots_overhead(shape: ModelShape) -> int:
    """Give the bytes that alignment may add to the slots of all layers."""
    return shape.layers * LAYER_OVERHEAD


def with_slots(placed: Placement, needs: ModelNeeds, expert_bytes: int) -> Placement:
    """Give the placement other slots: as many as ``expert_bytes`` hold, spread over the layers."""
    if needs.shape is None:
        return placed
    slots = tuple(int(n) for n in slots_for(needs.shape, expert_bytes))
    hot = sum(n * size for n, size in zip(slots, needs.shape.expert_bytes, strict=True))
    if not hot:
        return replace(placed, slots=(), hot_bytes=0)
    return replace(placed, slots=slots, hot_bytes=hot + slots_overhead(needs.shape))


def _place_dense(
    start: Placement, needs: ModelNeeds, room: int, forced: bool, cache: bool | None
) -> tuple[Placement, str]:
    # Attention is computed where its cache is.
    dense_bytes, compute = needs.dense_device_bytes, needs.compute_bytes(0)
    dense = replace(start, dense_on_device=True, dense_bytes=dense_bytes, compute_bytes=compute)
    whole = replace(dense, kv_on_device=True, compute_bytes=needs.compute_bytes(start.context))
    if cache is not False and (whole.device_bytes <= room or (cache and forced)):
        return whole, ""
    if cache is not True and (dense.device_bytes <= room or forced):
        return dense, "" if cache is False else f"The KV cache of {start.context} tokens stays in RAM."
    with_cache = " and the KV cache" if cache else ""
    return start, f"The device has no room for the dense weights{with_cache}: they stay on the CPU."


def _stages(machine: MachineRates, needs: ModelNeeds, start: Placement, stream: bool) -> list[int]:
    """List the numbers of staging places to try, the best first."""
    if not stream or needs.shape is None:
        return [0]
    layer = max(needs.shape.expert_bytes) * needs.shape.experts
    whole = start.dense_on_device and layer <= machine.device_total_bytes * STAGE_SHARE
    return [*([max(needs.shape.experts, STREAM_SLOTS)] if whole else []), STREAM_SLOTS, 0]


def _place_experts(start: Placement, needs: ModelNeeds, room: int, budget: Budget, stages: list[int]) -> Placement:
    shape = needs.shape
    if shape is None:
        return start
    tried = (replace(start, stream_slots=stream_slots) for stream_slots in stages)  # fewer places may still fit
    found = next((placed for placed in tried if placed.staging_of(needs) <= room), None)
    if found is None:
        return start
    staging = found.staging_of(needs)
    pinned = max(shape.expert_bytes) * (1 + (0 if found.stages_layers(shape) else found.stream_slots // 2))
    start = replace(found, staging_bytes=staging, pinned_bytes=pinned)
    return with_slots(start, needs, bytes_for_experts(needs, room - staging, budget))


def _shortage(placed: Placement, needs: ModelNeeds, budget: Budget) -> str:
    if needs.shape is None or budget in NOTHING:
        return ""
    if not placed.slots:
        return "The device cannot hold 2 x top-k experts of any layer: all experts stay on the CPU."
    if budget.automatic:
        return ""
    asked = budget.of(needs.expert_bytes)
    least = asked - 2 * needs.shape.layers * max(needs.shape.expert_bytes)
    if placed.hot_bytes < least:
        return f"The device has room for {placed.hot_bytes / GIB:.2f} GiB of experts instead of {asked / GIB:.2f} GiB."
    return ""


def _with_ram(placed: Placement, machine: MachineRates, needs: ModelNeeds) -> Placement:
    """Add the memory of the host, and the cost when there is too little."""
    private = placed.pinned_bytes
    in_ram = placed.kv_bytes + needs.compute_bytes(placed.context)
    private += needs.mask_bytes(placed.context) if placed.kv_on_device else in_ram  # the CPU makes the masks
    private += placed.device_bytes if machine.device_shares_ram else 0
    hot = 0
    if needs.shape is not None and placed.slots:
        hot = sum(n * size for n, size in zip(placed.slots, needs.shape.expert_bytes, strict=True))
    mapped = needs.expert_bytes - hot + needs.dense_bytes
    mapped -= min(needs.dense_bytes, needs.dense_device_bytes) if placed.dense_on_device else 0
    short = max(0, private + mapped - machine.ram_free_bytes)
    left, least = machine.ram_free_bytes - private - mapped, int(machine.ram_free_bytes * STATES_LEAST_SHARE)
    states = min(STATES_BYTES, max(int(left * STATES_SHARE), least))
    placed = replace(
        placed, ram_private_bytes=private, ram_mapped_bytes=mapped, ram_short_bytes=short, states_bytes=states
    )
    if not short:
        return placed
    return replace(placed, fits=False, parts=(("ram", _cost_of_shortage(placed, machine, needs)), *placed.parts))


def _cost_of_shortage(placed: Placement, machine: MachineRates, needs: ModelNeeds) -> str:
    needed, free = placed.ram_private_bytes + placed.ram_mapped_bytes, machine.ram_free_bytes
    text = f"RAM is too small: {needed / GIB:.2f} GiB are needed, {free / GIB:.2f} GiB are free"
    if placed.ram_private_bytes > free:
        return (
            text + ", and the KV cache and the buffers alone need more: the model cannot be loaded with this context."
        )
    read = disk_bytes(placed, needs)
    text += f": about {read / 2**20:.0f} MiB of every token's weights come from the disk"
    return text + (f", {read / machine.disk_rate:.2g} s per token." if machine.disk_rate else ".")


def disk_bytes(placed: Placement, needs: ModelNeeds) -> float:
    """Count the bytes that a token reads from the disk when memory is short: the experts that are in no memory."""
    if not placed.ram_short_bytes:
        return 0.0
    missing = min(1.0, placed.ram_short_bytes / needs.expert_bytes) if needs.expert_bytes else 1.0
    beyond = max(0, placed.ram_short_bytes - needs.expert_bytes)  # other weights come from the disk in every token
    return beyond + (1.0 - typical_hit_rate(1.0 - missing)) * needs.pairs * needs.pair_bytes
