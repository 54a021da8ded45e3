"""Every version of every record has a stored example, and it loads."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from artifacts_schema.base import NewerRecord, Record, content_hash
from artifacts_schema.bundle import BundleManifest
from artifacts_schema.readers import RECORD_CLASSES, read_record, stored_identity

FOLDER = Path(__file__).parents[1] / "fixtures" / "records"
EXAMPLES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_stored_example_loads(path: Path) -> None:
    record = read_record(path.read_text())
    assert read_record(record.to_json()) == record
    current = json.loads(path.read_text())["version"] == record.schema_version
    assert (stored_identity(path.read_text()) == record.identity()) is current


def test_every_version_of_every_record_has_an_example() -> None:
    stored = {
        (item["schema"], item["version"]) for item in (json.loads(path.read_text()) for path in EXAMPLES)
    }
    assert stored == {
        (name, version)
        for name, found in RECORD_CLASSES.items()
        for version in range(1, found.schema_version + 1)
    }


def test_every_record_class_is_known() -> None:
    ours = {found for found in Record.__subclasses__() if found.__module__.startswith("artifacts_schema.")}
    assert ours == set(RECORD_CLASSES.values())


def test_a_class_reads_no_other_class() -> None:
    with pytest.raises(ValueError, match=r"expected snapfusion\.bundle, found snapfusion\.report"):
        BundleManifest.from_json((FOLDER / "report_v1.json").read_text())


def _in_seconds(fields: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had milliseconds."""
    milliseconds = fields.pop("pause_ms")
    return {**fields, "pause_s": milliseconds / 1000}


class Rest(Record):
    """A record in its second version."""

    schema_name: ClassVar[str] = "example.rest"
    schema_version: ClassVar[int] = 2
    upgrades = {1: _in_seconds}

    pause_s: float


OLD = {"schema": "example.rest", "version": 1, "stage": "rest", "pause_ms": 1500, "provenance": None}


def test_an_older_version_is_brought_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Rest.from_json(json.dumps(OLD))
    assert record.pause_s == 1.5
    assert Rest.from_json(record.to_json()) == record
    monkeypatch.setitem(RECORD_CLASSES, "example.rest", Rest)
    assert read_record(json.dumps(OLD)) == record
    # Others name it by the identity that it had when it was written.
    named = {key: value for key, value in OLD.items() if key != "provenance"}
    assert stored_identity(json.dumps(OLD)) == content_hash(named) != record.identity()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"version": 0}, ValueError, "version 0 has no reader"),
        ({"version": "1"}, ValueError, "must be an integer"),
        ({"version": 3}, NewerRecord, r"version 3 is newer than this program reads \(2\); update it"),
        ({"pause_ms": None}, ValueError, "version 1 lacks what it must have"),
        ({"schema": "x.y"}, ValueError, r"expected example\.rest, found x\.y"),
    ],
    ids=["too old", "no number", "newer", "lacks a field", "another"],
)
def test_what_no_version_is_is_refused(
    changes: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Rest.from_json(json.dumps(OLD | changes))
