"""What one latent costs on this machine: measured once in preflight, from it the estimates of every stage."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from steps.data.encoding import encode_moments
from steps.models.base import BaseModel
from steps.training.randomness import keyed_normal
from steps.unet.architecture import list_units
from steps.unet.blocks import full_spec

_LATENTS = 4
_REPEATS = 3


def measure_unit_costs(base: BaseModel, device: torch.device) -> dict[str, float]:
    """Seconds of one forward pass per latent, bytes kept for the backward pass per latent, and parameters.

    Keys: `unet_forward_s`, `decoder_forward_s`, `encoder_forward_s` and `text_encoder_forward_s` (of a picture and of a
    caption), `unet_activation_bytes`, `decoder_activation_bytes`, `unet_parameters`, `decoder_parameters`, and `units`,
    the number of removable ones. Medians of three in float32, at a batch of four. Leaves the models on `device`.
    """
    unet: Any = base.unet.to(device)
    vae: Any = base.vae.to(device)
    text_encoder: Any = base.text_encoder
    text_encoder.to(device)
    shape = base.latent_shape
    z = keyed_normal(shape, seed=0, name="unit costs", iteration=0, indices=torch.arange(_LATENTS)).to(device)
    t = torch.full((_LATENTS,), 500, device=device)
    text = torch.zeros(
        _LATENTS, base.tokenizer.model_max_length, int(unet.config.cross_attention_dim), device=device
    )

    def denoise(count: int) -> Tensor:
        return unet(z[:count], t[:count], text[:count]).sample  # type: ignore[no-any-return]

    def decode(count: int) -> Tensor:
        return vae.decode(z[:count]).sample  # type: ignore[no-any-return]

    pictures = torch.zeros(_LATENTS, 3, base.image_size, base.image_size, dtype=torch.uint8)
    ids = torch.zeros(_LATENTS, base.tokenizer.model_max_length, dtype=torch.long, device=device)

    return {
        "unet_forward_s": _seconds(denoise, device),
        "decoder_forward_s": _seconds(decode, device),
        "encoder_forward_s": _seconds(lambda count: encode_moments(base, pictures[:count]), device),
        "text_encoder_forward_s": _seconds(lambda count: text_encoder(ids[:count])[0], device),
        "unet_activation_bytes": _kept_bytes(denoise, unet),
        "decoder_activation_bytes": _kept_bytes(decode, vae.decoder),
        "unet_parameters": float(sum(p.numel() for p in unet.parameters())),
        "decoder_parameters": float(sum(p.numel() for p in vae.decoder.parameters())),
        "units": float(len(list_units(full_spec(unet.config), unet.config))),
    }


@torch.no_grad()
def _seconds(forward: Callable[[int], Tensor], device: torch.device) -> float:
    """Median seconds per latent; the first call, which warms up, does not count."""
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        forward(_LATENTS)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[1:]) / _LATENTS


def _kept_bytes(forward: Callable[[int], Tensor], model: torch.nn.Module) -> float:
    """Bytes that autograd keeps for the backward pass of one latent, without the parameters themselves."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    model.requires_grad_(True)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward(1)
    finally:
        model.requires_grad_(False)
    return float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
