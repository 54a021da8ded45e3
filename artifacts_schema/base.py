"""What every record has in common: frozen fields, a schema name and version, and an identity hash.

The identity hash names what a record *means*. It leaves out what varies without meaning (wall time, host, dates,
run id), so that the same work done twice has the same identity and the stage cache can recognise it.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable model that refuses unknown keys, and numbers that are not finite.

    Subclasses name in `volatile` the fields that say nothing about what was or will be made, such as wall time, the
    interval of checkpoints or the place of a file: they are in no identity and in no cache key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    volatile: ClassVar[frozenset[str]] = frozenset()

    def meaning(self, *, without: Collection[str] = ()) -> dict[str, Any]:
        """JSON-able values of the fields that are not volatile, nor named in `without`; likewise at every depth."""
        left_out = {*type(self).volatile, *without}
        return {
            name: meaning(getattr(self, name)) for name in type(self).model_fields if name not in left_out
        }


def meaning(value: Any) -> Any:
    """JSON-able form of a value without the volatile fields of any model in it."""
    if isinstance(value, Frozen):
        return value.meaning()
    if isinstance(value, Mapping):
        return {key: meaning(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [meaning(item) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """JSON text with sorted keys and no spaces; equal values give equal text. NaN and infinity raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def percentile(values: Sequence[float], fraction: float) -> float:
    """Linearly interpolated percentile; `fraction` in [0, 1], at least one value."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


class Measurement(Frozen):
    """A repeated measurement: `n` repeats, their median, 10th and 90th percentile, and the unit."""

    n: int
    median: float
    p10: float
    p90: float
    unit: str

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Self:
        """Summarise raw repeats. Raises ValueError when `values` is empty."""
        if not values:
            raise ValueError("a measurement needs at least one value")
        return cls(
            n=len(values),
            median=float(median(values)),
            p10=percentile(values, 0.1),
            p90=percentile(values, 0.9),
            unit=unit,
        )


class Interval(Frozen):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    unit: str = ""


class Provenance(Frozen):
    """Where and when a record was made. Never part of an identity.

    `versions` are those of the packages, of this program with its commit (`snapfusion-pipeline`), and, as `stage
    source`, the hash of the stage's source (`steps.stages.versions.source_hash`).
    """

    created_at: str
    host: str = ""
    device: str = ""
    threads: int = 0
    wall_time_s: float = 0.0
    peak_memory_bytes: int = 0
    run_id: str = ""
    versions: dict[str, str] = {}


class NewerRecord(ValueError):
    """A record of a newer version than this program reads."""


class Record(Frozen):
    """Base of all records: what a stage leaves behind.

    `parents` are identity hashes of the inputs, `config` is the `meaning` of the stage's own configuration section.
    Subclasses set `schema_name` and, when their fields change, raise `schema_version`; `upgrades` then holds, for each
    older version, what makes a record's JSON object one of the version after it.
    """

    schema_name: ClassVar[str] = "snapfusion.record"
    schema_version: ClassVar[int] = 1
    upgrades: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance"})

    stage: str
    parents: tuple[str, ...] = ()
    config: dict[str, Any] = {}
    seed: int = 0
    provenance: Provenance | None = None

    def identity(self) -> str:
        """SHA-256 over schema, version and meaning."""
        return content_hash({"schema": self.schema_name, "version": self.schema_version, **self.meaning()})

    def to_json(self) -> str:
        """Readable JSON with `schema` and `version` first; `from_json` reads it back."""
        head = {"schema": self.schema_name, "version": self.schema_version}
        return json.dumps({**head, **self.model_dump(mode="json")}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record of this class, of this version or an older one. Raises ValueError for anything else."""
        return cls.from_payload(json_object(text))

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """As `from_json`, of the parsed object. Raises NewerRecord, a ValueError, when a newer program has written it."""
        fields = dict(payload)
        schema, version = fields.pop("schema", None), fields.pop("version", None)
        if schema != cls.schema_name:
            raise ValueError(f"expected {cls.schema_name}, found {schema}")
        if not isinstance(version, int):
            raise ValueError(f"{schema} has the version {version!r}; it must be an integer")
        if version > cls.schema_version:
            raise NewerRecord(
                f"{schema} version {version} is newer than this program reads ({cls.schema_version}); update it"
            )
        for step in range(version, cls.schema_version):
            if step not in cls.upgrades:
                raise ValueError(f"{schema} version {step} has no reader")
            try:
                fields = cls.upgrades[step](fields)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{schema} version {step} lacks what it must have: {error}") from error
        return cls.model_validate(fields)


def json_object(text: str) -> dict[str, Any]:
    """The object in a JSON text. Raises ValueError for anything else."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("a record is a JSON object")
    return found
