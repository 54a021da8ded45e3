"""The student of a run as it is published: its diffusers folder with its card."""

from collections.abc import Mapping

from artifacts_schema.base import Record
from artifacts_schema.plan import RunPlan
from artifacts_schema.references import ObjectRef
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from steps.export.diffusers_folder import diffusers_folder
from steps.report.model_card import card_pictures, model_card
from steps.report.page import RunRecords
from steps.store import Store

FOLDER = "student"
"""Where a run's outputs have it."""


def student_files(
    store: Store, records: RunRecords, everything: Mapping[str, Record], report: RunReport
) -> dict[str, ObjectRef]:
    """Every file of the run's student by its path in the outputs; none of a run without one.

    Raises ExportError for a base or weights that no folder can carry.
    """
    plan, unet, decoder = (everything.get(name) for name in ("start", "student_8", "decoder_distillation"))
    if not (
        isinstance(plan, RunPlan) and isinstance(unet, TrainingRecord) and isinstance(decoder, TrainingRecord)
    ):
        return {}
    files = diffusers_folder(
        store, plan.base, unet=unet.weights, decoder=decoder.weights, prediction_type=unet.prediction_type
    )
    files |= card_pictures(report)
    files["README.md"] = store.put_bytes(model_card(records, report).encode())
    return {f"{FOLDER}/{name}": ref for name, ref in files.items()}
