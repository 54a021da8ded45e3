"""Runs the stages of the table for the flow: from which records, and what is special about a few of them.

What a stage reads stands in `steps.stages.table`. Everything that imports torch is imported by a stage's module, and
that only when the cache misses.
"""

import json
import shlex
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from artifacts_schema.base import Record
from artifacts_schema.bundle import BundleManifest, ComponentReport, DrawingScores
from artifacts_schema.compression import CompressionRecord, compressed_reports
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.plan import RunPlan
from artifacts_schema.references import FolderRef
from artifacts_schema.report import RunReport
from artifacts_schema.run_configs import StoreConfig
from flows.commands.store_options import store_options
from flows.compared import beside_others, page_with, runs_to_compare
from flows.disk_needs import tell_disks
from flows.environment import PROJECT_ROOT, WORK_ROOT, usable_cores
from flows.fetched import with_inputs_here, with_table_here
from flows.parts import skipped
from flows.preflight import check_memory, estimates
from flows.runtime import (
    card_progress,
    inputs_hash,
    output_folder,
    pack,
    plain_context,
    provenance,
    read_config,
    run_stage,
    run_uses,
    store_of,
    unpack,
)
from flows.tags import keep_tags
from steps.cache.leases import in_use
from steps.cache.notes import bundle_of_run
from steps.cache.provenance import DISTRIBUTION, code_version
from steps.registry.champion import champion_report
from steps.stages.table import STAGES
from steps.store import get_bytes, local_folder, put_folder


class Records(Mapping[str, Any]):
    """The records of a run so far, by stage and, in a foreach, label ("evaluation base_50").

    A stage's record is the artifact `<stage>_record`; after the join of a foreach, `<stage>_records` has one per label.
    """

    def __init__(self, flow: Any) -> None:
        self._flow = flow

    def __getitem__(self, name: str) -> Any:
        stage, _, label = name.partition(" ")
        artifact = getattr(self._flow, f"{stage}_records" if label else f"{stage}_record", None)
        if artifact is None or (label and label not in artifact):
            raise KeyError(name)
        return unpack(artifact[label] if label else artifact)

    def __iter__(self) -> Iterator[str]:
        for stage in STAGES:
            labels = getattr(self._flow, f"{stage}_records", None)
            if labels is not None:
                yield from (f"{stage} {label}" for label in labels)
            elif getattr(self._flow, f"{stage}_record", None) is not None:
                yield stage

    def __len__(self) -> int:
        return sum(1 for _ in self)


def run(flow: Any, stage: str, label: str = "", more: Mapping[str, Any] | None = None) -> Any:
    """Run a stage of the table for the flow's task, and leave its record as the artifact `<stage>_record`.

    `more` are records that this task has made itself. A stage that the run was not asked for leaves a record of that.
    """
    keep_tags(flow)
    config, records = read_config(flow), Records(flow)
    record: Any
    if stage in config.run.skip:
        record = skipped(stage, records)
    else:
        config = with_table_here(config) if STAGES[stage].measures else config
        record = run_stage(STAGES[stage], config, ChainMap(dict(more or {}), records), label)  # type: ignore[arg-type]
    setattr(flow, f"{stage}_record", pack(record))
    return record


