"""Files that a configuration names and that become part of it: read once, where the run starts.

So a run can be resumed, or go on elsewhere, when the file has changed or is gone, and its cache key knows what was in it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts_schema.architecture import GivenArchitecture
from artifacts_schema.config import InvalidConfig

_KEPT = tuple(GivenArchitecture.model_fields)  # what an architecture means; not who made it


def with_files_read(payload: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The parsed configuration with the file of `architecture_evolution.architecture` in its place, if it names one.

    Relative paths count from `root`. Raises InvalidConfig for a file that holds no architecture.
    """
    section = payload.get("architecture_evolution")
    named = section.get("architecture") if isinstance(section, Mapping) else None
    if not (isinstance(section, Mapping) and isinstance(named, str) and named.endswith(".json")):
        return dict(payload)
    spec = read_architecture(root / named)
    return {**payload, "architecture_evolution": {**section, "architecture": spec}}


def read_architecture(path: Path) -> dict[str, Any]:
    """An architecture out of a JSON file: an ArchitectureSpec, or what holds one under `architecture` (the config.json of
    a saved EvolvedUNet, an evolution's record). Raises InvalidConfig.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found.get("architecture", found)
        given = GivenArchitecture(**{name: found[name] for name in _KEPT})
    except OSError as error:
        raise InvalidConfig(
            f"architecture_evolution.architecture names {path}, which cannot be read: {error.strerror}; "
            "name a file that is there, or 'snapfusion-sd15'"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidConfig(
            f"architecture_evolution.architecture names {path}, which holds no architecture ({_one_line(error)}); expected "
            f"a JSON object with {', '.join(_KEPT)}, such as the config.json of a saved EvolvedUNet"
        ) from error
    return given.model_dump(mode="json")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
