"""The report of a run, from stored records: what it is made of, and that a bundle leads back to it."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.base import Provenance, Record
from artifacts_schema.config import parse_config
from artifacts_schema.readers import read_record
from artifacts_schema.references import FolderRef
from artifacts_schema.report import CodeVersion, RunReport
from steps.cache.notes import StageUse
from steps.comparison.references import report_of
from steps.report.page import RunRecords
from steps.report.stored import record_of
from steps.report.trace import runs_of
from steps.stages.report import run
from steps.store import LocalStore

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"
CODE = CodeVersion(version="1", commit="ab", dirty=True)
MADE = Provenance(
    created_at="2026-11-21T06:00:00+00:00", run_id="SnapFusionFlow/6",
    versions={"stage source": "cd", "snapfusion-pipeline": "1+gab"},
)  # fmt: skip


def stored(name: str) -> Any:
    return read_record((RECORDS / f"{name}.json").read_text())


@pytest.fixture
def finished(tmp_path: Path) -> tuple[LocalStore, RunReport]:
    """A run of few stages, one from the cache, one not, one that no note tells of."""
    store, training = LocalStore(tmp_path / "store"), stored("training_v1")
    sizes = {"parameter_ratio": 3.0, "mac_ratio": 2.0, "psnr_db": 20.0}
    decoder = training.model_copy(update={"metrics": sizes, "provenance": MADE})
    manifest, evolution, table = stored("bundle_v1"), stored("evolution_v1"), stored("latency_v1")
    trainings = {"decoder_distillation": decoder}
    records = RunRecords("smoke", True, table, trainings, evolution, [], [], [], [], manifest)
    everything: dict[str, Record] = {
        "start": stored("run_plan_v1"), "decoder_distillation": decoder, "latency_profile": table,
    }  # fmt: skip
    uses = {"start": StageUse("1" * 64, 8, True), "decoder_distillation": StageUse("2" * 64, 4, False)}
    report, page = run(
        parse_config({}), records, everything, store,
        bundle=FolderRef(files={"manifest.json": store.put_bytes(b"{}")}),
        output=tmp_path / "runs" / "7", uses=uses, code=CODE, provenance=MADE,
    )  # fmt: skip
    assert "commit ab" in str(page)
    return store, report


def test_each_stage_says_what_the_cache_did_and_what_made_it(finished: tuple[LocalStore, RunReport]) -> None:
    rows = {row.stage: row for row in finished[1].stages}
    assert {name: row.cached for name, row in rows.items()} == {
        "start": True, "decoder_distillation": False, "latency_profile": None,
    }  # fmt: skip
    assert (rows["start"].key, rows["start"].version) == ("1" * 64, 8)
    decoder = rows["decoder_distillation"]
    assert (decoder.source, decoder.code, decoder.made_by) == ("cd", "1+gab", "SnapFusionFlow/6")


def test_code_and_provenance_are_written(finished: tuple[LocalStore, RunReport]) -> None:
    store, report = finished
    written = RunReport.from_json((Path(report.folder) / "report.json").read_text())
    assert written == report == report_of(store, "7")
    assert (written.code, written.provenance) == (CODE, MADE)


def test_what_a_person_opens_is_written_and_stored(finished: tuple[LocalStore, RunReport]) -> None:
    store, report = finished
    assert report.outputs and set(report.outputs.files) == {"bundle/manifest.json", "pictures/captions.json"}
    for name, ref in report.outputs.files.items():
        assert (Path(report.folder) / name).read_bytes() == store.path_of(ref).read_bytes()
    assert report.bundle == str(Path(report.folder) / "bundle")


def test_the_bundle_leads_back_to_the_run(finished: tuple[LocalStore, RunReport]) -> None:
    store, report = finished
    manifest = record_of(store, report, "bundle")
    assert manifest == stored("bundle_v1")
    assert runs_of(store, manifest.to_json()) == {"7": report}
