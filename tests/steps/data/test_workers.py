"""Encoding shards: each once whoever does it, taken up where it stopped, with counts of what is left out."""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from artifacts_schema.data import EncodedShard
from steps.cache.leases import lease
from steps.data import encoding, workers
from steps.data.encoding import encode_moments
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_shards
from steps.data.workers import ShardEncoder, jobs_of
from steps.files.errors import DataError, DiskFullError
from steps.files.hashes import FileHashes
from steps.files.progress import NullProgress
from steps.inputs.folders import raw_data
from steps.models.base import encode_captions
from steps.store import LocalStore
from tests.conftest import MakeS3
from tests.steps.data.shard_files import (
    BASE,
    STORED,
    Member,
    config_of,
    encode,
    encoded,
    jobs,
    samples,
    write,
)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are encoded from now on."""
    done: list[str] = []
    real = workers.encode_shard

    def note(*arguments: Any) -> EncodedShard:
        done.append(arguments[3].name)
        return real(*arguments)

    monkeypatch.setattr(workers, "encode_shard", note)
    return done


def three(root: Path) -> list[str]:
    for number in range(3):
        write(root / f"{number}.tar", samples(40, start=40 * number))
    return ["{0..2}.tar"]


def with_json(count: int, fields: Callable[[int], dict[str, Any]], text: bool = True) -> list[Member]:
    members: list[Member] = []
    for i in range(count):
        members += [(f"{i}.jpg", encoded(kind="JPEG")), (f"{i}.json", json.dumps(fields(i)).encode())]
        members += [(f"{i}.txt", f"caption number {i}".encode())] if text else []
    return members


def test_rows_are_what_the_encoders_make_of_the_pictures(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", samples(3))
    (found,) = encode(tmp_path, held_out_fraction=1e-9)
    path = LocalStore(tmp_path / "store").path_of(found.splits["train"].object)
    with safe_open(path, framework="pt") as file:
        moments, embeddings = file.get_tensor("moments"), file.get_tensor("embeddings")
        captions = json.loads(file.metadata()["captions"])
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(3, 3, 32, 32)
    assert captions == [f"caption number {i}" for i in range(3)]
    torch.testing.assert_close(moments, encode_moments(BASE, red).bfloat16(), rtol=0.02, atol=0.02)
    expected = encode_captions(BASE.tokenizer, BASE.text_encoder, captions)
    assert embeddings.dtype == torch.bfloat16
    torch.testing.assert_close(embeddings.float(), expected, rtol=0.02, atol=0.02)
    assert found.enlarged == 3  # 8 x 8 pictures


def test_what_is_encoded_is_not_encoded_again(tmp_path: Path, encodings: list[str]) -> None:
    shards = three(tmp_path)
    first = encode(tmp_path, shards[:1])
    assert encodings == ["0.tar", "1.tar", "2.tar"]
    write(tmp_path / "3.tar", samples(10, start=200))
    assert encode(tmp_path, ["{3,1,0}.tar"])[1:] == [first[1], first[0]]
    assert encodings[3:] == ["3.tar"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"crop": "pad"}, 3),
        ({"filters": ("width >= 4",)}, 3),
        ({"held_out_fraction": 0.1}, 3),
        ({"limit": 30}, 1),
        ({"max_image_pixels": 1000}, 3),
        ({"shuffle_shards": 3}, 0),
        ({"max_skipped_fraction": 0.5}, 0),
    ],
)
def test_what_decides_the_rows_makes_other_ones(
    tmp_path: Path, encodings: list[str], change: dict[str, Any], again: int
) -> None:
    shards = three(tmp_path)
    encode(tmp_path, shards)
    encode(tmp_path, shards, **change)
    assert len(encodings) == 3 + again


def test_a_run_without_the_cache_takes_nothing_of_others(tmp_path: Path) -> None:
    made = config_of(three(tmp_path))
    raw = raw_data(made, tmp_path, FileHashes(tmp_path / "hashes"))
    runs = [
        jobs_of(made, tmp_path, raw, STORED, size=32, own_run=run)[0].document for run in ("", "1", "2", "1")
    ]
    assert runs[1] == runs[3] and len(set(runs)) == 3


def test_a_worker_that_was_cut_off_goes_on(
    tmp_path: Path, encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = three(tmp_path)
    real = workers.index_shard

    def cut(path: Path, config: Any) -> Any:
        if path.name == "1.tar":
            raise KeyboardInterrupt
        return real(path, config)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "index_shard", cut)
        with pytest.raises(KeyboardInterrupt):
            encode(tmp_path, shards)
    assert len(encode(tmp_path, shards)) == 3
    assert encodings == ["0.tar", "1.tar", "2.tar"]


def test_several_workers_encode_every_shard_once(tmp_path: Path, encodings: list[str]) -> None:
    for number in range(6):
        write(tmp_path / f"{number}.tar", samples(5, start=5 * number))
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: encode(tmp_path, ["{0..5}.tar"]), range(3)))
    assert results[0] == results[1] == results[2]
    assert sorted(encodings) == [f"{number}.tar" for number in range(6)]


def test_a_worker_leaves_alone_what_another_works_on(tmp_path: Path, encodings: list[str]) -> None:
    shards, store = three(tmp_path), LocalStore(tmp_path / "store")
    made = config_of(shards)
    encoder = ShardEncoder(BASE, made, store, work=tmp_path / "work", access=None)  # type: ignore[arg-type]
    found = jobs(tmp_path, made)
    with lease(store, found[0].document):
        assert list(encoder._in_turn(found, range(3))) == [1, 2, 0]
    encoder.run(found, NullProgress())
    assert encodings == ["0.tar", "1.tar", "2.tar"]


def test_an_object_that_is_gone_is_made_again(tmp_path: Path, encodings: list[str]) -> None:
    shards, store = three(tmp_path), LocalStore(tmp_path / "store")
    first = encode(tmp_path, shards)
    store.delete_object(first[1].splits["train"].object.sha256)
    store.put_document(jobs(tmp_path, config_of(shards))[2].document, "{}x")
    assert encode(tmp_path, shards) == first
    assert encodings[3:] == ["1.tar", "2.tar"]


def test_one_bad_shard_is_named_and_left_out_within_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = three(tmp_path)
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"at most 1\.0% of 3 shards .* found 1, .*/1\.tar is truncated"):
        encode(tmp_path, shards)
    with caplog.at_level("WARNING"):
        found = encode(tmp_path, shards, max_skipped_fraction=0.34)
    ref = prepare_shards(
        BASE, found, config_of(shards, max_skipped_fraction=0.34), LocalStore(tmp_path / "store")
    )
    assert ref.skipped == {"unreadable_shard": 1} and ref.examined == 80
    assert "1.tar is truncated" in found[1].problem


def test_a_first_shard_that_is_bad_stops_before_the_others(tmp_path: Path) -> None:
    shards = three(tmp_path)
    write(tmp_path / "0.tar", [("1.png", b"x")])
    store, made = LocalStore(tmp_path / "store"), config_of(shards)
    encoder = ShardEncoder(BASE, made, store, work=tmp_path / "work", access=None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"0\.tar: expected samples"):
        encoder.estimate(jobs(tmp_path, made))
    three(tmp_path)
    assert encoder.estimate(jobs(tmp_path, made)) == 120
    encoder.run(jobs(tmp_path, made), NullProgress())
    assert encoder.estimate(jobs(tmp_path, made)) == 120


def test_captions_of_a_json_field_and_filters_with_counts(tmp_path: Path) -> None:
    def fields(i: int) -> dict[str, Any]:
        known = {"text": f"caption number {i}", "score": i, "LANGUAGE": "en" if i % 2 else "de"}
        return known if i != 5 else {"text": "no score"}

    write(tmp_path / "a.tar", with_json(20, fields, text=False))
    (found,) = encode(tmp_path, caption_field="text", filters=("score >= 4", "LANGUAGE == en"))
    assert found.filtered == {"score >= 4": 4, "score >= 4: no such field": 1, "LANGUAGE == en": 8}
    assert (found.examined, found.skipped) == (20, {})
    assert sum(shard.rows for shard in found.splits.values()) == 7
    with pytest.raises(DataError, match=r"a \.json with the field 'caption' .* fields text, score, LANGUAGE"):
        encode(tmp_path, caption_field="caption")


def test_filters_of_the_picture_see_it_upright(tmp_path: Path) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (40, 20)).save(turned, "JPEG", exif=exif)
    pictures = [encoded((40, 20)), encoded((20, 40)), turned.getvalue(), encoded((90, 10))]
    members = [(f"{i}.png" if i != 2 else "2.jpg", data) for i, data in enumerate(pictures)]
    write(tmp_path / "a.tar", [*members, *((f"{i}.txt", b"text") for i in range(4))])
    (found,) = encode(tmp_path, filters=("aspect <= 2", "height >= 40"), held_out_fraction=1e-9)
    assert found.filtered == {"aspect <= 2": 1, "height >= 40": 1}
    assert found.splits["train"].rows == 2


def test_filters_that_leave_nothing_are_told(tmp_path: Path) -> None:
    shards = three(tmp_path)
    found = encode(tmp_path, shards, filters=("width >= 512",))
    with pytest.raises(DataError, match=r"in every split.*filters left out \{'width >= 512': 120\}"):
        prepare_shards(BASE, found, config_of(shards), LocalStore(tmp_path / "store"))


def test_padding_keeps_the_whole_picture(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [("1.png", encoded((64, 16))), ("1.txt", b"caption number 0")])
    (cut,) = encode(tmp_path, held_out_fraction=1e-9)
    (whole,) = encode(tmp_path, held_out_fraction=1e-9, crop="pad")
    assert cut.splits["train"].object != whole.splits["train"].object


def test_a_full_disk_is_said_and_what_is_finished_stays(
    tmp_path: Path, encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, store = three(tmp_path), LocalStore(tmp_path / "store")
    real = encoding.save_file

    def full(tensors: Any, path: Path, **named: Any) -> None:
        if encodings == ["0.tar", "1.tar"]:
            raise OSError(28, "No space left on device")
        real(tensors, path, **named)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "save_file", full)
        with pytest.raises(DiskFullError, match="no space left for an encoded shard"):
            encode(tmp_path, shards)
    assert len(store.list_documents("encoded_shards/")) == 1
    assert not list((tmp_path / "store" / "work" / "encoding").iterdir())
    encode(tmp_path, shards)
    assert encodings == ["0.tar", "1.tar", "1.tar", "2.tar"]


def test_a_remote_store_keeps_no_encoded_shard_here(make_s3: MakeS3, tmp_path: Path) -> None:
    shards, store = three(tmp_path), make_s3()
    found = encode(tmp_path, shards, store=store)
    names = {shard.object.sha256 for item in found for shard in item.splits.values()}
    assert not names & {entry.name for entry in store.local.objects()}
    data = PreparedData.load(store, prepare_shards(BASE, found, config_of(shards), store))
    assert len(data.captions("validation")) == data.size("validation") > 0


@pytest.mark.long
def test_memory_stays_flat_over_a_hundred_thousand_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "encode_moments", lambda _, images: torch.zeros(len(images), 8, 4, 4))
    monkeypatch.setattr(encoding, "encode_captions", lambda *given: torch.zeros(len(given[2]), 3, 8))
    content = write(tmp_path / "one.tar", samples(1000)).read_bytes()
    for number in range(100):  # zeros behind the end mark: another shard with the same pictures
        (tmp_path / f"{number}.tar").write_bytes(content + bytes(512 * number))

    def read(last: int) -> int:
        assert sum(item.examined for item in encode(tmp_path, [f"{{0..{last}}}.tar"])) == 1000 * (last + 1)
        return int(psutil.Process().memory_info().rss)

    before = read(19)
    assert read(99) - before < 32 << 20
