"""Reads all objects and documents of a store, and says which are not what was written."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from artifacts_schema.base import NewerRecord, content_hash
from artifacts_schema.readers import read_record, stored_identity
from steps.cache.keys import object_refs
from steps.cache.misses import PARTS
from steps.files.errors import DamagedError
from steps.store.base import PARTIAL, Store, parse_document

_MADE_AGAIN = ("stages", "latent_pools", "encoded_shards", "probes", "leases")


@dataclass(frozen=True)
class Damage:
    """Something that is not what was written. `remove` is None where nothing makes or fetches it again."""

    what: str
    why: str
    remove: Callable[[], object] | None


class StoreCheck:
    """Reads a store; `read` counts what was read, by kind."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.read = {"objects": 0, "documents": 0}
        self._sizes: dict[str, int] = {}  # of the objects that are whole

    def damages(self) -> Iterator[Damage]:
        """Every damaged object, here and in this machine's cache, and every damaged document. Raises StoreError when
        the store does not answer.
        """
        if self.store.cache is not None:
            yield from self._objects(self.store.cache, "cached object")
        self._sizes.clear()
        yield from self._objects(self.store, "object")
        for entry in self.store.documents(""):
            self.read["documents"] += 1
            try:
                text = self.store.get_document(entry.name)
                if text is not None:
                    self._check(entry.name, text)
            except DamagedError as error:
                again = entry.name.split("/")[0] in _MADE_AGAIN
                remove = partial(self.store.delete_document, entry.name) if again else None
                yield Damage(f"document {entry.name}", str(error), remove)

    def _objects(self, store: Store, kind: str) -> Iterator[Damage]:
        for entry in store.objects():
            if entry.name.startswith(PARTIAL):
                continue
            self.read["objects"] += 1
            try:
                store.verify(entry.name)
                self._sizes[entry.name] = entry.bytes
            except DamagedError as error:
                yield Damage(f"{kind} {entry.name}", str(error), partial(store.delete_object, entry.name))

    def _check(self, key: str, text: str) -> None:
        """Raise DamagedError unless a document whose seal is whole is what its key says."""
        found, (kind, _, name) = parse_document(key, text, object), key.partition("/")
        if kind == "leases":
            return
        try:
            if kind == "stages":
                record = dict(found)
                is_named = content_hash(record.pop(PARTS)) == name.split("/")[1]
                read_record(json.dumps(record))
            else:
                is_named = kind != "records" or stored_identity(text) == name
        except NewerRecord:
            return
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedError(f"it is no record of this program: {' '.join(str(error).split())}") from error
        if not is_named:
            raise DamagedError("it holds another record than its name says")
        if kind != "runs":
            self._check_objects(found)

    def _check_objects(self, found: Any) -> None:
        for sha256, size in object_refs(found):
            if sha256 not in self._sizes or size not in (None, self._sizes[sha256]):
                raise DamagedError(f"object {sha256}, which it names, is gone, damaged or cut short")
