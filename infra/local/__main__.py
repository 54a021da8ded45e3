"""Starts an S3 server on this machine, without Docker, and keeps it running until Ctrl-C.

    python -m infra.local                      # data and keys in .snapfusion/s3-server
    source .snapfusion/s3-server/environment   # in another terminal: everything a run needs to use it

The keys are made once and kept in the folder, readable by this user only. The server listens on 127.0.0.1 only.
"""

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

from infra.local.seaweedfs import Identity, Server, serve


def environment(server: Server, bucket: str) -> dict[str, str]:
    """What boto3 and Metaflow need to use `bucket` of `server`; weights and Metaflow's artifacts share it."""
    return server.environment() | {
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_S3_ENDPOINT_URL": server.endpoint,
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{bucket}/metaflow",
        "METAFLOW_DATATOOLS_S3ROOT": f"s3://{bucket}/metaflow/data",
    }


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


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path(".snapfusion/s3-server"))
    parser.add_argument("--port", type=int, default=8333, help="of the S3 interface; 0: any free one")
    parser.add_argument("--bucket", default="snapfusion")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    with serve(folder, admin=kept_identity(folder), s3_port=arguments.port or None) as server:
        server.create_bucket(arguments.bucket)
        lines = [f"export {key}={value}" for key, value in environment(server, arguments.bucket).items()]
        write_private(folder / "environment", "\n".join(lines) + "\n")
        print("\n".join(lines))
        print(f"# S3 server {server.endpoint}, bucket {arguments.bucket}, process {server.process_id}")
        print(f"# In another terminal: source {folder / 'environment'}")
        print(f'# and in the configuration: [store] root = "s3://{arguments.bucket}/my-project"')
        print("# Ctrl-C stops it; the data stay.", flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
