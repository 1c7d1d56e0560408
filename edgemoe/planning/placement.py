"""Where the bytes of a model go on a machine: decided before anything is loaded, pure arithmetic on plain records.

KV cache and experts are planned together: what the context needs is set aside first, experts get the rest. Nothing is
planned into memory that is not free, and a reserve stays for the desktop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import Budget
from ..routing.policy import plan_slots
from ..types import ModelShape

GIB = 1 << 30
# Left free on a device for the desktop and other programs; on a device below 4 GiB a quarter of it.
RESERVE_BYTES = GIB
# Tokens that llama.cpp computes at once (its default n_ubatch); buffers are sized for them.
BATCH = 512
# Of these, what is no prompt: fewer than llama.cpp, too, brings experts to the device for.
FEW_TOKENS = 32
# llama.cpp makes the KV cache a multiple of so many tokens long.
CONTEXT_STEP = 256
# Staging places for experts that a prefill brings to the device: all of a layer, where that is no more than this share
# of the device's memory; else two halves, one filled while the other computes.
STAGE_SHARE = 1 / 8
STREAM_SLOTS = 16
# What alignment may add to the slots of a layer (8 tensors, 512 bytes each).
LAYER_OVERHEAD = 4096
# Margin on the estimate of llama.cpp's compute buffer; 4 measured ones lay 0 to 6 % below it.
COMPUTE_MARGIN = 1.1
# States of prompts that were read: a share of the RAM that the model leaves, at most so many bytes. If it leaves none,
# they still have a small share of all free RAM: a hybrid without states reads every prompt from its beginning.
STATES_SHARE, STATES_BYTES, STATES_LEAST_SHARE = 1 / 4, 4 * GIB, 1 / 64

# Budgets that ask for no resident experts.
NOTHING = (Budget(bytes=0), Budget(share=0.0))


@dataclass(frozen=True)
class MachineRates:
    """One machine, and what was measured of it; a rate that was not measured is None.

    Attributes:
        device: ggml name of the device, empty for none.
        device_free_bytes: free memory of the device.
        device_total_bytes: all memory of the device.
        ram_free_bytes: memory that programs can still have, caches counted as free.
        ram_total_bytes: all memory.
        cores: physical ones.
        threads: of the CPU that compute.
        cpu_expert_rate: bytes of experts per second that the CPU multiplies one token with.
        cpu_operation_rate: multiply-adds per second of the CPU on a batch of many tokens.
        ram_rate: bytes per second read from memory.
        upload_pinned_rate: bytes per second to the device, from pinned memory.
        upload_pageable_rate: the same from ordinary memory.
        device_rate: bytes of weights per second that the device multiplies one token with.
        device_operation_rate: multiply-adds per second of the device on a batch.
        cpu_dense_rate: bytes of other weights per second that the CPU multiplies one token with; as of experts if None.
        cpu_dense_operation_rate: multiply-adds per second of the CPU with them on a batch.
        device_dense_rate: the same of the device.
        device_dense_operation_rate: the same of the device.
        disk_rate: bytes per second read from the disk of the models, not from the cache.
        join_ns: nanoseconds to start work on the device and wait for it.
        layer_ns: nanoseconds per layer and token that no weight accounts for.
        device_is_cpu: device and CPU share their cores: they take turns instead of overlapping (``sim``).
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