def start(config: SnapFusionConfig, prepare: Callable[[Any, Any], Record] | None = None) -> RunPlan:
    """Checks of every run, then preflight and data; `prepare` takes their place where they are not in the cache."""
    from steps.files.hashes import FileHashes
    from steps.inputs.checks import check_run
    from steps.inputs.folders import check_unchanged, held_out_identity, input_identities, raw_data

    store = store_of(config)
    store.check()
    config = with_inputs_here(config)
    check_run(config, PROJECT_ROOT, local_folder(config.store, WORK_ROOT))
    # A run to compare with that is not there fails now, not at the end.
    runs_to_compare(config, store)
    if config.promotion.enabled:
        champion_report(store)  # so does a champion that the run could not be held against
    hashes = FileHashes(WORK_ROOT / ".snapfusion" / "hashes", progress=card_progress)
    raw = raw_data(config.data, PROJECT_ROOT, hashes, config.store)
    identities = input_identities(config, PROJECT_ROOT, raw)
    held_out = held_out_identity(config.data, PROJECT_ROOT, raw)
    prepared = []

    def work(context: Any, _: None) -> Record:
        from steps.stages.start import run as prepare_data

        prepared.append(True)
        made = prepare_data(raw, config, context, PROJECT_ROOT)
        # A shard is read again for that only where its size, times or inode are others now.
        check_unchanged(identities, made, raw_data(config.data, PROJECT_ROOT, hashes, config.store))
        return made

    plan: RunPlan = run_stage(
        STAGES["start"], config, {}, identities=identities | held_out, work=prepare or work
    )
    check_memory(config, plan, store)
    if not prepared:  # else it has told already, before it encoded anything
        print(estimates(config, plan))
    tell_disks(config, plan)
    return plan


def latency_profile(flow: Any) -> None:
    """Time every block; an impossible budget fails here, before hours of training, and not when evolution begins."""
    from steps.evolution.actions import check_reachable

    table = run(flow, "latency_profile")
    config, plan = read_config(flow), Records(flow)["start"]
    if "architecture_evolution" in config.run.skip or config.architecture_evolution.architecture:
        return  # nothing is searched, so nothing has to be reachable
    unet_config = json.loads(get_bytes(store_of(config), plan.base.files["unet/config.json"]))
    if config.architecture_evolution.decide_by == "macs":
        from steps.inputs.loaded import StageInputs
        from steps.stages.architecture_evolution import deciding_table

        inputs = StageInputs(plan, plain_context("latency_profile", config, "budget"), ["base"])
        table = deciding_table(inputs.base_with(()), table, config.architecture_evolution)
    check_reachable(table, unet_config, config.architecture_evolution)


def bundle(flow: Any) -> None:
    """Assemble the bundle from the packages that ship, and store it once it has drawn its pictures."""
    config, records = read_config(flow), Records(flow)
    reports = shipped(records, config)
    manifest, drawing, files = assemble_bundle(config, records, reports)
    flow.bundle_record, flow.bundle_files = pack(manifest), files.model_dump(mode="json")
    flow.bundle_drawing_record = pack(drawing) if drawing else None


def shipped(records: Mapping[str, Any], config: SnapFusionConfig) -> list[ComponentReport]:
    """One report per component, of the compressed package where that is what ships."""
    exported = [records[f"coreml_export {name}"] for name in config.coreml_export.components]
    return list(compressed_reports(exported, records["coreml_compression"]))


def assemble_bundle(
    config: SnapFusionConfig, records: Mapping[str, Any], reports: Sequence[ComponentReport]
) -> tuple[BundleManifest, Any, FolderRef]:
    """The bundle's manifest, the record of what it has drawn (None for one that cannot draw), and its stored files."""
    # First of all: it also quiets coremltools, which warns while it is imported.
    context = plain_context("bundle", config, inputs_hash([report.identity() for report in reports]))

    from steps.inputs.loaded import StageInputs
    from steps.stages.bundle import assemble

    compression: CompressionRecord = records["coreml_compression"]
    drawn: list[Any] = []

    def draw(folder: Path) -> DrawingScores:
        drawn.append(bundle_drawing(config, records, reports, folder))
        scores: DrawingScores = drawn[0].scores
        return scores

    refs = {
        "torch unet": records["student_8"].weights,
        "torch decoder": records["decoder_distillation"].weights,
    }
    made_of = {name: records[name] for name in ("start", "student_8", "decoder_distillation")}
    run_id = output_folder(config).name
    with in_use(context.store, f"bundle of run {run_id}"), TemporaryDirectory(dir=context.work) as scratch:
        folder = Path(scratch) / "bundle"
        manifest = assemble(
            reports,
            StageInputs(records["start"], context, earlier=refs),
            config,
            folder,
            made_of=made_of | {"data": records["start"].data},
            schemes=compression.chosen,
            draw=draw,
        )
        files = put_folder(context.store, folder)
        bundle_of_run(context.store, run_id, files)
    return manifest, drawn[0] if drawn else None, files


