"""Print the README's table "Which model fits my card".

python -m docs.cards

A header with the real model's shapes and types is planned on a made-up card. `edgemoe fit` does the same with the real
header: `edgemoe fit MODEL --device-free 12GiB --ram-free 64GiB`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.twin import hollow
from edgemoe.config import Budget
from edgemoe.models.gguf import check
from edgemoe.planning import model_needs
from edgemoe.planning.placement import MachineRates, ModelNeeds, Placement, place

MODELS = {
    "gpt-oss-20b": "MXFP4",
    "deepseek-v2-lite": "Q4_K_M",
    "qwen3-30b-a3b": "Q4_K_M",
    "mixtral-8x7b": "Q4_K_M",
    "gpt-oss-120b": "MXFP4",
}
CARDS = (8, 12, 16, 24)  # GiB
CONTEXT = 8192
GIB = 1 << 30
PLENTY = 1 << 40


def table() -> str:
    """Give the table as Markdown."""
    head = ["model", "file", *(f"{card} GB" for card in CARDS), "RAM beside 8 GB"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    with tempfile.TemporaryDirectory() as folder:
        lines += [_row(name, kind, Path(folder)) for name, kind in MODELS.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, kind: str, folder: Path) -> list[str]:
    path = hollow(name, folder)
    model = model_needs.of(check(path))
    plans = [_plan(model, card) for card in CARDS]
    ram = plans[0].ram_private_bytes + plans[0].ram_mapped_bytes
    shares = [_share(placed, model) for placed in plans]
    return [f"{name} {kind}", f"{path.stat().st_size / GIB:.1f} GiB", *shares, f"{ram / GIB:.0f} GiB"]


def _plan(model: ModelNeeds, card: int) -> Placement:
    machine = MachineRates(
        device="CUDA0", device_free_bytes=card * GIB, device_total_bytes=card * GIB,
        ram_free_bytes=PLENTY, ram_total_bytes=PLENTY,
    )  # fmt: skip
    return place(machine, model, CONTEXT, Budget())


def _share(placed: Placement, model: ModelNeeds) -> str:
    assert model.shape is not None
    if not placed.slots:
        return "-"
    return f"{100 * sum(placed.slots) / (model.shape.layers * model.shape.experts):.0f} %"


if __name__ == "__main__":
    print(table())
