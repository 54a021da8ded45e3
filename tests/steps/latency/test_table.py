"""Predicting from a table, importing one, refusing what does not belong."""

from pathlib import Path

import pytest

from artifacts_schema.latency import LatencyTable
from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.files.errors import LatencyTableError
from steps.latency.table import check_explained, import_table, predict
from steps.stages import latency_profile
from steps.unet.architecture import copy_block, remove_unit
from steps.unet.blocks import SD15_UNET_CONFIG, full_spec
from tests.factories import TINY_CONFIG, tiny_base

FULL = full_spec(TINY_CONFIG)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return latency_profile.count(tiny_base(), LatencyProfileConfig(backend="macs"))


def test_prediction_of_the_base_is_the_whole(table: LatencyTable) -> None:
    assert predict(table, FULL) == pytest.approx(table.whole)


def test_removing_saves_and_copying_costs_what_the_block_takes(table: LatencyTable) -> None:
    block = "up.1.attentions.0"
    removed = predict(table, remove_unit(FULL, TINY_CONFIG, block))
    copied = predict(table, copy_block(FULL, TINY_CONFIG, block))
    assert table.whole - removed == pytest.approx(table.cost(block))
    assert copied - table.whole == pytest.approx(table.cost(block))


def test_prediction_for_another_base_is_refused(table: LatencyTable) -> None:
    with pytest.raises(LatencyTableError, match="measure a table of this base"):
        predict(table, full_spec(SD15_UNET_CONFIG))


def _import(path: Path, **changes: object) -> LatencyTable:
    arguments = {
        "backend": "macs",
        "unet_config": TINY_CONFIG,
        "batch": 2,
        "latent_shape": (4, 16, 16),
        "tokens": 7,
    }
    return import_table(path, **{**arguments, **changes})


def test_import_reads_what_was_written(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(table.to_json())
    assert _import(path) == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "device"}, "backend 'macs', this run needs 'device'"),
        ({"unet_config": SD15_UNET_CONFIG}, "measured with model"),
        ({"batch": 1}, "measured with batch 2"),
        ({"latent_shape": (4, 64, 64)}, "latent_shape"),
        ({"tokens": 77}, "tokens"),
    ],
    ids=["provenance", "model", "batch", "shape", "tokens"],
)
def test_import_refuses_tables_of_something_else(
    table: LatencyTable, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "table.json"
    path.write_text(table.to_json())
    with pytest.raises(LatencyTableError, match=message):
        _import(path, **change)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "snapfusion.latency", "version": 99}'])
def test_import_refuses_what_is_no_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(LatencyTableError, match="no latency table"):
        _import(path)
    with pytest.raises(LatencyTableError, match="no latency table"):
        _import(tmp_path / "missing.json")


def test_import_refuses_a_table_without_a_block(table: LatencyTable, tmp_path: Path) -> None:
    rows = {name: row for name, row in table.rows.items() if name != "mid.resnets.1"}
    path = tmp_path / "table.json"
    path.write_text(table.model_copy(update={"rows": rows}).to_json())
    with pytest.raises(LatencyTableError, match=r"mid\.resnets\.1"):
        _import(path)


def test_parts_that_do_not_explain_the_whole_are_refused(table: LatencyTable) -> None:
    check_explained(table, 0.01)
    with pytest.raises(LatencyTableError, match=r"60\.0%"):
        check_explained(table.model_copy(update={"explained": 0.6}), 0.25)
