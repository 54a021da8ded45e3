"""Damaged and hostile tar headers: samples or one clear error with the shard's name, and never a hang."""

import io
import random
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from artifacts_schema.run_configs import DataConfig
from steps.data.webdataset import index_shard
from steps.files.errors import DataError

PLAIN = DataConfig(source="webdataset")
_LIMIT_S = 4.0  # for 12 KB; a sound shard takes milliseconds
FILES = (
    ("1.png", b"x" * 600), ("README", b"r"), ("1.txt", b"caption"), ("é" * 60 + "/2.png", b"y"), ("é" * 60 + "/2.txt", b"z"),
)  # fmt: skip


class Hangs(BaseException):
    """Not an Exception, so that nothing on the way takes it for an error of the shard."""


@contextmanager
def limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def archive(pax: dict[str, str] | None = None, kind: int = tarfile.PAX_FORMAT) -> bytearray:
    """A small shard; `pax` goes into a header before every member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, data in FILES:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(data), pax or {}
            tar.addfile(member, io.BytesIO(data))
    return bytearray(file.getvalue())


def sign(data: bytearray, at: int) -> None:
    """Make the checksum of the header at a byte right, so that what else it says is believed."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def base_256(size: int) -> bytes:
    """How tar writes a size that is negative, or too large for octal digits."""
    return bytes([0xFF if size < 0 else 0x80]) + (size & ((1 << 88) - 1)).to_bytes(11, "big")


def refuse(folder: Path, data: bytes | bytearray) -> str:
    (folder / "bad.tar").write_bytes(data)
    with (
        limit(),
        pytest.raises(DataError, match=r"bad\.tar is truncated or no uncompressed tar file") as caught,
    ):
        index_shard(folder / "bad.tar", PLAIN)
    return str(caught.value)


@pytest.mark.parametrize("size", [-512, -1, -(1 << 80), 1 << 40, 1 << 80])
def test_a_size_that_leads_out_of_the_file_is_refused(tmp_path: Path, size: int) -> None:
    data = archive()
    readme = data.index(b"README")  # no sample's: without an extension it is passed over
    data[readme + 124 : readme + 136] = base_256(size)
    sign(data, readme)
    assert "README" in refuse(tmp_path, data)


@pytest.mark.parametrize(
    "pax",
    [
        {"size": "-512"},
        {"size": "99999999999999999999999"},
        {"GNU.sparse.realsize": "1000000"},
        {"GNU.sparse.realsize": "-5"},
        {"GNU.sparse.size": "abc"},
        {"GNU.sparse.map": "1,x"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "5"},
        {"comment": "1" * 100_000},  # tarfile searches it in quadratic time: half a minute
    ],
    ids=lambda pax: ",".join(f"{name}={value[:8]}" for name, value in pax.items()),
)
def test_a_pax_header_that_leads_out_of_the_file_is_refused(tmp_path: Path, pax: dict[str, str]) -> None:
    refuse(tmp_path, archive(pax))


def test_a_long_chain_of_headers_is_refused(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("g").tobuf(tarfile.USTAR_FORMAT))
    header[156:157] = tarfile.XGLTYPE
    sign(header, 0)
    refuse(tmp_path, bytes(header) * 3000 + archive())


def test_a_sparse_header_that_is_cut_is_refused(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("1.png").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482] = tarfile.GNUTYPE_SPARSE, 1
    sign(header, 0)
    refuse(tmp_path, header)


def test_damaged_headers_give_samples_or_one_clear_error(tmp_path: Path) -> None:
    draw = random.Random(1)
    shards = [
        archive(),
        archive(kind=tarfile.GNU_FORMAT),
        archive({"size": "600"}),
        archive({"GNU.sparse.size": "9"}),
    ]
    fields = [(124, 12), (156, 1), (0, 100), (100, 8), (136, 12), (345, 155), (386, 110), (0, 512)]
    seen: Counter[str] = Counter()
    for number in range(600):
        data = bytearray(shards[number % len(shards)])
        at = 512 * draw.randrange(len(data) // 512 - 2)
        field, length = draw.choice(fields)
        for _ in range(draw.choice([1, length])):
            data[at + field + draw.randrange(length)] = draw.choice(
                [0xFF, 0x80, 0, draw.randrange(256), *b"LxSg"]
            )
        sign(data, at)
        if number % 10 == 0:
            del data[draw.randrange(len(data)) :]
        (tmp_path / "bad.tar").write_bytes(data)
        try:
            with limit():
                index_shard(tmp_path / "bad.tar", PLAIN)
            seen["read"] += 1
        except DataError as error:
            assert "bad.tar" in str(error)
            seen["refused"] += 1
    assert min(seen["read"], seen["refused"]) > 50
