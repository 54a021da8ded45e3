"""Ablations: one finished run, and what becomes of its students when one thing is done differently."""

import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from artifacts_schema.base import Frozen, Record
from artifacts_schema.config import InvalidConfig, SnapFusionConfig, parse_config
from artifacts_schema.evaluation import GuidancePoint, RealSplit
from artifacts_schema.ranges import Count, CountOrZero, GuidanceScale

REFERENCE = "reference"
"""The arm that is the run's own recipe; the only one that may change nothing."""

Weights = Literal["velocity_finetuning", "robust_training", "teacher_16", "student_16", "student_8"]
Kind = Literal["distillation", "dropping", "removal", "decoder"]


class ArmConfig(Frozen):
    """`[ablation]` of an overlay: what no section of a run's configuration can say.

    A distillation goes from `teacher` in `teacher_steps` to a student of each of `steps`, that starts from `start`, in one
    phase, or halving by halving (`progressive`), the iterations shared out. Dropping draws with `start` without all
    units of one kind in one stage of the UNet, untrained. Removal takes units out of the robust UNet in an `order` until the
    run's latency budget is met, and repairs it. A decoder is distilled anew and decodes student_8's latents.
    """

    arm: Literal["reference", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] = "reference"
    kind: Kind = "distillation"
    steps: tuple[Count, ...] = Field((2,), min_length=1)
    teacher: Weights = "teacher_16"
    start: Weights = "student_16"
    teacher_steps: Count = 16  # P Fig. 7c
    progressive: bool = False  # P Fig. 6a
    conditioned: bool = False  # on w, Meng et al., arXiv 2210.03142
    drop: Literal["attentions", "resnets"] = "attentions"
    order: Literal["evolved", "slowest", "random", "pattern"] = "evolved"

    @model_validator(mode="after")
    def _grids(self) -> Self:
        if self.conditioned and self.progressive:
            raise ValueError("conditioned students are distilled in one phase; leave progressive out")
        bad = [n for n in self.steps if self.kind == "distillation" and self.teacher_steps % n]
        if bad or (self.kind == "distillation" and min(self.teacher_steps // n for n in self.steps) < 2):
            raise ValueError(
                f"teacher_steps must be a multiple of the student's, at least twice as many; found {self.teacher_steps} "
                f"and {self.steps}"
            )
        return self


class AblationConfig(Frozen):
    """What all arms share; the flow's own configuration."""

    run: str = ""  # id of a finished run; none: the newest
    store: str = ".snapfusion/store"  # that it lies in, a folder
    overlays: str = "configs/ablations"
    arms: tuple[str, ...] = ()  # names of overlays; none: all of them
    iterations: CountOrZero = 600
    batch_size: Count = 16
    pictures: Annotated[int, Field(ge=8, le=10**6)] = 512  # of the validation protocol
    guidance_scale: GuidanceScale = 3.0
    threads: CountOrZero = 0  # 0: all cores, one arm after the other


class Overlay(Frozen):
    """One arm: its name, the question in its file's comment, and what is other than in the run."""

    name: str
    question: str
    arm: ArmConfig
    config: dict[str, Any]  # the run's whole configuration, changed
    changes: dict[str, Any]  # by dotted name, what differs


class AblationRecord(Record):
    """What one arm gave; `points` by steps (of dropping, by the stage of the UNet), on the validation protocol."""

    schema_name: ClassVar[str] = "snapfusion.ablation"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "seconds", "curve"})

    run: str
    name: str
    question: str
    arm: ArmConfig
    changes: dict[str, Any]
    points: dict[str, GuidancePoint]
    captions: tuple[str, ...]
    reference: RealSplit
    protocol: dict[str, Any]
    iterations: int = 0
    seconds: float = 0.0
    curve: tuple[dict[str, float], ...] = ()


def read_overlay(name: str, text: str, run: SnapFusionConfig, common: AblationConfig) -> Overlay:
    """An overlay over the configuration of a run. Raises InvalidConfig for unknown keys, and where it changes nothing."""
    try:
        payload = tomllib.loads(text)
        arm = ArmConfig.model_validate(payload.pop("ablation", {}))
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"overlay {name} is not valid TOML: {error}") from error
    except ValidationError as error:
        lines = [
            f"ablation.{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}"
            for e in error.errors()
        ]
        raise InvalidConfig(f"overlay {name} was refused:\n  " + "\n  ".join(lines)) from error
    own = trained(run, common)
    try:
        config = parse_config(_merged(own.model_dump(mode="json"), payload))
    except InvalidConfig as error:
        raise InvalidConfig(f"overlay {name}: {error}") from error
    changes = dict(_differences(own.model_dump(mode="json"), config.model_dump(mode="json")))
    plain = ArmConfig(arm=arm.arm, steps=arm.steps)
    changes |= {
        f"ablation.{key}": value
        for key, value in _differences(plain.model_dump(mode="json"), arm.model_dump(mode="json"))
    }
    if not changes and name != REFERENCE:
        raise InvalidConfig(
            f"overlay {name} changes nothing: the run has all of its values already; leave it out, or give it other values"
        )
    comment = " ".join(line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#"))
    return Overlay(
        name=name, question=comment, arm=arm, config=config.model_dump(mode="json"), changes=changes
    )


def trained(run: SnapFusionConfig, common: AblationConfig) -> SnapFusionConfig:
    """The run's configuration with every arm's length and batch."""
    given = {"iterations": common.iterations, "batch_size": common.batch_size, "accumulation": 1}
    sections = {
        name: getattr(run, name).model_copy(
            update={"training": getattr(run, name).training.model_copy(update=given)}
        )
        for name in ("student_8", "architecture_evolution", "decoder_distillation")
    }
    return run.model_copy(update=sections)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(first)
    for key, value in second.items():
        there = found.get(key)
        found[key] = (
            _merged(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
        )
    return found


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], place: str = ""
) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in second.items():
        there = first.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            found += _differences(there, value, f"{place}{key}.")
        elif value != there:
            found.append((f"{place}{key}", value))
    return found
