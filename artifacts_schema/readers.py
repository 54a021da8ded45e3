"""Reads a record of whatever class: its JSON names the schema and the version.

`Record.from_payload` brings an older version up to date; an example of every version lies in `tests/fixtures/records/`.
"""

from artifacts_schema.ablation import AblationRecord
from artifacts_schema.architecture import ArchitectureSpec, EvolutionRecord
from artifacts_schema.base import Record, content_hash, json_object
from artifacts_schema.bundle import BundleDrawing, BundleManifest, ComponentReport
from artifacts_schema.champion import ChampionHistory
from artifacts_schema.compression import CompressionRecord
from artifacts_schema.data import PreparedDataRef
from artifacts_schema.device import DeviceMeasurement, LatencyKit
from artifacts_schema.evaluation import EvaluationRecord, GuidanceRecord, RealPicturesRecord
from artifacts_schema.latency import LatencyTable
from artifacts_schema.licences import LicenceRecord
from artifacts_schema.parts import SkippedRecord
from artifacts_schema.plan import RunPlan
from artifacts_schema.promotion import PromotionDecision
from artifacts_schema.protocol import ProtocolRecord
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord

_CLASSES: tuple[type[Record], ...] = (
    AblationRecord,
    ArchitectureSpec,
    BundleDrawing,
    BundleManifest,
    ChampionHistory,
    ComponentReport,
    CompressionRecord,
    DeviceMeasurement,
    EvaluationRecord,
    EvolutionRecord,
    GuidanceRecord,
    LatencyKit,
    LatencyTable,
    LicenceRecord,
    PreparedDataRef,
    PromotionDecision,
    ProtocolRecord,
    RealPicturesRecord,
    RunPlan,
    RunReport,
    SkippedRecord,
    TrainingRecord,
)
RECORD_CLASSES = {found.schema_name: found for found in _CLASSES}


def read_record(text: str) -> Record:
    """Read any record of any version. Raises ValueError naming schema and version when there is no reader.

    NewerRecord, which is one, says that a newer program has; any other, that the text is no record of ours.
    """
    payload = json_object(text)
    schema = payload.get("schema")
    if schema not in RECORD_CLASSES:
        raise ValueError(f"unknown record schema {schema!r}; known are {', '.join(sorted(RECORD_CLASSES))}")
    return RECORD_CLASSES[schema].from_payload(payload)


def stored_identity(text: str) -> str:
    """Identity of a stored record as of the version it was written in, by which others name it.

    Brought up to date it has another one. Raises ValueError for text that is no record.
    """
    record, payload = read_record(text), json_object(text)
    if payload["version"] == record.schema_version:
        return record.identity()
    return content_hash({key: value for key, value in payload.items() if key not in record.volatile})
