"""What commands share that take a configuration: a preset or a file, and single keys set on the command line."""

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts_schema.config import InvalidConfig, SnapFusionConfig, parse_config
from flows.presets import DEFAULT_PRESET, FOLDER, presets, read_source
from steps.report.trace import flat


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose a configuration; `chosen` reads them."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--preset", choices=presets(), help=f"one of configs/; default: {DEFAULT_PRESET}")
    source.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of your own")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key over the preset's or file's, such as run.seed=3 (again for more)",
    )


def chosen(options: argparse.Namespace) -> SnapFusionConfig:
    """The configuration that these options name. Raises InvalidConfig with the key at fault, OSError for the file."""
    payload = read_source(options.config or options.preset or DEFAULT_PRESET)
    for text in options.set:
        _put(payload, text)
    return parse_config(payload)


def _put(payload: dict[str, Any], text: str) -> None:
    """Set one key, written `run.seed=3`; a value that is no TOML value is a string."""
    key, equals, value = text.partition("=")
    *sections, name = key.strip().split(".")
    if not (equals and name):
        raise InvalidConfig(f"--set {text}: expected KEY=VALUE, such as run.seed=3")
    for section in sections:
        payload = payload.setdefault(section, {})
        if not isinstance(payload, dict):
            raise InvalidConfig(f"--set {text}: '{section}' is a value, not a section")
    try:
        payload[name] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        payload[name] = value.strip()


def to_toml(values: Mapping[str, Any]) -> str:
    """TOML of a whole configuration as JSON (`model_dump(mode="json")`), a section after the other; None is left out."""
    sections: dict[str, list[str]] = {}
    for key, value in flat(values):
        section, _, name = key.rpartition(".")
        if value is not None:
            # JSON's strings, numbers and lists are TOML's, too.
            sections.setdefault(section, []).append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n\n".join("\n".join([f"[{name}]", *lines]) for name, lines in sections.items()) + "\n"


def flow_arguments(options: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """Arguments of `python flows/snapfusion_flow.py` that run `command` with this configuration."""
    if options.set:
        return ["--config-value", "config", to_toml(chosen(options).model_dump(mode="json")), *command]
    path = options.config or FOLDER / f"{options.preset or DEFAULT_PRESET}.toml"
    return ["--config", "config", str(path), *command]
