"""`bundle_drawing`: the whole bundle draws pictures on this machine, beside torch and on the same noise.

Tokenizer files, text encoder, UNet and decoder are read back from the bundle and run by the interpreter with float16
results rounded, so that what is measured is what every component does to the others.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from artifacts_schema.base import Measurement
from artifacts_schema.bundle import BundleDrawing, DrawingScores
from artifacts_schema.config import CoremlExportConfig
from artifacts_schema.references import WeightsRef
from steps.context import StageContext
from steps.diffusion.sampler import sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.errors import ExportError
from steps.evaluation.clip_score import ClipScorer
from steps.evaluation.pictures import grid, png
from steps.export.bundle_run import Bundle, to_pixels
from steps.export.samples import Pictures
from steps.inputs import StageInputs
from steps.models import BaseModel, encode_captions, load_model, token_ids
from steps.randomness import keyed_normal


def run(
    folder: Path,
    inputs: StageInputs,
    unet_ref: WeightsRef,
    decoder_ref: WeightsRef,
    config: CoremlExportConfig,
    context: StageContext,
    *,
    min_image_psnr_db: float | None = None,
) -> BundleDrawing:
    """Draw `program_check.pictures` validation captions with the bundle in `folder` and with its torch models.

    `min_image_psnr_db` takes the place of `program_check.min_image_psnr_db` for a bundle with compressed weights.
    Raises ExportError when a picture differs more from torch's than that allows.
    """
    if min_image_psnr_db is not None:
        check = config.program_check.model_copy(update={"min_image_psnr_db": min_image_psnr_db})
        config = config.model_copy(update={"program_check": check})
    bundle = Bundle.open(folder)
    captions = Pictures.of(inputs.data, config.program_check.pictures).captions
    check_tokens(bundle, inputs.base, captions)
    noise = drawing_noise(inputs.base, len(captions))
    context.progress.start("bundle: drawing", len(captions))
    drawn = []
    for index, caption in enumerate(captions):
        drawn.append(bundle.draw(caption, noise[index : index + 1]).image)
        context.progress.update(index + 1)
    context.progress.close()
    expected = torch_images(bundle, inputs.base, unet_ref, decoder_ref, captions, noise, context)
    scores = score(torch.cat(drawn), expected, captions, inputs.measure_clip)
    check_scores(scores, config)
    both = to_pixels(torch.cat([expected, *drawn]))
    return BundleDrawing(
        stage=context.stage,
        config=config.program_check.model_dump(include={"pictures", "min_image_psnr_db"}),
        seed=context.seed,
        captions=captions,
        guidance_scale=bundle.manifest.guidance_scale,
        steps=bundle.manifest.steps,
        scores=scores,
        grid=context.store.put_bytes(png(grid(both, columns=len(captions)))),
    )


def check_tokens(bundle: Bundle, base: BaseModel, captions: Sequence[str]) -> None:
    """Raises ExportError where the bundle's tokenizer files give other ids than the tokenizer trained with."""
    texts = ["", *captions]
    expected = token_ids(base.tokenizer, texts)
    found = bundle.token_ids(texts)
    if found.shape != expected.shape:
        raise ExportError(
            f"text_encoder: the bundle's captions have {found.shape[1]} tokens, the base's {expected.shape[1]}; "
            "export both of one base"
        )
    differ = (found != expected).any(dim=1).nonzero().flatten().tolist()
    if differ:
        raise ExportError(
            f"text_encoder: vocab.json and merges.txt give {texts[differ[0]]!r} other token ids than the base's "
            "tokenizer, so that the text encoder would read another caption; export both of one base"
        )


def score(drawn: Tensor, expected: Tensor, captions: Sequence[str], clip: ClipScorer) -> DrawingScores:
    """Pictures (n, 3, H, W) in about [-1, 1] of the bundle and of torch, and the captions both were drawn from."""
    ratios = [_image_psnr(*pair) for pair in zip(drawn, expected, strict=True)]
    found, reference = (
        float(clip.scores(to_pixels(images), captions).mean()) for images in (drawn, expected)
    )
    return DrawingScores(
        pictures=len(drawn),
        psnr_db=Measurement.of(ratios, "dB"),
        worst_psnr_db=min(ratios),
        clip_score=found,
        torch_clip_score=reference,
        clip_drop=reference - found,
    )


def check_scores(scores: DrawingScores, config: CoremlExportConfig) -> None:
    """Raises ExportError when the worst picture misses its gate."""
    gate = config.program_check.min_image_psnr_db
    if not scores.worst_psnr_db >= gate:
        raise ExportError(
            f"bundle: expected every picture at {gate:g} dB or more from torch's, found {scores.worst_psnr_db:.1f} dB "
            f"(median {scores.psnr_db.median:.1f}, {scores.pictures} pictures); the components pass one by one, so that "
            "small errors grow over the steps: see the UNet's parity, or set "
            "coreml_export.program_check.min_image_psnr_db"
        )


def drawing_noise(base: BaseModel, count: int) -> Tensor:
    """(count, c, h, w): what a bundle is drawn from wherever it is compared with torch."""
    numbers = torch.arange(count)
    return keyed_normal(base.latent_shape, seed=0, name="bundle_drawing", iteration=0, indices=numbers)


@torch.no_grad()
def torch_images(  # noqa: PLR0913 - everything that decides the pictures
    bundle: Bundle,
    base: BaseModel,
    unet_ref: WeightsRef,
    decoder_ref: WeightsRef,
    captions: Sequence[str],
    noise: Tensor,
    context: StageContext,
) -> Tensor:
    """(n, 3, H, W) in about [-1, 1]: the torch models in float32 on the bundle's grid, at its guidance scale."""
    manifest = bundle.manifest
    latents = sample_latents(
        load_model(context.store, unet_ref),
        NoiseSchedule.from_config(base.scheduler_config),
        noise=noise,
        embeddings=encode_captions(base.tokenizer, base.text_encoder, captions),
        empty_embedding=encode_captions(base.tokenizer, base.text_encoder, [""]),
        steps=manifest.steps,
        guidance_scale=manifest.guidance_scale,
        prediction_type=manifest.model_prediction,
    )
    decoder = load_model(context.store, decoder_ref)
    return torch.cat([decoder.decode(z / base.scaling_factor).sample for z in latents.split(1)])


def _image_psnr(found: Tensor, expected: Tensor) -> float:
    """10 log10(1 / mean square error) of two pictures, brought from [-1, 1] to [0, 1] and not rounded to bytes."""
    difference = (found.double().clamp(-1, 1) - expected.double().clamp(-1, 1)) / 2
    return -10.0 * math.log10(max(float(difference.square().mean()), 1e-20))
