"""A miniature base, and reports of made-up packages."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from artifacts_schema.bundle import Component, ComponentReport, ExportCost
from steps.export.contract import package_name, text_encoder_contract, unet_contract, vae_decoder_contract
from steps.export.samples import Pictures
from steps.models.base import BaseModel
from steps.store.base import Store, put_folder
from tests.factories import tiny_base

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}

# Single letters, at the ends of words.
VOCABULARY = {"a</w>": 0, "b</w>": 1, "<|startoftext|>": 30, "<|endoftext|>": 31}

# Two levels: conversion time goes with the number of blocks.
TWO_LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}

CONTRACTS = {
    "text_encoder": text_encoder_contract(tokens=7, width=12),
    "unet": unet_contract(batch=2, latent=(4, 16, 16), tokens=7, width=12),
    "vae_decoder": vae_decoder_contract(latent=(4, 16, 16), scale=2),
}


def export_base(scaling_factor: float = 0.13) -> BaseModel:
    """Latents 4 x 16 x 16, 7 tokens, text width 12, a scaling factor that is not the runtime's."""
    base = replace(tiny_base(**TWO_LEVELS), scheduler_config=dict(SCHEDULE))
    base.vae.register_to_config(scaling_factor=scaling_factor)
    tokenizer = CLIPTokenizer(vocab=VOCABULARY, merges=[], model_max_length=7)
    return replace(base, tokenizer=tokenizer)


def pictures(count: int = 2) -> Pictures:
    """Captions of single letters, and latents of unit variance."""
    captions = ("b a", "a", "b b b b b b b b")[:count]
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return Pictures(captions, torch.randn(count, 4, 16, 16), images)


def tokenizer_folder(folder: Path) -> Path:
    """A base folder with tokenizer files only."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return folder


def fake_report(store: Store, folder: Path, component: Component, **changes: Any) -> ComponentReport:
    """A report of a package that holds two small files."""
    package = folder / component
    (package / "Data").mkdir(parents=True, exist_ok=True)
    (package / "Manifest.json").write_text("{}")
    (package / "Data" / "model.mlmodel").write_bytes(component.encode())
    inputs, outputs = CONTRACTS[component]
    fields: dict[str, Any] = {
        "stage": "coreml_export",
        "component": component,
        "package_name": package_name(component, "snapfusion"),
        "package": put_folder(store, package),
        "source_class": "Fake",
        "parameters": 1,
        "weights_sha256": "0" * 64,
        "inputs": inputs,
        "outputs": outputs,
        "prediction_type": "v_prediction",
        "output_prediction": "epsilon" if component == "unet" else None,
        "scaling_factor": 0.13,
        "cost": ExportCost(trace_s=0, convert_s=0, save_s=0, peak_memory_bytes=0),
    }
    return ComponentReport(**{**fields, **changes})
