"""Shards on a web server and on S3: who they are, and that a copy is still that."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from artifacts_schema.data import RawFile
from artifacts_schema.run_configs import StoreConfig
from steps.data import places
from steps.data.places import identified, local_copy
from steps.files.errors import DataError, StoreError
from steps.files.hashes import FileHashes
from tests.conftest import BUCKET, READER
from tests.steps.data.shard_files import encode, samples, write

STORE = StoreConfig(root=f"s3://{BUCKET}/store", attempts=2, timeout_s=5.0)


@dataclass
class Web:
    """What a web server on loopback has, and what it was asked."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    has_versions: bool = True
    breaks: int = 0  # answers that end in the middle
    status: int = 200
    on_get: Callable[[], None] = lambda: None

    def put(self, name: str, data: bytes) -> str:
        self.files[name] = data
        return f"{self.address}/{name}"


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            web.on_get()
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            name = self.path.lstrip("/").partition("?")[0]
            web.asked.append(f"{self.command} {name}")
            data = web.files.get(name)
            self.send_response(404 if data is None else web.status)
            self.send_header("Content-Length", str(len(data or b"")))
            if web.has_versions and data is not None:
                self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
            self.end_headers()
            if body and data is not None:
                broken = web.breaks > 0
                web.breaks -= broken
                self.wfile.write(data[: len(data) // 2] if broken else data)

    return Handler


@pytest.fixture
def web() -> Iterator[Web]:
    found = Web("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
    found.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    places._pool().clear()
    server.shutdown()
    thread.join()
    server.server_close()


def known(place: str, root: Path) -> RawFile:
    return identified([place], FileHashes(root / "hashes"), STORE)[0]


def read(place: str, file: RawFile, root: Path) -> bytes:
    with local_copy(place, file, root / "copies", STORE) as path:
        return path.read_bytes()


def test_a_shard_is_read_once_and_no_copy_stays(web: Web, tmp_path: Path) -> None:
    place = web.put("a%20b.tar", b"shard") + "?token=secret"
    file = known(place, tmp_path)
    assert (file.name, file.bytes) == ("a b.tar", 5)
    assert read(place, file, tmp_path) == b"shard"
    assert [line.split()[0] for line in web.asked] == ["HEAD", "GET"]
    assert not list((tmp_path / "copies").iterdir())


def test_another_address_content_or_size_is_another_shard(web: Web, tmp_path: Path) -> None:
    names = ["a/1.tar", "b/1.tar"]
    found = [known(web.put(name, b"one"), tmp_path) for name in names]
    found.append(known(web.put("a/1.tar", b"two"), tmp_path))
    assert len({file.sha256 for file in found}) == 3
    signed = [known(f"{web.address}/a/1.tar?signature={number}", tmp_path) for number in (1, 2)]
    assert signed[0] == signed[1] == found[2]


def test_a_shard_that_changes_or_vanishes_after_the_listing_is_named(web: Web, tmp_path: Path) -> None:
    place = web.put("a.tar", b"before") + "?token=secret"
    file = known(place, tmp_path)
    web.put("a.tar", b"behind")
    with pytest.raises(DataError, match=r"shard http\S+/a\.tar changed since it was listed") as raised:
        read(place, file, tmp_path)
    assert "secret" not in str(raised.value)
    web.files.clear()
    with pytest.raises(DataError, match=r"a\.tar is gone since it was listed"):
        read(place, file, tmp_path)
    assert not list((tmp_path / "copies").iterdir())


def test_an_answer_that_breaks_off_is_asked_for_again(web: Web, tmp_path: Path) -> None:
    place = web.put("a.tar", b"0123456789")
    file = known(place, tmp_path)
    web.breaks = 2
    assert read(place, file, tmp_path) == b"0123456789"
    web.breaks = 99
    with pytest.raises(DataError, match=r"a\.tar cannot be read: .*5 times"):
        read(place, file, tmp_path)


def test_what_a_server_does_not_say_is_refused(web: Web, tmp_path: Path) -> None:
    place = web.put("a.tar", b"x")
    web.has_versions = False
    with pytest.raises(DataError, match="names neither ETag nor Last-Modified"):
        known(place, tmp_path)
    web.has_versions, web.status = True, 403
    with pytest.raises(DataError, match="answers 403; check the address and the right"):
        known(place, tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.tar does not exist"):
        known(f"{web.address}/nowhere.tar", tmp_path)


def test_nobody_answering_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_TRIES", 0)
    places._pool.cache_clear()
    try:
        with pytest.raises(DataError, match=r"no answer from http://127\.0\.0\.1:1/a\.tar"):
            known("http://127.0.0.1:1/a.tar", tmp_path)
    finally:
        places._pool.cache_clear()


def test_a_full_disk_is_said_and_leaves_nothing(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = web.put("a.tar", b"x")
    file = known(place, tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(places.shutil, "copyfileobj", full)
    with pytest.raises(Exception, match=r"no space left for a\.tar"):
        read(place, file, tmp_path)
    assert not list((tmp_path / "copies").iterdir())


def test_a_local_shard_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"before")
    file = known(str(path), tmp_path)
    with (
        pytest.raises(DataError, match=r"a\.tar changed while it was read"),
        local_copy(str(path), file, tmp_path, STORE) as found,
    ):
        found.write_bytes(b"behind")


def test_shards_of_a_web_server_are_encoded_each_read_once(web: Web, tmp_path: Path) -> None:
    for number in range(2):
        data = write(tmp_path / f"{number}.tar", samples(20, start=20 * number)).read_bytes()
        web.put(f"{number}.tar", data)
    pattern = f"{web.address}/{{0..1}}.tar"
    found = encode(tmp_path, [pattern])
    here = encode(tmp_path, ["{0..1}.tar"])
    assert found == here  # the same pictures give the same objects
    assert sorted(line for line in web.asked if line.startswith("GET")) == ["GET 0.tar", "GET 1.tar"]
    web.asked.clear()
    assert encode(tmp_path, [pattern]) == found
    assert sorted(web.asked) == ["HEAD 0.tar", "HEAD 1.tar"]


class TestS3:
    """The same on a real S3 server."""

    def test_a_shard_is_known_by_its_etag_and_copied(
        self, put: Callable[[str, bytes], str], tmp_path: Path
    ) -> None:
        place = put("a.tar", b"shard")
        file = known(place, tmp_path)
        assert (file.name, file.bytes) == ("a.tar", 5)
        assert read(place, file, tmp_path) == b"shard"
        assert known(put("b/a.tar", b"shard"), tmp_path) == file  # the same name and bytes elsewhere
        assert known(put("a.tar", b"other"), tmp_path) != file
        with pytest.raises(DataError, match=r"a\.tar changed since it was listed"):
            read(place, file, tmp_path)

    def test_holes_are_named(self, put: Callable[[str, bytes], str], tmp_path: Path) -> None:
        place = put("0.tar", b"x")
        with pytest.raises(DataError, match=r"1\.tar does not exist"):
            identified([place, place.replace("0.tar", "1.tar")], FileHashes(tmp_path), STORE)

    def test_missing_rights_are_said(
        self, put: Callable[[str, bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER.secret_key)
        with pytest.raises(StoreError, match="these credentials may not do that"):
            known("s3://another-bucket/a.tar", tmp_path)
