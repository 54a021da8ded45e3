"""The presets in configs/, files like them, and how two configurations differ."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts_schema.config import InvalidConfig
from flows.environment import CODE_ROOT
from flows.text import nearest
from steps.report.trace import flat

DEFAULT_PRESET = "openmoji"
FOLDER = CODE_ROOT / "configs"


def presets() -> list[str]:
    """Names of the presets, sorted; that of the pretraining is another configuration."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != "pretrain")


def read_source(source: str | Path) -> dict[str, Any]:
    """What a preset, by its name, or a TOML file sets. Raises InvalidConfig for a file that is no TOML, or not there."""
    path = FOLDER / f"{source}.toml" if str(source) in presets() else Path(source)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = nearest(str(source), presets()) or f"; presets: {', '.join(presets())}"
        raise InvalidConfig(f"'{source}' is neither a preset nor a file{hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys that differ, with both values (None: not set), in the order of the sections."""
    before, after = dict(flat(old)), dict(flat(new))
    keys = dict.fromkeys([*before, *after])
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}
