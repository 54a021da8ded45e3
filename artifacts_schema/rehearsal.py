"""The rehearsal of a configuration: every stage for minutes, at its real size and on little data."""

from typing import Any

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import STARTS_FROM
from artifacts_schema.stage_configs import TrainingConfig

PICTURES = 1000
ITERATIONS = 10
_FEW = 8  # pictures, captions and probes: enough to time one, and to compare


def rehearsal_of(config: SnapFusionConfig) -> SnapFusionConfig:
    """The same run on a thousand pictures with ten iterations of every training.

    What decides memory stays: base, batch, precision, steps, sizes of pictures and evaluators. It has a name and a label of its
    own, and its own store and outputs, so that nothing of it can be taken for a result.
    """
    evolution = config.architecture_evolution
    changes: dict[str, dict[str, Any]] = {
        "run": {"name": f"{config.run.name}-rehearsal", "rehearsal": True},
        "store": {"root": f"{config.store.root.rstrip('/')}-rehearsal"},
        "report": {"output": f"{config.report.output.rstrip('/')}-rehearsal", "compare_to": ()},
        "data": {"limit": min(config.data.limit or PICTURES, PICTURES)},
        "architecture_evolution": {
            "rounds": 1,
            "actions_per_round": evolution.rounds * evolution.actions_per_round,  # one round meets the budget
            "captions_per_batch": 2,
            "most_captions": 2,
        },
        "step_distillation": {
            "validation_captions": min(config.step_distillation.validation_captions, _FEW),
            # Guided iterations, which need the most memory, must be among the ten.
            "cfg_probability": 0.5 if config.step_distillation.cfg_probability > 0 else 0.0,
        },
        "decoder_distillation": {"pool_size": min(config.decoder_distillation.pool_size, 2 * _FEW)},
        "evaluation": {
            "pictures": min(config.evaluation.pictures, _FEW),
            "validation_pictures": min(config.evaluation.validation_pictures, _FEW),
            "guidance_scales": config.evaluation.guidance_scales[:1],
            "grid_pictures": min(config.evaluation.grid_pictures, _FEW),
        },
        "coreml_compression": {"schemes": config.coreml_compression.schemes[:1]},
    }
    sections = {name: getattr(config, name).model_copy(update=found) for name, found in changes.items()}
    for stage in STARTS_FROM:
        section = sections.get(stage, getattr(config, stage))
        sections[stage] = section.model_copy(update={"training": _short(section.training)})
    return SnapFusionConfig.model_validate(config.model_copy(update=sections).model_dump())


def _short(training: TrainingConfig) -> TrainingConfig:
    iterations = min(training.iterations, ITERATIONS)
    return training.model_copy(
        update={
            "iterations": iterations,
            "warmup_iterations": min(training.warmup_iterations, iterations // 5),
            "cosine_iterations": None,
            "held_out_checks": 1,
            "log_interval": 2,
        }
    )
