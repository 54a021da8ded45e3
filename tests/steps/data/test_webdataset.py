"""The user's own shards: what is read, what is skipped, and what is refused."""

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

from artifacts_schema.run_configs import DataConfig
from steps.data.prepared import PreparedData, prepare_data
from steps.data.shards import expand_shards
from steps.data.source import Picture
from steps.data.webdataset import (
    SkippedItem,
    WebDatasetSource,
    check_shards,
    decode_picture,
    split_of,
)
from steps.files.errors import DataError
from steps.files.progress import NullProgress
from steps.store import LocalStore
from tests.factories import encoding_base
from tests.steps.data.tiny import IMAGE_SIZE

Member = tuple[str, bytes]
MANY = 1_000_000  # pixels


def _encoded(size: tuple[int, int] = (8, 8), kind: str = "PNG", color: object = (255, 0, 0)) -> bytes:
    file = io.BytesIO()
    mode = "RGBA" if isinstance(color, tuple) and len(color) == 4 else "RGB"
    Image.new(mode, size, color).save(file, kind)  # type: ignore[arg-type]
    return file.getvalue()


def _write(path: Path, members: Iterable[Member]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _samples(count: int, start: int = 0) -> list[Member]:
    members: list[Member] = []
    for i in range(start, start + count):
        members += [(f"{i:05d}.png", _encoded()), (f"{i:05d}.txt", f"caption number {i}".encode())]
    return members


def _source(root: Path, shards: Sequence[str] = ("a.tar",), **config: object) -> WebDatasetSource:
    return WebDatasetSource(DataConfig(source="webdataset", shards=tuple(shards), **config), root, 8)  # type: ignore[arg-type]


def _pictures(source: WebDatasetSource) -> list[Picture]:
    return list(source.pictures())


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
        for name in ("s-00.tar", "s-01.tar", "s-02.tar", "x.tar"):
            (tmp_path / name).touch()
        found = expand_shards(["s-{00..02}.tar", str(tmp_path / "x.tar")], tmp_path)
        assert [path.name for path in found] == ["s-00.tar", "s-01.tar", "s-02.tar", "x.tar"]

    def test_empty_list_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="names no shard"):
            expand_shards([], tmp_path)

    def test_missing_shard_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "s-0.tar").touch()
        with pytest.raises(DataError, match=r"s-1\.tar does not exist"):
            expand_shards(["s-{0..1}.tar"], tmp_path)

    def test_repeated_shard_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").touch()
        with pytest.raises(DataError, match=r"a\.tar more than once"):
            expand_shards(["a.tar", "{a,a}.tar"], tmp_path)

    @pytest.mark.parametrize("pattern", ["pipe:touch evil", "https://example.org/a.tar", "s3://bucket/a.tar"])
    def test_nothing_but_local_paths_is_opened(self, tmp_path: Path, pattern: str) -> None:
        with pytest.raises(DataError, match="local paths"):
            expand_shards([pattern], tmp_path)
        assert not (tmp_path / "evil").exists()

    def test_unbalanced_braces_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"s-\{0\.\.2\.tar"):
            expand_shards(["s-{0..2.tar"], tmp_path)


