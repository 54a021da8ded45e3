"""The page and the schema of the configuration: complete, true, and those that are in docs/."""

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from artifacts_schema.config_reference import json_schema, keys, page, takes
from artifacts_schema.ranges import setting

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path for path in (ROOT / "configs").glob("*.toml") if path.stem != "pretrain")


def test_every_key_says_what_it_means_and_where_its_default_is_from() -> None:
    found = list(keys())
    assert len(found) > 90
    silent = [f"{key.section}.{key.name}" for key in found if not (key.meaning and key.origin)]
    assert not silent, f"give them a default by artifacts_schema.ranges.setting: {silent}"


@pytest.mark.parametrize(
    ("name", "text"), [("configuration.md", page), ("configuration.schema.json", json_schema)]
)
def test_the_documents_are_those_of_the_code(name: str, text: Any) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text(), (
        "run `snapfusion config reference --write`"
    )


def refused(text: str) -> list[str]:
    """What an editor with the schema would underline."""
    found = jsonschema.Draft202012Validator(json.loads(json_schema())).iter_errors(tomllib.loads(text))
    return [error.message for error in found]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_valid_by_the_schema_that_it_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert refused(text) == []
    named = text.partition("\n")[0].removeprefix("#:schema ")
    assert (path.parent / named).resolve() == ROOT / "docs" / "configuration.schema.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run]\nsed = 3", "'sed' was unexpected"),
        ("[robust_training]\ndrop_probability = 1.5", "1.5 is greater than the maximum of 1.0"),
        ("[compute]\ndevice = 'tpu'", "'tpu' is not one of"),
    ],
)
def test_an_editor_underlines_what_a_run_refuses(text: str, said: str) -> None:
    (message,) = refused(text)
    assert said in message


def test_hovering_over_a_key_shows_its_meaning() -> None:
    schema = json.loads(json_schema())
    grace = schema["$defs"]["ComputeConfig"]["properties"]["sigterm_grace_s"]
    assert grace["description"] == "time to write a checkpoint after SIGTERM [s]"
    assert grace["default"] == 10.0


class Section(BaseModel):
    """A section."""

    switch: bool = setting(True, "on or off", origin="P")


class Odd(BaseModel):
    """All kinds of values."""

    switch: bool = True
    few: tuple[int, ...] = ()
    pair: tuple[float, float] = (1.0, 2.0)
    maybe: str | None = None
    prices: dict[str, float] = {}
    either: str | Section | None = None
    known: Literal["one"] = "one"
    rows: tuple[Section, ...] = ()


class Whole(BaseModel):
    """All kinds of sections."""

    plain: Section = Section()
    left_out: Section | None = None
    named: dict[str, Section] = {}
    either: str | Section | None = Field(None, description="Words. Origin: ours.")


def test_sections_that_may_be_left_out_or_have_names_are_sections() -> None:
    found = [(key.section, key.name, key.meaning, key.origin) for key in keys(Whole)]
    switch = ("switch", "on or off", "P")
    assert found == [
        ("plain", *switch),
        ("left_out", *switch),
        ("named.<name>", *switch),
        ("", "either", "Words.", "ours"),
    ]


def test_what_a_key_takes_is_in_words() -> None:
    found = {name: takes(schema) for name, schema in Odd.model_json_schema()["properties"].items()}
    assert found == {
        "switch": "true, false",
        "few": "list of (whole number)",
        "pair": "list of 2 (number)",
        "maybe": "text",
        "prices": "table of (number) by name",
        "either": "text or table",
        "known": '"one"',
        "rows": "list of (table)",
    }
    assert takes({"type": "number", "exclusiveMinimum": 0, "maximum": 1}) == "number over 0 to 1"
