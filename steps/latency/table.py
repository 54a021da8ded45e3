"""Using a latency table: predict an architecture, read a table made elsewhere, refuse what does not fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from artifacts_schema.architecture import ArchitectureSpec, original_of
from artifacts_schema.latency import LatencyTable
from steps.files.errors import LatencyTableError
from steps.latency.device import device_table, is_measurement
from steps.unet.blocks import config_hash, list_blocks


def predict(table: LatencyTable, spec: ArchitectureSpec) -> float:
    """Latency of a guided step of `spec`, in the table's unit.

    Sum over the parts that are there, a copy counting as its original, times the table's own ratio of whole
    to sum: what runs between the parts is taken to shrink with them. Raises LatencyTableError for another
    base's spec.
    """
    if spec.base_config != table.model:
        raise LatencyTableError(
            f"the table is of base {table.model[:12]}, architecture {spec.name} of base "
            f"{spec.base_config[:12]}; measure a table of this base"
        )
    blocks = [original_of(block) for block in spec.blocks]
    missing = sorted(set(blocks) - set(table.rows))
    if missing:
        raise LatencyTableError(f"the table lacks the blocks {', '.join(missing)}; measure it again")
    around = sum(row.cost for row in table.parts().values() if row.kind not in ("attention", "resnet"))
    total = around + sum(table.cost(block) for block in blocks)
    return total * table.whole / table.sum_of_parts


def import_table(
    path: Path,
    *,
    backend: str,
    unet_config: Mapping[str, Any],
    batch: int,
    latent_shape: tuple[int, int, int],
    tokens: int,
) -> LatencyTable:
    """Read a table measured elsewhere, or make one of what a device measured (`steps.latency.device`).

    The manifest of the kit that the device was given is expected beside `path`.
    Raises LatencyTableError when it cannot be read or belongs to another provenance, model, batch or shape,
    or lacks a block.
    """
    expected: dict[str, Any] = {
        "backend": backend,
        "model": config_hash(unet_config),
        "batch": batch,
        "latent_shape": latent_shape,
        "tokens": tokens,
    }
    if is_measurement(path):
        return _checked(device_table(path, path.with_name("manifest.json")), path, expected, unet_config)
    try:
        table = LatencyTable.from_json(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, ValidationError, ValueError) as error:
        raise LatencyTableError(f"{path} is no latency table: {error}") from error
    return _checked(table, path, expected, unet_config)


def _checked(
    table: LatencyTable, path: Path, expected: Mapping[str, Any], unet_config: Mapping[str, Any]
) -> LatencyTable:
    """`table`. Raises LatencyTableError when it is not as expected, or lacks a block."""
    for key, value in expected.items():
        found = getattr(table, key)
        if found != value:
            raise LatencyTableError(
                f"{path} was measured with {key} {found!r}, this run needs {value!r}; "
                "measure a table for this run"
            )
    missing = [block.id for block in list_blocks(unet_config) if block.id not in table.rows]
    if missing:
        raise LatencyTableError(f"{path} lacks rows for {', '.join(missing)}")
    return table


def check_explained(table: LatencyTable, tolerance: float) -> None:
    """Raise LatencyTableError unless the parts add up to the whole within `tolerance`, a fraction of it."""
    gap = abs(table.explained - 1.0)
    if gap > tolerance:
        raise LatencyTableError(
            f"the parts add up to {table.explained:.1%} of the whole guided step, expected 100 % within "
            f"{tolerance:.0%}; measure again on a quieter machine or with more repeats"
        )
