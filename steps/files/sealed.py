"""JSON files of unfinished work that carry their own hash.

What a later attempt goes on from must be what was written. A sealed file holds the hash of all it says under `seal`; one
without it (damaged there, or written by an earlier version) counts as damaged: else one wrong bit in that name would
switch the check off.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.files.disk import no_space_is_said, sync
from steps.files.errors import DamagedError

_SEAL = "seal"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with its hash, atomically and flushed to the disk. Raises DiskFullError and OSError."""
    # As it will be read: JSON knows no integer keys and no tuples.
    meant: dict[str, Any] = json.loads(json.dumps(content))
    partial = path.with_name(f".{path.name}.partial")
    with no_space_is_said(path.name, path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({**meant, _SEAL: _hash(meant)}), encoding="utf-8")
            sync(partial)
            partial.replace(path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def read_sealed(path: Path) -> dict[str, Any]:
    """What was written. Raises DamagedError when it is not that, FileNotFoundError when there is no such file, and
    OSError when the disk does not answer.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedError(f"{path} is not JSON: {error}") from error
    seal = found.pop(_SEAL, None) if isinstance(found, dict) else None
    if seal is None:
        raise DamagedError(f"{path} carries no hash; an earlier version may have written it")
    if seal != _hash(found):
        raise DamagedError(f"{path} does not have the hash it was written with")
    return dict(found)


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
