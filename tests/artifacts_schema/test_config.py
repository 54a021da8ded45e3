"""Configuration: what is refused, and what the message says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from artifacts_schema.base import Measurement
from artifacts_schema.config import (
    InvalidConfig,
    SnapFusionConfig,
    load_config,
    load_config_file,
    parse_config,
)
from artifacts_schema.pretraining import PretrainingConfig, load_pretraining_config

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*.toml") if path.stem != "pretrain")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_preset_is_valid(path: Path) -> None:
    assert load_config_file(path).run.name


def numbers(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number in a JSON schema, by place."""
    if isinstance(schema, dict):
        if schema.get("type") in ("number", "integer"):
            yield place, schema
        schema = schema.items()
    elif isinstance(schema, list):
        schema = enumerate(schema)
    else:
        return
    for name, value in schema:
        yield from numbers(value, f"{place}/{name}")


@pytest.mark.parametrize("config", [SnapFusionConfig, PretrainingConfig])
def test_every_number_has_a_range(config: type[BaseModel]) -> None:
    found = dict(numbers(config.model_json_schema()))
    assert len(found) > 40
    lower, upper = {"minimum", "exclusiveMinimum", "enum"}, {"maximum", "exclusiveMaximum", "enum"}
    assert not [
        place for place, field in found.items() if not (lower & field.keys() and upper & field.keys())
    ]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def keys(section: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a configuration that is no section."""
    for name, field in section.model_fields.items():
        # A section that may be left out is one, too.
        inner = next((kind for kind in get_args(field.annotation) if _is_section(kind)), field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, (*place, name))
        elif get_origin(inner) is dict and place == ():  # tables by name
            yield from keys(get_args(inner)[1], (*place, name, "start"))
        else:
            yield (*place, name)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_key_takes_a_number_that_is_not_finite(value: str) -> None:
    """Whatever the key, alone or in a list."""
    taken = []
    for *sections, name in keys(SnapFusionConfig):
        for written in (value, f"[{value}]", f"[{value}, {value}]"):
            text = f"[{'.'.join(sections)}]\n{name} = {written}"
            try:
                load_config(text)
            except InvalidConfig as error:
                assert f"{'.'.join(sections)}.{name}" in str(error)
            else:
                taken.append(text)
    assert not taken


def test_a_record_takes_no_number_that_is_not_finite() -> None:
    """An imported table with NaN would meet every budget, or none."""
    with pytest.raises(ValidationError, match="finite"):
        Measurement.model_validate_json('{"n": 1, "median": NaN, "p10": 0, "p90": 0, "unit": "ms"}')


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_preset_distils_around_the_scales_that_it_draws_with(path: Path) -> None:
    config = load_config_file(path)
    low, high = config.step_distillation.cfg_range
    drawn = (*config.evaluation.guidance_scales, config.step_distillation.validation_guidance_scale)
    assert low <= min(drawn) <= max(drawn) <= high


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step_distillation.cfg_range", "[0.5, 5.0]"),
        ("step_distillation.validation_captions", "0"),
        ("teacher_16.training.learning_rate", "1.5"),
        ("student_16.training.adam_beta2", "1.0"),
        ("student_8.training.held_out_checks", "0"),
        ("student_16.teacher", "'teacher_16'"),
        ("decoder_distillation.pool_size", "1"),
        ("velocity_finetuning.base_velocity_weight", "-0.1"),
    ],
)
def test_a_value_that_a_training_cannot_use_is_refused(key: str, value: str) -> None:
    section, _, name = key.rpartition(".")
    with pytest.raises(InvalidConfig, match=rf"'{key}"):
        load_config(f"[{section}]\n{name} = {value}")


def test_unknown_key_names_the_nearest_valid_key() -> None:
    with pytest.raises(
        InvalidConfig, match=r"unknown key 'student_8\.training\.learning_rat'.*learning_rate"
    ):
        load_config("[student_8.training]\nlearning_rat = 1e-4")


def test_unknown_section_names_the_nearest_section() -> None:
    with pytest.raises(InvalidConfig, match="did you mean 'robust_training'"):
        load_config("[robust_trainig]\ndrop_probability = 0.1")


def test_value_out_of_range_names_key_range_and_value() -> None:
    with pytest.raises(
        InvalidConfig,
        match=r"'robust_training\.drop_probability' should be less than or equal to 1, found 1\.5",
    ):
        load_config("[robust_training]\ndrop_probability = 1.5")


def test_every_problem_is_listed() -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_config("[run]\nseed = -1\n[data]\nsource = 'laion'")
    assert "run.seed" in str(caught.value)
    assert "data.source" in str(caught.value)


def test_broken_toml_is_a_clear_error() -> None:
    with pytest.raises(InvalidConfig, match="not valid TOML"):
        load_config("[run\nseed = 1")


def test_step_counts_must_halve() -> None:
    with pytest.raises(InvalidConfig, match="intermediate_steps must be twice final_steps, found 16 and 4"):
        load_config("[step_distillation]\nfinal_steps = 4")


def test_inception_needs_its_file() -> None:
    with pytest.raises(InvalidConfig, match="needs inception, the path of inception-2015-12-05"):
        load_config("[evaluation]\nfeatures = 'inception'")


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SnapFusionConfig().run.seed = 3  # type: ignore[misc]


def test_pretraining_configuration() -> None:
    text = (FOLDER / "pretrain.toml").read_text()
    assert load_pretraining_config(text).unet.training.iterations > 0
    with pytest.raises(InvalidConfig, match=r"'unet\.width'"):
        load_pretraining_config(text.replace("[unet]", "[unet]\nwidth = 3"))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"student_2": {}}, "student_2 halves the steps of the student before it"),
        (
            {
                "step_distillation": {"intermediate_steps": 4, "final_steps": 2},
                "student_4": {},
                "student_2": {},
            },
            "student_2 halves the steps",
        ),
        ({"evaluation": {"variants": ["student_4_small_decoder"]}}, "student_4 needs a section"),
        (
            {"evaluation": {"variants": ["student_8_compressed"]}},
            "student_8_small_decoder, which must be there",
        ),
        ({"evaluation": {"variants": ["student_9"]}}, "evaluation.variants.0"),
        ({"evaluation": {"apart_pictures": 8}}, "apart_pictures needs frozen protocols"),
    ],
)
def test_variants_and_students_must_be_there(payload: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parse_config(payload)
