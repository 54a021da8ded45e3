"""Latency tables of Stable Diffusion 1.5's UNet: counted MACs, and two stored ones that are like a GPU's and a phone's.

The stored ones are no measurements. A part costs its share of the multiply-accumulates times one number of milliseconds,
and an attention besides that its share of the attention scores (guided batch, heads, queries, keys), which unfused
attention writes and reads, times another. The two numbers follow from P: on the A100 (Table 5, without fused attention)
51.2 ms of which 26.2 are left, on the iPhone 1,700 ms of which 230 are left, of P's final UNet, which has no attention at
the highest resolution and 0.76 of the MACs. `python -m tests.steps.evolution.sd15_tables` writes them.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from artifacts_schema.base import Measurement
from artifacts_schema.latency import WHOLE_MODELS, LatencyTable
from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.latency.table import import_table
from steps.models.base import BaseModel
from steps.stages import latency_profile
from steps.unet.blocks import SD15_UNET_CONFIG

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "latency_tables"
STORED = {"gpu": ("torch-cuda", 37.0, 14.2), "phone": ("device", 303.0, 1397.0)}
"""Backend, milliseconds of all MACs, milliseconds of all attention scores."""


def mac_table() -> LatencyTable:
    """Counted on the meta device: no weights, some seconds."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET_CONFIG)
        vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, sample_size=512,
                            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=1))
    tokenizer: Any = SimpleNamespace(model_max_length=77)
    base = BaseModel(Path("sd15"), unet, vae, text, tokenizer, {}, "epsilon")
    return latency_profile.count(base, LatencyProfileConfig(backend="macs"))


def stored_table(name: str) -> LatencyTable:
    """A stored table, read and checked as one that a user imports."""
    return import_table(
        FOLDER / f"sd15_{name}_like.json",
        backend=STORED[name][0],
        unet_config=SD15_UNET_CONFIG,
        batch=2,
        latent_shape=(4, 64, 64),
        tokens=77,
    )


def like(name: str, macs: LatencyTable) -> LatencyTable:
    """A table of milliseconds made of counted MACs, see above."""
    backend, mac_ms, score_ms = STORED[name]
    parts = macs.parts()
    scores = {key: _scores(row.input_shapes) for key, row in parts.items() if row.kind == "attention"}
    total = sum(row.cost for row in parts.values())
    cost = {
        key: row.cost / total * mac_ms + scores.get(key, 0) / sum(scores.values()) * score_ms
        for key, row in parts.items()
    } | {key: macs.rows[key].cost / total * mac_ms for key in WHOLE_MODELS if key != "unet"}
    cost["unet"] = mac_ms + score_ms
    rows = {
        key: row.model_copy(update={"latency": Measurement.of([cost[key]], "ms"), "mean": None})
        for key, row in macs.rows.items()
    }
    changes = {
        "backend": backend,
        "device": f"like a {name}, made of MACs",
        "unit": "ms",
        "timing": "made up",
    }
    return macs.model_copy(
        update=changes | {"rows": rows, "whole": cost["unet"], "sum_of_parts": cost["unet"], "explained": 1.0}
    )


def _scores(shapes: tuple[tuple[int, ...], ...]) -> int:
    """Numbers in the score matrices of self- and cross-attention with eight heads."""
    batch, _, height, width = shapes[0]
    return batch * 8 * height * width * (height * width + 77)


if __name__ == "__main__":
    counted = mac_table()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for kind in STORED:
        (FOLDER / f"sd15_{kind}_like.json").write_text(like(kind, counted).to_json() + "\n")
