"""The report draws the grids, so that another number of pictures in them evaluates nothing again."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from artifacts_schema.readers import read_record
from steps.stages.report import _grids
from steps.store import LocalStore

EXAMPLE = Path(__file__).parents[2] / "fixtures/records/evaluation_v1.json"


def test_grids_show_the_configured_number_of_pictures(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    images = torch.arange(12, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    record: Any = read_record(EXAMPLE.read_text())
    point = record.point.model_copy(update={"images": store.put_bytes(save({"images": images}))})
    records: Any = SimpleNamespace(evaluations=[record.model_copy(update={"point": point})])
    sizes = {}
    for shown in (3, 12, 16):
        scale, data = _grids(records, store, shown=shown)[record.variant]
        assert scale == point.guidance_scale
        sizes[shown] = Image.open(io.BytesIO(data)).size
    # Pictures of 4 x 4 with 2 pixels between them, eight in a row.
    assert sizes == {3: (16, 4), 12: (46, 10), 16: (46, 10)}
