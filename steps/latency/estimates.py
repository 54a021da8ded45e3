"""How long every stage will take and how much memory it wants, before anything expensive runs.

Counted in forward passes of the UNet and of the decoder per latent, and in those with a backward pass, times what
`steps.latency.unit_costs` measured on this machine, or what another one is taken to reach (`steps.latency.planned`). Where only
forward passes were measured, a backward pass counts as two of them, and updates as nothing. Start-up, checkpoints and conversion
are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

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

    Other keys that count where they are there: those in bf16; `task_s`, which every task takes
    before it works; `evolved_factor`. The evolved UNet is taken to cost the latency budget's share of the base, times that
    factor, as the budget is of a single guided step. `start` is told of where `costs` hold the number of `pictures` that it
    encodes.
    """
    share = _share(config, costs)
    guided_share = config.step_distillation.cfg_probability
    original = 1.0 if config.step_distillation.gamma > 0 else 0.0
    base_term = 1.0 if config.velocity_finetuning.base_velocity_weight > 0 else 0.0
    teacher = 2.0 * (1.0 + guided_share)  # two steps, some of them guided
    student = 1.0 + guided_share + original
    own = share if config.student_16.teacher == "architecture_evolution" else 1.0
    distil = partial(_distillation, config=config, costs=costs)
    train = partial(_training, config=config, costs=costs)
    found = [
        *_start(costs),
        train("velocity_finetuning", passes=base_term, models=2, checks=True),
        train("robust_training", checks=True),
        _evolution(config, costs, share),
        distil("teacher_16", passes=teacher, trained=student, teacher=1.0, student=1.0),
        distil("student_16", passes=2.0 * own, trained=share * (1 + original), teacher=own, student=share),
        distil("student_8", passes=teacher, trained=share * student, teacher=1.0, student=share),
        *(
            distil(name, passes=share * teacher, trained=share * student, teacher=share, student=share)
            for name in ("student_4", "student_2")
            if getattr(config, name) is not None
        ),
        _decoder(config, costs),
        *_evaluation(config, costs),
    ]
    return [item for item in found if item.stage not in config.run.skip]


def _start(costs: Mapping[str, float]) -> list[StageEstimate]:
    """Encoding; it loads the base and two evaluators, and measures."""
    if "pictures" not in costs:
        return []
    encoded = costs.get("encoder_forward_s", 0.0) + costs.get("text_encoder_forward_s", 0.0)
    return [StageEstimate("start", costs["pictures"] * encoded + 2 * costs.get("task_s", 0.0))]


def _evolution(config: SnapFusionConfig, costs: Mapping[str, float], share: float) -> StageEstimate:
    """A UNet on the way from the base to its `share`; one that is given is trained and not probed."""
    if config.architecture_evolution.architecture is not None:
        return _training("architecture_evolution", config=config, costs=costs, checks=True)
    half_way = (1.0 + share) / 2
    probes = half_way * _probes(config, costs)
    return _training("architecture_evolution", config=config, costs=costs, trained=half_way, more=probes)


def _share(config: SnapFusionConfig, costs: Mapping[str, float]) -> float:
    """What the evolved UNet is taken to cost, of the base's; one that is given is known only when it is built."""
    if "architecture_evolution" in config.run.skip or config.architecture_evolution.architecture is not None:
        return 1.0
    return config.architecture_evolution.latency_budget * costs.get("evolved_factor", 1.0)


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