@dataclass(frozen=True)
class ModelNeeds:
    """What a model needs, in bytes; made of its header by ``edgemoe.planning.model_needs``.

    Attributes:
        shape: geometry of the routed experts, None for a dense model.
        layers: all layers.
        dense_bytes: all weights but routed experts.
        dense_device_bytes: what a device holds of them: without the token embedding, with a copy of it where the
            output shares it.
        dense_read_bytes: weights outside of routed experts that one token reads.
        dense_operations: multiply-adds of one token outside of routed experts, attention to the context not counted.
        expert_operations: multiply-adds of one (token, expert) pair, mean of the layers.
        kv_token_bytes: KV cache of one token in layers that see all of the context.
        kv_window_bytes: the same in layers that see a window.
        window: tokens that these layers keep; 0: all, as llama-cpp-python does unless asked.
        state_bytes: state of recurrent layers, whatever the context.
        width: numbers of a hidden state.
        expert_width: neurons of one expert.
        heads: attention heads, most of a layer.
        vocabulary: tokens the model knows.
        flash: attention never writes its scores down.
        batch: most tokens that llama.cpp computes at once (``n_ubatch``).
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
    batch: int = BATCH

    @property
    def expert_bytes(self) -> int:
        """All routed experts."""
        return sum(self.shape.expert_bytes) * self.shape.experts if self.shape else 0

    @property
    def pair_bytes(self) -> float:
        """One expert, mean of the layers; 0 for a dense model."""
        return sum(self.shape.expert_bytes) / self.shape.layers if self.shape else 0.0

    @property
    def pairs(self) -> int:
        """(layer, expert) pairs that a token uses."""
        return self.shape.layers * self.shape.used if self.shape else 0

    def kv_bytes(self, context: int) -> int:
        """KV cache and recurrent state for ``context`` tokens."""
        cells = round_up(context, CONTEXT_STEP)
        kept = min(cells, round_up(self.window + self.batch, CONTEXT_STEP)) if self.window else cells
        return cells * self.kv_token_bytes + kept * self.kv_window_bytes + self.state_bytes

    def compute_bytes(self, context: int) -> int:
        """Estimate of llama.cpp's compute buffer: a batch's logits, its attention to the context, or its pairs."""
        scores = (2 if self.flash else self.heads + 2) * round_up(context, CONTEXT_STEP) + 6 * self.width
        pairs = self.shape.used * (2 * self.width + 3 * self.expert_width) + 4 * self.width if self.shape else 0
        return int(COMPUTE_MARGIN * 4 * self.batch * max(self.vocabulary + self.width, scores, pairs))

    def staging_bytes(self, stream_slots: int, rows: bool) -> int:
        """Device memory of a prefill: places for streamed experts of the largest size.

        Args:
            stream_slots: number of places.
            rows: inputs and results of all pairs are brought there as well.
        """
        if self.shape is None:
            return 0
        # Sizes share the memory where rows are read in whole pieces, see core/residency/stage.cpp.
        sizes = set(self.shape.expert_bytes)
        shared = self.width % 256 == 0 == self.expert_width % 256
        places = (max(sizes) if shared else sum(sizes)) * min(stream_slots, self.shape.experts)
        tables = 2 * self.shape.layers * round_up(4 * self.shape.experts, 256)
        # Regions grow by a quarter more than was asked for. Aside: places of a batch's pairs, inputs of a few tokens,
        # and all that belongs to one.
        pair = 2 * self.width + 3 * self.expert_width  # its input and output, three times the neurons
        aside = 5 * (self.batch * self.shape.used + FEW_TOKENS * self.width + self.shape.used * pair)
        return places + tables + aside + rows * self.batch * self.shape.used * 5 * pair


@dataclass(frozen=True)
class Plan:
    """Where everything goes. Sizes are bytes.

    Attributes:
        context: tokens.
        dense_on_device: attention, norms, routers and shared experts run on the device.
        kv_on_device: and the KV cache is there.
        slots: device places for experts, of each layer with routed experts.
        hot_bytes: of these places, alignment included.
        dense_bytes: device memory of the dense weights.
        kv_bytes: KV cache, wherever it is.
        compute_bytes: llama.cpp's compute buffer on the device, an estimate.
        staging_bytes: device memory of a prefill.
        stream_slots: staging places for experts that a prefill streams through the device.
        reserve_bytes: device memory left to others.
        pinned_bytes: host memory that cannot be paged: staging of the uploads.
        ram_private_bytes: host memory that cannot be given back: KV cache and buffers not on the device, staging.
        ram_mapped_bytes: weights that the CPU reads; pages of the file.
        ram_short_bytes: of these, what the free memory cannot hold: read from the disk again and again.
        states_bytes: host memory for states of prompts that were read, at most; taken when there are some.
        fits: the model can be run without reading its weights from the disk for every token.
        parts: why not, or what was given up, by what it is about: ``ram``, ``dense``, ``experts``.
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
        """Why the model cannot be run, or what was given up; empty when everything is as asked."""
        return self.reason_without()

    def reason_without(self, *subjects: str) -> str:
        """``reason``, without what it has of these ``parts``."""
        return " ".join(text for subject, text in self.parts if subject not in subjects)

    @property
    def device_bytes(self) -> int:
        """All that is asked of the device, the reserve not counted."""
        kv = self.kv_bytes if self.kv_on_device else 0
        return self.hot_bytes + self.dense_bytes + kv + self.compute_bytes + self.staging_bytes

    def stages_layers(self, shape: ModelShape | None) -> bool:
        """Whether a prefill brings all experts of a layer to the device, rather than rows to experts."""
        return shape is not None and self.dense_on_device and self.stream_slots >= shape.experts

    def staging_of(self, needs: ModelNeeds) -> int:
        """Device memory that a prefill takes with these staging places."""
        return needs.staging_bytes(self.stream_slots, rows=not self.stages_layers(needs.shape))


