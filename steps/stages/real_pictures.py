"""`real_pictures`: measures the pictures of the validation and test splits, once for all variants.

They are what every variant's distances are measured to, and what perfect pictures would get.
"""

import hashlib

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.data import SplitName
from artifacts_schema.evaluation import RealPicturesRecord, RealSplit
from steps.evaluation.bench import Bench, groups_of
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.store.base import Store

SPLITS: tuple[SplitName, ...] = ("validation", "test")


def run(inputs: StageInputs, settings: SnapFusionConfig, context: StageContext) -> RealPicturesRecord:
    """Features of the reference pictures of both splits, and how real pictures score beside them."""
    total = sum(inputs.data.size(split) for split in SPLITS)
    context.progress.start("real pictures", total)
    splits, done = {}, 0
    for split in SPLITS:
        splits[split] = measure_split(
            Bench(inputs, split, settings.evaluation.features, context), inputs, context
        )
        done += inputs.data.size(split)
        context.progress.update(done)
    context.progress.close()
    return RealPicturesRecord(
        stage="real_pictures",
        config={"features": settings.evaluation.features},
        seed=context.seed,
        splits=splits,
    )


def measure_split(bench: Bench, inputs: StageInputs, context: StageContext) -> RealSplit:
    """One split's pictures as reference and as what is measured, see RealSplit."""
    captions = bench.captions
    images = inputs.data.images(bench.split, torch.arange(len(captions)))
    digest = hashlib.sha256("\n".join(captions).encode())
    digest.update(images.contiguous().numpy().tobytes())
    reference, against, measured = halves(captions)
    features = bench.features(images)
    names = [captions[i] for i in measured.tolist()]
    point = bench.measure(
        images[measured], names, 1.0, (features[against].numpy(), [captions[i] for i in against.tolist()])
    )
    return RealSplit(
        features=context.store.put_bytes(save_tensors({"features": features[reference].contiguous()})),
        captions=tuple(captions[i] for i in reference.tolist()),
        point=point,
        point_captions=tuple(names),
        sha256=digest.hexdigest(),
    )


def halves(captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the reference, of what real pictures are measured against, and of the real pictures measured.

    Every other picture of a caption, where it has several; else every other group of captions.
    """
    seen: dict[str, int] = {}
    turn = [seen.setdefault(caption, 0) % 2 for caption in captions]
    for index, caption in enumerate(captions):
        turn[index] = seen[caption] % 2
        seen[caption] += 1
    if min(seen.values()) >= 2:
        even, odd = (torch.tensor([i for i, t in enumerate(turn) if t == side]) for side in (0, 1))
        return odd, odd, even
    groups = {group: place for place, group in enumerate(dict.fromkeys(groups_of(captions)))}
    side = torch.tensor([groups[group] % 2 for group in groups_of(captions)])
    return torch.arange(len(captions)), (side == 1).nonzero()[:, 0], (side == 0).nonzero()[:, 0]


def load_reference(store: Store, real: RealSplit) -> tuple[NDArray, list[str]]:  # type: ignore[type-arg]
    """Features (m, d) and captions of the pictures that distances are measured to."""
    return load_file(store.path_of(real.features))["features"].numpy(), list(real.captions)
