"""What benchmarks of the embedded models have in common: options, models, data, captions and who judges pictures."""

import argparse
import logging
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from artifacts_schema.base import content_hash
from artifacts_schema.data import PreparedDataRef
from artifacts_schema.references import WeightsRef
from artifacts_schema.report import RunReport
from artifacts_schema.run_configs import ComputeConfig, DataConfig
from benchmarks.published import ROOT
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_data
from steps.diffusion.sampler import decode_latents
from steps.evaluation.bench import groups_of
from steps.evaluation.distances import Estimate, kernel_distance
from steps.evaluation.features import FeatureExtractor, load_features
from steps.files.progress import TerminalProgress
from steps.inputs.context import configure_torch, quiet_libraries
from steps.models.base import BaseModel
from steps.models.base_folder import folder_identity
from steps.models.clip import ClipScorer
from steps.report.stored import record_of
from steps.store import LocalStore
from steps.training.randomness import epoch_indices, keyed_normal


def parser_for(description: str | None, *, evaluator: str = "openclip_measure") -> argparse.ArgumentParser:
    """The options that name models, threads and the result."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=ROOT / "assets/base", help="diffusers folder")
    parser.add_argument(
        "--velocity", type=Path, default=ROOT / "assets/warm_starts/velocity", help="v UNet folder"
    )
    parser.add_argument("--clip", type=Path, default=ROOT / "assets/evaluators" / evaluator)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", type=Path)
    return parser


def add_run(parser: argparse.ArgumentParser, meaning: str) -> None:
    """The options that name a finished run."""
    parser.add_argument("--store", type=Path, default=ROOT / ".snapfusion/store", help="of --run")
    parser.add_argument("--run", help=f"run id; {meaning}")


def begin(options: argparse.Namespace) -> None:
    """Threads, and who may talk."""
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    quiet_libraries()
    configure_torch(ComputeConfig(threads=options.threads))


def velocity_unet(options: argparse.Namespace) -> UNet2DConditionModel:
    """The v UNet in float32, evaluation mode, without gradients."""
    unet = UNet2DConditionModel.from_pretrained(
        options.velocity, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
    )
    return unet.eval().requires_grad_(False)


def weights_of_run(options: argparse.Namespace, *stages: str) -> tuple[LocalStore, list[WeightsRef]]:
    """What stages of the named run have left, and the store that it lies in. Ends the program without that run."""
    store = LocalStore(options.store)
    text = store.get_document(f"reports/{options.run}")
    if text is None:
        raise SystemExit(f"run {options.run} has no report in the store {options.store}")
    report = RunReport.from_json(text)
    return store, [record_of(store, report, stage).weights for stage in stages]


def prepared(base: BaseModel, store: LocalStore, limit: int | None) -> PreparedData:
    """The embedded data as `base` sees it, `limit` captions a split at most; prepared once per store, base and limit."""
    document = f"prepared/{content_hash({'base': folder_identity(base.path), 'limit': limit})}"
    text = store.get_document(document)
    if text is None:
        config, progress = DataConfig(limit=limit), TerminalProgress()
        text = prepare_data(base, config, store, progress=progress).to_json()
        store.put_document(document, text)
    return PreparedData.load(store, PreparedDataRef.from_json(text))


class Judged(NamedTuple):
    """Pictures uint8 (n, 3, H, W), the CLIP score of each, and their kernel distance to the real ones."""

    pictures: Tensor
    clip: NDArray[np.float64]
    distance: Estimate


class TestCaptions:
    """Captions of the test split in an order of their own, the noise to draw them from, and who judges the pictures."""

    __test__ = False  # for pytest

    def __init__(
        self, base: BaseModel, data: PreparedData, options: argparse.Namespace, *, noise: str, count: int
    ) -> None:
        self.base, self.data, self.options = base, data, options
        self.indices = epoch_indices(samples=data.size("test"), start=0, count=count, seed=options.seed)
        everything = data.captions("test")
        self.captions = [everything[index] for index in self.indices.tolist()]
        self.groups = groups_of(self.captions)
        self.embeddings = data.embeddings("test", self.indices)
        numbers = torch.arange(count)
        self.noise = keyed_normal(
            base.latent_shape, seed=options.seed, name=noise, iteration=0, indices=numbers
        )

    @cached_property
    def clip(self) -> ClipScorer:
        """The evaluator of --clip."""
        return ClipScorer.load(self.options.clip)

    @cached_property
    def features(self) -> FeatureExtractor:
        """What distances are measured with."""
        return load_features("efficientnet_lite0")

    @cached_property
    def real(self) -> NDArray[np.float32]:
        """Features (m, d) of all real pictures of the split."""
        everything = torch.arange(self.data.size("test"))
        features: NDArray[np.float32] = self.features(self.data.images("test", everything)).numpy()
        return features

    def judge(self, latents: Tensor) -> Judged:
        """Decode the final latents (n, c, h, w) of all captions and score the pictures."""
        pictures = decode_latents(self.base.vae, latents, scaling_factor=self.base.scaling_factor)
        real_groups = groups_of(self.data.captions("test"))
        found = self.features(pictures).numpy()
        distance = kernel_distance(found, self.real, groups=self.groups, real_groups=real_groups)
        scores = self.clip.scores(pictures, self.captions).double().numpy()
        return Judged(pictures, scores, distance)
