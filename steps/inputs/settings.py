"""What a stage may read of the configuration: what its line in the table names, and nothing else."""

from collections.abc import Collection
from typing import Any, cast

from artifacts_schema.config import SnapFusionConfig
from steps.files.errors import ConfigError


def only(config: SnapFusionConfig, names: Collection[str], stage: str) -> SnapFusionConfig:
    """A view of the configuration with the sections and values of these dotted names.

    Reading any other raises ConfigError: a change of it would go unnoticed by the stage's cache key.
    """
    return cast(SnapFusionConfig, _View(config, "", frozenset(names), stage))


class _View:
    """One level of the view; a named section or value is handed out as it is."""

    def __init__(self, value: object, path: str, names: frozenset[str], stage: str) -> None:
        self._value, self._path, self._names, self._stage = value, path, names, stage

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}{name}"
        if path in self._names:
            return getattr(self._value, name)
        if any(known.startswith(f"{path}.") for known in self._names):
            return _View(getattr(self._value, name), f"{path}.", self._names, self._stage)
        raise ConfigError(
            f"{self._stage} reads {path} of the configuration, but only {', '.join(sorted(self._names))} is in its "
            "cache key; name it in the stage's `settings` in steps/stages/table.py"
        )
