"""Starts an S3 server on this machine, without Docker, and keeps it running until Ctrl-C.

    snapfusion s3-server                      # data and keys in .snapfusion/s3-server
    source .snapfusion/s3-server/environment   # in another terminal: everything a run needs to use it

The keys are made once and kept in the folder, readable by this user only. The server listens on 127.0.0.1 only.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.local.seaweedfs import Identity, Server, ServerError, serve


def environment(server: Server, bucket: str) -> dict[str, str]:
    """What boto3 and Metaflow need to use `bucket` of `server`; weights and Metaflow's artifacts share it."""
    return server.environment() | {
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_S3_ENDPOINT_URL": server.endpoint,
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{bucket}/metaflow",
        "METAFLOW_DATATOOLS_S3ROOT": f"s3://{bucket}/metaflow/data",
    }


def exports(variables: Mapping[str, str]) -> list[str]:
    """Lines of a shell script that sets these variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def kept_identity(folder: Path) -> Identity:
    """The administrator of the last start in this folder, or a new one."""
    try:
        first = json.loads((folder / "s3.json").read_text())["identities"][0]
    except FileNotFoundError:
        return Identity.create("admin", ["Admin"])
    keys = first["credentials"][0]
    return Identity(first["name"], keys["accessKey"], keys["secretKey"], tuple(first["actions"]))


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)


def announce(server: Server, folder: Path, bucket: str) -> None:
    """Write the environment file, and tell how to use the server."""
    lines = exports(environment(server, bucket))
    write_private(folder / "environment", "\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"# S3 server {server.endpoint}, bucket {bucket}, process {server.process_id}")
    print(f"# In another terminal: source {shlex.quote(str(folder / 'environment'))}")
    print(f'# and in the configuration: [store] root = "s3://{bucket}/my-project"')
    print("# Ctrl-C stops it; the data stay.", flush=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="snapfusion s3-server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path(".snapfusion/s3-server"))
    parser.add_argument("--port", type=int, default=8333, help="of the S3 interface; 0: any free one")
    parser.add_argument("--bucket", default="snapfusion")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    arguments = build_parser().parse_args(words)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    try:
        with serve(folder, admin=kept_identity(folder), s3_port=arguments.port or None) as server:
            server.create_bucket(arguments.bucket)
            announce(server, folder, arguments.bucket)
            while not stop.wait(1.0):
                if not server.is_running:
                    raise ServerError(f"the server has ended; its log ends with:\n{server.last_words()}")
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