def round_up(value: int, step: int) -> int:
    """The least multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step


def reserve_of(total_bytes: int) -> int:
    """What a device of this size keeps free."""
    return min(RESERVE_BYTES, total_bytes // 4)


def plan(
    machine: MachineRates,
    needs: ModelNeeds,
    context: int,
    budget: Budget,
    stream: bool = True,
    dense: bool | None = None,
    cache: bool | None = None,
) -> Plan:
    """Place a model: dense weights, then the KV cache, then as many experts as there is room for.

    What does not fit beside the reserve is left to the CPU, KV cache first, then the dense weights. A budget that is
    asked for by number is kept to as far as there is free memory; the reserve is only kept when it is automatic.

    Args:
        machine: free memory counts; rates only for what a lack of memory costs.
        needs: the model.
        context: tokens.
        budget: device memory for experts.
        stream: a prefill may bring experts to the device.
        dense: the dense weights are on the device, or are not, whatever the room; None: where there is room.
        cache: the same of the KV cache, which is there only beside the dense weights.
    """
    reserve = reserve_of(machine.device_total_bytes) if budget == Budget() else 0
    room = max(0, machine.device_free_bytes - reserve) if machine.device else 0
    best = Plan(
        context, kv_bytes=needs.kv_bytes(context), reserve_bytes=reserve if machine.device else 0
    )  # fmt: skip
    if machine.device:
        best, note = (best, "") if dense is False else _place_dense(best, needs, room, dense or False, cache)
        left = max(0, room - best.device_bytes)
        best = _place_experts(best, needs, left, budget, _stages(machine, needs, best, stream))
        parts = (("dense", note), ("experts", _shortage(best, needs, budget)))
        best = replace(best, parts=tuple((subject, text) for subject, text in parts if text))
    return _with_ram(best, machine, needs)


def experts_room(free_bytes: int, total_bytes: int, spare_bytes: int) -> int:
    """Device memory for experts of a model that is loaded already, beside the reserve and ``spare_bytes``."""
    return max(0, free_bytes - reserve_of(total_bytes) - spare_bytes)


def _place_dense(start: Plan, needs: ModelNeeds, room: int, forced: bool, cache: bool | None) -> tuple[Plan, str]:
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


def _stages(machine: MachineRates, needs: ModelNeeds, start: Plan, stream: bool) -> list[int]:
    """Numbers of staging places, the best first."""
    if not stream or needs.shape is None:
        return [0]
    layer = max(needs.shape.expert_bytes) * needs.shape.experts
    whole = start.dense_on_device and layer <= machine.device_total_bytes * STAGE_SHARE
    return [*([max(needs.shape.experts, STREAM_SLOTS)] if whole else []), STREAM_SLOTS, 0]


def _place_experts(start: Plan, needs: ModelNeeds, room: int, budget: Budget, stages: list[int]) -> Plan:
    shape = needs.shape
    if shape is None:
        return start
    tried = (replace(start, stream_slots=stream_slots) for stream_slots in stages)  # with fewer there may still be room
    found = next((placed for placed in tried if placed.staging_of(needs) <= room), None)
    if found is None:
        return start
    staging = found.staging_of(needs)
    pinned = max(shape.expert_bytes) * (1 + (0 if found.stages_layers(shape) else found.stream_slots // 2))
    start = replace(found, staging_bytes=staging, pinned_bytes=pinned)
    overhead = shape.layers * LAYER_OVERHEAD
    wanted = needs.expert_bytes
    if budget.share is not None:
        wanted = int(wanted * budget.share)
    elif budget.bytes is not None:
        wanted = min(wanted, budget.bytes)
    slots = tuple(int(n) for n in plan_slots(shape, max(0, min(wanted, room - staging - overhead))))
    hot = sum(n * size for n, size in zip(slots, shape.expert_bytes, strict=True))
    return replace(start, slots=slots, hot_bytes=hot + overhead) if hot else start


def _shortage(placed: Plan, needs: ModelNeeds, budget: Budget) -> str:
    if needs.shape is None or budget in NOTHING:
        return ""
    if not placed.slots:
        return "The device cannot hold 2 x top-k experts of any layer: all experts stay on the CPU."
    asked = budget.bytes if budget.bytes is not None else int(needs.expert_bytes * (budget.share or 0.0))
    asked = min(asked, needs.expert_bytes)
    least = asked - 2 * needs.shape.layers * max(needs.shape.expert_bytes)
    if placed.hot_bytes < least:
        return f"The device has room for {placed.hot_bytes / GIB:.2f} GiB of experts instead of {asked / GIB:.2f} GiB."
    return ""


def _with_ram(placed: Plan, machine: MachineRates, needs: ModelNeeds) -> Plan:
    """Add what the host holds, and what it costs when that is too much."""
    private = placed.pinned_bytes
    private += 0 if placed.kv_on_device else placed.kv_bytes + needs.compute_bytes(placed.context)
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


def _cost_of_shortage(placed: Plan, machine: MachineRates, needs: ModelNeeds) -> str:
    needed, free = placed.ram_private_bytes + placed.ram_mapped_bytes, machine.ram_free_bytes
    text = f"RAM is too small: {needed / GIB:.2f} GiB are needed, {free / GIB:.2f} GiB are free"
    if placed.ram_private_bytes > free:
        return text + ", and the KV cache and buffers alone take more: it cannot be loaded with this context."
    read = disk_bytes(placed, needs)
    text += f": about {read / 2**20:.0f} MiB of every token's weights come from the disk"
    return text + (f", {read / machine.disk_rate:.2g} s per token." if machine.disk_rate else ".")


def disk_bytes(placed: Plan, needs: ModelNeeds) -> float:
    """Bytes that a token reads from the disk when memory is short: the missing share of what it reads from memory."""
    if not placed.ram_short_bytes or not placed.ram_mapped_bytes:
        return 0.0
    missing = min(1.0, placed.ram_short_bytes / placed.ram_mapped_bytes)
    cold = 1.0 - (placed.hot_bytes / needs.expert_bytes if needs.expert_bytes else 0.0)
    dense = 0 if placed.dense_on_device else needs.dense_read_bytes
    return missing * (dense + max(0.0, cold) * needs.pairs * needs.pair_bytes)
