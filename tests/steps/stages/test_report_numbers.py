"""What a report says in numbers and labels, held against the records that it is made of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from artifacts_schema.base import Interval
from artifacts_schema.config import parse_config
from artifacts_schema.evaluation import EvaluationRecord, VariantComparison
from artifacts_schema.references import FolderRef
from artifacts_schema.report import CodeVersion, RunReport
from steps.evaluation.pictures import png
from steps.evaluation.variants import COMPRESSED
from steps.latency.table import predict
from steps.report.page import RunRecords
from steps.stages import report as stage
from steps.store import LocalStore
from tests.steps.stages.test_report import MADE, stored

TABLE, EVOLUTION, TRAINING = stored("latency_v1"), stored("evolution_v1"), stored("training_v1")
COMPONENT, COMPRESSION, DRAWING = (
    stored("component_v1"),
    stored("compression_v1"),
    stored("bundle_drawing_v1"),
)
DECODER = TRAINING.model_copy(update={"metrics": {"parameter_ratio": 3.0, "mac_ratio": 2.0, "psnr_db": 20.0}})

SHORT = "a short run: it shows that the method works from end to end and makes no claim about quality"


def interval(value: float) -> Interval:
    return Interval(value=value, low=value - 1, high=value + 1, n=8)


def comparison(reference: str, other: str, value: float) -> VariantComparison:
    return VariantComparison(
        reference=reference, other=other, reference_scale=1.0, other_scale=1.0,
        distance_difference=interval(value), distance_ratio=interval(10 * value),
        clip_difference=interval(-value), distance_verdict="", clip_verdict="",
    )  # fmt: skip


def evaluated(store: LocalStore, folder: Path, variant: str, top1: float) -> EvaluationRecord:
    """Eight pictures of a variant."""
    record: Any = stored("evaluation_v1")
    save_file({"images": torch.zeros(8, 3, 8, 8, dtype=torch.uint8)}, folder / "images")
    changes = {"images": store.put_file(folder / "images"), "retrieval_top1": interval(top1)}
    return record.model_copy(
        update={"variant": variant, "point": record.point.model_copy(update=changes)}
    )  # fmt: skip


def records(trainings: dict[str, Any] | None = None, **changes: Any) -> RunRecords:
    fields: dict[str, Any] = {
        "name": "x", "smoke": False, "latency_table": TABLE, "evolution": EVOLUTION,
        "trainings": trainings if trainings is not None else {"decoder_distillation": DECODER},
        "evaluations": [], "guidance": [], "comparisons": [], "components": [], "licences": {},
        "manifest": stored("bundle_v1"),
    }  # fmt: skip
    return RunRecords(**(fields | changes))


def test_ratios_are_base_over_result() -> None:
    found = stage.headline(
        records(components=[COMPONENT] * 3, compression=COMPRESSION, drawing=DRAWING)
    )  # fmt: skip
    size = sum(ref.bytes for ref in COMPONENT.package.files.values())
    assert found["unet.param_ratio"] == EVOLUTION.base_parameters / EVOLUTION.parameters > 1
    now = predict(TABLE, EVOLUTION.architecture)
    assert found["unet.predicted_latency_ratio"] == pytest.approx(TABLE.whole / now)
    assert found["unet.predicted_latency_ratio"] > 1
    assert [found[f"decoder.{name}"] for name in ("param_ratio", "mac_ratio", "psnr_db")] == [3, 2, 20]
    assert found["coreml.unet.size_mib"] == size / 1024**2
    assert found["coreml.unet.psnr_exact_db"] == COMPONENT.parity.exact_db
    assert found["coreml.unet.psnr_rounded_db"] == COMPONENT.parity.rounded_db
    assert found["coreml.bundle.compression_ratio"] == 11413984 / (3 * size)
    assert found["coreml.bundle.image_psnr_db"] == DRAWING.scores.psnr_db.median
    assert found["coreml.bundle.clip_drop"] == DRAWING.scores.clip_drop


def test_what_a_run_left_out_has_no_numbers() -> None:
    assert stage.headline(records({}, evolution=None)) == {}


def test_quality_is_named_as_published_and_the_rest_is_not(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    known = comparison("base_50", "student_8_small_decoder", 0.25)
    unpublished = comparison("base_50", "teacher_16", 0.5)
    evaluations = [evaluated(store, tmp_path, "base_8", 0.3), evaluated(store, tmp_path, "base_50", 0.6)]
    found = stage.quality(records(comparisons=[known, unpublished], evaluations=evaluations))
    assert {name: item.value for name, item in found.items()} == {
        "student8_vs_base50.clip_difference": -0.25,
        "student8_vs_base50.distance_difference": 0.25,
        "student8_vs_base50.distance_ratio": 2.5,
        "base.retrieval_top1": 0.6,
        "real.retrieval_top1": evaluations[0].real.point.retrieval_top1.value,
    }


def test_every_pair_that_was_evaluated_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    names = ["base_50", "base_8", "student_8", "student_8_small_decoder", COMPRESSED, "teacher_16"]
    evaluations = [evaluated(store, tmp_path, name, 0.5) for name in names]
    monkeypatch.setattr(stage, "compare", lambda _, one, other: (one.variant, other.variant))
    monkeypatch.setattr(stage, "with_licences", lambda pair, _: pair)
    found: Any = stage.compare_all(store, evaluations, {})
    small = "student_8_small_decoder"
    assert set(found) == {
        ("base_50", small), ("base_8", small), ("student_8", small), ("base_50", COMPRESSED), (small, COMPRESSED),
        ("base_50", "teacher_16"),
    }  # fmt: skip
    ships: Any = stage.compare_all(store, evaluations, {}, "student_8")
    assert set(ships) == {
        ("base_50", "student_8"), ("base_8", "student_8"), ("base_50", COMPRESSED), (small, COMPRESSED),
        ("base_50", "teacher_16"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("iterations", "said"),
    [
        ({"student_8": 99, "teacher_16": 100}, "smoke: fewer than 100 iterations in student_8"),
        ({"student_8": 100, "teacher_16": 999}, SHORT),
        ({"student_8": 100, "teacher_16": 1000}, ""),
    ],
)
def test_a_short_run_is_labelled(iterations: dict[str, int], said: str) -> None:
    trainings = {name: TRAINING.model_copy(update={"iterations": n}) for name, n in iterations.items()}
    found = stage.labels(parse_config({}), records(trainings))
    assert found == ([said] if said else [])


def test_smoke_is_said_of_models_and_of_few_pictures(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    few = [evaluated(store, tmp_path, "base_50", 0.5)]
    found = stage.labels(parse_config({"run": {"smoke": True}}), records({}, evaluations=few))
    assert len(found) == 2
    assert "random micro models" in found[0] and "fewer than 64 pictures" in found[1]


def test_rows_and_files_are_those_of_the_records(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    decoder = DECODER.model_copy(
        update={"provenance": MADE.model_copy(update={"wall_time_s": 2.5, "peak_memory_bytes": 7})}
    )
    base = evaluated(store, tmp_path, "base_50", 0.5)
    drawing = DRAWING.model_copy(
        update={"grid": store.put_bytes(png(torch.zeros(3, 8, 8, dtype=torch.uint8)))}
    )
    everything = {
        "decoder_distillation": decoder,
        "start": stored("run_plan_v1").model_copy(update={"provenance": None}),
    }
    report, _ = stage.run(
        parse_config({"evaluation": {"grid_pictures": 2}}), records(evaluations=[base], drawing=drawing), everything, store,
        bundle=FolderRef(files={}), output=tmp_path / "runs" / "7", uses={},
        code=CodeVersion(version="1"), provenance=MADE,
    )  # fmt: skip
    rows = {row.stage: row for row in report.stages}
    assert (rows["decoder_distillation"].wall_time_s, rows["decoder_distillation"].peak_memory_bytes) == (
        2.5,
        7,
    )
    assert (rows["decoder_distillation"].iterations, rows["decoder_distillation"].version) == (4, 0)
    start = rows["start"]
    assert (start.wall_time_s, start.peak_memory_bytes, start.iterations, start.version) == (0.0, 0, 0, 0)
    (row,) = report.evaluations
    assert (row["variant"], row["steps"], "images" in row["point"]) == ("base_50", 8, False)
    assert report.outputs is not None and "pictures/torch_above_bundle_below.png" in report.outputs.files
    captions = (tmp_path / "runs" / "7" / "pictures" / "captions.json").read_text()
    assert json.loads(captions) == list(base.captions[:2]) and captions.startswith('[\n  "')
    assert RunReport.from_json((tmp_path / "runs/7/report.json").read_text()) == report


@pytest.mark.parametrize("evolution", [EVOLUTION, stored("skipped_v1")])
def test_the_page_is_made_of_the_stages_of_a_run(tmp_path: Path, evolution: Any) -> None:
    base = evaluated(LocalStore(tmp_path / "store"), tmp_path, "base_50", 0.5)
    of_run = {
        "start": stored("run_plan_v1"), "latency_profile": TABLE, "architecture_evolution": evolution,
        "decoder_distillation": DECODER, "evaluation base_50": base, "coreml_export unet": COMPONENT,
        "guidance_selection base_50": stored("guidance_v1"), "coreml_compression": COMPRESSION,
    }  # fmt: skip
    config = parse_config({"run": {"name": "x", "smoke": True}})
    manifest = stored("bundle_v1")
    found = stage.page_records(
        config, of_run, manifest, LocalStore(tmp_path / "store"), project_root=tmp_path
    )
    assert (found.name, found.smoke, found.latency_table, found.manifest) == ("x", True, TABLE, manifest)
    assert found.evolution is (EVOLUTION if evolution is EVOLUTION else None)
    assert found.trainings == {"decoder_distillation": DECODER}
    assert (found.evaluations, found.components, found.guidance) == (
        [base], [COMPONENT], [of_run["guidance_selection base_50"]],
    )  # fmt: skip
    assert (found.compression, found.drawing, found.comparisons) == (COMPRESSION, None, [])