def pass_seconds(training: TrainingConfig, costs: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of a sample's pass through the base's UNet: forward alone, and with its backward pass."""
    half = training.precision == "bf16"
    forward = costs["unet_forward_s"]
    forward = costs.get("unet_forward_bf16_s", forward) if half else forward
    both = costs.get("unet_training_bf16_s" if half else "unet_training_s", _TRAINING * forward)
    return forward, both + (forward if training.gradient_checkpointing else 0.0)


def _training(
    stage: str,
    *,
    config: SnapFusionConfig,
    costs: Mapping[str, float],
    passes: float = 0.0,
    trained: float = 1.0,
    models: int = 1,
    batches: int = 1,
    checks: bool = False,
    more: float = 0.0,
) -> StageEstimate:
    """A UNet training: of every image `passes` forward and `trained` with a backward pass; `models` UNets in memory,
    `batches` of activations at once; `checks` of v on held-out samples, and `more` seconds.
    """
    training: TrainingConfig = getattr(config, stage).training
    forward, both = pass_seconds(training, costs)
    images = training.iterations * training.batch_size * training.accumulation / config.compute.processes
    seconds = images * (passes * forward + trained * both) + training.iterations * costs.get(
        "unet_update_s", 0.0
    )
    if checks:
        seconds += (training.held_out_checks + 1) * _HELD_OUT * forward
    half = 0.5 if training.precision == "bf16" else 1.0
    copies = _STATE_COPIES + models - 1
    memory = _FLOAT * copies * costs["unet_parameters"]
    memory += half * batches * training.batch_size * costs["unet_activation_bytes"]
    return StageEstimate(stage, seconds + more + costs.get("task_s", 0.0), memory)


def _distillation(
    stage: str,
    *,
    config: SnapFusionConfig,
    costs: Mapping[str, float],
    passes: float,
    trained: float,
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
    return _training(
        stage, config=config, costs=costs, passes=passes, trained=trained, models=2, batches=2, more=checks
    )


def _probes(config: SnapFusionConfig, costs: Mapping[str, float]) -> float:
    """Seconds of drawing the probe captions with the base: in every round a batch for every unit that is left, and for a
    round's actions the rest, which only those get on which the choice hangs.
    """
    evolution = config.architecture_evolution
    batch = min(evolution.captions_per_batch, evolution.most_captions)
    more = (evolution.most_captions - batch) * (evolution.actions_per_round + 1)
    units = sum(
        max(0.0, costs["units"] - before * evolution.actions_per_round) + 1
        for before in range(evolution.rounds)
    )
    pictures = units * batch + evolution.rounds * more
    return pictures * (evolution.probe_steps * _GUIDED * costs["unet_forward_s"] + costs["decoder_forward_s"])


def _decoder(config: SnapFusionConfig, costs: Mapping[str, float]) -> StageEstimate:
    section = config.decoder_distillation
    training = section.training
    images = training.iterations * training.batch_size * training.accumulation / config.compute.processes
    pool = section.pool_size * (
        section.ddim_steps * _GUIDED * costs["unet_forward_s"] + costs["decoder_forward_s"]
    )
    forward = costs["decoder_forward_s"]
    both = costs.get("small_decoder_training_s", _TRAINING * _SMALL_DECODER * forward)
    if training.precision == "bf16" and "decoder_forward_bf16_s" in costs:
        forward = costs["decoder_forward_bf16_s"]
        both = _TRAINING * _SMALL_DECODER * forward
    both += _SMALL_DECODER * forward if training.gradient_checkpointing else 0.0
    memory = _FLOAT * _STATE_COPIES * costs["decoder_parameters"] + _FLOAT * costs["unet_parameters"]
    memory += training.batch_size * 0.5 * costs["decoder_activation_bytes"]  # half the channels
    return StageEstimate("decoder_distillation", pool + images * both + costs.get("task_s", 0.0), memory)


def _evaluation(config: SnapFusionConfig, costs: Mapping[str, float]) -> list[StageEstimate]:
    """The choice of a scale, where there is one, on every variant; then every variant at its own."""
    section = config.evaluation
    scales = len(section.guidance_scales)
    a_picture = _variants(config, costs)
    tasks = costs.get("task_s", 0.0) * len(variants_of(section.variants, config.run.skip))
    drawn = (section.pictures + 2 * section.apart_pictures) * a_picture
    found = [StageEstimate("evaluation", drawn + tasks)]
    if scales > 1:
        chosen = scales * section.validation_pictures * a_picture
        found.insert(0, StageEstimate("guidance_selection", chosen + tasks))
    return found


def _variants(config: SnapFusionConfig, costs: Mapping[str, float]) -> float:
    """Seconds of one picture of every variant."""
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
    return per_picture
