"""Inputs that the configuration names by `s3://`, brought to this machine before a stage asks for paths."""

from artifacts_schema.config import SnapFusionConfig
from flows.environment import WORK_ROOT

_FOLDER = WORK_ROOT / ".snapfusion" / "fetched"


def named_inputs(config: SnapFusionConfig) -> list[str]:
    """The inputs that the configuration names by place, the latency table left out."""
    base, evaluation = config.base, config.evaluation
    found = [evaluation.signal_clip, evaluation.measure_clip, evaluation.inception]
    if base.path != "micro":
        found.append(base.path)
        found += [base.velocity_warm_start, base.robust_warm_start] if base.warm_start else []
    return [place for place in (*found, *config.data.shards, *config.data.held_out_from) if place]


def with_inputs_here(config: SnapFusionConfig) -> SnapFusionConfig:
    """The configuration with local paths in place of `s3://`, shards excepted; see `steps.inputs.fetched`."""
    if not any(place.startswith("s3://") for place in named_inputs(config)):
        return config
    from steps.inputs.fetched import with_fetched_inputs  # boto3 takes a while to import

    return with_fetched_inputs(config, _FOLDER)


def with_table_here(config: SnapFusionConfig) -> SnapFusionConfig:
    """The same for the latency table."""
    if not (config.latency_profile.table or "").startswith("s3://"):
        return config
    from steps.inputs.fetched import with_fetched_table

    return with_fetched_table(config, _FOLDER)
