"""Every version of every record has a stored example, and it loads."""

import json
from pathlib import Path

import pytest

from artifacts_schema.readers import read_record, record_classes

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
