"""What the steps of `flows/ablation_flow.py` do: overlays, arms from the store or made now, one card."""

from pathlib import Path
from typing import Any

from metaflow import current

from artifacts_schema.ablation import AblationConfig, AblationRecord, Overlay
from artifacts_schema.config import InvalidConfig
from artifacts_schema.report import RunReport
from artifacts_schema.run_configs import ComputeConfig, StoreConfig
from flows.environment import CODE_ROOT, PROJECT_ROOT, WORK_ROOT, usable_cores
from flows.live_card import CardProgress
from flows.logs import configure_logging
from flows.runs import named_report
from flows.runtime import pack, provenance, unpack
from steps.cache.leases import in_use
from steps.cache.provenance import DISTRIBUTION, code_version
from steps.files.errors import ConfigError
from steps.stages.versions import module_hash
from steps.store import Store, open_store


def read_common(flow: Any) -> AblationConfig:
    """The flow's configuration, with what the command line says instead."""
    given: dict[str, Any] = flow.config.to_dict()
    if flow.of_run:
        given["run"] = flow.of_run
    if flow.arms:
        given["arms"] = [name.strip() for name in flow.arms.split(",") if name.strip()]
    return AblationConfig.model_validate(given)


def start(flow: Any) -> None:
    """Find the run, read and check every overlay before anything is trained."""
    from steps.ablation.prepare import overlays, run_config

    common = read_common(flow)
    store, report = _run(common)
    roots = (PROJECT_ROOT, CODE_ROOT)  # one's own, or those that were installed
    folder = next((r / common.overlays for r in roots if (r / common.overlays).is_dir()), PROJECT_ROOT)
    try:
        found = overlays(common, run_config(report), folder)
    except InvalidConfig as error:
        raise ConfigError(str(error)) from None
    flow.finished_run = Path(report.folder).name
    flow.overlays = [overlay.model_dump(mode="json") for overlay in found]
    print(f"run {flow.finished_run} in {store.root}: {', '.join(overlay.name for overlay in found)}")


def arm(flow: Any) -> None:
    """One arm: its record from an earlier ablation of the same run by the same code, or made now."""
    configure_logging()
    from steps.ablation.prepare import finished, keep, key_of

    overlay, common = Overlay.model_validate(flow.input), read_common(flow)
    common = common.model_copy(update={"run": flow.finished_run})
    store, report = _run(common)
    key = key_of(overlay, common, report, module_hash("steps.ablation.arms"))
    record = finished(store, key)
    print(f"{overlay.name}: {'found' if record else 'missing'} ({key[:12]})")
    if record is None:
        with in_use(store, f"ablation {overlay.name} of run {flow.finished_run}"):
            record = _made(overlay, common, store, report, key)
            keep(store, flow.finished_run, key, record)
    else:
        keep(store, flow.finished_run, key, record)
    flow.record = pack(record)


def card(flow: Any, inputs: Any, shown: Any) -> None:
    """One card with every arm that this run has, those of earlier ablations as well."""
    from flows.cards import render
    from steps.ablation.page import page
    from steps.ablation.prepare import of_run

    flow.merge_artifacts(inputs, include=["finished_run"])
    common = read_common(flow).model_copy(update={"run": flow.finished_run})
    store, _ = _run(common)
    made = {record.name: record for record in (unpack(item.record) for item in inputs)}
    protocol = next(iter(made.values())).protocol
    earlier = {r.name: r for r in of_run(store, flow.finished_run) if r.protocol == protocol}
    records = [record for _, record in sorted((earlier | made).items())]
    render(shown, page(store, records, flow.finished_run))
    print(f"card     python flows/ablation_flow.py card view {current.run_id}/report --id report")
    print(
        f"publish  python -m benchmarks.ablations --store {common.store} --run {flow.finished_run} "
        "--json benchmarks/results/ablations.json"
    )


def _run(common: AblationConfig) -> tuple[Store, RunReport]:
    store = open_store(StoreConfig(root=common.store), WORK_ROOT)
    return store, named_report(store, common.run or None)


def _made(
    overlay: Overlay, common: AblationConfig, store: Store, report: RunReport, key: str
) -> AblationRecord:
    import time

    from steps.ablation.arms import Arm, FinishedRun
    from steps.inputs.context import StageContext, configure_torch, quiet_libraries, select_device
    from steps.training.randomness import spawn

    quiet_libraries()
    compute = ComputeConfig(threads=common.threads or usable_cores())
    started, threads = time.monotonic(), configure_torch(compute)
    context = StageContext(
        stage="ablation",
        store=store,
        work=store.work_folder(f"ablation/{key}"),
        seed=spawn(report.seed, "ablation"),  # the same for all arms: differences are paired
        label=overlay.name,
        device=select_device(compute),
        progress=CardProgress(current.card["progress"]),
    )
    record = Arm(FinishedRun.read(store, report), overlay, common, context).record(Path(report.folder).name)
    versions = {DISTRIBUTION: code_version().text}
    origin = provenance(started, device=str(context.device), threads=threads, versions=versions)
    return record.model_copy(update={"provenance": origin})
