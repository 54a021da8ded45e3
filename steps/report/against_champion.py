"""A run's student beside the champion's, on the same captions and noise of the validation protocol."""

from artifacts_schema.config import SHIPPED
from artifacts_schema.evaluation import (
    EvaluationRecord,
    GuidanceRecord,
    RealPicturesRecord,
    VariantComparison,
)
from artifacts_schema.plan import RunPlan
from artifacts_schema.report import RunReport
from steps.data.prepared import PreparedData
from steps.evaluation.compare import compare
from steps.evaluation.subject import NOISE_SEED
from steps.files.errors import DamagedError, EvaluationError, SnapFusionError
from steps.report.stored import record_of
from steps.store import Store
from steps.training.randomness import epoch_indices


def compare_with_champion(store: Store, champion: RunReport, report: RunReport) -> VariantComparison | str:
    """The champion is the reference. A sentence where the two cannot be compared, such as unlike protocols.

    Raises DamagedError for records that are not what they must be.
    """
    try:
        first, second = (on_validation(store, item) for item in (champion, report))
        return compare(store, first, second)
    except DamagedError:
        raise
    except SnapFusionError as error:
        return str(error)


def on_validation(store: Store, report: RunReport) -> EvaluationRecord:
    """What a run measured of its shipped student on validation: its evaluation, where that was there, else the pictures
    that its guidance scale was chosen by. Raises EvaluationError when it drew none, StoreError when they are gone.
    """
    if f"evaluation {SHIPPED}" not in report.inputs:
        raise EvaluationError(f"run {report.name} did not evaluate {SHIPPED}")
    evaluated: EvaluationRecord = record_of(store, report, f"evaluation {SHIPPED}")
    if evaluated.protocol["split"] == "validation":
        return evaluated
    guidance: GuidanceRecord = record_of(store, report, f"guidance_selection {SHIPPED}")
    chosen = [point for point in guidance.points if point.guidance_scale == guidance.guidance_scale]
    if not chosen:
        raise EvaluationError(
            f"run {report.name} drew no pictures on the validation protocol: set evaluation.split = 'validation', or "
            "several evaluation.guidance_scales to choose from"
        )
    real: RealPicturesRecord = record_of(store, report, "real_pictures")
    plan: RunPlan = record_of(store, report, "start")
    # Of a frozen protocol the record says them; older records have none, and were of the data's split.
    captions = list(guidance.captions) or _drawn(store, plan, guidance.protocol["pictures"])
    return EvaluationRecord(
        stage="guidance_selection",
        variant=SHIPPED,
        title=f"{SHIPPED} of run {report.name}",
        sampler=evaluated.sampler,
        steps=evaluated.steps,
        point=chosen[0],
        real=real.splits["validation"],
        pictures=len(captions),
        captions=tuple(captions),
        protocol=guidance.protocol,
    )


def _drawn(store: Store, plan: RunPlan, count: int) -> list[str]:
    """The captions of a bench's pictures (`steps.evaluation.bench.Bench.drawn`), without the models that it loads."""
    texts = list(dict.fromkeys(PreparedData.load(store, plan.data).captions("validation")))
    chosen = epoch_indices(samples=len(texts), start=0, count=count, seed=NOISE_SEED)
    return [texts[i] for i in chosen.tolist()]
