"""The user's own shards: what is read, what is skipped, and what is refused."""

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

from artifacts_schema.data import EncodedShard
from steps.data import workers
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_shards
from steps.data.shards import expand_shards
from steps.data.webdataset import (
    SkippedItem,
    decode_picture,
    index_shard,
    own_pixel_limit,
    split_of,
)
from steps.files.errors import DataError
from steps.store import LocalStore
from tests.steps.data.shard_files import BASE, Member, config_of, encode, encoded, jobs, samples, write
from tests.steps.data.tiny import IMAGE_SIZE

MANY = 1_000_000  # pixels
PLAIN = config_of(())


def _captions(root: Path, found: list[EncodedShard], split: str) -> list[str]:
    ref = prepare_shards(BASE, found, config_of(()), LocalStore(root / "store"))
    return PreparedData(LocalStore(root / "store"), ref).captions(split)


def _huge_png(width: int, height: int) -> bytes:
    """A few bytes that say they are a picture of width x height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


class TestShardList:
    """data.shards to files."""

    def test_braces_are_expanded_in_order(self, tmp_path: Path) -> None:
        found = expand_shards(
            ["s-{00..02}.tar", "/x/x.tar", "s3://b/{0..1}.tar", "https://h/a.tar"], tmp_path
        )
        assert [place.removeprefix(f"{tmp_path}/") for place in found] == [
            "s-00.tar", "s-01.tar", "s-02.tar", "/x/x.tar", "s3://b/0.tar", "s3://b/1.tar", "https://h/a.tar",
        ]  # fmt: skip

    def test_empty_list_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="names no shard"):
            expand_shards([], tmp_path)

    def test_holes_are_counted_and_named(self, tmp_path: Path) -> None:
        for number in (0, 2):
            write(tmp_path / f"s-{number}.tar", samples(1))
        with pytest.raises(DataError, match=r"shard \S+/s-1\.tar does not exist"):
            encode(tmp_path, ["s-{0..2}.tar"])
        with pytest.raises(DataError, match=r"3 of 5 shards do not exist: \S+s-1\.tar, \S+s-3\.tar, \S+s-4"):
            encode(tmp_path, ["s-{0..4}.tar"])

    def test_repeated_shard_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").touch()
        with pytest.raises(DataError, match=r"a\.tar more than once"):
            expand_shards(["a.tar", "{a,a}.tar"], tmp_path)

    @pytest.mark.parametrize("pattern", ["pipe:touch evil", "gs://bucket/a.tar", "pipe:cat https://a/b"])
    def test_nothing_else_is_opened(self, tmp_path: Path, pattern: str) -> None:
        with pytest.raises(DataError, match="local paths"):
            expand_shards([pattern], tmp_path)
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize("pattern", ["https://me:secret@host/{0..1}.tar", "s3://me:secret@bucket/a.tar"])
    def test_a_password_is_refused_and_not_repeated(self, tmp_path: Path, pattern: str) -> None:
        with pytest.raises(DataError, match="no user and password") as raised:
            expand_shards([pattern], tmp_path)
        assert "secret" not in str(raised.value)

    def test_unbalanced_braces_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"s-\{0\.\.2\.tar"):
            expand_shards(["s-{0..2.tar"], tmp_path)


class TestIndex:
    """Faults of a whole shard: found before anything is decoded, with the shard's name."""

    def test_every_sample_is_indexed(self, tmp_path: Path) -> None:
        found = index_shard(write(tmp_path / "a.tar", samples(3)), PLAIN)
        assert [(sample.key, sample.caption) for sample in found] == [
            (f"{i:05d}", f"caption number {i}") for i in range(3)
        ]

    def test_index_agrees_with_webdataset(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        with TarWriter(str(path)) as writer:
            for i in range(3):
                writer.write({"__key__": f"folder.v1/{i}", "JPG": encoded(kind="JPEG"), "txt": f"text {i}"})
        with path.open("rb") as stream:  # the library's own opener leaves the file open
            files = tar_file_expander([{"url": str(path), "stream": stream}])
            theirs = [(item["__key__"], item["txt"].decode()) for item in group_by_keys(files)]
        ours = [(sample.key, sample.caption) for sample in index_shard(path, PLAIN)]
        assert ours == theirs

    @pytest.mark.parametrize(
        ("members", "found"),
        [
            ([("1.png", b"x"), ("1.json", b"{}")], "json, png"),
            (
                [("1.png", b"x"), ("1.json", b'{"url": "u", "text": "t"}')],
                "json, png with the fields url, text; set .*",
            ),
            ([("1.txt", b"x"), ("2.gif", b"x")], "gif, txt"),
            ([("1.png", b"x"), ("2.txt", b"x")], "png, txt"),
            ([("README", b"x")], "nothing"),
            ([], "nothing"),
        ],
    )
    def test_shard_without_the_expected_keys(self, tmp_path: Path, members: list[Member], found: str) -> None:
        write(tmp_path / "bad.tar", members)
        with pytest.raises(DataError, match=rf"bad\.tar: expected samples .* found {found}(;.*)?$"):
            index_shard(tmp_path / "bad.tar", PLAIN)

    def test_tar_truncated_anywhere_is_named(self, tmp_path: Path) -> None:
        whole = write(tmp_path / "whole.tar", samples(2)).read_bytes()
        with tarfile.open(tmp_path / "whole.tar") as tar:
            end = max(member.offset_data + 512 for member in tar)
        for length in (0, 100, 512, 700, 1024, 1300, end - 100, end):
            (tmp_path / "cut.tar").write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"cut\.tar is truncated"):
                index_shard(tmp_path / "cut.tar", PLAIN)

    def test_damaged_header_in_the_middle_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tar", samples(3))
        data = bytearray(path.read_bytes())
        data[2048 : 2048 + 100] = b"\xff" * 100
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.tar is truncated or no uncompressed tar"):
            index_shard(tmp_path / "a.tar", PLAIN)

    def test_compressed_tar_is_refused(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w:gz"):
            pass
        with pytest.raises(DataError, match="no uncompressed tar"):
            index_shard(tmp_path / "a.tar", PLAIN)

    def test_file_twice_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "a.tar", [*samples(1), *samples(1)])
        with pytest.raises(DataError, match=r"00000\.png twice"):
            index_shard(tmp_path / "a.tar", PLAIN)

    def test_members_cannot_escape(self, tmp_path: Path) -> None:
        inside = tmp_path / "inside"
        inside.mkdir()
        (tmp_path / "secret.txt").write_text("secret")
        path = inside / "a.tar"
        with tarfile.open(path, "w") as tar:
            for name, data in [
                ("../evil.png", encoded()),
                ("../evil.txt", b"evil"),
                ("/tmp/evil2.png", b""),
            ]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for name, kind in [("link.txt", tarfile.SYMTYPE), ("hard.txt", tarfile.LNKTYPE)]:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "../secret.txt"
                tar.addfile(info)
        before = sorted(tmp_path.rglob("*"))
        (found,) = encode(inside, store=LocalStore(tmp_path / "store"), max_skipped_fraction=1.0)
        assert sum(shard.rows for shard in found.splits.values()) == 1
        made = {path for path in tmp_path.rglob("*") if tmp_path / "store" not in (path, *path.parents)}
        assert made - {inside / "hashes"} <= set(before)


