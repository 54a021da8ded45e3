"""The report says which code, base and data its result comes from, and what the cache did."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.data import RawData, RawFile
from artifacts_schema.readers import read_record
from artifacts_schema.report import CodeVersion
from steps.report.content import Table
from steps.report.origins import code_words, data_words, origins

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


def stored(name: str) -> Any:
    return read_record((RECORDS / f"{name}.json").read_text())


def test_code_base_data_and_every_stage_are_shown() -> None:
    report, plan = stored("report_v1"), stored("run_plan_v1")
    blocks = origins(report, {stage.stage: plan for stage in report.stages})
    first, stages = (block for block in blocks if isinstance(block, Table))
    shown = dict(first.rows)
    assert report.code.commit in shown["code"] and "as committed" in shown["code"]
    assert shown["base"] == plan.base_identity and "emoji 2.15.0" in shown["data"]
    assert len(stages.rows) == len(report.stages)
    assert [row[1] for row in stages.rows[:2]] == ["hit", "miss"]
    assert all(len(row) == len(stages.headers) for row in stages.rows)


def test_an_old_report_says_what_is_not_known() -> None:
    report, plan = stored("report_v1"), stored("run_plan_v1").model_copy(update={"raw_data": RawData()})
    unknown = tuple(stage.model_copy(update={"cached": None}) for stage in report.stages)
    report = report.model_copy(update={"code": None, "stages": unknown})
    first, stages = (
        block
        for block in origins(report, {stage.stage: plan for stage in report.stages})
        if isinstance(block, Table)
    )
    assert dict(first.rows)["code"] == "not known" and "not known" in dict(first.rows)["data"]
    assert {row[1] for row in stages.rows} == {"not known"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (CodeVersion(version="1", commit="ab", dirty=True), "commit ab, with changes that are in no commit"),
        (CodeVersion(version="1"), "version 1, not from a git checkout"),
    ],
    ids=["dirty", "installed"],
)
def test_code_that_no_commit_names_is_said(code: CodeVersion, words: str) -> None:
    assert words in code_words(code)


def test_shards_are_counted_and_named_by_one_hash() -> None:
    raw = RawData(files=(RawFile(name="0.tar", sha256="a" * 64, bytes=3 << 20),) * 2)
    found = data_words(stored("run_plan_v1").model_copy(update={"raw_data": raw}))
    assert "2 shards, 6.0 MiB" in found and raw.identity() in found


def test_what_was_left_out_is_told() -> None:
    plan = stored("run_plan_v1")
    raw = RawData(files=(RawFile(name="0.tar", sha256="a" * 64, bytes=1),))
    counts = {"examined": 90, "skipped": {"corrupt_image": 1}, "filtered": {"width >= 512": 7}}
    told = plan.model_copy(update={"raw_data": raw, "data": plan.data.model_copy(update=counts)})
    assert data_words(told).endswith("left out of 90 pictures: corrupt_image 1, width >= 512 7")
