"""`real_pictures`: measures the pictures of the validation and test splits, once for all variants.

They are what every variant's distances are measured to, and what perfect pictures would get.
"""

import hashlib

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.data import SplitName
from artifacts_schema.evaluation import RealPicturesRecord, RealSplit
from steps.evaluation.bench import Bench
from steps.evaluation.subject import halves
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.store.base import Store

SPLITS: tuple[SplitName, ...] = ("validation", "test")


def run(inputs: StageInputs, settings: SnapFusionConfig, context: StageContext) -> RealPicturesRecord:
    """Features of the reference pictures of both splits, and how real pictures score beside them."""
    benches = {split: Bench(inputs, split, settings.evaluation.features, context) for split in SPLITS}
    total = sum(len(bench.captions) for bench in benches.values())
    context.progress.start("real pictures", total)
    splits, done = {}, 0
    for split, bench in benches.items():
        splits[split] = measure_split(bench, context)
        done += len(bench.captions)
        context.progress.update(done)
    context.progress.close()
    return RealPicturesRecord(
        stage="real_pictures",
        config={"features": settings.evaluation.features},
        seed=context.seed,
        splits=splits,
    )


def measure_split(bench: Bench, context: StageContext) -> RealSplit:
    """One split's pictures as reference and as what is measured, see RealSplit.

    Raises EvaluationError where a frozen protocol's calibration fails.
    """
    captions, images = bench.captions, bench.subject.images()
    digest = hashlib.sha256("\n".join(captions).encode())
    digest.update(images.contiguous().numpy().tobytes())
    apart = bench.subject.reference()
    features = bench.features(images if apart is None else apart[0])
    if apart is None:
        reference, against, measured = halves(captions)
        reference_captions = captions
    else:  # a list of its own: all real pictures are measured against it
        digest.update("\n".join(apart[1]).encode() + apart[0].contiguous().numpy().tobytes())
        reference_captions, measured = apart[1], torch.arange(len(captions))
        reference = against = torch.arange(len(reference_captions))
    bench.check_environment(features[reference].numpy())
    names = [captions[i] for i in measured.tolist()]
    point = bench.measure(
        images[measured],
        names,
        1.0,
        (features[against].numpy(), [reference_captions[i] for i in against.tolist()]),
    )
    return RealSplit(
        features=context.store.put_bytes(save_tensors({"features": features[reference].contiguous()})),
        captions=tuple(reference_captions[i] for i in reference.tolist()),
        point=point,
        point_captions=tuple(names),
        sha256=digest.hexdigest(),
    )


def load_reference(store: Store, real: RealSplit) -> tuple[NDArray, list[str]]:  # type: ignore[type-arg]
    """Features (m, d) and captions of the pictures that distances are measured to."""
    return load_file(store.path_of(real.features))["features"].numpy(), list(real.captions)
