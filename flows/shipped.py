"""What is special about a few results: the bundle that ships is evaluated, students of fewer steps are optional."""

from typing import Any

from artifacts_schema.base import Record
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import variants_of
from artifacts_schema.references import FolderRef
from flows.runtime import pack, read_config, run_stage, unpack
from flows.stages import Records
from steps.evaluation.variants import COMPRESSED
from steps.inputs.settings import only
from steps.stages.table import STAGES

_STAGE = STAGES["evaluation"]


def further_students(config: SnapFusionConfig) -> list[str]:
    """The students of fewer steps than student_8 that the configuration asks for, in order."""
    return [name for name in ("student_4", "student_2") if getattr(config, name) is not None]


def evaluate_bundle(flow: Any) -> None:
    """Add the record of the compressed bundle to the evaluations, if the run asks for it and anything was compressed."""
    config, records = read_config(flow), Records(flow)
    chosen = records["coreml_compression"].chosen
    complete = unpack(flow.bundle_record).complete
    if (
        COMPRESSED not in variants_of(config.evaluation.variants, config.run.skip)
        or not complete
        or set(chosen.values()) <= {"fp16"}
    ):
        return
    files = FolderRef.model_validate(flow.bundle_files)

    def work(context: Any, inputs: Any) -> Record:
        from steps.inputs.loaded import fetch_folder
        from steps.stages.evaluation import run_bundle

        settings = only(config, _STAGE.settings, _STAGE.name)
        return run_bundle(fetch_folder(context, files, "bundle"), inputs, settings, context)

    packages = {name: ref.sha256 for name, ref in files.files.items() if "/" in name}
    record = run_stage(_STAGE, config, records, COMPRESSED, settings={"packages": packages}, work=work)
    flow.evaluation_records = {**flow.evaluation_records, COMPRESSED: pack(record)}
