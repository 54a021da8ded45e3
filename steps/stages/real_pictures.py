"""`real_pictures`: measures the split's own pictures, once for all variants.

They are what every variant's distances are measured to, and what perfect pictures would get.
"""

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import RealPicturesRecord
from steps.evaluation.bench import NOISE_SEED, Bench
from steps.evaluation.distances import frechet_distance, kernel_distance
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.store.base import Store
from steps.training.randomness import epoch_indices, spawn


def run(inputs: StageInputs, settings: SnapFusionConfig, context: StageContext) -> RealPicturesRecord:
    """Features of every picture of the split, and how its pictures score beside those of the train split."""
    config = settings.evaluation
    bench, data = Bench(inputs, config, context), inputs.data
    size = data.size(config.split)
    count = min(data.size("train"), size)
    context.progress.start("real pictures", size + count)
    features = bench.features(data.images(config.split, torch.arange(size)))
    context.progress.update(size)
    chosen = epoch_indices(samples=data.size("train"), start=0, count=count, seed=NOISE_SEED)
    others = bench.features(data.images("train", chosen)).numpy()
    context.progress.update(size + count)
    point = bench.measure(data.images(config.split, bench.indices), 1.0, others)
    own = features[bench.indices.unique()].numpy()
    context.progress.close()
    return RealPicturesRecord(
        stage="real_pictures",
        config=config.meaning(),
        seed=context.seed,
        point=point.model_copy(
            update={
                # Captions that are drawn more than once have one real picture.
                "kernel_distance": kernel_distance(own, others, seed=spawn(NOISE_SEED, "blocks")),
                "frechet_distance": frechet_distance(own, others),
            }
        ),
        features=context.store.put_bytes(save_tensors({"features": features.contiguous()})),
        protocol=bench.protocol(),
    )


def load_real_features(store: Store, record: RealPicturesRecord) -> Tensor:
    """Features (pictures, d) of every picture of the split."""
    return load_file(store.path_of(record.features))["features"]
