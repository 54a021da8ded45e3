"""Every version of every record has a stored example, and it loads."""

import json
from pathlib import Path

import pytest

from artifacts_schema.base import content_hash
from artifacts_schema.bundle import BundleManifest
from artifacts_schema.readers import read_record, record_classes, stored_identity
from artifacts_schema.report import RunReport

FOLDER = Path(__file__).parents[1] / "fixtures" / "records"
EXAMPLES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_stored_example_loads(path: Path) -> None:
    record = read_record(path.read_text())
    assert record.identity()
    assert read_record(record.to_json()) == record


def test_every_version_of_every_record_has_an_example() -> None:
    stored = {
        (item["schema"], item["version"]) for item in (json.loads(path.read_text()) for path in EXAMPLES)
    }
    expected = {
        (name, version)
        for name, found in record_classes().items()
        for version in range(1, found.schema_version + 1)
    }
    assert expected <= stored


def test_a_class_reads_its_older_versions_and_no_other_class() -> None:
    text = (FOLDER / "report_v1.json").read_text()
    assert RunReport.from_json(text).name == "smoke"
    with pytest.raises(ValueError, match=r"expected snapfusion\.bundle, found snapfusion\.report"):
        BundleManifest.from_json(text)


def test_a_report_of_version_1_does_not_know_what_the_cache_did() -> None:
    text = (FOLDER / "report_v1.json").read_text()
    assert json.loads(text)["stages"][0]["cached"] is False
    report = RunReport.from_json(text)
    assert {stage.cached for stage in report.stages} == {None} and report.code is None


def test_an_old_record_keeps_the_identity_it_was_named_by() -> None:
    old, new = ((FOLDER / f"bundle_v{version}.json").read_text() for version in (3, 4))
    assert stored_identity(new) == read_record(new).identity()
    payload = json.loads(old)
    del payload["provenance"]
    assert stored_identity(old) == content_hash(payload) != read_record(old).identity()
