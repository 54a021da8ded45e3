"""The numbers of the program-check benchmark, from stored records."""

import json
from pathlib import Path
from typing import Any

from artifacts_schema.readers import read_record
from benchmarks.program_check import Measured, metrics

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"


def test_every_place_and_the_pictures_are_published() -> None:
    report: Any = read_record((RECORDS / "component_v1.json").read_text())
    drawing: Any = read_record((RECORDS / "bundle_drawing_v1.json").read_text())
    rows = {metric.name: metric for metric in metrics(Measured((report,), drawing, b""))}
    stored = json.loads((RECORDS / "component_v1.json").read_text())["parity"]["points"]
    assert rows["coreml.unet.t999.rounded_db"].value == stored[0]["rounded_db"]
    assert rows["coreml.unet.psnr_exact_db"].value == min(point["exact_db"] for point in stored)
    assert rows["coreml.unet.psnr_exact_db"].n == sum(point["inputs"] for point in stored)
    assert rows["coreml.bundle.image_psnr_db"].value == drawing.scores.psnr_db.median
    assert rows["coreml.bundle.clip_drop"].n == drawing.scores.pictures
