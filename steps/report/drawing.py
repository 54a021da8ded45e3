"""Draws pictures with the models of a finished run."""

from dataclasses import dataclass
from typing import Any

import torch

from artifacts_schema.config import parse_config
from artifacts_schema.parts import SkippedRecord
from artifacts_schema.plan import RunPlan
from artifacts_schema.ranges import Device
from artifacts_schema.report import RunReport
from artifacts_schema.run_configs import ComputeConfig
from artifacts_schema.training import TrainingRecord
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.pictures import grid, png
from steps.files.errors import SnapFusionError
from steps.inputs.context import StageContext, select_device
from steps.inputs.loaded import StageInputs
from steps.models.base import encode_captions
from steps.models.stored import load_model
from steps.report.stored import record_of
from steps.store import Store
from steps.training.randomness import keyed_normal

MODELS = ("student", "teacher", "base")


@dataclass(frozen=True)
class DrawRequest:
    """What to draw, and with which of a run's models. `steps` None takes what the model was made for."""

    prompt: str
    model: str = "student"
    steps: int | None = None
    guidance_scale: float = 3.0
    seed: int = 0
    count: int = 1
    device: Device = "auto"


def draw(store: Store, report: RunReport, request: DrawRequest) -> bytes:
    """PNG bytes of `count` pictures side by side, whatever device the run itself had.

    Raises SnapFusionError for a prompt or model that cannot be drawn.
    """
    if not request.prompt.strip():
        raise SnapFusionError("expected a prompt, found an empty one")
    if request.count < 1 or (request.steps is not None and request.steps < 1):
        raise SnapFusionError(
            f"count and steps must be at least 1, found {request.count} and {request.steps}"
        )
    if not 0.0 < request.guidance_scale < 1000.0:  # NaN, too
        raise SnapFusionError(f"expected a guidance scale between 0 and 1000, found {request.guidance_scale}")
    config = parse_config(report.config)
    context = StageContext(
        stage="draw",
        store=store,
        work=store.work_folder("draw"),
        seed=request.seed,
        device=select_device(ComputeConfig(device=request.device)),
    )
    plan: RunPlan = record_of(store, report, "start")
    inputs = StageInputs(plan, context)
    base = inputs.base
    unet: Any = base.unet
    decoder: Any = base.vae
    steps, prediction = request.steps or config.evaluation.base_steps, base.prediction_type
    if request.model != "base":
        stage = "student_8" if request.model == "student" else "teacher_16"
        record: TrainingRecord | SkippedRecord = record_of(store, report, stage)
        if isinstance(record, SkippedRecord) and request.model == "teacher":
            raise SnapFusionError("this run trained no teacher (run.skip); draw with --model student or base")
        if record.weights is not None:
            unet, prediction = load_model(store, record.weights), "v_prediction"
        steps = request.steps or record.grid_steps or steps
    if request.model == "student" and (ref := record_of(store, report, "decoder_distillation").weights):
        decoder = load_model(store, ref)
    text = encode_captions(base.tokenizer, base.text_encoder, [request.prompt])
    numbers = torch.arange(request.count)
    latents = sample_latents(
        unet.to(context.device),
        NoiseSchedule.from_config(base.scheduler_config),
        noise=keyed_normal(base.latent_shape, seed=request.seed, name="draw", iteration=0, indices=numbers),
        embeddings=text.expand(request.count, -1, -1),
        empty_embedding=encode_captions(base.tokenizer, base.text_encoder, [""]),
        steps=steps,
        guidance_scale=request.guidance_scale,
        prediction_type=prediction,
    )
    images = decode_latents(decoder.to(context.device), latents, scaling_factor=base.scaling_factor)
    return png(grid(images, columns=request.count))
