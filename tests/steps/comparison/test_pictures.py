"""The real picture of a caption, in a run's own shards."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from artifacts_schema.readers import read_record
from steps.comparison.pictures import _RealPictures
from steps.data.preparing import prepare_shards
from steps.store import LocalStore
from tests.steps.data.shard_files import BASE, config_of, encode, encoded, write

FIXTURES = Path(__file__).parents[2] / "fixtures" / "records"


def test_real_pictures_of_the_users_shards_are_found(tmp_path: Path) -> None:
    blue = {f"caption number {i}": encoded(color=(0, 0, i)) for i in range(120)}
    for number in range(2):
        part = list(blue.items())[60 * number : 60 * number + 60]
        members = [(f"{i}.png", data) for i, (_, data) in enumerate(part)]
        write(
            tmp_path / f"{number}.tar", members + [(f"{i}.txt", c.encode()) for i, (c, _) in enumerate(part)]
        )
    found, store = encode(tmp_path, ["{0..1}.tar"]), LocalStore(tmp_path / "store")
    data = prepare_shards(BASE, found, config_of(()), store)
    plan: Any = read_record((FIXTURES / "run_plan_v1.json").read_text())
    run: Any = SimpleNamespace(records={"start": plan.model_copy(update={"data": data})})
    pictures = _RealPictures(store, run, SimpleNamespace(protocol={"split": "test"}))  # type: ignore[arg-type]
    captions = [text for item in found for text in item.captions["test"]]
    assert len(captions) > 3 and len(found[0].captions["test"]) > 0
    for caption in captions:
        picture = pictures.of(caption)
        assert picture is not None
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        assert abs(int(pixels[4, 4, 2]) - int(caption.split()[-1])) <= 2
    assert pictures.of("of no picture") is None
