"""The latency record by itself."""

import pytest
from pydantic import ValidationError

from artifacts_schema.base import Measurement
from artifacts_schema.latency import LatencyRow, LatencyTable


def _row(value: float, kind: str = "resnet", unit: str = "ms", mean: float | None = None) -> LatencyRow:
    return LatencyRow(kind=kind, latency=Measurement.of([value], unit), mean=mean, parameters=10)


def _table(**changes: object) -> LatencyTable:
    fields = {
        "backend": "device",
        "device": "iPhone 14 Pro",
        "batch": 2,
        "model": "00",
        "latent_shape": (4, 64, 64),
        "tokens": 77,
        "unit": "ms",
        "rows": {"mid.resnets.0": _row(3.0), "conv_in": _row(1.0, "stem"), "unet": _row(5.0, "unet")},
        "sum_of_parts": 4.0,
        "whole": 5.0,
        "explained": 0.8,
    }
    return LatencyTable(**{**fields, **changes})


def test_shares_are_of_the_parts_without_the_whole_models() -> None:
    assert _table().shares() == {
        "mid.resnets.0": {"time": 0.75, "parameters": 0.5},
        "conv_in": {"time": 0.25, "parameters": 0.5},
    }


def test_cost_is_the_mean_where_there_is_one() -> None:
    assert _row(3.0).cost == 3.0
    assert _row(3.0, mean=4.0).cost == 4.0


def test_round_trip() -> None:
    assert LatencyTable.from_json(_table().to_json()) == _table()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"mid.resnets.0": _row(3.0)}}, "lacks the row 'unet'"),
        ({"whole": 0.0}, "must be positive"),
        ({"rows": {"unet": _row(5.0, "unet", "s")}}, "every row must be in ms"),
        ({"backend": "macs"}, "does not go with unit"),
        ({"rows": {"unet": _row(5.0, "unet"), "conv_in": _row(-1.0, "stem")}}, "negative latency in conv_in"),
    ],
    ids=["no whole", "zero", "unit", "macs in ms", "negative"],
)
def test_impossible_tables_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _table(**changes)
