"""Which code and which packages are at work here. Imports no torch."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from artifacts_schema.base import Provenance
from artifacts_schema.report import CodeVersion
from steps.files.processor import processor_name

DISTRIBUTION = "snapfusion-pipeline"
ROOT = Path(__file__).resolve().parents[2]
_CODE = ("flows", "steps", "artifacts_schema")  # changed files elsewhere change no result
_GIT_S = 30.0


def measured_here(threads: int) -> Provenance:
    """When, on what processor and with which packages something is measured now that belongs to no run."""
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=processor_name(),
        threads=threads,
        versions=package_versions(),
    )


def package_versions() -> dict[str, str]:
    """Python's version, and that of every package this project depends on, as far as installed.

    Whatever a stage imports is one of them, so a new dependency is in every record without another list.
    """
    versions = {"python": sys.version.split()[0]}
    for name in dependencies():
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def dependencies() -> list[str]:
    """Names of the packages that this project cannot do without; empty where it is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    return sorted(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line)


def code_version(root: Path = ROOT) -> CodeVersion:
    """The commit of the checkout in `root`, and whether flows/, steps/ or artifacts_schema/ differ from it.

    Without git, or where the code does not come from a checkout, the installed package's version alone.
    """
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = "0"
    # An installation may lie in somebody else's checkout: the commit counts only if git knows this very file.
    if _git(root, "ls-files", "--error-unmatch", "steps/cache/provenance.py") is None:
        return CodeVersion(version=version)
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--", *_CODE)
    if commit is None or changes is None:
        return CodeVersion(version=version)
    return CodeVersion(version=version, commit=commit.strip(), dirty=bool(changes.strip()))


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, None when it fails or is not there."""
    # A hook's variables would name another repository; the lock of the index is left to whoever works in the checkout.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True, text=True, env=variables, timeout=_GIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None
