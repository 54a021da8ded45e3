"""JSON that carries its own hash: files of unfinished work, and the documents of a store.

What is read must be what was written. A sealed file holds the hash of all it says under `seal`; one without it (damaged
there, or written by something else) counts as damaged: else one wrong bit in that name would switch the check off. A
document is sealed as text, because a swap compares texts, and together with its key: one that lies under another's name
is damaged, too. Sealed, it is JSON still: `{"seal": "<hash>", "document": <the text as it was given>}`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steps.files.disk import no_space_is_said, sync
from steps.files.errors import DamagedError

_SEAL = "seal"
_DOCUMENT = re.compile(rb'\{"seal": "([0-9a-f]{64})", "document": (.*)\}\n', re.DOTALL)

_WHAT_TO_DO = "run `snapfusion fsck` on the store"


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


def seal(key: str, text: str) -> bytes:
    """A document's text with its hash, as a store keeps it under `key`."""
    return f'{{"seal": "{_text_hash(key, text.encode())}", "document": {text}}}\n'.encode()


def unseal(key: str, sealed: bytes) -> str:
    """The text that was sealed. Raises DamagedError, naming the key, when it is not what was written there."""
    found = _DOCUMENT.fullmatch(sealed)
    if found is None:
        raise DamagedError(f"document {key} is damaged: it carries no hash; {_WHAT_TO_DO}")
    if found[1].decode() != _text_hash(key, found[2]):
        raise DamagedError(
            f"document {key} is damaged: it does not have the hash it was written with; {_WHAT_TO_DO}"
        )
    return found[2].decode()


def _text_hash(key: str, text: bytes) -> str:
    return hashlib.sha256(key.encode() + b"\0" + text).hexdigest()


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
