"""The options that name a store to a command: a run's store, printed and read again, is the same store."""

import shlex

import pytest

from artifacts_schema.run_configs import StoreConfig
from flows.commands.store_options import store_config, store_options, store_parser

KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd"


def parsed(*arguments: str) -> StoreConfig:
    return store_config(store_parser("module", "").parse_args(arguments))


@pytest.mark.parametrize(
    "config",
    [
        StoreConfig(),
        StoreConfig(root="my store", local="a b"),
        StoreConfig(root="s3://bucket/x", endpoint="https://host:1", encryption="AES256"),
        StoreConfig(root="s3://bucket/x", encryption="aws:kms", kms_key=KEY),
    ],
    ids=["default", "local", "AES256", "kms"],
)
def test_options_lead_back_to_the_store(config: StoreConfig) -> None:
    assert parsed(*shlex.split(store_options(config))) == config


def test_the_default_needs_no_options() -> None:
    assert store_options(StoreConfig()) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encryption", "rot13"], r"store\.encryption.*'AES256'"),
        (["--kms-key", KEY], "kms_key needs encryption = 'aws:kms'"),
    ],
)
def test_what_the_configuration_refuses_ends_the_command(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        parsed(*arguments)
