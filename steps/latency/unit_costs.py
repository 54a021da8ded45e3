"""What one latent costs on this machine: measured once in preflight, from it the estimates of every stage."""

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from steps.data.encoding import encode_moments
from steps.latency.memory import small_decoder_like
from steps.models.base import BaseModel
from steps.training.randomness import keyed_normal
from steps.unet.architecture import list_units
from steps.unet.blocks import full_spec

_LATENTS = 8
_NUMBERS = 1 << 16  # of latents together: four of Stable Diffusion's
_REPEATS = 3
_MOST_KEPT = 2 << 30
_UPDATED = 16_000_000  # 64 MB a tensor: beyond every cache


def measure_unit_costs(
    base: BaseModel, device: torch.device, *, half: bool | None = None
) -> dict[str, float]:
    """Seconds of one pass per latent, bytes kept for the backward pass per latent, and parameters.

    Keys: `unet_forward_s`, `decoder_forward_s`, `encoder_forward_s` and `text_encoder_forward_s` (of a picture and of a
    caption); `unet_training_s` and `small_decoder_training_s`, forward and backward (of a decoder of half the width);
    `unet_update_s`, the optimizer's and the moving average's part of a step; `unet_activation_bytes`,
    `decoder_activation_bytes`, `unet_parameters`, `decoder_parameters`, and `units`, the number of removable ones.
    On a GPU, or where `half` says so, also `unet_forward_bf16_s`, `unet_training_bf16_s` and `decoder_forward_bf16_s`; all
    others in float32. Medians of three, of eight latents at once; of fewer where they are large, or would keep more than two
    GiB for the backward pass. Leaves the models on `device`.
    """
    unet: Any = base.unet.to(device)
    vae: Any = base.vae.to(device)
    text_encoder: Any = base.text_encoder
    text_encoder.to(device)
    shape = base.latent_shape
    most = max(1, min(_LATENTS, _NUMBERS // math.prod(shape)))
    z = keyed_normal(shape, seed=0, name="unit costs", iteration=0, indices=torch.arange(most)).to(device)
    t = torch.full((most,), 500, device=device)
    text = torch.zeros(
        most, base.tokenizer.model_max_length, int(unet.config.cross_attention_dim), device=device
    )

    def denoise(count: int) -> Tensor:
        return unet(z[:count], t[:count], text[:count]).sample  # type: ignore[no-any-return]

    def decode(count: int) -> Tensor:
        return vae.decode(z[:count]).sample  # type: ignore[no-any-return]

    pictures = torch.zeros(most, 3, base.image_size, base.image_size, dtype=torch.uint8)
    ids = torch.zeros(most, base.tokenizer.model_max_length, dtype=torch.long, device=device)

    with torch.random.fork_rng(devices=[]):  # its weights are random, and no stage's business
        small = small_decoder_like(vae, 0.5).to(device)
    kept, kept_decoder = _kept_bytes(denoise, unet), _kept_bytes(decode, vae.decoder)
    parameters = sum(p.numel() for p in unet.parameters())
    fewer = _fewer(most, kept)
    found: dict[str, float] = {}
    if device.type == "cuda" if half is None else half:
        with torch.autocast(device.type, torch.bfloat16):
            found["unet_forward_bf16_s"] = _seconds(denoise, most, device)
            found["unet_training_bf16_s"] = _training_seconds(denoise, unet, fewer, device)
            found["decoder_forward_bf16_s"] = _seconds(decode, most, device)
    return found | {
        "unet_forward_s": _seconds(denoise, most, device),
        "decoder_forward_s": _seconds(decode, most, device),
        "encoder_forward_s": _seconds(lambda count: encode_moments(base, pictures[:count]), most, device),
        "text_encoder_forward_s": _seconds(lambda count: text_encoder(ids[:count])[0], most, device),
        "unet_training_s": _training_seconds(denoise, unet, fewer, device),
        "unet_update_s": _update_seconds(parameters, device),
        "small_decoder_training_s": _training_seconds(
            lambda count: small(z[:count]), small, _fewer(most, kept_decoder / 2), device
        ),
        "unet_activation_bytes": kept,
        "decoder_activation_bytes": kept_decoder,
        "unet_parameters": float(parameters),
        "decoder_parameters": float(sum(p.numel() for p in vae.decoder.parameters())),
        "units": float(len(list_units(full_spec(unet.config), unet.config))),
    }


def _fewer(most: int, kept_bytes: float) -> int:
    """So many latents that what they keep for the backward pass, so many bytes each, is within bounds."""
    return max(1, min(most, int(_MOST_KEPT // max(kept_bytes, 1.0))))


def _training_seconds(
    forward: Callable[[int], Tensor], model: torch.nn.Module, count: int, device: torch.device
) -> float:
    """Median seconds per latent of a forward and backward pass."""

    def step(count: int) -> None:
        forward(count).square().mean().backward()
        model.zero_grad(set_to_none=True)

    model.requires_grad_(True)
    try:
        with torch.enable_grad():
            return _timed(step, count, device)
    finally:
        model.requires_grad_(False)


def _update_seconds(parameters: int, device: torch.device) -> float:
    """Median seconds of clipping, AdamW and moving average, of as many numbers as a small model has, by their share."""
    count = min(parameters, _UPDATED)
    weights = torch.nn.Parameter(torch.zeros(count, device=device))
    average, weights.grad = torch.zeros(count, device=device), torch.full((count,), 1e-6, device=device)
    optimizer = torch.optim.AdamW([weights], lr=1e-9)

    def update(_: int) -> None:
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        optimizer.step()
        average.lerp_(weights.detach(), 0.01)

    return _timed(update, 1, device) * parameters / count


@torch.no_grad()
def _seconds(forward: Callable[[int], object], count: int, device: torch.device) -> float:
    return _timed(forward, count, device)


def _timed(call: Callable[[int], object], count: int, device: torch.device) -> float:
    """Median seconds per latent; the first call, which warms up, does not count."""
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        call(count)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[1:]) / count


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
