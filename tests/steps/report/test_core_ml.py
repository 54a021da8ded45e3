"""The report's Core ML part, from stored records."""

from pathlib import Path
from typing import Any

from artifacts_schema.readers import read_record
from steps.report.content import PictureRows, Table, Text
from steps.report.core_ml import core_ml
from steps.store.local import LocalStore

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


def stored(name: str) -> Any:
    return read_record((RECORDS / f"{name}.json").read_text())


def test_every_place_is_a_row_and_the_pictures_are_shown(tmp_path: Path) -> None:
    store, component, drawing = LocalStore(tmp_path), stored("component_v1"), stored("bundle_drawing_v1")
    drawing = drawing.model_copy(update={"grid": store.put_bytes(b"png")})
    blocks = core_ml([component], drawing, store)
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [row[1] for row in tables[1].rows] == ["t = 999", "t = 499", "t = 124"]
    first = component.parity.points[0]
    assert tables[1].rows[0][4] == f"{first.rounded_db:.1f} / {first.torch_rounded_db:.1f}"
    assert all(len(row) == len(table.headers) for table in tables for row in table.rows)
    (pictures,) = (block for block in blocks if isinstance(block, PictureRows))
    assert pictures.rows[0][1] == b"png" and drawing.captions[0] in pictures.caption
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert "nothing here has run on Apple hardware" in texts[0].replace("\n", " ")


def test_components_without_parity_and_without_pictures(tmp_path: Path) -> None:
    component = stored("component_v1").model_copy(update={"parity": None, "parity_note": "not measured"})
    blocks = core_ml([component], None, LocalStore(tmp_path))
    assert len(blocks) == 3 and "not measured" in str(blocks[2])
