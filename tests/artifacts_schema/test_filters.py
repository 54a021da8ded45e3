"""Filters: what they keep, and what is no filter."""

from typing import Any

import pytest

from artifacts_schema.config import InvalidConfig, parse_config
from artifacts_schema.filters import Filter


@pytest.mark.parametrize(
    ("text", "fields", "dropped"),
    [
        ("width >= 512", {"width": 512}, ""),
        ("width >= 512", {"width": 511}, "width >= 512"),
        ("aspect<=2", {"aspect": 2.0}, ""),
        ("score > 5.5", {"score": 5.5}, "score > 5.5"),
        ("score > 5.5", {"score": "5.6"}, ""),
        ("score > 5.5", {}, "score > 5.5: no such field"),
        ("score > 5.5", {"score": "high"}, "score > 5.5: not a number"),
        ("score > 5.5", {"score": True}, "score > 5.5: not a number"),
        ("score > 5.5", {"score": float("nan")}, "score > 5.5"),
        ("LANGUAGE  ==  en", {"LANGUAGE": "en"}, ""),
        ("LANGUAGE == en", {"LANGUAGE": "de"}, "LANGUAGE == en"),
        ("kind != a photo", {"kind": "a photo"}, "kind != a photo"),
        ("n == 3", {"n": 3.0}, ""),
        ("date of birth < 1990", {"date of birth": 1991}, "date of birth < 1990"),
    ],
)
def test_a_filter_says_what_it_drops(text: str, fields: dict[str, Any], dropped: str) -> None:
    assert Filter.parse(text).dropped(fields) == dropped


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("width", "a filter is a field, one of >="),
        (">= 5", "a filter is a field"),
        ("width >=", "a filter is a field"),
        ("width => 5", "a filter is a field"),
        ("score > high", "'high', which is no number"),
        ("width == wide", "'wide', which is no number"),
    ],
)
def test_what_is_none_is_refused_with_the_configuration(text: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=f"data.filters.*{said}"):
        parse_config({"data": {"source": "webdataset", "filters": [text]}})


def test_filters_are_of_shards() -> None:
    with pytest.raises(InvalidConfig, match="filters is of shards; expected source 'webdataset'"):
        parse_config({"data": {"filters": ["width > 5"]}})
    plain = parse_config({}).data
    assert "filters" not in plain.meaning()
    assert "filters" in parse_config({"data": {"source": "webdataset"}}).data.meaning()
