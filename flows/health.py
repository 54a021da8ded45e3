"""What is wrong with this machine, its packages, store and settings, each with the command that mends it. Imports no torch."""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.run_configs import StoreConfig
from flows.environment import PROJECT_ROOT, WORK_ROOT, usable_cores
from steps.cache.provenance import DISTRIBUTION
from steps.files.errors import SnapFusionError
from steps.files.processor import processor_name
from steps.store import local_folder, open_store

GIB = 1 << 30
_MEMORY = 8 * GIB  # the default run
_DISK = 10 * GIB  # environment and default run
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_CONNECT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `broken` stops a default run, `note` is to be known; `mend` is what to do."""

    what: str
    state: Literal["ok", "note", "broken"]
    found: str
    mend: str = ""


def findings(config: SnapFusionConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Everything that can be said without torch."""
    found = [_system(), _memory(), _disk(), _gpu()]
    found += [*_packages(), *_included(), _store(config.store)]
    return [*found, *_metaflow(environment), *_endpoints(config.store, environment)]


def memory_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    whole: int = psutil.virtual_memory().total
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min(whole, int(limit)) if limit.isdigit() else whole


def _system() -> Finding:
    python = sys.version_info
    said = (
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {processor_name()}, "
    )
    said += f"cores: {usable_cores()}"
    if not (3, 11) <= python < (3, 14):
        return Finding("system", "broken", said, "use Python 3.11 to 3.13: `make install PYTHON=python3.11`")
    return Finding("system", "ok", said)


def _memory() -> Finding:
    whole, free = memory_bytes(), psutil.virtual_memory().available
    said = f"{whole / GIB:.1f} GiB, {min(free, whole) / GIB:.1f} free"
    if whole < _MEMORY:
        mend = "run one task at a time: `snapfusion run --max-workers 1`"
        return Finding("memory", "note", f"{said}; the default run wants {_MEMORY // GIB}", mend)
    return Finding("memory", "ok", said)


def _disk() -> Finding:
    free = shutil.disk_usage(WORK_ROOT).free
    said = f"{free / GIB:.1f} GiB free in {WORK_ROOT}"
    if free < _DISK:
        mend = "free some (`snapfusion collect --delete`), or set SNAPFUSION_HOME to a folder on another disk"
        return Finding(
            "disk", "note", f"{said}; the default run wants {_DISK // GIB} with its environment", mend
        )
    return Finding("disk", "ok", said)


def _gpu() -> Finding:
    query = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,memory.free,driver_version",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return Finding("gpu", "ok", "; ".join(done.stdout.strip().splitlines()))
    except FileNotFoundError:
        return Finding("gpu", "note", "none: everything runs on the CPU, Stable Diffusion only in theory")
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(
            "gpu", "broken", f"nvidia-smi fails: {error}", "install the driver, then try nvidia-smi"
        )


def _packages() -> Iterator[Finding]:
    try:
        wanted = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        yield Finding("packages", "note", f"{DISTRIBUTION} is not installed", "`make install`")
        return
    own = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    wrong = [words for item in own if (words := _mismatch(item))]
    if wrong:
        mend = f"uv pip install --constraint constraints.txt {' '.join(repr(text) for text, _ in wrong)}"
        yield Finding("packages", "broken", "; ".join(f"{text}: {now}" for text, now in wrong), f"`{mend}`")
    else:
        yield Finding(
            "packages",
            "ok",
            f"{len(own)} as declared, torch {version('torch')}, metaflow {version('metaflow')}",
        )
    extras = {found[1] for item in wanted if (found := re.search(r'extra == "([\w-]+)"', str(item.marker)))}
    for extra in sorted(extras - {"dev"}):
        mine = [
            item
            for item in wanted
            if item.marker and item not in own and item.marker.evaluate({"extra": extra})
        ]
        missing = [text for item in mine if (text := _mismatch(item))]
        if missing:
            names = ", ".join(text for text, _ in missing)
            yield Finding(
                f"extra {extra}", "note", f"not installed: {names}", f'`uv pip install -e ".[{extra}]"`'
            )


def _mismatch(item: Requirement) -> tuple[str, str] | None:
    """The requirement and what is there instead; None when it is met."""
    try:
        found = version(item.name)
    except PackageNotFoundError:
        found = ""
    met = found and item.specifier.contains(found, prereleases=True)
    return None if met else (f"{item.name}{item.specifier}", found or "missing")


def _included() -> Iterator[Finding]:
    folders = ("assets/base", "assets/evaluators", "assets/warm_starts")
    missing = [name for name in folders if not (PROJECT_ROOT / name).is_dir()]
    if missing:
        mend = f"copy assets/ of a clone of the repository to {PROJECT_ROOT}"
        yield Finding("included models", "broken", f"missing: {', '.join(missing)}", mend)
    else:
        yield Finding("included models", "ok", str(PROJECT_ROOT / "assets"))


