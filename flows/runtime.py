"""What every step body calls: find the stage in the cache or run it, and show progress in terminal and card.

A task whose result is cached imports no torch; everything that needs it is imported inside `_execute`.
"""

import json
import logging
import platform
import resource
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metaflow import current

from artifacts_schema.base import Provenance, Record, content_hash, meaning
from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.plan import RunPlan
from artifacts_schema.readers import read_record
from artifacts_schema.run_configs import ComputeConfig
from flows.cards import render
from flows.environment import CODE_ROOT, PROJECT_ROOT, WORK_ROOT, threads_per_task, usable_cores
from flows.live_card import CardProgress
from flows.logs import about, configure_logging, wants_json
from flows.mlflow_bridge import tracker
from steps.cache.keys import CacheResult, StageKey
from steps.cache.notes import StageUse, first_run, stage_of_run, stage_uses
from steps.cache.provenance import DISTRIBUTION, code_version, package_versions
from steps.files.disk import file_sha256
from steps.files.errors import LatencyTableError
from steps.files.processor import processor_name
from steps.latency.contributed import find_table
from steps.report.content import Text
from steps.stages.table import Stage, earlier_of, meaning_of
from steps.stages.versions import source_hash, stage_version
from steps.store import Store, open_store

logger = logging.getLogger(__name__)
_UNET_TRAININGS = (
    "velocity_finetuning", "robust_training", "architecture_evolution", "teacher_16", "student_16", "student_8",
)  # fmt: skip


def read_config(flow: Any) -> SnapFusionConfig:
    """The validated configuration of a flow (already checked by the parser when the flow started)."""
    return parse_config(flow.config.to_dict())


def pack(record: Record) -> dict[str, Any]:
    """A record as a Metaflow artifact: plain JSON, readable without this package."""
    payload: dict[str, Any] = json.loads(record.to_json())
    return payload


def unpack(artifact: Mapping[str, Any]) -> Any:
    """The record behind an artifact, whatever its schema version."""
    return read_record(json.dumps(artifact))


def store_of(config: SnapFusionConfig) -> Store:
    """The run's store."""
    return open_store(config.store, WORK_ROOT)


def card_progress(price_per_hour: float = 0.0, task: str = "") -> CardProgress:
    """Progress on this task's card; with the task's name also where runs are tracked."""
    more = tracker(str(current.run_id), task) if task else None
    return CardProgress(current.card["progress"], price_per_hour=price_per_hour, more=more)


def run_stage(
    stage: Stage,
    config: SnapFusionConfig,
    records: Mapping[str, Any],
    label: str = "",
    *,
    identities: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    work: Callable[[Any, Any], Record] | None = None,
    nodes: Any = None,
) -> Any:
    """The record of one task of a stage, from the cache or by calling `run` of the stage's module.

    `records` are those of the run so far, by stage (and label). `identities` and `settings` join the cache key where a
    stage reads more than its line in the table can say; `work(context, inputs)` then takes the place of the module's
    `run` (`inputs` is None before there is a plan). `nodes` (a steps.training.nodes.Leader) train with this one. Prints the
    outcome and puts it on the task's card.
    """
    configure_logging()
    store = store_of(config)
    plan: RunPlan | None = records.get("start")
    earlier = earlier_of(stage, config, records, label)
    measured = table_identity(config) if stage.measures else {}
    key = StageKey(
        stage=stage.name,
        version=stage_version(stage.name),
        config=meaning({**meaning_of(stage, config, label), **(settings or {})}),
        inputs={name: plan.identity_of(name) for name in stage.reads if plan}
        | {name: value.identity() if value is not None else "" for name, value in earlier.items()}
        | dict(identities or {}),
        seed=config.run.seed,
        extra=measured | {name: version(name) for name in stage.packages},
        label=label,
    )

    def given(context: Any) -> Record:
        from steps.inputs.loaded import StageInputs
        from steps.inputs.settings import only

        inputs = StageInputs(plan, context, stage.reads, earlier) if plan else None
        _watch(context, inputs)
        if work:
            return work(context, inputs)
        settings_here = with_table_found(config) if stage.measures else config
        record: Record = import_module(stage.import_name).run(
            inputs, only(settings_here, stage.settings, stage.name), context
        )
        if stage.measures and table_identity(config) != measured:
            raise LatencyTableError(
                f"{config.latency_profile.table} or its manifest changed while it was read; start again when both are "
                "complete"
            )
        return record

    about(run=str(current.run_id), stage=stage.name, label=label, key=key.sha256[:12])
    result = stage_of_run(
        store,
        str(current.run_id),
        key,
        lambda: _execute(key, given, config, store, nodes),
        origin=current.origin_run_id,
        enabled=config.store.cache,
    )
    _say(f"{stage.name} {label}".strip(), result, config.compute.price_of(stage.name))
    return result.record


def _watch(context: Any, inputs: Any) -> None:
    """Have a training's card show pictures."""
    if context.stage in _UNET_TRAININGS and isinstance(context.progress, CardProgress):
        from steps.evaluation.live import ValidationPictures

        context.progress.painter = ValidationPictures(inputs, context)


