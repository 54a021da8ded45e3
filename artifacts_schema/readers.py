"""Readers of every record and every version of it.

A record's JSON names its schema and version. Records of older versions are brought up to date by the functions in
`_UPGRADES`, one per step from a version to the next; a stored example of every version lies in
`tests/fixtures/records/`.
"""

import importlib
import json
from collections.abc import Callable
from typing import Any

from artifacts_schema.base import Record

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


def _run_plan_2(payload: dict[str, Any]) -> dict[str, Any]:
    """Version 1 left Inception's weights to the temporary folder, which is what a missing `inception` means."""
    return payload


_UPGRADES: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("snapfusion.component", 1): _component_2,
    ("snapfusion.bundle", 1): _bundle_2,
    ("snapfusion.bundle", 2): _bundle_3,
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


def read_record(text: str) -> Record:
    """Read any record of any version. Raises ValueError naming schema and version when there is no reader."""
    payload = json.loads(text)
    schema, version = payload.pop("schema", None), payload.pop("version", None)
    classes = record_classes()
    if schema not in classes:
        raise ValueError(f"unknown record schema {schema!r}; known are {', '.join(sorted(classes))}")
    target = classes[schema]
    if not isinstance(version, int) or version > target.schema_version:
        raise ValueError(
            f"{schema} version {version} is newer than this program reads ({target.schema_version}); update it"
        )
    while version < target.schema_version:
        upgrade = _UPGRADES.get((schema, version))
        if upgrade is None:
            raise ValueError(f"{schema} version {version} has no reader")
        payload = upgrade(payload)
        version += 1
    return target.model_validate(payload)
