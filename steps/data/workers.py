"""The user's shards, each encoded once, by however many workers there are.

What has become of a shard is a document under everything it was made from: its identity, the encoders, and what of the
configuration counts. So a run that was cut off, one with further shards, and workers on other machines go on with what is
there. docs/adr/0039-streamed-data.md
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from artifacts_schema.base import content_hash
from artifacts_schema.data import EncodedShard, RawData, RawFile
from artifacts_schema.references import FolderRef
from artifacts_schema.run_configs import DataConfig, StoreConfig
from steps.cache.leases import is_held, lease
from steps.data.encoding import FORMAT, Rules, encode_shard
from steps.data.places import local_copy, shown
from steps.data.shards import expand_shards
from steps.data.webdataset import index_shard
from steps.files.errors import DamagedError, DataError
from steps.files.progress import Progress
from steps.models.base import BaseModel
from steps.store.base import Store

logger = logging.getLogger(__name__)
DOCUMENTS = "encoded_shards"
_LEAST = 64  # captions that a shard gives of a split, if data.limit asks for as many: else a short run reads every shard
_ASKED_TOGETHER = 16  # documents of a store on a server
_ENCODERS = ("vae/", "text_encoder/", "tokenizer/")


@dataclass(frozen=True)
class Job:
    """One shard: where it is, who it is, what of it is encoded, and where its document lies."""

    place: str
    known: RawFile
    rules: Rules
    document: str


def jobs_of(
    config: DataConfig, project_root: Path, raw: RawData, base: FolderRef, *, size: int, own_run: str = ""
) -> list[Job]:
    """One job a shard, of those that `config.limit` needs: each gives an equal share of it.

    `base` is the stored base, of which the encoders count; `size` is the pictures' side; `own_run` a run that takes nothing of
    others. Raises DataError as `expand_shards`, and for a shard that holds out and is not among the shards.
    """
    places = expand_shards(config.shards, project_root)
    holding = set(expand_shards(config.held_out_from, project_root) if config.held_out_from else places)
    if unknown := sorted(holding - set(places)):
        names = ", ".join(map(shown, unknown))
        raise DataError(f"data.held_out_from names shards that data.shards does not: {names}")
    encoders = {name: ref.sha256 for name, ref in base.files.items() if name.startswith(_ENCODERS)}
    used = _used(places, holding, config.limit)
    limit, jobs = config.limit, []
    for turn, number in enumerate(used):
        place, known = places[number], raw.files[number]
        most = None if limit is None else limit // len(used) + (turn < limit % len(used))  # differ by one
        rules = Rules(config, size, known.name, most, place in holding)
        jobs.append(Job(place, known, rules, f"{DOCUMENTS}/{_key(known, rules, encoders, own_run)}"))
    return jobs


def _used(places: Sequence[str], holding: Collection[str], limit: int | None) -> list[int]:
    """Numbers of the shards that a limit needs, evenly spread, one that holds out among them."""
    if limit is None:
        return list(range(len(places)))
    count = min(len(places), -(-limit // _LEAST))
    used = {turn * len(places) // count for turn in range(count)}
    if not any(places[number] in holding for number in used):
        used.add(next(number for number, place in enumerate(places) if place in holding))
    return sorted(used)[-limit:]


def _key(known: RawFile, rules: Rules, encoders: dict[str, str], own_run: str) -> str:
    """Everything that decides what becomes of a shard."""
    names = ("held_out_fraction", "caption_field", "filters", "crop", "max_image_pixels")
    return content_hash(
        {
            "format": FORMAT,
            "shard": known.sha256,
            "name": known.name if rules.most is not None else "",  # pictures are chosen by it
            "encoders": encoders,
            "size": rules.size,
            "most": rules.most,
            "holds_out": rules.holds_out,
            "settings": {name: rules.config.meaning()[name] for name in names},
            "pillow": version("pillow"),
            "run": own_run,
        }
    )


class ShardEncoder:
    """Encodes shards with a base's encoders, on the device these are on.

    `work` is a folder for what is fetched; `access` says which S3 server is asked and how.
    """

    def __init__(
        self, base: BaseModel, config: DataConfig, store: Store, *, work: Path, access: StoreConfig
    ) -> None:
        self._base, self._config, self._store = base, config, store
        self._work, self._access = work / "shards", access

    def run(self, jobs: Sequence[Job], progress: Progress) -> list[EncodedShard]:
        """What has become of every shard, in order; what nobody has encoded is encoded now, each shard by one worker.

        Raises DataError for a shard that is gone or changes meanwhile, and for more that is unusable than
        `config.max_skipped_fraction` allows. What is finished stays.
        """
        with ThreadPoolExecutor(_ASKED_TOGETHER) as pool:
            found = {n: done for n, done in enumerate(pool.map(self._done, jobs)) if done is not None}
        counts = _Counts(len(jobs), self._config)
        for number, done in found.items():
            counts.add(jobs[number].place, done)
        progress.start("encoding shards", len(jobs))
        for number in self._in_turn(jobs, [number for number in range(len(jobs)) if number not in found]):
            progress.update(len(found), pictures=float(counts.examined))
            with lease(self._store, jobs[number].document):
                found[number] = self._done(jobs[number]) or self._encode(jobs[number])
            counts.add(jobs[number].place, found[number])
            counts.check()
        progress.update(len(jobs))
        progress.close()
        counts.check()
        return [found[number] for number in range(len(jobs))]

    def estimate(self, jobs: Sequence[Job]) -> float:
        """About how many samples there are: as many in each shard as in the first, which is fetched for that and kept.

        Raises DataError for a first shard that cannot be read, before hours of work on the others, unless that is allowed.
        """
        for number, job in enumerate(jobs):
            if (done := self._done(job)) is not None and not done.problem:
                return float(done.examined * len(jobs))
            with local_copy(job.place, job.known, self._work, self._access, keep=True) as path:
                try:
                    return float(len(index_shard(path, self._config)) * len(jobs))
                except DataError as error:
                    if number + 1 > self._config.max_skipped_fraction * len(jobs):
                        raise DataError(str(error).replace(str(path), shown(job.place))) from error
        raise DataError("data.shards names no shard that can be read; give other ones")

    def _in_turn(self, jobs: Sequence[Job], numbers: Sequence[int]) -> Iterator[int]:
        """First what nobody works on; then the rest, for which one has to wait."""
        busy = []
        for number in numbers:
            if is_held(self._store, jobs[number].document):
                busy.append(number)
            else:
                yield number
        yield from busy

    def _done(self, job: Job) -> EncodedShard | None:
        """What a worker has left, if its objects are there."""
        try:
            text = self._store.get_document(job.document)
            found = EncodedShard.model_validate_json(text) if text is not None else None
        except (DamagedError, ValidationError) as error:
            logger.warning("%s is damaged and made again: %s", job.document, error)
            return None
        if found is None:
            return None
        objects = [shard.object for shard in found.splits.values()]
        return found if all(self._store.has(ref.sha256, ref.bytes) for ref in objects) else None

    def _encode(self, job: Job) -> EncodedShard:
        with local_copy(job.place, job.known, self._work, self._access) as path:
            try:
                samples = index_shard(path, self._config)
            except DataError as error:
                made = EncodedShard(problem=str(error).replace(str(path), shown(job.place)))
                logger.warning("left out: %s", made.problem)
            else:
                made = encode_shard(self._base, path, samples, job.rules, self._store)
        self._store.put_document(job.document, made.model_dump_json())
        return made


class _Counts:
    """What is left out of the shards so far, against what the configuration allows."""

    def __init__(self, shards: int, config: DataConfig) -> None:
        self._shards, self._most = shards, config.max_skipped_fraction
        self._done = self.examined = 0
        self._skipped: Counter[str] = Counter()
        self._unreadable: list[str] = []
        self._worst = (0, "")

    def add(self, place: str, found: EncodedShard) -> None:
        """Count one shard."""
        skipped = sum(found.skipped.values())
        self._done, self.examined = self._done + 1, self.examined + found.examined
        self._skipped.update(found.skipped)
        self._worst = max(self._worst, (skipped, shown(place)))
        self._unreadable += [found.problem] if found.problem else []

    def check(self) -> None:
        """Raises DataError for too many unreadable shards of all, or unusable samples of about as many as there will be."""
        most, bad = f"{self._most:.1%}", len(self._unreadable)
        if bad > self._most * self._shards:
            raise DataError(
                f"expected at most {most} of {self._shards} shards to be unreadable, found {bad}, the last one: "
                f"{self._unreadable[-1]}; repair it, leave it out, or raise data.max_skipped_fraction"
            )
        total = self.examined * self._shards / self._done
        if self._skipped.total() > self._most * total:
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(self._skipped.items()))
            raise DataError(
                f"expected at most {most} of {total:.0f} samples to be unusable, found {self._skipped.total()} already "
                f"({counts}), most of them in shard {self._worst[1]}; repair the shards or raise data.max_skipped_fraction"
            )
