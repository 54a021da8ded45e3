"""Weights to an S3 server on loopback and back, against boto3's own upload_file and download_file.

    python -m benchmarks.store_bandwidth --json benchmarks/results/store_bandwidth.json

Both move the same random file, in turn, several times; medians are compared. The store also hashes, keeps a verified
copy in its cache, and asks before and after whether the server has all of it. A ratio of 1 is boto3's speed.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from artifacts_schema.base import percentile
from artifacts_schema.references import ObjectRef
from artifacts_schema.run_configs import StoreConfig
from benchmarks.published import Metric, publish, result
from infra.local.seaweedfs import serve
from steps.store import s3_bucket
from steps.store.s3 import S3Store

BUCKET = "bandwidth"


def seconds(action: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


class Rivals:
    """The same transfer by the store and by boto3, each time with new keys and an empty cache."""

    def __init__(self, folder: Path, size: int, seed: int) -> None:
        self.folder, self.size, self.draw = folder, size, random.Random(seed)  # noqa: S311
        self.times: dict[str, list[float]] = {name: [] for name in ("boto_up", "boto_down", "up", "down")}

    def turn(self, number: int) -> None:
        """One transfer each way by both; who begins alternates."""
        path = self.folder / "weights"
        with path.open("wb") as file:
            for _ in range(self.size >> 20):
                file.write(self.draw.randbytes(1 << 20))
        order = (self.boto, self.store) if number % 2 == 0 else (self.store, self.boto)
        for transfer in order:
            transfer(path, number)

    def boto(self, path: Path, number: int) -> None:
        """boto3's transfer manager with its own settings."""
        client, back = self.open("boto").bucket.client, self.folder / "back"
        key = f"boto/{number}"
        self.times["boto_up"].append(seconds(lambda: client.upload_file(str(path), BUCKET, key)))
        self.times["boto_down"].append(seconds(lambda: client.download_file(BUCKET, key, str(back))))
        client.delete_object(Bucket=BUCKET, Key=key)
        back.unlink()

    def store(self, path: Path, number: int) -> None:
        """put_file on one machine, path_of on another."""
        here, there = self.open("here"), self.open("there")
        refs: list[ObjectRef] = []
        self.times["up"].append(seconds(lambda: refs.append(here.put_file(path))))
        self.times["down"].append(seconds(lambda: there.path_of(refs[0])))
        here.delete_object(refs[0].sha256)
        for store in (here, there):
            shutil.rmtree(store.local.folder)

    def open(self, name: str) -> S3Store:
        """A store with a cache of that name; its connection is made before the clock runs."""
        store = S3Store(StoreConfig(root=f"s3://{BUCKET}/store"), self.folder / name)
        store.has("0" * 64)
        return store


def ratio(name: str, boto: list[float], ours: list[float]) -> Metric:
    """boto3's median time over ours, with the 10th and 90th percentile of the ratio of each turn."""
    each = [b / o for b, o in zip(boto, ours, strict=True)]
    value = statistics.median(boto) / statistics.median(ours)
    note = "boto3's median time over the store's; spread: p10 and p90 of the turns"
    return Metric(name, value, "x", len(each), percentile(each, 0.1), percentile(each, 0.9), note)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    s3_bucket.SHOWN_BYTES = 1 << 62
    with tempfile.TemporaryDirectory() as name, serve(Path(name) / "server", stop_s=0.0) as server:
        server.create_bucket(BUCKET)
        os.environ.update(server.environment())
        rivals = Rivals(Path(name), options.megabytes << 20, options.seed)
        for number in range(options.repeats):
            rivals.turn(number)
            print({key: round(values[-1], 2) for key, values in rivals.times.items()}, file=sys.stderr)
    times = rivals.times
    total = [up + down for up, down in zip(times["up"], times["down"], strict=True)]
    boto = [up + down for up, down in zip(times["boto_up"], times["boto_down"], strict=True)]
    rows = [
        ratio("store.bandwidth_ratio", boto, total),
        ratio("store.upload_ratio", times["boto_up"], times["up"]),
        ratio("store.download_ratio", times["boto_down"], times["down"]),
    ]
    for key, values in times.items():
        speed = [options.megabytes / value for value in values]
        rows.append(
            Metric(
                f"store.{key}_speed", statistics.median(speed), "MiB/s", len(speed), percentile(speed, 0.1),
                percentile(speed, 0.9), "median, p10 and p90",
            )
        )  # fmt: skip
    publish(result(rows, module="benchmarks.store_bandwidth", seed=options.seed), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
