"""The version of a store's layout, in `layout.json` in its root: `{"version": 2}`. docs/adr/0017-store-layout.md"""

import json

from steps.files.errors import StoreError

LAYOUT_FILE = "layout.json"
LAYOUT_VERSION = 2  # 1: documents without seals, and workers that told no collector of themselves


def marker() -> str:
    """What is written into a new store."""
    return json.dumps({"version": LAYOUT_VERSION})


def check_layout(text: str | None, root: str) -> None:
    """Raise StoreError, saying what to do, unless the marker's text is this version's, or there is none yet."""
    if text is None:
        return
    try:
        version = int(json.loads(text)["version"])
    except (ValueError, TypeError, KeyError):
        raise StoreError(
            f"{LAYOUT_FILE} of the store {root} must name a version, such as {marker()}, but holds {text[:100]!r}; "
            "restore it from a backup"
        ) from None
    found = f"the store {root} has layout version {version}, this program reads {LAYOUT_VERSION}"
    if version < LAYOUT_VERSION:
        raise StoreError(f"{found}; name another store.root, or remove this store")
    if version > LAYOUT_VERSION:
        raise StoreError(f"{found}; use a version of this program that reads {version}")
