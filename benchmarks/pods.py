"""Runs what a cluster would run in a container as a plain process of this machine: the proof that needs no cluster.

A container gets its own mount namespace (`unshare`; needs root, or a kernel that lets users make user namespaces): an empty
working folder, an empty home, /tmp, /mnt and /dev/shm of its own, and no checkout: what it has of the pipeline it must have
from its code package. Of the environment it gets what its manifest says, the secrets that the manifest names, and what an
image sets. The interpreter with the packages stands for the image.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

from benchmarks.published import ROOT

_PREFIX = Path(sys.prefix)
IMAGE = {
    "PATH": f"{_PREFIX / 'bin'}:/usr/local/bin:/usr/bin:/bin",
    "HOME": "/root",
}
"""What an image sets."""


@dataclass(frozen=True)
class Ended:
    """A container that has ended: 0 is success, -9 killed."""

    name: str
    attempt: int
    status: int
    seconds: float
    folder: Path

    @property
    def log(self) -> str:
        """What it printed."""
        return (self.folder / "log").read_text(errors="replace")

    def file(self, path: str) -> str:
        """A file that it left below /mnt."""
        return (self.folder / path.lstrip("/")).read_text()


@dataclass
class Pods:
    """Containers of one workflow, below `folder`, at most `parallel` at once.

    `kill` are texts by container: as soon as its first attempt prints the text, it is killed, as a node that goes away
    kills it.
    """

    folder: Path
    secrets: Mapping[str, Mapping[str, str]]
    kill: Mapping[str, str] = field(default_factory=dict)
    parallel: int = 2
    ended: list[Ended] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turns = threading.Semaphore(self.parallel)

    def run(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], secrets: Sequence[str], attempt: int
    ) -> Ended:  # fmt: skip
        """Run one container to its end. Raises KeyError for a secret that the cluster does not have."""
        folder = self.folder / f"{name}-{attempt}"
        for part in ("mnt/out", "root/work", "tmp"):
            (folder / part).mkdir(parents=True)
        variables = IMAGE | dict(environment)
        for secret in secrets:
            variables |= self.secrets[secret]
        with self._turns, (folder / "log").open("wb") as log:
            started = time.monotonic()
            process = subprocess.Popen(
                [*_unshare(), "bash", "-c", _namespace(folder, command)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._watch(process, folder / "log", self.kill.get(name, "") if attempt == 0 else "")
            ended = Ended(name, attempt, process.returncode, time.monotonic() - started, folder)
        self.ended.append(ended)
        print(
            f"{ended.seconds:5.0f} s  status {ended.status:3d}  attempt {attempt}  {name}",
            file=sys.stderr,
            flush=True,
        )
        return ended

    def _watch(self, process: subprocess.Popen[bytes], log: Path, fatal: str) -> None:
        while process.poll() is None:
            if fatal and fatal in log.read_text(errors="replace"):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return
            time.sleep(0.1)


def can_run() -> bool:
    """True where this user may make mount namespaces."""
    try:
        tried = subprocess.run(
            [*_unshare(), "mount", "-t", "tmpfs", "try", "/mnt"], capture_output=True, check=False
        )
    except OSError:
        return False
    return tried.returncode == 0


def _unshare() -> list[str]:
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]


def _checkouts() -> set[Path]:
    """This checkout, and the one that an editable installation leads to."""
    origin = json.loads(distribution("snapfusion-pipeline").read_text("direct_url.json") or "{}")
    return {ROOT, *([Path(origin["url"].removeprefix("file://"))] if origin.get("url") else [])}


def _namespace(folder: Path, command: Sequence[str]) -> str:
    """The script that hides this machine and becomes the container's command."""
    here = shlex.quote(str(folder))
    hidden = " ".join(shlex.quote(str(path)) for path in sorted(_checkouts()))
    # The interpreter may lie in what is hidden: an open folder is found again below /proc.
    kept = {
        number: shlex.quote(prefix) for number, prefix in enumerate(sorted({sys.prefix, sys.base_prefix}), 3)
    }
    hold = "\n".join(f"exec {number}<{prefix}" for number, prefix in kept.items())
    show = "\n".join(
        f"mkdir -p {prefix} && mount --no-canonicalize --bind /proc/$$/fd/{number} {prefix} && exec {number}<&-"
        for number, prefix in kept.items()
    )
    return f"""set -e
{hold}
for place in {hidden}; do mount -t tmpfs -o mode=755 hidden "$place"; done
mount -t tmpfs shm /dev/shm
mount --bind {here}/mnt /mnt
mount --bind {here}/root /root
mount --bind {here}/tmp /tmp
{show}
cd /root/work
exec {shlex.join(command)}
"""  # nosec B108 - the container's own
