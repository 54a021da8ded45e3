"""How long every stage will take and how much memory it wants, before anything expensive runs.

Counted in forward passes of the UNet and of the decoder per latent, times what `steps.latency.unit_costs` measured on this
machine. A backward pass counts as two forward passes. Start-up, checkpoints and conversion are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import shipped_steps, variants_of
from artifacts_schema.stage_configs import TrainingConfig

_TRAINING = 3.0  # forward and backward, in forward passes
_GUIDED = 2.0  # a guided step calls the UNet on both branches
_STATE_COPIES = 6  # float32 weights, gradients, two moments, moving average, best state
_SMALL_DECODER = 0.3  # of the full decoder's forward pass, at half the width
_HELD_OUT = 128  # samples of a check of v, see steps.training.selection
_FLOAT = 4


@dataclass(frozen=True)
class StageEstimate:
    """Seconds of one stage; `memory_bytes` of models, optimizer and activations, where the stage trains."""

    stage: str
    seconds: float
    memory_bytes: float | None = None


def stage_estimates(config: SnapFusionConfig, costs: Mapping[str, float]) -> list[StageEstimate]:
    """One estimate per stage from `costs`, which `steps.latency.unit_costs.measure_unit_costs` returns.

    The evolved UNet is taken to cost the latency budget's share of the base. `start` is told of where `costs` hold the
    number of `pictures` that it encodes.
    """
    share = _share(config, costs)
    guided_share = config.step_distillation.cfg_probability
    original = 1.0 if config.step_distillation.gamma > 0 else 0.0
    base_term = 1.0 if config.velocity_finetuning.base_velocity_weight > 0 else 0.0
    velocity, robust = config.velocity_finetuning.training, config.robust_training.training
    teacher = 2.0 * (1.0 + guided_share)  # two steps, some of them guided
    student = _TRAINING * (1.0 + guided_share + original)
    own = share if config.student_16.teacher == "architecture_evolution" else 1.0
    evolution = config.architecture_evolution
    encoded = costs.get("encoder_forward_s", 0.0) + costs.get("text_encoder_forward_s", 0.0)
    start = [StageEstimate("start", costs["pictures"] * encoded)] if "pictures" in costs else []
    found = [
        *start,
        _training(
            "velocity_finetuning", velocity, _TRAINING + base_term, costs, 2, more=_checks(velocity, costs)
        ),
        _training("robust_training", robust, _TRAINING, costs, 1, more=_checks(robust, costs)),
        _training(
            "architecture_evolution", evolution.training, _TRAINING, costs, 1, more=_probes(config, costs)
        ),
        _distillation("teacher_16", config, teacher + student, costs, teacher=1.0, student=1.0),
        _distillation(
            "student_16",
            config,
            2.0 * own + share * _TRAINING * (1 + original),
            costs,
            teacher=own,
            student=share,
        ),
        _distillation("student_8", config, teacher + share * student, costs, teacher=1.0, student=share),
        *(
            _distillation(name, config, share * (teacher + student), costs, teacher=share, student=share)
            for name in ("student_4", "student_2")
            if getattr(config, name) is not None
        ),
        _decoder(config, costs),
        StageEstimate("evaluation", _evaluation(config, costs)),
    ]
    return [item for item in found if item.stage not in config.run.skip]


def _share(config: SnapFusionConfig, costs: Mapping[str, float]) -> float:
    """What the evolved UNet is taken to cost, of the base's; one that is given is known only when it is built."""
    if "architecture_evolution" in config.run.skip or config.architecture_evolution.architecture is not None:
        return 1.0
    return config.architecture_evolution.latency_budget


def format_estimates(
    estimates: Sequence[StageEstimate], *, price_of: Callable[[str], float], measured_on: str
) -> str:
    """A plain table; the last line is the sum. `price_of` an hour of a stage's machine; 0 shows no cost."""
    lines = [f"estimates for {measured_on} (one task after the other, without start-up and conversion):"]
    costs = [item.seconds / 3600 * price_of(item.stage) for item in estimates]
    for item, cost in zip(estimates, costs, strict=True):
        price = f"  cost {cost:.2f}" if cost else ""
        memory = f"{item.memory_bytes / 2**30:8.2f} GiB" if item.memory_bytes is not None else ""
        lines.append(f"  {item.stage:24s} {format_seconds(item.seconds):>10s} {memory:12s}{price}".rstrip())
    total = sum(item.seconds for item in estimates)
    price = f", cost {sum(costs):.2f}" if any(costs) else ""
    lines.append(f"  {'sum':24s} {format_seconds(total):>10s}{price}")
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _training(
    stage: str,
    training: TrainingConfig,
    forwards: float,
    costs: Mapping[str, float],
    models: int,
    *,
    batches: int = 1,
    more: float = 0.0,
) -> StageEstimate:
    """A UNet training: `forwards` per image, `models` UNets in memory, `batches` of activations at once."""
    images = training.iterations * training.batch_size * training.accumulation
    half = 0.5 if training.precision == "bf16" else 1.0
    copies = _STATE_COPIES + models - 1
    memory = _FLOAT * copies * costs["unet_parameters"]
    memory += half * batches * training.batch_size * costs["unet_activation_bytes"]
    return StageEstimate(stage, images * forwards * costs["unet_forward_s"] + more, memory)


