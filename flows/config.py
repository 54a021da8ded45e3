"""Reads the configuration for Metaflow's `Config`, with one clean message when it is refused."""

import tomllib
from typing import Any

from metaflow.exception import MetaflowException
from pydantic import ValidationError

from artifacts_schema.ablation import AblationConfig
from artifacts_schema.config import InvalidConfig, parse_config, parse_toml
from artifacts_schema.pretraining import load_pretraining_config
from flows.config_files import with_files_read
from flows.environment import PROJECT_ROOT


class ConfigRefused(MetaflowException):
    """Shown by Metaflow without a traceback."""

    headline = "Configuration refused"


def parse(text: str) -> dict[str, Any]:
    """TOML text to the complete configuration, defaults filled in. Raises ConfigRefused naming every bad key."""
    try:
        payload = with_files_read(parse_toml(text), PROJECT_ROOT)
        return parse_config(payload).model_dump(mode="json")
    except InvalidConfig as error:
        raise ConfigRefused(str(error)) from None


def parse_pretraining(text: str) -> dict[str, Any]:
    """The same for the configuration of the pretraining."""
    try:
        return load_pretraining_config(text).model_dump(mode="json")
    except InvalidConfig as error:
        raise ConfigRefused(str(error)) from None


def parse_ablation(text: str) -> dict[str, Any]:
    """The same for the configuration of an ablation."""
    try:
        payload = tomllib.loads(text)
        return AblationConfig.model_validate(payload).model_dump(mode="json")
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigRefused(str(error)) from None
