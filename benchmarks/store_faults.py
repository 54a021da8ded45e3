"""Works on an S3 store through a proxy that injects faults, and counts what was lost or wrong.

    python -m benchmarks.store_faults --times 20 --json benchmarks/results/store_faults.json

Each round does, for every kind of fault, what runs do: weights of one part and of several, documents, swaps, checkpoints,
and reading and listing all of it on another machine with an empty cache. An operation may fail with a StoreError; then it must be
possible to do it again, and what was reported as stored must be there. Anything else is a loss.
"""

import argparse
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from artifacts_schema.references import ObjectRef
from artifacts_schema.run_configs import StoreConfig
from benchmarks.published import Metric, publish, result
from infra.local.fault_proxy import FAULTS, FaultPlan, fault_proxy
from infra.local.seaweedfs import serve
from steps.files.errors import StoreError
from steps.store.base import PARTIAL
from steps.store.s3 import S3Store

BUCKET = "faults"
_SMALL, _LARGE = 50_000, (16 << 20) + 50_000  # one part, two parts


@dataclass
class Outcome:
    """What came of one round. `lost` and `wrong` must be empty; `refused` are errors that were reported."""

    operations: int = 0
    refused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)


def round_of(
    endpoint: str, faults: list[str], folder: Path, *, rate: float, seed: int, large: bool = True
) -> Outcome:
    """One round against the server at `endpoint`, through a proxy with these faults."""
    outcome = Outcome()
    plan = FaultPlan(faults, rate=rate, seed=seed, delay_s=0.1)
    with fault_proxy(endpoint, plan) as proxy:
        root = f"s3://{BUCKET}/{seed}-{'-'.join(faults)}"
        config = StoreConfig(root=root, endpoint=proxy, timeout_s=5.0, attempts=8)
        _Round(config, folder, outcome, random.Random(seed)).run(large=large)  # noqa: S311
    outcome.injected = plan.injected
    return outcome


class _Round:
    """The operations of one round."""

    def __init__(self, config: StoreConfig, folder: Path, outcome: Outcome, draw: random.Random) -> None:
        self.store, self.other = S3Store(config, folder / "a"), S3Store(config, folder / "b")
        self.outcome, self.draw = outcome, draw

    def run(self, *, large: bool) -> None:
        """Write everything, then read everything."""
        objects = [self.draw.randbytes(_SMALL) for _ in range(3)] + (
            [self.draw.randbytes(_LARGE)] if large else []
        )
        refs = [self.again("put object", lambda data=data: self.store.put_bytes(data)) for data in objects]
        documents = {f"stages/s/{n}": f'{{"n": {n}, "x": "{self.draw.random()}"}}' for n in range(5)}
        for key, text in documents.items():
            self.again("put document", lambda key=key, text=text: self.store.put_document(key, text))
        self.swaps()
        self.checkpoint()
        for data, ref in zip(objects, refs, strict=True):
            self.read_object(data, ref)
        for key, text in documents.items():
            found = self.again("get document", lambda key=key: self.other.get_document(key))
            self.judge(key, text, found)
        self.listings({ref.sha256 for ref in refs}, set(documents))

    def listings(self, objects: set[str], documents: set[str]) -> None:
        """Another machine lists, as the collector does, and asks for all that it is told of."""

        def confirmed(kind: str, names: Callable[[], set[str]], has: Callable[[str], bool]) -> set[str]:
            found = names()
            if absent := [name for name in found if not has(name)]:
                raise StoreError(f"listed {kind} {absent[0]!r} is not there")
            return found

        found = self.again(
            "list objects",
            lambda: confirmed(
                "object",
                lambda: {e.name for e in self.other.objects() if not e.name.startswith(PARTIAL)},
                self.other.has,
            ),
        )
        self.judge("list of objects", objects, found)
        found = self.again(
            "list documents",
            lambda: confirmed(
                "document",
                lambda: set(self.other.list_documents("stages/")),
                lambda key: self.other.get_document(key) is not None,
            ),
        )
        self.judge("list of documents", documents, found)

    def swaps(self) -> None:
        """A chain of swaps: each that reports True has happened, each that reports False has not."""
        current: str | None = None
        for number in range(4):
            new = f'{{"owner": "{number}-{self.draw.random()}"}}'
            swapped = self.again(
                "swap", lambda old=current, new=new: self.store.swap_document("champion", old, new)
            )
            found = self.again("get document", lambda: self.other.get_document("champion"))
            if swapped != (found == new):
                self.outcome.wrong.append(f"swap {number} said {swapped}, the document says otherwise")
            current = found

    def checkpoint(self) -> None:
        """A file goes to the mirror and comes back on another machine."""
        data = self.draw.randbytes(_SMALL)
        sent = self.store.work_folder("s/k") / "tensors"
        sent.write_bytes(data)
        here, there = self.store.mirror("s/k"), self.other.mirror("s/k")
        if here is None or there is None:
            raise RuntimeError("a store on S3 has a mirror")
        self.again("send", lambda: here.send("c/tensors", sent))
        back = self.other.work_folder("s/k") / "tensors"
        self.again("fetch", lambda: there.fetch("c/tensors", back))
        self.judge("checkpoint", data, back.read_bytes())

    def read_object(self, data: bytes, ref: ObjectRef) -> None:
        """Another machine reads what this one stored."""
        path = self.again("get object", lambda: self.other.path_of(ref))
        self.judge(ref.sha256, data, path.read_bytes())

    def judge(self, name: str, expected: object, found: object) -> None:
        """Is what came back what was stored?"""
        if found is None:
            self.outcome.lost.append(name)
        elif found != expected:
            self.outcome.wrong.append(name)

    def again(self, what: str, action):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Do it; after an error that was reported, do it again, as a resumed run would."""
        self.outcome.operations += 1
        for number in range(20):
            try:
                return action()
            except StoreError as error:
                self.outcome.refused.append(f"{what}: {error}")
                if number == 19:
                    raise
        return None


def main() -> int:
    """Run the campaign and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5, help="rounds for each kind of fault")
    parser.add_argument("--rate", type=float, default=0.2, help="share of requests with a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("steps").setLevel(logging.ERROR)
    metrics, bad = [], 0
    with tempfile.TemporaryDirectory() as name, serve(Path(name) / "server", stop_s=0.0) as server:
        server.create_bucket(BUCKET)
        os.environ.update(server.environment())
        for faults in [*([fault] for fault in FAULTS), list(FAULTS)]:
            label = faults[0] if len(faults) == 1 else "all_together"
            total, started = Outcome(), time.monotonic()
            for number in range(options.times):
                folder = Path(name) / f"{label}-{number}"
                one = round_of(server.endpoint, faults, folder, rate=options.rate, seed=options.seed + number)
                total.operations += one.operations
                total.injected += one.injected
                for kind in ("refused", "lost", "wrong"):
                    getattr(total, kind).extend(getattr(one, kind))
            note = (
                f"{options.times} rounds, {total.operations} operations, {sum(total.injected.values())} faults, "
                f"{len(total.refused)} reported and done again, {time.monotonic() - started:.0f} s"
            )
            print(f"{label}: lost {len(total.lost)}, wrong {len(total.wrong)}; {note}", file=sys.stderr)
            for kind in ("lost", "wrong"):
                count = len(getattr(total, kind))
                bad += count
                metrics.append(
                    Metric(f"faults.{label}.{kind}", count, "objects", total.operations, count, count, note)
                )
    publish(result(metrics, module="benchmarks.store_faults", seed=options.seed), options.json)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
