"""The report's part on compressed weights, from a stored record."""

from pathlib import Path
from typing import Any

from artifacts_schema.readers import read_record
from steps.report.compression import compression
from steps.report.content import Chart, Heading, Table, Text

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


def test_everything_tried_is_a_row() -> None:
    record: Any = read_record((RECORDS / "compression_v1.json").read_text())
    heading, text, table, chart = compression(record)
    assert isinstance(heading, Heading) and isinstance(text, Text)
    assert isinstance(table, Table) and isinstance(chart, Chart)
    assert len(table.rows) == 1 + len(record.variants) + len(record.combinations)
    assert all(len(row) == len(table.headers) for row in table.rows)
    assert table.rows[-1][-1] == "chosen"
    assert "30 dB" in text.text


def test_nothing_tried_is_nothing_shown() -> None:
    record: Any = read_record((RECORDS / "compression_v1.json").read_text())
    assert compression(None) == [] and compression(record.model_copy(update={"uncompressed": None})) == []
