"""The configuration: one frozen section per stage, unknown keys refused with the nearest valid key.

Each default carries its origin: "P" is the SnapFusion paper (arXiv 2306.00980v3), "ours" means the paper
gives none. What a section names in `volatile` changes no result, so that it is in no cache key (artifacts_schema.base).
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError, model_validator

from artifacts_schema.base import Frozen, json_object
from artifacts_schema.distillation_configs import (
    DecoderDistillationConfig,
    DistillationStageConfig,
    StepDistillationConfig,
    Student16Config,
)
from artifacts_schema.operating import NotifyConfig, PromotionConfig, ScheduleConfig
from artifacts_schema.parts import variants_of
from artifacts_schema.resources import ResourcesConfig
from artifacts_schema.result_configs import CoremlCompressionConfig, CoremlExportConfig, EvaluationConfig
from artifacts_schema.run_configs import (
    BaseConfig,
    ComputeConfig,
    DataConfig,
    ReportConfig,
    RunConfig,
    StoreConfig,
)
from artifacts_schema.stage_configs import (
    ArchitectureEvolutionConfig,
    LatencyProfileConfig,
    RobustTrainingConfig,
    VelocityFinetuningConfig,
)

_OTHER_STAGES = (
    "start",
    "real_pictures",
    "guidance_selection",
    "bundle_drawing",
)  # without a section of their own
SHIPPED = "student_8_small_decoder"
"""The variant that ships."""


class SnapFusionConfig(Frozen):
    """The whole configuration; a section per stage, named as the stage."""

    run: RunConfig = RunConfig()
    compute: ComputeConfig = ComputeConfig()
    store: StoreConfig = StoreConfig()
    base: BaseConfig = BaseConfig()
    data: DataConfig = DataConfig()
    latency_profile: LatencyProfileConfig = LatencyProfileConfig()
    velocity_finetuning: VelocityFinetuningConfig = VelocityFinetuningConfig()
    robust_training: RobustTrainingConfig = RobustTrainingConfig()
    architecture_evolution: ArchitectureEvolutionConfig = ArchitectureEvolutionConfig()
    step_distillation: StepDistillationConfig = StepDistillationConfig()
    teacher_16: DistillationStageConfig = DistillationStageConfig()
    student_16: Student16Config = Student16Config()
    student_8: DistillationStageConfig = DistillationStageConfig()
    student_4: DistillationStageConfig | None = None  # half of student_8's steps; none: not made
    student_2: DistillationStageConfig | None = None  # half of student_4's
    decoder_distillation: DecoderDistillationConfig = DecoderDistillationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    coreml_export: CoremlExportConfig = CoremlExportConfig()
    coreml_compression: CoremlCompressionConfig = CoremlCompressionConfig()
    report: ReportConfig = ReportConfig()
    promotion: PromotionConfig = PromotionConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    notify: NotifyConfig = NotifyConfig()
    resources: dict[str, ResourcesConfig] = {}  # by step of the flow, and "default"; see flows/remote.py

    @model_validator(mode="after")
    def _prices_are_of_stages(self) -> "SnapFusionConfig":
        stages = {*type(self).model_fields, *_OTHER_STAGES}
        for name in sorted(self.compute.prices.keys() - stages):
            close = difflib.get_close_matches(name, stages, n=1)
            raise ValueError(
                f"compute.prices names no stage: '{name}'"
                + (f"; did you mean '{close[0]}'?" if close else "")
            )
        return self

    @model_validator(mode="after")
    def _processes_share_batches(self) -> "SnapFusionConfig":
        for name in type(self).model_fields:
            training = getattr(getattr(self, name), "training", None)
            if training is not None and (problem := training.why_not_shared_by(self.compute.processes)):
                raise ValueError(f"{name}.training.{problem}")
        return self

    @model_validator(mode="after")
    def _promotion_can_compare(self) -> "SnapFusionConfig":
        evaluation = self.evaluation
        if self.promotion.enabled and SHIPPED not in variants_of(evaluation.variants, self.run.skip):
            raise ValueError(
                f"promotion.enabled needs {SHIPPED} among evaluation.variants, and its decoder not in run.skip: it is what ships"
            )
        if (
            self.promotion.enabled
            and evaluation.split != "validation"
            and len(evaluation.guidance_scales) == 1
        ):
            raise ValueError(
                "promotion.enabled compares with the champion on the validation protocol, and nothing is drawn there: set "
                "evaluation.split = 'validation', or several evaluation.guidance_scales to choose from"
            )
        return self

    @model_validator(mode="after")
    def _chain(self) -> "SnapFusionConfig":
        steps = self.step_distillation.final_steps
        for name, before in (("student_4", self.student_8), ("student_2", self.student_4)):
            config = getattr(self, name)
            steps, odd = divmod(steps, 2)
            if config is not None and (before is None or odd):
                raise ValueError(f"{name} halves the steps of the student before it, which there is not")
            if config is not None and "student_8" in self.run.skip:
                raise ValueError(f"{name} needs student_8, which run.skip names; take one of the two out")
            if config is None and f"{name}_small_decoder" in self.evaluation.variants:
                raise ValueError(f"evaluation.variants names {name}_small_decoder; {name} needs a section")
        return self

    @model_validator(mode="after")
    def _something_is_evaluated(self) -> "SnapFusionConfig":
        asked = self.evaluation.variants
        if asked and not variants_of(asked, self.run.skip):
            raise ValueError(
                f"evaluation.variants names {', '.join(asked)}, none of which a run makes that skips "
                f"{', '.join(self.run.skip)}; name base_50, or take a stage out of run.skip"
            )
        return self


class InvalidConfig(ValueError):
    """A configuration was refused; the message has one line per problem."""


def load_config(text: str) -> SnapFusionConfig:
    """Read TOML text. Raises InvalidConfig naming each bad key, its range and the nearest valid key."""
    return parse_config(parse_toml(text))


def parse_toml(text: str) -> dict[str, Any]:
    """The values of TOML text, or of JSON text (which no TOML looks like), unchecked. Raises InvalidConfig."""
    try:
        return json_object(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidConfig(f"the configuration is not valid JSON: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"the configuration is not valid TOML: {error}") from error


def parse_config(payload: Mapping[str, Any]) -> SnapFusionConfig:
    """Validate a parsed configuration; see `load_config`."""
    try:
        return SnapFusionConfig.model_validate(payload)
    except ValidationError as error:
        lines = [_describe(item) for item in error.errors()]
        raise InvalidConfig("the configuration was refused:\n  " + "\n  ".join(lines)) from error


def load_config_file(path: Path) -> SnapFusionConfig:
    """Read a TOML file; see `load_config`."""
    return load_config(path.read_text(encoding="utf-8"))


def _describe(item: Any) -> str:
    """One line for one pydantic error: dotted key, what is wrong, what was found, nearest valid key."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(location)}"
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "should be")
    if not location:  # sections that do not fit together
        return message
    if location[0] == "store":  # somebody may have put a password into an address: it must not reach a log
        return f"'{key}' {message}"
    return f"'{key}' {message}, found {item['input']!r}"


def _nearest(location: list[str]) -> str:
    """Suggestion for an unknown key: the closest one in its section, else wherever in the configuration it exists."""
    section: Any = SnapFusionConfig
    for position, part in enumerate(location[:-1]):
        if position == 1 and location[0] == "resources":
            continue  # the name of a step, below which lies the table that is already found
        section = _section_of(section, part)
        if section is None:
            return ""
    valid = list(section.model_fields)
    close = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
    prefix = ".".join(location[:-1])
    if close:
        return f"; did you mean '{prefix + '.' if prefix else ''}{close[0]}'?"
    return f"; valid keys here: {', '.join(valid)}"


def _section_of(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = section.model_fields.get(name)
    if field is None:
        return None
    candidates = (field.annotation, *get_args(field.annotation))
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
