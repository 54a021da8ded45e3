"""`bundle_drawing`: the whole bundle draws pictures on this machine, beside torch and on the same noise.

Tokenizer files, text encoder, UNet and decoder are read back from the bundle and run by the interpreter with float16
results rounded, so that what is measured is what every component does to the others.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from artifacts_schema.bundle import BundleDrawing, DrawingScores
from artifacts_schema.references import WeightsRef
from artifacts_schema.result_configs import CoremlExportConfig
from steps.evaluation.pictures import grid, png
from steps.export.bundle_pictures import drawing_noise, score, torch_images
from steps.export.bundle_run import Bundle, to_pixels
from steps.export.samples import Pictures
from steps.files.errors import ExportError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.base import BaseModel, token_ids


def draw_beside_torch(
    folder: Path,
    inputs: StageInputs,
    config: CoremlExportConfig,
    context: StageContext,
    *,
    unet_ref: WeightsRef | None,
    decoder_ref: WeightsRef | None,
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
    expected = torch_images(
        bundle, inputs.base, captions, noise, context.store, unet_ref=unet_ref, decoder_ref=decoder_ref
    )
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
