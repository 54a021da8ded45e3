"""Every table that comes with the project says what it is; quotations cannot pass for measurements."""

import json
from pathlib import Path

import pytest

from artifacts_schema.base import Provenance
from artifacts_schema.latency import LatencyTable
from artifacts_schema.published import PublishedLatencies
from artifacts_schema.readers import read_record
from flows.commands.latency_table import shareable
from steps.files.errors import LatencyTableError, SnapFusionError
from steps.latency.contributed import FOLDER, check_contributed, find_table
from steps.latency.table import import_table
from steps.unet.blocks import SD15_UNET_CONFIG, config_hash, list_blocks

ROOT = Path(__file__).resolve().parents[3]
TABLES = sorted((ROOT / FOLDER).glob("*.json"))
QUOTED = ROOT / FOLDER / "published_snapfusion.json"


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_table_is_valid_and_in_the_list(path: Path) -> None:
    found = check_contributed(path)
    assert f"`{path.name}`" in (ROOT / FOLDER / "README.md").read_text()
    assert isinstance(found, PublishedLatencies) == path.name.startswith("published_")


def test_ours_is_of_the_embedded_base_and_can_be_imported() -> None:
    unet = json.loads((ROOT / "assets/base/unet/config.json").read_text())
    for path in TABLES:
        table = check_contributed(path)
        if isinstance(table, LatencyTable) and table.model == config_hash(unet):
            text = json.loads((ROOT / "assets/base/text_encoder/config.json").read_text())
            shape = (unet["in_channels"], unet["sample_size"], unet["sample_size"])
            imported = import_table(
                path, backend=table.backend, unet_config=unet, batch=table.batch, latent_shape=shape,
                tokens=text["max_position_embeddings"],
            )  # fmt: skip
            assert {block.id for block in list_blocks(unet)} <= set(imported.rows)


def test_quoted_numbers_are_no_table() -> None:
    """The paper's, as they are printed: 2 x 4 + 8 x 230 + 116 ms are its 1.96 s."""
    quoted = check_contributed(QUOTED)
    assert isinstance(quoted, PublishedLatencies) and quoted.measured_by_us is False
    phone = [row for row in quoted.rows if (row.device, row.model) == ("iPhone 14 Pro", "SnapFusion")]
    (whole,) = (row.milliseconds for row in phone if row.part == "whole")
    parts = sum(row.calls * row.milliseconds for row in phone if row.part != "whole")
    assert parts == pytest.approx(whole, rel=0.01)
    with pytest.raises(LatencyTableError, match=r"expected snapfusion\.latency, found snapfusion\.published"):
        import_table(
            QUOTED,
            backend="device",
            unet_config=SD15_UNET_CONFIG,
            batch=2,
            latent_shape=(4, 64, 64),
            tokens=77,
        )


def example() -> LatencyTable:
    found = read_record((ROOT / "tests/fixtures/records/latency_v1.json").read_text())
    assert isinstance(found, LatencyTable)
    made = Provenance(
        created_at="2026-11-26", host="mine", device="cpu", run_id="F/1", versions={"torch": "2"}
    )
    return found.model_copy(update={"backend": "torch-cpu", "unit": "ms", "provenance": made})


def written(table: LatencyTable, folder: Path) -> Path:
    rows = {
        name: row.model_copy(update={"latency": row.latency.model_copy(update={"unit": table.unit})})
        for name, row in table.rows.items()
    }
    path = folder / "table.json"
    path.write_text(table.model_copy(update={"rows": rows}).to_json())
    return path


def test_a_shared_table_tells_how_it_was_made_and_not_where(tmp_path: Path) -> None:
    with pytest.raises(LatencyTableError, match="names a host or a run"):
        check_contributed(written(example(), tmp_path))
    found = check_contributed(written(shareable(example()), tmp_path))
    assert (
        isinstance(found, LatencyTable) and found.provenance and found.provenance.versions == {"torch": "2"}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provenance": None}, r"lacks provenance \(created_at, device, versions\)"),
        ({"backend": "macs", "unit": "MAC"}, "holds MACs, which every machine counts"),
    ],
    ids=["no provenance", "MACs"],
)
def test_what_is_no_use_to_others_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LatencyTableError, match=message):
        check_contributed(written(shareable(example()).model_copy(update=changes), tmp_path))


def test_a_run_with_macs_has_nothing_to_share() -> None:
    with pytest.raises(SnapFusionError, match="backend = 'macs' instead"):
        shareable(example().model_copy(update={"backend": "macs"}))


def test_a_table_is_found_in_the_first_place_that_has_it(tmp_path: Path) -> None:
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.json").write_text("{}")
    roots = [tmp_path / name for name in ("first", "second", "third")]
    assert find_table("t.json", roots) == tmp_path / "second" / "t.json"
    assert find_table(str(tmp_path / "third/t.json"), roots) == tmp_path / "third" / "t.json"
    assert find_table("missing.json", roots) == Path("missing.json")