def _checks(training: TrainingConfig, costs: Mapping[str, float]) -> float:
    """Seconds of the held-out checks of v."""
    return (training.held_out_checks + 1) * _HELD_OUT * costs["unet_forward_s"]


def _distillation(
    stage: str,
    config: SnapFusionConfig,
    forwards: float,
    costs: Mapping[str, float],
    *,
    teacher: float,
    student: float,
) -> StageEstimate:
    """A step distillation with its held-out checks; `teacher` and `student` cost so much of the base's UNet."""
    section = config.step_distillation
    training: TrainingConfig = getattr(config, stage).training
    few = section.final_steps
    steps = {"student_8": few, "student_4": few // 2, "student_2": few // 4}.get(
        stage, section.intermediate_steps
    )
    drawn = 2.0 * steps * teacher + (training.held_out_checks + 1) * steps * student
    checks = section.validation_captions * drawn * _GUIDED * costs["unet_forward_s"]
    return _training(stage, training, forwards, costs, 2, batches=2, more=checks)


def _probes(config: SnapFusionConfig, costs: Mapping[str, float]) -> float:
    """Seconds of drawing the probe captions: a batch for every unit in every round, the rest for twice a round's actions."""
    evolution = config.architecture_evolution
    if evolution.architecture is not None:
        return _checks(evolution.training, costs)  # nothing is probed
    batch = min(evolution.captions_per_batch, evolution.most_captions)
    more = (evolution.most_captions - batch) * (2 * evolution.actions_per_round + 1)
    pictures = evolution.rounds * ((costs["units"] + 1) * batch + more)
    return pictures * (evolution.probe_steps * _GUIDED * costs["unet_forward_s"] + costs["decoder_forward_s"])


def _decoder(config: SnapFusionConfig, costs: Mapping[str, float]) -> StageEstimate:
    section = config.decoder_distillation
    training = section.training
    images = training.iterations * training.batch_size * training.accumulation
    pool = section.pool_size * (
        section.ddim_steps * _GUIDED * costs["unet_forward_s"] + costs["decoder_forward_s"]
    )
    seconds = pool + images * _TRAINING * _SMALL_DECODER * costs["decoder_forward_s"]
    memory = _FLOAT * _STATE_COPIES * costs["decoder_parameters"] + _FLOAT * costs["unet_parameters"]
    memory += training.batch_size * 0.5 * costs["decoder_activation_bytes"]  # half the channels
    return StageEstimate("decoder_distillation", seconds, memory)


def _evaluation(config: SnapFusionConfig, costs: Mapping[str, float]) -> float:
    section, steps = config.evaluation, config.step_distillation
    share, variants = _share(config, costs), variants_of(section.variants, config.run.skip)
    last = share * shipped_steps(
        config.run.skip,
        base=section.base_steps,
        intermediate=steps.intermediate_steps,
        final=steps.final_steps,
    )
    calls = {
        "base_50": float(section.base_steps),
        "base_8": float(steps.final_steps),
        "base_8_dpm": float(steps.final_steps),
        "teacher_16": float(steps.intermediate_steps),
        "student_16": share * steps.intermediate_steps,
        "student_8": last,
        "student_8_small_decoder": last,
        "student_8_compressed": last,
        "base_4_dpm": steps.final_steps / 2,
        "base_2_dpm": steps.final_steps / 4,
        "student_4_small_decoder": share * steps.final_steps / 2,
        "student_2_small_decoder": share * steps.final_steps / 4,
    }
    per_picture = sum(calls.get(name, 0.0) * _GUIDED for name in variants) * costs["unet_forward_s"]
    per_picture += len(variants) * costs["decoder_forward_s"]
    return section.pictures * len(section.guidance_scales) * per_picture