class TestSkipping:
    """Faults of one item: skipped and counted, and above the allowed share the run stops."""

    def _mixed(self, root: Path, bad: Sequence[Member], good: int = 20) -> None:
        write(root / "a.tar", [*samples(good), *bad])

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ([("bad.png", encoded()), ("bad.txt", b" \n")], "empty_caption"),
            ([("bad.png", encoded()), ("bad.txt", b"\xff\xfe\xff")], "undecodable_caption"),
            ([("bad.png", encoded()), ("bad.txt", b"x" * 70_000)], "oversized_caption"),
            ([("bad.png", encoded()[:40]), ("bad.txt", b"cut")], "corrupt_image"),
            ([("bad.jpg", b"no picture"), ("bad.txt", b"text")], "corrupt_image"),
            ([("bad.png", b""), ("bad.txt", b"empty file")], "corrupt_image"),
            ([("bad.png", _huge_png(1001, 1000)), ("bad.txt", b"bomb")], "oversized_image"),
            ([("bad.png", bytes(8 * MANY + 1)), ("bad.txt", b"too many bytes")], "oversized_image"),
            ([("bad.png", encoded())], "incomplete_sample"),
        ],
    )
    def test_is_skipped_and_counted(self, tmp_path: Path, bad: list[Member], reason: str) -> None:
        self._mixed(tmp_path, bad)
        (found,) = encode(tmp_path, max_skipped_fraction=0.05, max_image_pixels=MANY)
        assert sum(shard.rows for shard in found.splits.values()) == 20
        assert (found.skipped, found.examined) == ({reason: 1}, 21)

    def test_too_many_stop_with_counts(self, tmp_path: Path) -> None:
        bad = [("x.png", b"no"), ("x.txt", b"text"), ("y.png", encoded()), ("y.txt", b"")]
        self._mixed(tmp_path, bad)
        with pytest.raises(
            DataError, match=r"at most 5\.0% of 22 .* found 2 .*corrupt_image 1, empty_caption 1.*a\.tar"
        ):
            encode(tmp_path, max_skipped_fraction=0.05)

    def test_one_percent_is_the_default(self, tmp_path: Path) -> None:
        self._mixed(tmp_path, [("x.png", b"no"), ("x.txt", b"text")], good=98)
        with pytest.raises(DataError, match=r"at most 1\.0% of 99"):
            encode(tmp_path)
        self._mixed(tmp_path, [("x.png", b"no"), ("x.txt", b"text")], good=99)
        assert encode(tmp_path)[0].examined == 100

    def test_bombs_are_refused_before_they_are_decoded(self) -> None:
        for side in (10_000, 20_000):  # 20,000 squared is beyond Pillow's own limit, too
            with own_pixel_limit(), pytest.raises(SkippedItem, match="oversized_image"):
                decode_picture(_huge_png(side, side), 8, max_pixels=MANY)


