"""Readers of every record and every version of it.

A record's JSON names its schema and version. Records of older versions are brought up to date by the functions in
`_UPGRADES`, one per step from a version to the next; a stored example of every version lies in
`tests/fixtures/records/`.
"""

import importlib
import json
from collections.abc import Callable
from typing import Any

from artifacts_schema.base import Record, content_hash

_MODULES = (
    "architecture",
    "bundle",
    "compression",
    "data",
    "device",
    "evaluation",
    "latency",
    "plan",
    "report",
    "training",
)


def _component_2(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had a field for parity that nothing filled."""
    return {**payload, "parity": None}


def _bundle_2(payload: dict[str, Any]) -> dict[str, Any]:
    """As `_component_2`, for each component of the manifest."""
    components = {name: {**item, "parity": None} for name, item in payload["components"].items()}
    return {**payload, "components": components}


def _bundle_3(payload: dict[str, Any]) -> dict[str, Any]:
    """Until version 2 every component was in float16, which is what a missing `scheme` means."""
    return payload


def _without_grid(point: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name != "grid"}


def _evaluation_2(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 1 held grids of its pictures, which the report now draws."""
    points = [_without_grid(point) for point in payload["points"]]
    return {**payload, "points": points, "real": _without_grid(payload["real"])}


def _real_pictures_2(payload: dict[str, Any]) -> dict[str, Any]:
    """As `_evaluation_2`."""
    return {**payload, "point": _without_grid(payload["point"])}


def _bundle_4(payload: dict[str, Any]) -> dict[str, Any]:
    """Until version 3 a manifest had its components' identities alone, as `parents`."""
    return payload


def _report_2(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 1 said of every stage that it was not cached, without knowing, and named no code."""
    return {**payload, "stages": [{**stage, "cached": None} for stage in payload.get("stages", ())]}


def _run_plan_2(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 1 did not know what its data were prepared from, and left Inception's program to the temporary folder."""
    return payload


def _evolution_2(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 1 scored removals alone and pooled nothing, an action's value was an estimate, and every round counted its
    iterations from 0.
    """

    def score(old: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in old.items() if name not in ("kind", "value")}
        return {
            **kept,
            "action": "remove",
            "pooled": old["difference"],
            "pooled_error": old["standard_error"],
        }

    rounds, done = [], 0
    for item in payload["rounds"]:
        curve = [{**row, "iteration": row["iteration"] + done} for row in item["curve"]]
        scores = [score(old) for old in item["scores"]]
        rounds.append({**item, "drift": 0.0, "scores": scores, "curve": curve})
        done += item["trained_iterations"]
    return {**payload, "rounds": rounds}


_UPGRADES: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("snapfusion.component", 1): _component_2,
    ("snapfusion.bundle", 1): _bundle_2,
    ("snapfusion.bundle", 2): _bundle_3,
    ("snapfusion.evolution", 1): _evolution_2,
    ("snapfusion.evaluation", 1): _evaluation_2,
    ("snapfusion.real_pictures", 1): _real_pictures_2,
    ("snapfusion.bundle", 3): _bundle_4,
    ("snapfusion.report", 1): _report_2,
    ("snapfusion.run_plan", 1): _run_plan_2,
}


def record_classes() -> dict[str, type[Record]]:
    """Every record class by schema name."""
    for name in _MODULES:
        importlib.import_module(f"artifacts_schema.{name}")
    found: dict[str, type[Record]] = {}
    pending = [Record]
    while pending:
        for subclass in pending.pop().__subclasses__():
            pending.append(subclass)
            if subclass.__module__.startswith("artifacts_schema."):
                found[subclass.schema_name] = subclass
    return found


class NewerRecord(ValueError):
    """A record of a newer version than this program reads."""


def read_record(text: str) -> Record:
    """Read any record of any version. Raises ValueError naming schema and version when there is no reader.

    NewerRecord, which is one, says that a newer program has; any other, that the text is no record of ours.
    """
    payload = json.loads(text)
    if not isinstance(payload, dict):
        raise ValueError("a record is a JSON object")
    schema, version = payload.pop("schema", None), payload.pop("version", None)
    classes = record_classes()
    if schema not in classes:
        raise ValueError(f"unknown record schema {schema!r}; known are {', '.join(sorted(classes))}")
    target = classes[schema]
    if not isinstance(version, int):
        raise ValueError(f"{schema} has the version {version!r}; it must be an integer")
    if version > target.schema_version:
        raise NewerRecord(
            f"{schema} version {version} is newer than this program reads ({target.schema_version}); update it"
        )
    while version < target.schema_version:
        upgrade = _UPGRADES.get((schema, version))
        if upgrade is None:
            raise ValueError(f"{schema} version {version} has no reader")
        try:
            payload = upgrade(payload)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{schema} version {version} lacks what it must have: {error}") from error
        version += 1
    return target.model_validate(payload)


def stored_identity(text: str) -> str:
    """Identity of a stored record as of the version it was written in, by which others name it.

    Brought up to date it has another one. Raises ValueError for text that is no record.
    """
    record, payload = read_record(text), json.loads(text)
    if payload["version"] == record.schema_version:
        return record.identity()
    return content_hash({key: value for key, value in payload.items() if key not in record.volatile})
