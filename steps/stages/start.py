"""`start`: what is wrong with base, evaluators or data fails here, and the data are prepared once.

Checks the base against its tokenizer, and puts base, warm starts and evaluators into the store. From there on it works with
what lies in the store, whatever happens to the folders: it tries the evaluators, tells how long everything will take, and
caches latents and text embeddings. What every run is checked for, cached or not, is in `steps.inputs.checks`.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.data import EncodedShard, RawData
from artifacts_schema.plan import RunPlan
from artifacts_schema.references import FolderRef
from steps.data.preparing import included_source, prepare_shards, prepare_source
from steps.data.workers import Job, ShardEncoder, jobs_of
from steps.evaluation.bench import EVALUATOR_OF
from steps.evaluation.features import features_identity
from steps.evaluation.protocol import check_evaluator, read_protocol
from steps.files.errors import ConfigError
from steps.inputs.context import StageContext
from steps.inputs.folders import MICRO, base_folder, inception_weights, other_folders
from steps.inputs.loaded import fetch_folder
from steps.latency.estimates import format_estimates, stage_estimates
from steps.latency.unit_costs import measure_unit_costs
from steps.models.base import BaseModel, load_base
from steps.models.base_folder import put_model_folder
from steps.models.clip import ClipScorer, check_clip
from steps.pretraining.micro import write_micro_base
from steps.unet.blocks import list_blocks

logger = logging.getLogger(__name__)


def run(raw: RawData, config: SnapFusionConfig, context: StageContext, project_root: Path) -> RunPlan:
    """Check base, evaluators and data; returns the plan every later stage reads.

    `raw` is what the data are prepared from (`steps.inputs.folders.raw_data`), for the record.
    """
    others = other_folders(config, project_root)
    for path in (others["signal_clip"], others["measure_clip"]):
        if path is not None:
            check_clip(path)
    inception = inception_weights(config, project_root)
    folder = _base_folder(config, project_root, context.work)
    _check_base(config, folder)
    stored = {name: put_model_folder(context.store, path) if path else None for name, path in others.items()}
    stored_base, base = _stored(folder, context)
    if (protocols := stored["protocols"]) is not None:
        _check_protocols(fetch_folder(context, protocols, "protocols"), config, stored, base.image_size)
    for name in ("signal_clip", "measure_clip"):
        if (ref := stored[name]) is not None:  # as later stages will find it, without what is not stored
            ClipScorer.load(fetch_folder(context, ref, name), context.device).try_out(base.image_size)
    costs = measure_unit_costs(base, context.device)
    if config.data.source == "openmoji":
        source = included_source(base, config.data)
        costs |= {"pictures": float(source.total)}
        _tell(config, context, costs)
        data = prepare_source(base, source, context.store, progress=context.progress)
    else:
        jobs, worker = _shards(raw, config, context, project_root, base=base, stored=stored_base)
        costs |= {"pictures": worker.estimate(jobs)}
        _tell(config, context, costs)
        encoded = worker.run(jobs, context.progress)
        data = prepare_shards(base, encoded, config.data, context.store)
    return RunPlan(
        stage="start",
        config={name: getattr(config, name).meaning() for name in ("base", "data")},
        seed=context.seed,
        base=stored_base,
        base_identity=stored_base.identity(),
        prediction_type=base.prediction_type,
        data=data,
        raw_data=raw,
        inception=context.store.put_file(inception) if inception else None,
        estimates=costs,
        **stored,
    )


def encode(
    raw: RawData, config: SnapFusionConfig, context: StageContext, project_root: Path
) -> list[EncodedShard]:
    """A worker's part of `run`: what has become of every shard, once this worker and others have encoded them all."""
    folder = _base_folder(config, project_root, context.work)
    _check_base(config, folder)
    stored, base = _stored(folder, context)
    jobs, worker = _shards(raw, config, context, project_root, base=base, stored=stored)
    return worker.run(jobs, context.progress)


def _shards(
    raw: RawData,
    config: SnapFusionConfig,
    context: StageContext,
    project_root: Path,
    *,
    base: BaseModel,
    stored: FolderRef,
) -> tuple[list[Job], ShardEncoder]:
    """The work of encoding the user's shards, and who does it."""
    size = config.data.image_size or base.image_size
    jobs = jobs_of(config.data, project_root, raw, stored, size=size, own_run=context.own_run)
    return jobs, ShardEncoder(base, config.data, context.store, work=context.work, access=config.store)


def _stored(folder: Path, context: StageContext) -> tuple[FolderRef, BaseModel]:
    """The base as it lies in the store, its encoders on the run's device."""
    stored = put_model_folder(context.store, folder)
    base = load_base(fetch_folder(context, stored, "base"))
    encoders: tuple[nn.Module, ...] = (base.vae, base.text_encoder)
    for encoder in encoders:
        encoder.to(context.device)
    return stored, base


def _check_protocols(
    folder: Path, config: SnapFusionConfig, stored: Mapping[str, FolderRef | None], image_size: int
) -> None:
    """Refuse, before hours of training, frozen protocols that this run's results could not be measured on."""
    for split, name in EVALUATOR_OF.items():
        protocol = read_protocol(folder / f"{split}.json")
        evaluator, features = stored[name], config.evaluation.features
        check_evaluator(
            protocol, evaluator.identity() if evaluator else "", features, features_identity(features)
        )
        apart = config.evaluation.apart_pictures
        if apart and split == config.evaluation.split and not (protocol.seen and protocol.novel):
            raise ConfigError(
                f"evaluation.apart_pictures is {apart}, but the protocol {split} has no captions to report apart; set it to 0"
            )
        if why := protocol.why_not_drawn_at(image_size):
            raise ConfigError(f"evaluation.protocols: {why}, or set it to 'splits'")


def _tell(config: SnapFusionConfig, context: StageContext, costs: dict[str, float]) -> None:
    """Say how long the run will take, before the first hours of it: encoding the pictures."""
    machine = f"{context.device}, {torch.get_num_threads()} threads"
    logger.info(
        "%s",
        format_estimates(
            stage_estimates(config, costs), price_of=config.compute.price_of, measured_on=machine
        ),
    )


def _base_folder(config: SnapFusionConfig, project_root: Path, work: Path) -> Path:
    """The base's folder; the micro base is built in the work folder."""
    if config.base.path == MICRO:
        return write_micro_base(work / "micro_base", seed=config.run.seed)
    return base_folder(config, project_root)


def _check_base(config: SnapFusionConfig, folder: Path) -> None:
    """Refuse what cannot be used before gigabytes of it are stored."""
    base = load_base(folder)
    list_blocks(base.unet.config)  # refuses what the evolved UNet cannot be made of
    if config.data.image_size not in (None, base.image_size):
        raise ConfigError(
            f"data.image_size is {config.data.image_size}, but the base draws {base.image_size} x {base.image_size}; "
            "leave it out or use a base of that size"
        )