class TestDecoding:
    """One picture to a square."""

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_formats(self, kind: str) -> None:
        found = decode_picture(encoded((12, 12), kind), 8, MANY)
        assert found.shape == (3, 8, 8) and found.dtype == torch.uint8
        assert found[0].min() > 240 and found[1:].max() < 15

    def test_other_formats_are_refused(self) -> None:
        with pytest.raises(SkippedItem, match="corrupt_image"):
            decode_picture(encoded(kind="BMP"), 8, MANY)

    @pytest.mark.parametrize("size", [(24, 8), (8, 24)])
    def test_the_centre_is_kept(self, size: tuple[int, int]) -> None:
        image = Image.new("RGB", size, "blue")
        left, top = (size[0] - 8) // 2, (size[1] - 8) // 2
        image.paste((255, 0, 0), (left, top, left + 8, top + 8))
        file = io.BytesIO()
        image.save(file, "PNG")
        red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
        assert torch.equal(decode_picture(file.getvalue(), 8, MANY), red)

    def test_transparency_becomes_white(self) -> None:
        assert (decode_picture(encoded(color=(0, 0, 0, 0)), 8, MANY) == 255).all()

    def test_rotation_flag_is_followed(self) -> None:
        image = Image.new("RGB", (8, 8), "black")
        image.paste((255, 255, 255), (0, 0, 8, 4))
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        file = io.BytesIO()
        image.save(file, "PNG", exif=exif)
        found = decode_picture(file.getvalue(), 8, MANY)
        assert (found[:, :4] == 0).all() and (found[:, 4:] == 255).all()

    @pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA"])
    def test_colour_modes(self, mode: str) -> None:
        file = io.BytesIO()
        Image.new("RGBA", (8, 8), "white").convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
        assert (decode_picture(file.getvalue(), 8, MANY) >= 254).all()