def bundle_drawing(
    config: SnapFusionConfig, records: Mapping[str, Any], reports: Sequence[ComponentReport], folder: Path
) -> Any:
    """Draw with the bundle in `folder`, beside torch; from the cache where the same components have drawn before."""
    compressed = any(scheme != "fp16" for scheme in records["coreml_compression"].chosen.values())
    gates = config.coreml_compression if compressed else config.coreml_export.program_check
    gate = gates.min_image_psnr_db

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.bundle_drawing import draw_beside_torch

        return draw_beside_torch(
            folder,
            inputs,
            config.coreml_export,
            context,
            unet_ref=inputs.earlier("torch unet"),
            decoder_ref=inputs.earlier("torch decoder"),
            min_image_psnr_db=gate,
        )

    packages = {f"coreml_export {report.component}": report for report in reports}
    return run_stage(
        STAGES["bundle_drawing"],
        config,
        {name: records[name] for name in ("start", "student_8", "decoder_distillation")} | packages,
        settings={"min_image_psnr_db": gate},
        work=work,
    )


def report(flow: Any, card: Any) -> None:
    """Compare the variants, store and write what a person opens, and fill the card."""
    from flows.cards import render
    from steps.stages.report import page_records
    from steps.stages.report import run as write_report

    started, code = time.monotonic(), code_version()
    config, found = read_config(flow), Records(flow)
    store, records = store_of(config), dict(found)
    components = shipped(records, config)
    records |= {f"coreml_export {item.component}": item for item in components}
    manifest: BundleManifest = unpack(flow.bundle_record)
    with in_use(store, f"report of run {output_folder(config).name}"):
        result, page = write_report(
            config,
            page_records(config, records, manifest, store, project_root=PROJECT_ROOT),
            records,
            store,
            bundle=FolderRef.model_validate(flow.bundle_files),
            output=output_folder(config),
            uses=run_uses(store),
            code=code,
            provenance=provenance(
                started, device="cpu", threads=usable_cores(), versions={DISTRIBUTION: code.text}
            ),
        )
        beside, small = beside_others(config, store, result, found)
    render(card, page_with(page, beside))
    flow.report_record = pack(result)
    for name, value in small.items():
        setattr(flow, name, value)


def end(result: RunReport, run_id: str) -> None:
    """Print where everything is."""
    folder = Path(result.folder)
    seconds = sum(stage.wall_time_s for stage in result.stages)
    peak = max((stage.peak_memory_bytes for stage in result.stages), default=0)
    print(f"\nrun {result.name}")
    for label in result.labels:
        print(f"  ({label})")
    for name, value in result.headline.items():
        print(f"  {name:52s} {value:.4g}")
    print(f"\nstages   {seconds:.0f} s of stage time, {peak / 2**30:.2f} GiB at most in one stage")
    print(f"bundle   {result.bundle}")
    if result.outputs and any(name.startswith("student/") for name in result.outputs.files):
        print(f"student  {folder / 'student'}")
    print(f"report   {folder / 'report.json'}")
    print(f"pictures {folder / 'pictures'}")
    where = store_options(StoreConfig.model_validate(result.config["store"]))
    print(f"trace    snapfusion trace{where} {shlex.quote(result.bundle)}")
    print(f"outputs  snapfusion outputs{where} {folder.name}")
    print(f"promote  snapfusion promote{where} {folder.name}")
    print(f"card     python flows/snapfusion_flow.py card view {run_id}/report --id report")
    print(f'draw     snapfusion draw{where} --run {folder.name} "a caption" --output picture.png\n')
