"""Shared by all tests: one torch thread (two cores are shared by everything), no global randomness, one S3 server."""

import atexit
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from artifacts_schema.run_configs import StoreConfig
from infra.local.seaweedfs import Identity, Server, serve
from steps.store import LocalStore, Store
from steps.store.s3 import S3Store
from steps.store.s3_source import s3_source
from tests.flows.launched import SmokeRun, smoke_run_once

# Before anything imports diffusers: it copies the modules of a student's folder there, in each process of the tests elsewhere.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="snapfusion-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

BUCKET = "snapfusion-test"
READER = Identity.create("reader", [f"Read:{BUCKET}", f"List:{BUCKET}"])
RUNNER = Identity.create("runner", [f"Read:{BUCKET}", f"Write:{BUCKET}", f"List:{BUCKET}"])


def free_port() -> int:
    """On loopback; nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(autouse=True)
def _one_thread_fixed_seed() -> None:
    torch.set_num_threads(1)
    # A stage switches these on for its process; a test must not inherit them from the one before. The first call of
    # the switch imports torch's compiler, four seconds that most tests can spare.
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)


@pytest.fixture
def signals_are_heard() -> Iterator[None]:
    """Signals are not ignored, here and in programs started from here, even when pytest itself runs under nohup."""
    heard = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server on loopback; it starts when the first test asks for it and takes four seconds."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    with serve(folder, identities=[READER, RUNNER], stop_s=0.0) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The smoke preset, run once for all processes of the tests; it takes four minutes."""
    own = tmp_path_factory.getbasetemp()
    return smoke_run_once(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


MakeS3 = Callable[..., S3Store]


@pytest.fixture
def make_s3(s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeS3:
    """Makes stores on the server; without `prefix` each below its own. `local` is the folder of its cache."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)

    def make(prefix: str | None = None, local: str = "cache", **changes: object) -> S3Store:
        root = f"s3://{BUCKET}/{prefix or uuid.uuid4().hex}"
        values = {"root": root, "attempts": 3, "timeout_s": 5.0} | changes
        return S3Store(StoreConfig.model_validate(values), tmp_path / local)

    return make


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each kind of store, empty."""
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    made: Store = request.getfixturevalue("make_s3")()
    return made


Put = Callable[[str, bytes], str]


@pytest.fixture
def put(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts a file below a prefix of the test's own; returns its place."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3_source.cache_clear()
    prefix, client = uuid.uuid4().hex, s3_server.client()

    def do(name: str, data: bytes) -> str:
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=data)
        return f"s3://{BUCKET}/{prefix}/{name}"

    return do