def _say(name: str, result: CacheResult, price_per_hour: float = 0.0) -> None:
    """Hit or miss, in the terminal or the log, and on the task's card."""
    said = f"{name}: cache {result.reason} ({result.key[:12]})"
    if wants_json():
        logger.info("%s", said)
    else:
        print(said)
    seconds = result.record.provenance.wall_time_s
    cost = f" · cost {seconds / 3600 * price_per_hour:.2f}" if price_per_hour else ""
    words = f"{name} · cache {result.reason} · key {result.key[:12]} · {seconds:.1f} s when it ran{cost}"
    render(current.card["progress"], [Text(words)])


def _execute(
    key: StageKey, work: Callable[[Any], Record], config: SnapFusionConfig, store: Store, nodes: Any
) -> Record:
    """Run the stage and add where, when and how it ran."""
    from steps.inputs.context import StageContext, configure_torch, quiet_libraries, select_device
    from steps.latency.shortage import memory_told
    from steps.training.nodes import Team
    from steps.training.randomness import spawn

    quiet_libraries()
    threads = configure_torch(compute_of(config))
    # Without the cache nothing counts that another run left half done; what the run left that this one resumes does.
    own = "" if config.store.cache else first_run(store, str(current.run_id), current.origin_run_id)
    place = f"{key.stage}/{key.sha256}" + (f"/run-{own}" if own else "")
    context = StageContext(
        stage=key.stage,
        store=store,
        work=store.work_folder(place),
        seed=spawn(config.run.seed, key.stage, key.label),
        version=key.version,
        label=key.label,
        device=select_device(config.compute),
        progress=card_progress(config.compute.price_of(key.stage), f"{key.stage} {key.label}".strip()),
        mirror=store.mirror(place),
        own_run=own,
        sigterm_grace_s=config.compute.sigterm_grace_s,
        processes=Team(config.compute.processes, config.compute.rank_timeout_s, nodes),
    )
    # Before the work: while that lasts, somebody may edit the code.
    origin = {"stage source": source_hash(key.stage), DISTRIBUTION: code_version().text}
    started = time.monotonic()
    with memory_told(key.stage, config, on_gpu=context.device.type == "cuda"):
        record = work(context)
    found = provenance(started, device=str(context.device), threads=threads, versions=origin)
    return record.model_copy(update={"provenance": found})


def provenance(started: float, *, device: str, threads: int, versions: Mapping[str, str]) -> Provenance:
    """Where, when and how work was done that began at `started` (time.monotonic()); `versions` beside the packages'."""
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=platform.node(),
        device=device,
        threads=threads,
        wall_time_s=time.monotonic() - started,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        run_id=f"{current.flow_name}/{current.run_id}",
        versions=package_versions() | dict(versions),
    )


def run_uses(store: Store) -> dict[str, StageUse]:
    """What this run and those it resumes noted of their stages."""
    return stage_uses(store, str(current.run_id), origin=current.origin_run_id)


def compute_of(config: SnapFusionConfig) -> ComputeConfig:
    """The compute section with the thread count decided."""
    threads = config.compute.threads or threads_per_task(usable_cores())
    return config.compute.model_copy(update={"threads": threads})


def table_identity(config: SnapFusionConfig) -> dict[str, Any]:
    """What a latency table depends on besides its configuration: the machine, or the files that are imported."""
    profile = with_table_found(config).latency_profile
    if profile.table is None:
        return {} if profile.backend == "macs" else machine_identity(config)
    files = [Path(profile.table), Path(profile.table).with_name("manifest.json")]
    # A missing table has an empty hash, which no finished stage has: so it is read, and found missing.
    return {
        name: file_sha256(path) if path.is_file() else ""
        for name, path in zip(("table", "manifest"), files, strict=True)
    }


def with_table_found(config: SnapFusionConfig) -> SnapFusionConfig:
    """With the place of `latency_profile.table`: in the run's folder, in the project, or beside the installed code."""
    profile = config.latency_profile
    if profile.table is None:
        return config
    place = str(find_table(profile.table, (Path.cwd(), PROJECT_ROOT, CODE_ROOT)))
    return config.model_copy(update={"latency_profile": profile.model_copy(update={"table": place})})


def machine_identity(config: SnapFusionConfig) -> dict[str, Any]:
    """What a measured latency depends on besides the model: processor, threads and torch version."""
    accelerator = ""
    if config.latency_profile.backend == "torch-cuda":
        import torch

        accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": processor_name(),
        "accelerator": accelerator,
        "threads": compute_of(config).threads,
        "torch": version("torch"),
    }


def output_folder(config: SnapFusionConfig) -> Path:
    """Where this run puts what a person wants to open: bundle, report and pictures."""
    return WORK_ROOT / config.report.output / str(current.run_id)


def inputs_hash(values: Any) -> str:
    """Identity of JSON-able inputs."""
    return content_hash(values)


def plain_context(stage: str, config: SnapFusionConfig, key: str) -> Any:
    """A stage context for work that is not cached."""
    from steps.inputs.context import StageContext, configure_torch, select_device

    configure_logging()
    configure_torch(compute_of(config))
    store = store_of(config)
    return StageContext(
        stage=stage,
        store=store,
        work=store.work_folder(f"{stage}/{key}"),
        seed=config.run.seed,
        device=select_device(config.compute),
    )
