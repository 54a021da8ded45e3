"""A latency table from what a device measured: `measure_on_mac.py`'s record and the kit it was measured on."""

import hashlib
import json
import logging
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from artifacts_schema.base import Measurement
from artifacts_schema.device import BASELINE, DeviceMeasurement, LatencyKit
from artifacts_schema.latency import WHOLE_MODELS, LatencyRow, LatencyTable
from steps.files.errors import LatencyTableError

logger = logging.getLogger(__name__)


def is_measurement(path: Path) -> bool:
    """True for a device's record, False for a table or anything else."""
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(payload, dict) and payload.get("schema") == DeviceMeasurement.schema_name


def device_table(path: Path, manifest: Path) -> LatencyTable:
    """The table that the record `path` gives, measured on the kit described in `manifest`.

    Every model's time is less by the baseline's, a model of one operation: what calling a model costs, which a block
    inside of the network does not pay. Raises LatencyTableError for a record that cannot be read, of another kit, of
    packages that have changed since, with models that the kit has not, or without some that it has.
    """
    try:
        measured = DeviceMeasurement.from_json(path.read_text(encoding="utf-8"))
        text = manifest.read_bytes()
        kit = LatencyKit.from_json(text.decode())
    except (OSError, ValidationError, ValueError) as error:
        raise LatencyTableError(
            f"expected a record of measure_on_mac.py in {path} and its kit's manifest in {manifest}: {error}"
        ) from error
    _check(path, measured, kit, hashlib.sha256(text).hexdigest())
    samples = {entry.model: entry.samples_ms for entry in measured.entries}
    baseline = median(samples[BASELINE])
    rows = {
        name: LatencyRow(
            kind=part.kind,
            latency=Measurement.of([max(value - baseline, 0.0) for value in samples[part.model]], "ms"),
            parameters=part.parameters,
            input_shapes=part.input_shapes,
        )
        for name, part in kit.parts.items()
    }
    _warn(rows, baseline)
    total = sum(row.cost for name, row in rows.items() if name not in WHOLE_MODELS)
    whole = rows["unet"].cost if "unet" in rows else 0.0
    if not total > 0.0 or not whole > 0.0:
        raise LatencyTableError(
            f"{path}: no time is left of the UNet ({whole:g} ms) or of its parts ({total:g} ms) after the baseline of "
            f"{baseline:g} ms; measure a kit that holds the row 'unet', with more iterations"
        )
    return LatencyTable(
        backend="device",
        device=f"{measured.device}, {measured.os}, {measured.compute_units}",
        dtype="float16",
        batch=kit.batch,
        model=kit.model,
        latent_shape=kit.latent_shape,
        tokens=kit.tokens,
        unit="ms",
        timing=f"alone, {measured.method}, less {baseline:.4g} ms of dispatch",
        rows=rows,
        sum_of_parts=total,
        whole=whole,
        explained=total / whole,
    )


def _check(path: Path, measured: DeviceMeasurement, kit: LatencyKit, kit_hash: str) -> None:
    """Raises LatencyTableError naming what does not belong to the kit."""
    found = {entry.model: entry.sha256 for entry in measured.entries}
    unknown = sorted(set(found) - set(kit.models))
    missing = sorted(set(kit.models) - set(found))
    stale = sorted(
        name for name, sha in found.items() if name in kit.models and kit.models[name].sha256 != sha
    )
    for names, what in (
        (stale, "were measured on other packages than the kit holds now"),
        (unknown, "are not in the kit"),
        (missing, "were not measured; run measure_on_mac.py again, it goes on where it stopped"),
    ):
        if names:
            raise LatencyTableError(f"{path}: the models {', '.join(names)} {what}")
    if measured.kit != kit_hash:
        raise LatencyTableError(
            f"{path} was measured on the kit {measured.kit[:12]}, the manifest is {kit_hash[:12]}; measure this kit"
        )


def _warn(rows: dict[str, LatencyRow], baseline: float) -> None:
    lost = [name for name, row in rows.items() if row.latency.median == 0.0]
    if lost:
        logger.warning("no slower than the baseline of %.3g ms: %s", baseline, ", ".join(lost))