class TestCheckShards:
    """Faults of a whole shard: found before anything is decoded, with the shard's name."""

    def test_every_sample_is_indexed(self, tmp_path: Path) -> None:
        _write(tmp_path / "a.tar", _samples(2))
        _write(tmp_path / "b.tar", _samples(1, start=2))
        found = check_shards(["{a,b}.tar"], tmp_path)
        assert [(sample.key, sample.caption) for sample in found] == [
            (f"{i:05d}", f"caption number {i}") for i in range(3)
        ]

    def test_index_agrees_with_webdataset(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tar"
        with TarWriter(str(path)) as writer:
            for i in range(3):
                writer.write({"__key__": f"folder.v1/{i}", "JPG": _encoded(kind="JPEG"), "txt": f"text {i}"})
        with path.open("rb") as stream:  # the library's own opener leaves the file open
            files = tar_file_expander([{"url": str(path), "stream": stream}])
            theirs = [(item["__key__"], item["txt"].decode()) for item in group_by_keys(files)]
        ours = [(sample.key, sample.caption) for sample in check_shards([str(path)], tmp_path)]
        assert ours == theirs

    @pytest.mark.parametrize(
        ("members", "found"),
        [
            ([("1.png", b"x"), ("1.json", b"{}")], "json, png"),
            ([("1.txt", b"x"), ("2.gif", b"x")], "gif, txt"),
            ([("1.png", b"x"), ("2.txt", b"x")], "png, txt"),
            ([("README", b"x")], "nothing"),
            ([], "nothing"),
        ],
    )
    def test_shard_without_the_expected_keys(self, tmp_path: Path, members: list[Member], found: str) -> None:
        _write(tmp_path / "good.tar", _samples(1))
        _write(tmp_path / "bad.tar", members)
        with pytest.raises(DataError, match=rf"bad\.tar: expected samples .* found {found}$"):
            check_shards(["good.tar", "bad.tar"], tmp_path)

    def test_tar_truncated_anywhere_is_named(self, tmp_path: Path) -> None:
        whole = _write(tmp_path / "whole.tar", _samples(2)).read_bytes()
        with tarfile.open(tmp_path / "whole.tar") as tar:
            end = max(member.offset_data + 512 for member in tar)
        for length in (0, 100, 512, 700, 1024, 1300, end - 100, end):
            (tmp_path / "cut.tar").write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"cut\.tar is truncated"):
                check_shards(["cut.tar"], tmp_path)

    def test_damaged_header_in_the_middle_is_named(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a.tar", _samples(3))
        data = bytearray(path.read_bytes())
        data[2048 : 2048 + 100] = b"\xff" * 100
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.tar is truncated or no uncompressed tar"):
            check_shards(["a.tar"], tmp_path)

    def test_compressed_tar_is_refused(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w:gz"):
            pass
        with pytest.raises(DataError, match="no uncompressed tar"):
            check_shards(["a.tar"], tmp_path)

    def test_file_twice_is_refused(self, tmp_path: Path) -> None:
        _write(tmp_path / "a.tar", [*_samples(1), *_samples(1)])
        with pytest.raises(DataError, match=r"00000\.png twice"):
            check_shards(["a.tar"], tmp_path)

    def test_members_cannot_escape(self, tmp_path: Path) -> None:
        inside = tmp_path / "inside"
        inside.mkdir()
        (tmp_path / "secret.txt").write_text("secret")
        path = inside / "a.tar"
        with tarfile.open(path, "w") as tar:
            for name, data in [
                ("../evil.png", _encoded()),
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
        pictures = _pictures(_source(inside, max_skipped_fraction=1.0))
        assert [picture.caption for picture in pictures] == ["evil"]
        assert sorted(tmp_path.rglob("*")) == before


class TestSkipping:
    """Faults of one item: skipped and counted, and above the allowed share the run stops."""

    def _mixed(self, root: Path, bad: Sequence[Member], good: int = 20) -> None:
        _write(root / "a.tar", [*_samples(good), *bad])

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ([("bad.png", _encoded()), ("bad.txt", b" \n")], "empty_caption"),
            ([("bad.png", _encoded()), ("bad.txt", b"\xff\xfe\xff")], "undecodable_caption"),
            ([("bad.png", _encoded()), ("bad.txt", b"x" * 70_000)], "oversized_caption"),
            ([("bad.png", _encoded()[:40]), ("bad.txt", b"cut")], "corrupt_image"),
            ([("bad.jpg", b"no picture"), ("bad.txt", b"text")], "corrupt_image"),
            ([("bad.png", b""), ("bad.txt", b"empty file")], "corrupt_image"),
            ([("bad.png", _huge_png(1001, 1000)), ("bad.txt", b"bomb")], "oversized_image"),
            ([("bad.png", bytes(8 * MANY + 1)), ("bad.txt", b"too many bytes")], "oversized_image"),
            ([("bad.png", _encoded())], "incomplete_sample"),
        ],
    )
    def test_is_skipped_and_counted(self, tmp_path: Path, bad: list[Member], reason: str) -> None:
        self._mixed(tmp_path, bad)
        source = _source(tmp_path, max_skipped_fraction=0.05, max_image_pixels=MANY)
        assert len(_pictures(source)) == 20
        assert source.skipped == {reason: 1}
        assert source.total == 21

    def test_too_many_stop_with_counts(self, tmp_path: Path) -> None:
        bad = [("x.png", b"no"), ("x.txt", b"text"), ("y.png", _encoded()), ("y.txt", b"")]
        self._mixed(tmp_path, bad)
        with pytest.raises(
            DataError, match=r"at most 5\.0% of 22 .* found 2 .*corrupt_image 1, empty_caption 1.*a\.tar"
        ):
            _pictures(_source(tmp_path, max_skipped_fraction=0.05))

    def test_one_percent_is_the_default(self, tmp_path: Path) -> None:
        self._mixed(tmp_path, [("x.png", b"no"), ("x.txt", b"text")], good=98)
        with pytest.raises(DataError, match=r"at most 1\.0% of 99"):
            _pictures(_source(tmp_path))
        self._mixed(tmp_path, [("x.png", b"no"), ("x.txt", b"text")], good=99)
        assert len(_pictures(_source(tmp_path))) == 99

    def test_bombs_are_refused_before_they_are_decoded(self) -> None:
        for side in (10_000, 20_000):  # 20,000 squared is beyond Pillow's own limit, too
            with pytest.raises(SkippedItem, match="oversized_image"):
                decode_picture(_huge_png(side, side), 8, max_pixels=MANY)

    def test_reading_twice_counts_once(self, tmp_path: Path) -> None:
        self._mixed(tmp_path, [("x.png", b"no"), ("x.txt", b"text")])
        source = _source(tmp_path, max_skipped_fraction=0.1)
        _pictures(source)
        _pictures(source)
        assert source.skipped == {"corrupt_image": 1}


class TestDecoding:
    """One picture to a square."""

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_formats(self, kind: str) -> None:
        found = decode_picture(_encoded((12, 12), kind), 8, MANY)
        assert found.shape == (3, 8, 8) and found.dtype == torch.uint8
        assert found[0].min() > 240 and found[1:].max() < 15

    def test_other_formats_are_refused(self) -> None:
        with pytest.raises(SkippedItem, match="corrupt_image"):
            decode_picture(_encoded(kind="BMP"), 8, MANY)

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
        assert (decode_picture(_encoded(color=(0, 0, 0, 0)), 8, MANY) == 255).all()

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
        _write(tmp_path / "a.tar", _samples(30))
        _write(tmp_path / "b.tar", _samples(30, start=30))
        alone = {p.caption: p.split for p in _pictures(_source(tmp_path))}
        both = {p.caption: p.split for p in _pictures(_source(tmp_path, ["{b,a}.tar"]))}
        assert alone.items() <= both.items()

    def test_held_out_pictures_come_from_the_named_shards_alone(self, tmp_path: Path) -> None:
        _write(tmp_path / "a.tar", _samples(60))
        _write(tmp_path / "b.tar", _samples(60, start=60))
        frozen = {"held_out_from": ("a.tar",)}
        alone, both = (
            _pictures(_source(tmp_path, names, **frozen)) for names in (["a.tar"], ["a.tar", "b.tar"])
        )
        held_out = [[p.caption for p in found if p.split != "train"] for found in (alone, both)]
        assert held_out[0] == held_out[1] != []
        new = [p.caption for p in both if int(p.caption.split()[-1]) >= 60]
        assert len(new) > 40 and {split_of(caption) for caption in new} == {"train"}

    def test_held_out_shards_are_among_the_shards(self, tmp_path: Path) -> None:
        _write(tmp_path / "a.tar", _samples(60))
        _write(tmp_path / "b.tar", _samples(60))
        with pytest.raises(
            DataError, match=r"held_out_from names shards that data\.shards does not: .*b\.tar"
        ):
            _source(tmp_path, ["a.tar"], held_out_from=("b.tar",))

    def test_limit_bounds_every_split_and_mixes_shards(self, tmp_path: Path) -> None:
        _write(tmp_path / "a.tar", _samples(100))
        _write(tmp_path / "b.tar", _samples(100, start=100))
        source = _source(tmp_path, ["{a,b}.tar"], limit=5)
        pictures = _pictures(source)
        counts = [sum(p.split == split for p in pictures) for split in ("train", "validation", "test")]
        assert counts == [5, 5, 5] and source.total == 15
        numbers = [int(p.caption.split()[-1]) for p in pictures]
        assert numbers == sorted(numbers)
        assert numbers[0] < 100 <= numbers[-1]


def test_shards_are_prepared(tmp_path: Path) -> None:
    _write(tmp_path / "a.tar", [*_samples(60), ("x.png", b"no"), ("x.txt", b"text")])
    config = DataConfig(source="webdataset", shards=("a.tar",), max_skipped_fraction=0.05)
    store = LocalStore(tmp_path / "store")
    ref = prepare_data(encoding_base(), config, store, progress=NullProgress(), project_root=tmp_path)
    assert (ref.source, ref.examined, ref.skipped) == ("webdataset", 61, {"corrupt_image": 1})
    data = PreparedData.load(store, ref)
    assert sum(data.size(split) for split in ("train", "validation", "test")) == 60
    assert data.size("novel") == 0 and data.captions("novel") == []
    image = data.images("train", torch.tensor([0]))
    assert image.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert data.captions("train")[0] == "caption number 0"