class TestSplits:
    """Splits and limits."""

    def test_split_is_the_captions(self) -> None:
        shares = [split_of(f"caption {i}") for i in range(2000)]
        assert 0.87 < shares.count("train") / 2000 < 0.93
        assert 0.035 < shares.count("validation") / 2000 < 0.065
        assert split_of("A Cat") == split_of("a cat")

    def test_further_shards_move_nothing(self, tmp_path: Path) -> None:
        write(tmp_path / "a.tar", samples(60))
        write(tmp_path / "b.tar", samples(60, start=60))
        assert encode(tmp_path) == encode(tmp_path, ["{a,b}.tar"])[:1]

    def test_held_out_pictures_come_from_the_named_shards_alone(self, tmp_path: Path) -> None:
        write(tmp_path / "a.tar", samples(60))
        write(tmp_path / "b.tar", samples(60, start=60))
        first, second = encode(tmp_path, ["{a,b}.tar"], held_out_from=("a.tar",))
        assert set(first.splits) == {"train", "validation", "test"} and set(second.splits) == {"train"}
        left_out = sum(split_of(f"caption number {i}") != "train" for i in range(60, 120))
        assert second.filtered == {"held out, of other shards than data.held_out_from": left_out}
        assert second.splits["train"].rows == 60 - left_out

    def test_held_out_shards_are_among_the_shards(self, tmp_path: Path) -> None:
        write(tmp_path / "a.tar", samples(60))
        write(tmp_path / "b.tar", samples(60))
        with pytest.raises(
            DataError, match=r"held_out_from names shards that data\.shards does not: .*b\.tar"
        ):
            encode(tmp_path, ["a.tar"], held_out_from=("b.tar",))

    def test_a_larger_share_is_held_out(self, tmp_path: Path) -> None:
        write(tmp_path / "a.tar", samples(60))
        (found,) = encode(tmp_path, held_out_fraction=0.25)
        expected = [split_of(f"caption number {i}", 0.25) for i in range(60)]
        assert {name: shard.rows for name, shard in found.splits.items()} == {
            name: expected.count(name) for name in sorted(set(expected))
        }
        assert expected.count("train") < 40

    def test_limit_bounds_every_split_and_mixes_shards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workers, "_LEAST", 2)
        write(tmp_path / "a.tar", samples(100))
        write(tmp_path / "b.tar", samples(100, start=100))
        found = encode(tmp_path, ["{a,b}.tar"], limit=5)
        assert [[item.splits[split].rows for item in found] for split in ("train", "validation", "test")] == [
            [3, 2]
        ] * 3
        captions = _captions(tmp_path, found, "train")
        numbers = [int(caption.split()[-1]) for caption in captions]
        assert numbers == sorted(numbers)
        assert numbers != list(range(3)) + [100, 101]

    def test_a_limit_leaves_shards_alone_that_it_does_not_need(self, tmp_path: Path) -> None:
        for name in "abcd":
            write(tmp_path / f"{name}.tar", samples(1))
        shards = ["{a,b,c,d}.tar"]

        def names(**config: Any) -> list[tuple[str, int | None]]:
            return [
                (job.known.name[0], job.rules.most) for job in jobs(tmp_path, config_of(shards, **config))
            ]

        assert names(limit=2) == [("a", 2)]
        assert names(limit=65) == [("a", 33), ("c", 32)]
        assert names(limit=65, held_out_from=("d.tar",)) == [("a", 22), ("c", 22), ("d", 21)]
        assert names() == [(name, None) for name in "abcd"]


def test_shards_are_prepared(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [*samples(60), ("x.png", b"no"), ("x.txt", b"text")])
    store = LocalStore(tmp_path / "store")
    found = encode(tmp_path, max_skipped_fraction=0.05)
    ref = prepare_shards(BASE, found, config_of(["a.tar"]), store)
    assert (ref.source, ref.examined, ref.skipped) == ("webdataset", 61, {"corrupt_image": 1})
    data = PreparedData.load(store, ref)
    assert sum(data.size(split) for split in ("train", "validation", "test")) == 60
    assert data.size("novel") == 0 and data.captions("novel") == []
    captions = [f"caption number {i}" for i in range(60)]
    for split in ("validation", "test"):
        assert data.captions(split) == [text for text in captions if split_of(text) == split]
    assert not data._streams  # no picture was read for that
    image = data.images("validation", torch.tensor([0]))
    assert image.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert data.captions("train")[0] == "caption number 0"
    with pytest.raises(DataError, match="no images"):
        data.images("train", torch.tensor([0]))
