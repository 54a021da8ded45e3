"""A stage that is not asked for: what it hands on, and that nothing else notices."""

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.architecture import ArchitectureSpec
from artifacts_schema.config import InvalidConfig, parse_config
from artifacts_schema.parts import SkippedRecord
from flows.config import ConfigRefused, parse
from flows.config_files import read_architecture
from flows.parts import skipped_record, variants
from steps.evaluation.variants import variant_of
from steps.report.parts import ships_words, skipped, skipped_words
from tests.flows.keys import Keys, example

PRUNING = ["robust_training", "architecture_evolution"]
UNET = ["velocity_finetuning", *PRUNING, "teacher_16", "student_16", "student_8"]


def chain(*stages: str, **made: Any) -> dict[str, Any]:
    """Records of a run in which these stages were left out, one after the other."""
    records: dict[str, Any] = dict(made)
    for stage in stages:
        records[stage] = skipped_record(stage, records)
    return records


def test_what_was_made_last_is_handed_on() -> None:
    velocity = example("training_v1")
    records = chain(*PRUNING, "student_16", velocity_finetuning=velocity)
    for stage in (*PRUNING, "student_16"):
        record: SkippedRecord = records[stage]
        assert (record.stage, record.hands_on) == (stage, "velocity_finetuning")
        assert record.weights == velocity.weights
    assert "student_16: skipped, not asked for (run.skip); hands on the weights of velocity_finetuning" in (
        skipped_words(records["student_16"])
    )
    assert [row[0] for row in skipped(records)[-1].rows] == [*PRUNING, "student_16"]  # type: ignore[union-attr]


def test_steps_that_were_distilled_to_are_handed_on_with_the_weights() -> None:
    student = example("training_v1").model_copy(update={"grid_steps": 16})
    assert chain("student_8", student_16=student)["student_8"].grid_steps == 16


def test_of_a_base_that_is_only_exported_everything_is_its_own() -> None:
    records = chain(*UNET, "decoder_distillation")
    assert {(record.hands_on, record.weights) for record in records.values()} == {("", None)}
    config = parse_config({"run": {"skip": [*UNET, "decoder_distillation"]}})
    assert "the base's UNet with the base's decoder" in ships_words(config)


def test_variants_that_are_not_made_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_config({"run": {"skip": UNET}})
    assert variants(config) == ["base_50", "base_8", "base_8_dpm", "student_8_small_decoder"]
    assert "left out teacher_16, student_16, student_8," in capsys.readouterr().out
    shipped = variant_of("student_8_small_decoder", config)
    assert (shipped.title, shipped.steps) == ("base, 50 steps, small decoder", 50)


def test_no_key_changes_for_a_stage_whose_inputs_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving stages out changes the keys of those alone that are given other weights or draw in other steps."""
    monkeypatch.chdir(tmp_path)
    keys = Keys(tmp_path, monkeypatch)
    steps = ["teacher_16", "student_16", "student_8"]
    drawn = {
        f"{stage} {variant}"
        for stage in ("evaluation", "guidance_selection")
        for variant in ("student_8", "student_8_small_decoder")
    }
    bundle = {"coreml_compression", "bundle_drawing"}
    assert keys.changed({"run.skip": steps}) - set(steps) == drawn | bundle  # 50 steps
    assert keys.changed({"run.skip": ["decoder_distillation"]}) == set()
    exports = {name for name in keys.of({}) if name.startswith("coreml_export")}
    assert (
        keys.changed({"run.skip": UNET}) - set(UNET) == drawn | bundle | exports
    )  # and what the UNet predicts


def toml(path: str) -> str:
    return f'[architecture_evolution]\narchitecture = "{path}"\n'


def test_an_architecture_file_becomes_part_of_the_configuration(tmp_path: Path) -> None:
    """In any form in which one is found; who made it does not count."""
    spec: ArchitectureSpec = example("architecture_v1")
    forms = {
        "record": spec.to_json(),
        "config": json.dumps({"sample_size": 8, "architecture": json.loads(spec.to_json())}),
        "evolution": example("evolution_v1").model_copy(update={"architecture": spec}).to_json(),
    }
    found = []
    for name, text in forms.items():
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        config = parse_config(parse(toml(str(path))))
        path.unlink()
        found.append(config.architecture_evolution.meaning_of_stage())
        given = config.architecture_evolution.architecture
        assert given is not None and not isinstance(given, str) and given.spec().layout() == spec.layout()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file or directory; name a file that is there, or 'snapfusion-sd15'"),
        ("{}", "holds no architecture"),
        ("[1]", "holds no architecture"),
        ("no JSON", "holds no architecture"),
        (
            '{"name": "x", "base_config": "y", "stages": [{"stage": "mid", "blocks": ["x"]}]}',
            "is no block id",
        ),
    ],
    ids=["missing", "another object", "no object", "no JSON", "bad block"],
)
def test_a_file_that_holds_no_architecture_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        read_architecture(path)
    with pytest.raises(ConfigRefused, match=message):
        parse(toml(str(path)))


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigRefused, match="must be 'snapfusion-sd15' or the path of a .json file"):
        parse(toml("snapfusion-sd14"))
