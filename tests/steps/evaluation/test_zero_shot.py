"""A training picture that is measured on is found whatever was done to it; others are not."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts_schema.config import parse_config
from flows.commands import zero_shot as command
from steps.evaluation.zero_shot import check_zero_shot, perceptual_hash
from steps.files.errors import EvaluationError
from steps.files.progress import NullProgress
from tests.steps.data.test_places import Web, web  # noqa: F401 - a fixture

SHARD = parse_config({"data": {"source": "webdataset", "shards": ["a.tar"]}})


def photograph(number: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Something smooth, as photographs are, of its own for every number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, str]]) -> None:
    """Key, picture and caption of every sample."""
    with tarfile.open(path, "w") as tar:
        for key, picture, caption in samples:
            for name, data in ((f"{key}.png", picture), (f"{key}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def others(tmp_path: Path) -> Path:
    (tmp_path / "val").mkdir()
    for number in range(12):
        photograph(number).save(tmp_path / "val" / f"{number}.jpg", quality=90)
    return tmp_path / "val"


def treated(number: int) -> list[bytes]:
    """The same picture smaller and worse, in another format, and cut to its centre square."""
    whole = photograph(number)
    square = whole.crop((40, 0, 280, 240)).resize((96, 96))
    return [
        encoded(whole.resize((160, 120)), quality=40),
        encoded(whole, "PNG"),
        encoded(square, "WEBP", quality=60),
    ]


def test_a_picture_is_found_in_another_size_format_and_cut(tmp_path: Path, others: Path) -> None:
    pictures = [*treated(3), *(encoded(photograph(100 + number)) for number in range(20))]
    write_shard(
        tmp_path / "a.tar", [(f"{n:03d}", picture, "a caption") for n, picture in enumerate(pictures)]
    )
    found = check_zero_shot(SHARD, tmp_path, others, progress=NullProgress())
    assert (found.training, found.others, found.unreadable) == (23, 12, 0)
    assert sorted((match.training, match.other) for match in found.matches) == [
        (f"a.tar/{n:03d}.png", "3.jpg") for n in range(3)
    ]


def test_a_shard_on_a_web_server_is_read(tmp_path: Path, others: Path, web: Web) -> None:  # noqa: F811
    write_shard(tmp_path / "b.tar", [("k", treated(4)[0], "a caption")])
    address = web.put("b.tar", (tmp_path / "b.tar").read_bytes())
    config = parse_config({"data": {"source": "webdataset", "shards": [f"{address}?key=1"]}})
    found = check_zero_shot(config, tmp_path, others, progress=NullProgress())
    assert [(match.training, match.other) for match in found.matches] == [("b.tar/k.png", "4.jpg")]


def test_damaged_pictures_are_counted(tmp_path: Path, others: Path) -> None:
    (others / "broken.jpg").write_bytes(b"no picture")
    write_shard(tmp_path / "a.tar", [("0", b"none either", "x"), ("1", encoded(photograph(50)), "y")])
    found = check_zero_shot(SHARD, tmp_path, others, progress=NullProgress())
    assert (found.unreadable, found.matches) == (2, ())


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="expected pictures .* found none"):
        check_zero_shot(SHARD, tmp_path, tmp_path / "nowhere", progress=NullProgress())


def test_the_hash_is_that_of_the_centre_square() -> None:
    wide = photograph(1, (480, 240))
    square = wide.crop((120, 0, 360, 240))
    assert (perceptual_hash(encoded(wide, "PNG")) ^ perceptual_hash(encoded(square, "PNG"))).bit_count() <= 2


def test_the_command_says_what_it_found(
    tmp_path: Path, others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "a.tar", [("k", treated(5)[0], "a caption")])
    config = tmp_path / "mine.toml"
    config.write_text(f'[data]\nsource = "webdataset"\nshards = ["{tmp_path}/a.tar"]\n')
    arguments = ["--config", str(config), "--pictures", str(others)]
    assert command.main(arguments) == 1
    said = capsys.readouterr().out
    assert "1 training pictures, 12 others, 0 unreadable: found 1 within 6 of 64 bits" in said
    assert "a.tar/k" in said
    assert command.main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["matches"][0]["other"] == "5.jpg"
    assert command.main(["--pictures", str(others)]) == 1
    assert "data.source is 'openmoji'" in capsys.readouterr().err
