"""Whether the trainings of a run fit into memory, and with which settings they would. Needs no weights and no GPU."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.stage_configs import TrainingConfig
from steps.files.errors import ConfigError
from steps.latency.bounds import RESERVE, TRAINED, passes, training_of
from steps.latency.memory import StepMemory, decoder_step, unet_step

_FLOAT = 4
_MOMENTS = 2
_GIB = 1 << 30


@dataclass(frozen=True)
class Shapes:
    """Configurations of the base's UNet and VAE, and the number of tokens of a caption: all that memory depends on."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    tokens: int


@dataclass(frozen=True)
class Need:
    """What a training stage needs where it computes: `bytes`, with the reserve; and its training section."""

    stage: str
    bytes: float
    training: TrainingConfig


def needs(config: SnapFusionConfig, shapes: Shapes) -> list[Need]:
    """What every stage that the run trains needs.

    A pruned UNet is taken to be as large as the base's: how small it gets is known only when it is found.
    """
    stages = [stage for stage in TRAINED if stage not in config.run.skip]
    return [
        Need(stage, needed(stage, config, shapes, training_of(config, stage)), training_of(config, stage))
        for stage in stages
    ]


def needed(stage: str, config: SnapFusionConfig, shapes: Shapes, training: TrainingConfig) -> float:
    """Bytes of one stage with this training section."""
    unet = _unet(shapes, training)
    if stage == "decoder_distillation":
        step = decoder_step(
            dict(shapes.vae),
            latent=int(shapes.unet["sample_size"]),
            width_fraction=config.decoder_distillation.width_fraction,
            precision=training.precision,
            recompute=training.gradient_checkpointing,
        )
        frozen = _FLOAT  # the base's UNet has drawn the latents
    else:
        step = unet
        frozen = _FROZEN.get(stage, 0) * (_FLOAT // 2 if training.precision == "bf16" else _FLOAT)
    weights = _FLOAT * step.parameters
    state = weights * (1 + _MOMENTS + (0 if training.ema_on_host else 1)) + frozen * unet.parameters
    own = -(
        -training.batch_size // config.compute.processes
    )  # of each of the processes that share a training
    return RESERVE * (state + step.of(own * passes(stage, config)))


# Further UNets beside the one that is trained: the eps base, the teacher. See steps.training.placement.frozen.
_FROZEN = {"velocity_finetuning": 1, "teacher_16": 1, "student_16": 1, "student_8": 1}


def _unet(shapes: Shapes, training: TrainingConfig) -> StepMemory:
    return unet_step(
        dict(shapes.unet),
        tokens=shapes.tokens,
        precision=training.precision,
        recompute=training.gradient_checkpointing,
    )


def check_fits(config: SnapFusionConfig, shapes: Shapes, available: float, *, where: str) -> list[Need]:
    """What every training needs. Raises ConfigError, before any of them, where one needs more than there is.

    `where` says whose memory `available` (bytes) is; "the GPU" can leave the moving average to the computer. The message
    proposes settings with which the same training, on as many samples a step, fits.
    """
    found = needs(config, shapes)
    lines = []
    if where != "the GPU":  # each process has a GPU of its own; a computer's memory they share
        available /= config.compute.processes
    for need in found:
        if need.bytes <= available:
            continue
        advice = propose(need.stage, config, shapes, available, on_gpu=where == "the GPU")
        lines.append(
            f"{need.stage}: training needs about {need.bytes / _GIB:.1f} GiB, {where} has {available / _GIB:.1f}; {advice}"
        )
    if lines:
        raise ConfigError("memory does not suffice:\n  " + "\n  ".join(lines))
    return found


def propose(stage: str, config: SnapFusionConfig, shapes: Shapes, available: float, *, on_gpu: bool) -> str:
    """The first settings that fit, those that cost the least time first; in words."""
    before = training_of(config, stage)
    for after in _cheaper(before, config.compute.processes, on_gpu=on_gpu):
        size = needed(stage, config, shapes, after)
        if size <= available:
            return f"set {_changes(stage, before, after)} ({size / _GIB:.1f} GiB)"
    return "no setting of this training fits, not even one sample at a time; use a larger machine"


def with_less(stage: str, config: SnapFusionConfig, *, on_gpu: bool) -> str:
    """What to set next for a training that ran out of memory, whatever it was told to need; "" where nothing is left."""
    before = training_of(config, stage)
    after = next(
        (item for item in _cheaper(before, config.compute.processes, on_gpu=on_gpu) if item != before), None
    )
    return _changes(stage, before, after) if after is not None else ""


def _changes(stage: str, before: TrainingConfig, after: TrainingConfig) -> str:
    return ", ".join(
        f"{stage}.training.{name} = {str(value).lower()}"
        for name, value in after.model_dump().items()
        if value != getattr(before, name)
    )


def _cheaper(training: TrainingConfig, processes: int, *, on_gpu: bool) -> Iterator[TrainingConfig]:
    """The same training with less memory: recomputation and the host's memory first, then smaller micro-batches, which the
    `processes` can share.
    """
    steps: list[Callable[[TrainingConfig], dict[str, Any]]] = [
        lambda _: {},
        lambda _: {"gradient_checkpointing": True},
    ]
    if on_gpu:
        steps.append(lambda _: {"gradient_checkpointing": True, "ema_on_host": True})
    total, size = training.batch_size * training.accumulation, training.batch_size
    while size >= 1:
        for change in steps:
            yield training.model_copy(
                update={**change(training), "batch_size": size, "accumulation": total // size}
            )
        divisors = (smaller for smaller in range(size - 1, 0, -1) if total % smaller == 0)
        size = next((smaller for smaller in divisors if smaller % processes == 0), 0)