def _store(config: StoreConfig) -> Finding:
    folder, remote = local_folder(config, WORK_ROOT), config.root.startswith("s3:")
    if not remote and not folder.exists():
        return Finding("store", "ok", f"{folder} is not there yet; the first run makes it")
    try:
        store = open_store(config, WORK_ROOT)
        store.check()
        count = len(store.list_documents("reports/"))
    except (SnapFusionError, OSError) as error:
        mend = "`snapfusion s3` prints the rights a run needs" if remote else f"see to the rights of {folder}"
        return Finding("store", "broken", str(error), mend)
    return Finding("store", "ok", f"{store.root}, read and written; finished runs: {count}")


def _metaflow(environment: Mapping[str, str]) -> Iterator[Finding]:
    user = environment.get("METAFLOW_USER") or environment.get("USER") or "not set"
    data = environment.get("METAFLOW_DEFAULT_DATASTORE", "local")
    metadata = environment.get("METAFLOW_DEFAULT_METADATA", "local")
    profile = environment.get("METAFLOW_PROFILE", "")
    home = Path(environment.get("METAFLOW_HOME", "~/.metaflowconfig")).expanduser()
    file = home / (f"config_{profile}.json" if profile else "config.json")
    said = f"user {user}, datastore {data}, metadata {metadata}" + (
        f", settings of {file}" if file.is_file() else ""
    )
    if user == "root":
        yield Finding(
            "metaflow", "broken", f"{said}: Metaflow refuses root", "`export METAFLOW_USER=<your name>`"
        )
    else:
        yield Finding("metaflow", "ok", said)
    if data == "s3" and not environment.get("METAFLOW_DATASTORE_SYSROOT_S3") and not file.is_file():
        mend = "`export METAFLOW_DATASTORE_SYSROOT_S3=s3://<bucket>/<prefix>/metaflow`"
        yield Finding(
            "metaflow", "broken", "the datastore is s3, but METAFLOW_DATASTORE_SYSROOT_S3 is not set", mend
        )
    for name in ("METAFLOW_DATASTORE_SYSROOT_LOCAL", "METAFLOW_CARD_LOCALROOT"):
        if environment.get(name):
            said = f"{name} is set: cards do not follow it and are not found"
            yield Finding("metaflow", "note", said, f"`unset {name}`; SNAPFUSION_HOME moves everything")
    service = environment.get("METAFLOW_SERVICE_URL", "")
    if metadata == "service" and (why := _unreachable(service)):
        yield Finding(
            "metaflow service",
            "broken",
            f"{service or 'METAFLOW_SERVICE_URL is not set'}: {why}",
            "start it, or `export METAFLOW_DEFAULT_METADATA=local`",
        )


def _endpoints(config: StoreConfig, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Servers that speak S3: the store finds them by one variable, Metaflow by another."""
    ours = (
        config.endpoint or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    )
    theirs = environment.get("METAFLOW_S3_ENDPOINT_URL", "")
    both = config.root.startswith("s3:") and environment.get("METAFLOW_DEFAULT_DATASTORE") == "s3"
    if both and ours != theirs:
        said = f"the store asks {ours or 'Amazon'}, Metaflow {theirs or 'Amazon'}"
        mend = f"`export METAFLOW_S3_ENDPOINT_URL={ours}`" if ours else "`unset METAFLOW_S3_ENDPOINT_URL`"
        yield Finding("endpoints", "note", said, mend)
    for address in sorted({ours, theirs} - {""}):
        if why := _unreachable(address):
            yield Finding("endpoints", "broken", f"{address}: {why}", "`snapfusion s3-server`, or unset it")
    if environment.get("AWS_ENDPOINT_URL") and not environment.get("AWS_ENDPOINT_URL_S3"):
        said = "AWS_ENDPOINT_URL sends every service of AWS there, not only S3"
        yield Finding(
            "endpoints",
            "note",
            said,
            "`export AWS_ENDPOINT_URL_S3=$AWS_ENDPOINT_URL; unset AWS_ENDPOINT_URL`",
        )


def _unreachable(address: str, connect: Callable[..., socket.socket] = socket.create_connection) -> str:
    """Why nobody answers at an http(s) address; "" when somebody does."""
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not parts.hostname:
            return "no http(s) address"
        connect((parts.hostname, port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        return f"nobody answers ({error})"
    return ""


def environment() -> Mapping[str, str]:
    """What a run would find."""
    return os.environ
