"""(c) Generation for evaluation against StableDiffusionPipeline called with lists of captions at its best batch size."""

from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from benchmarks.plain.setting import SEED, Setting, ratio, schedule_of, speed, timed
from benchmarks.published import Metric
from steps.data.prepared import PreparedData
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.models.base import BaseModel, encode_captions
from steps.training.randomness import keyed_normal

_SCALE = 3.0
_BATCHES = (4, 8, 16, 32, 64)


def pipeline_of(base: BaseModel) -> Any:
    """A plain pipeline; its scheduler takes our grid and ends at the clean latent."""
    scheduler = DDIMScheduler.from_config(
        base.scheduler_config,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        prediction_type=base.prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=base.vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer, unet=base.unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain(pipeline: Any, captions: list[str], noise: Tensor, steps: int, batch: int) -> Tensor:
    """uint8 pictures (n, 3, H, W), lists of `batch` captions a call."""
    parts = []
    for start in range(0, len(captions), batch):
        images = pipeline(
            captions[start : start + batch],
            num_inference_steps=steps,
            guidance_scale=_SCALE,
            latents=noise[start : start + batch],
            output_type="np",
        ).images
        parts.append(torch.from_numpy((images * 255).round().astype("uint8")).permute(0, 3, 1, 2))
    return torch.cat(parts)


def ours(base: BaseModel, data: PreparedData, noise: Tensor, steps: int) -> Tensor:
    """The same pictures as `steps.evaluation.bench` draws them: embeddings come prepared, the empty caption's once."""
    latents = sample_latents(
        base.unet,
        schedule_of(base),
        noise=noise,
        embeddings=data.embeddings("test", torch.arange(len(noise))),
        empty_embedding=data.empty_embedding,
        steps=steps,
        guidance_scale=_SCALE,
        prediction_type=base.prediction_type,
    )
    return decode_latents(base.vae, latents, scaling_factor=base.scaling_factor)


def measure(setting: Setting) -> list[Metric]:
    """Speed-up over the pipeline at whichever batch size it is fastest with."""
    base = setting.base()
    data, pipeline = setting.data(base), pipeline_of(base)
    count, steps = (4, 2) if setting.quick else (64, 8)
    captions = data.captions("test")[:count]
    noise = keyed_normal(
        base.latent_shape, seed=SEED, name="plain", iteration=0, indices=torch.arange(len(captions))
    )
    pictures = [plain(pipeline, captions, noise, steps, count), ours(base, data, noise, steps)]
    apart = int((pictures[0].int() - pictures[1].int()).abs().max())
    if apart > 1:
        raise SystemExit(
            f"generation: both sides must draw the same pictures, found {apart} of 255 between them"
        )
    sizes = [size for size in _BATCHES if size <= count] or [count]
    tried = {
        size: timed(
            setting, {"": partial(plain, pipeline, captions, noise, steps, size)}, repeats=1, warmup=0
        )[""][0]
        for size in sizes
    }
    best = min(tried, key=lambda size: tried[size])
    times = timed(
        setting,
        {
            "plain": partial(plain, pipeline, captions, noise, steps, best),
            "ours": partial(ours, base, data, noise, steps),
            "text": partial(encode_captions, base.tokenizer, base.text_encoder, captions),
        },
        repeats=0 if setting.quick else 5,
        warmup=1,
    )
    with_text = [a + b for a, b in zip(times["ours"], times["text"], strict=True)]
    note = f"{len(captions)} pictures, {steps} guided DDIM steps, {torch.get_num_threads()} threads"
    found = ", ".join(f"{size}: {len(captions) / value * 1e3:.2f}/s" for size, value in tried.items())
    return [
        Metric("generation.picture_difference", apart, "of 255", len(captions), apart, apart, "largest"),
        ratio("generation.speedup", times["plain"], times["ours"], note),
        ratio(
            "generation.speedup_with_text",
            times["plain"],
            with_text,
            "captions encoded by us, too, each once",
        ),
        speed("generation.plain", times["plain"], len(captions), f"lists of {best}; tried once: {found}"),
        speed("generation.ours", times["ours"], len(captions)),
    ]
