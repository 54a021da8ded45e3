"""How much disk each step needs on a machine that has nothing yet: a pod, or a new node.

Counted from what the plan knows: inputs by their bytes (prepared data included), weights and checkpoints by the number of
parameters, pictures by their sides. A step's work folder and this machine's cache of the store lie on the same disk.
"""

from collections.abc import Mapping

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.data import PreparedDataRef, StreamedSplit
from artifacts_schema.plan import InputName, RunPlan
from artifacts_schema.result_configs import KEPT_PICTURES
from flows.remote import on_other_machine, resources_of
from steps.files.errors import ConfigError
from steps.stages.table import STAGES

_FLOAT = 4
_CHECKPOINT = 5  # weights, gradients' two moments, moving average and best state
_CHECKPOINTS = 3  # two are kept while the next is written
_EXPORT = 4  # torch weights, the traced program, the package, and coremltools' own copy
_SPARE = 1 << 30  # code, logs, cards
_TRAININGS = (
    "velocity_finetuning", "robust_training", "architecture_evolution", "teacher_16", "student_16", "student_8",
    "student_4", "student_2",
)  # fmt: skip
# Stages that are no step of their own.
_STEP = {
    "student_4": "student_8", "student_2": "student_8", "real_pictures": "plan_evaluation",
    "guidance_selection": "evaluation", "bundle_drawing": "bundle",
}  # fmt: skip


def disk_needs(config: SnapFusionConfig, plan: RunPlan) -> dict[str, int]:
    """Bytes by step of the flow; those without data of their own (joins, `end`) are left out."""
    unet = int(_FLOAT * plan.estimates.get("unet_parameters", 0.0))
    decoder = int(_FLOAT * plan.estimates.get("decoder_parameters", 0.0))
    found: dict[str, int] = {}
    for name, stage in STAGES.items():
        if getattr(config, name, "a stage without section") is None:
            continue  # a student that this configuration does not ask for
        places = stage.places(config, "") if name in _TRAININGS else stage.after
        weights = sum(place.endswith(".weights") for place in places.values())
        need = sum(_read(config, plan, item) for item in stage.reads) + weights * unet + _SPARE
        need += _own(name, config, plan, unet, decoder)
        step = _STEP.get(name, name)
        found[step] = max(found.get(step, 0), need)
    return found


def _own(name: str, config: SnapFusionConfig, plan: RunPlan, unet: int, decoder: int) -> int:
    """What a stage writes, and reads by more than its line in the table says."""
    picture = 3 * plan.data.image_size**2  # a PNG has at most about so many bytes
    checkpoints = _CHECKPOINTS * _CHECKPOINT + 1  # and the result
    if name in _TRAININGS:
        return checkpoints * unet
    packages = len(config.coreml_export.components) * (unet + decoder)
    own = {
        # Folders as they were fetched and once more in the store, the largest shard, and what is prepared here.
        "start": max((file.bytes for file in plan.raw_data.files), default=0)
        + 2 * sum(_bytes_of(plan, item) for item in _FOLDERS)
        + _prepared_here(plan),
        "decoder_distillation": checkpoints * decoder + config.decoder_distillation.pool_size * 2 * picture,
        "guidance_selection": unet + decoder + config.evaluation.validation_pictures * picture,
        "evaluation": unet + decoder + KEPT_PICTURES * len(config.evaluation.guidance_scales) * picture,
        "coreml_export": _EXPORT * (unet + decoder),
        "coreml_compression": (1 + len(config.coreml_compression.schemes)) * packages,
        "bundle_drawing": 2 * packages + config.coreml_export.program_check.pictures * picture,
    }
    return own.get(name, 0)


_FOLDERS: tuple[InputName, ...] = (
    "base", "velocity_warm_start", "robust_warm_start", "signal_clip", "measure_clip", "inception",
)  # fmt: skip


def _read(config: SnapFusionConfig, plan: RunPlan, name: InputName) -> int:
    """What of an input lies on a machine that reads it: of encoded shards what their cache may hold."""
    size = _bytes_of(plan, name)
    if name != "data" or plan.data.source != "webdataset":
        return size
    return min(size, int(config.store.cache_gib * (1 << 30)))


def _prepared_here(plan: RunPlan) -> int:
    """All of the included pictures; of the user's shards one at a time, before and after it is sent to the store."""
    splits = [split for split in plan.data.splits.values() if isinstance(split, StreamedSplit)]
    if not splits:
        return _bytes_of(plan, "data")
    return 2 * max(shard.object.bytes for split in splits for shard in split.shards)


def _bytes_of(plan: RunPlan, name: InputName) -> int:
    """Size of one input of the plan; 0 for one that there is not."""
    found = getattr(plan, name)
    return (
        prepared_bytes(found)
        if isinstance(found, PreparedDataRef)
        else found.bytes
        if found is not None
        else 0
    )


def prepared_bytes(data: PreparedDataRef) -> int:
    """Size of the prepared data: captions, embeddings, moments and pictures of every split."""
    total = data.empty_embedding.bytes
    for split in data.splits.values():
        if isinstance(split, StreamedSplit):
            total += sum(shard.object.bytes for shard in split.shards)
            total += split.captions.bytes if split.captions else 0
            continue
        shards = (*split.embeddings, *split.moments, *split.images)
        total += split.captions.bytes + sum(shard.object.bytes for shard in shards)
    return total


def format_disks(needs: Mapping[str, int]) -> str:
    """A plain table."""
    lines = ["disk that a machine needs which has nothing yet:"]
    return "\n".join([*lines, *(f"  {step:24s} {need / 2**30:8.1f} GiB" for step, need in needs.items())])


def short_disks(config: SnapFusionConfig, needs: Mapping[str, int]) -> list[str]:
    """One line for each step whose configured disk is too small."""
    found = []
    for step, need in needs.items():
        given, wanted = resources_of(config, step).disk_mb, -(-need // 10**6)
        if given is not None and given < wanted:
            found.append(f"resources.{step}.disk_mb is {given}, about {wanted} are needed; raise it")
    return found


def tell_disks(config: SnapFusionConfig, plan: RunPlan) -> None:
    """Print the needs where steps have disks of their own. Raises ConfigError before hours of work that could not end."""
    if not on_other_machine():
        return
    needs = disk_needs(config, plan)
    print(format_disks(needs))
    if short := short_disks(config, needs):
        raise ConfigError("; ".join(short))
