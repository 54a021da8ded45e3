"""Clears this machine's cache of a store on S3: objects that can be fetched again, and work folders nobody goes on from.

The store itself is left as it is, so that the rights of a runner are enough.
"""

from steps.cache.collector import Collector, Garbage, Retention
from steps.cache.notes import read_uses
from steps.store.base import Store
from steps.store.local import LocalStore


class CacheCollector(Collector):
    """Finds what was not used for long, and removes it.

    What a stage uses whose lease is alive, on whichever machine, counts as used: it was used since the stage began.
    """

    def __init__(self, store: Store, cache: LocalStore, retention: Retention) -> None:
        super().__init__(store, retention)
        self.cache = cache

    def find(self) -> Garbage:
        """See Collector. Every run counts as kept: their checkpoints may be on this disk only."""
        self.look_at_leases()
        uses = read_uses(self.store)
        used = {key for found in uses.values() for key in found.documents}
        objects = {entry.name: entry.bytes for entry in self.cache.objects() if entry.age_s >= self.min_age_s}
        work = self.dead_work(self.cache.work(), used)
        return Garbage(objects=objects, work=work, kept_runs=sorted(uses))

    def remove(self) -> Garbage:
        """See Collector."""
        found = self.find()
        found.objects = {
            name: size
            for name, size in found.objects.items()
            if self.cache.delete_object(name, min_age_s=self.min_age_s)
        }
        found.work = self.remove_work(found.work, self.cache.delete_work)
        return found
