"""What a run is told, and refused for, once its inputs are known: time and memory of every stage."""

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.plan import RunPlan


def estimates(config: SnapFusionConfig, plan: RunPlan) -> str:
    """Time, memory and cost per stage, as far as they can be told beforehand."""
    from steps.latency.estimates import format_estimates, stage_estimates

    if not plan.estimates:
        return "no estimates: this plan was made by a version that measured none"
    origin = plan.provenance
    machine = f"{origin.device}, {origin.threads} threads" if origin else "an unknown machine"
    found = stage_estimates(config, plan.estimates)
    return format_estimates(found, price_per_hour=config.compute.price_per_hour, measured_on=machine)
