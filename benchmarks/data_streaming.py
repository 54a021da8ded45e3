"""The user's shards at 512 x 512: bytes a picture, preparing and reading against plain webdataset, waiting in a training.

    python -m benchmarks.data_streaming --json benchmarks/results/data_streaming.json

Encoders and UNet have random weights, Stable Diffusion's shapes and few channels: on a CPU its own would hide what moving data
costs. Both sides of a ratio have the same pictures, encoders, batch and threads, and take turns. Plain preparing decodes
with webdataset, encodes and writes a tar of arrays; plain reading shuffles such tars as webdataset's documentation shows. Both
readers hand over shuffled float32 batches, several epochs a turn. Waiting is all the time that a training spends in the
data, drawing the latents' noise included, with a store on an S3 server on loopback and an empty cache; a step of the full
UNet is longer, and waits for less of it.
"""

import argparse
import io
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import webdataset
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageOps
from torch import Tensor

from artifacts_schema.base import percentile
from artifacts_schema.data import RawData
from artifacts_schema.references import FolderRef, ObjectRef
from artifacts_schema.run_configs import ComputeConfig, DataConfig, StoreConfig
from artifacts_schema.stage_configs import TrainingConfig
from benchmarks.published import Metric, publish, result
from infra.local.seaweedfs import serve
from steps.cache.keys import object_refs
from steps.data.encoding import encode_moments
from steps.data.places import identified
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_shards
from steps.data.workers import ShardEncoder, jobs_of
from steps.diffusion.losses import Sampling, VelocityLoss
from steps.diffusion.schedule import NoiseSchedule
from steps.files.hashes import FileHashes
from steps.files.progress import NullProgress
from steps.inputs.context import configure_torch, quiet_libraries
from steps.models.base import BaseModel, encode_captions
from steps.store import LocalStore
from steps.store.s3 import S3Store
from steps.training.loop import train
from steps.training.randomness import epoch_indices
from tests.factories import encoding_base

BUCKET, EPOCHS = "streaming", 5
SIDE, LATENT, WIDTH, BATCH = 512, (4, 64, 64), 768, 16
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def small_base() -> BaseModel:
    """Stable Diffusion's shapes outside, few channels inside."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, sample_size=SIDE,
        mid_block_add_attention=False,
    ).eval().requires_grad_(False)  # fmt: skip
    tokenizer = encoding_base().tokenizer
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=12,
            vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    ).eval().requires_grad_(False)  # fmt: skip
    unet = SimpleNamespace(config=SimpleNamespace(sample_size=LATENT[1], in_channels=LATENT[0]))
    return BaseModel(Path(), unet, vae, text, tokenizer, dict(SCHEDULE), "epsilon")  # type: ignore[arg-type]


def write_shards(folder: Path, count: int, rows: int, seed: int) -> list[Path]:
    """Shards of JPEGs a little larger than what is encoded."""
    draw = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        paths.append(folder / f"{number:05d}.tar")
        with webdataset.TarWriter(str(paths[-1])) as writer:
            for row in range(rows):
                small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
                file = io.BytesIO()
                small.resize((768, 576), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
                caption = f"picture {row} of shard {number} with so many words as a caption has"
                writer.write({"__key__": f"{row:06d}", "jpg": file.getvalue(), "txt": caption})
    return paths


class Rivals:
    """The same work by the pipeline and by plain webdataset."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.base = folder, small_base()
        self.paths = write_shards(folder, options.shards, options.rows, options.seed)
        self.total = options.shards * options.rows
        self.times: dict[str, list[float]] = {
            name: [] for name in ("prepare", "plain_prepare", "read", "plain_read")
        }
        self.seed = options.seed
        self.data: PreparedData | None = None
        self.tars: list[Path] = []

    def turn(self, number: int) -> None:
        """All four once; who begins alternates."""
        for pair in ((self.prepare, self.plain_prepare), (self.read, self.plain_read)):
            for work in pair if number % 2 == 0 else pair[::-1]:
                started = time.monotonic()
                work(number)
                self.times[work.__name__].append(time.monotonic() - started)

    def prepare(self, number: int) -> None:
        """As `start` does, with an empty store."""
        store = LocalStore(self.folder / f"store-{number}", durable=False)
        config = DataConfig(
            source="webdataset", shards=tuple(map(str, self.paths)), held_out_fraction=0.02, shuffle_shards=4
        )
        raw = RawData(files=identified(config.shards, FileHashes(self.folder / "hashes"), StoreConfig()))
        jobs = jobs_of(config, self.folder, raw, FolderRef(files={}), size=SIDE)
        encoder = ShardEncoder(self.base, config, store, work=self.folder / "work", access=StoreConfig())
        found = encoder.run(jobs, NullProgress())
        self.data = PreparedData.load(store, prepare_shards(self.base, found, config, store))

    def plain_prepare(self, number: int) -> None:
        """A loop as users write it: decode, crop, encode in batches, write arrays."""
        self.tars = []
        for path in self.paths:
            self.tars.append(self.folder / f"plain-{number}-{path.name}")
            with webdataset.TarWriter(str(self.tars[-1])) as writer:
                source = plain([path]).decode("pil").to_tuple("__key__", "jpg", "txt").map(_fit)
                for keys, images, texts in source.batched(BATCH, partial=True, collation_fn=_transposed):
                    moments = encode_moments(self.base, torch.stack(images)).half().numpy()
                    encoded = (
                        encode_captions(self.base.tokenizer, self.base.text_encoder, texts).half().numpy()
                    )
                    for key, row, text in zip(keys, moments, encoded, strict=True):
                        writer.write({"__key__": key, "moments.npy": row, "text.npy": text})

    def read(self, _: int) -> None:
        """Epochs of the train split, in its order."""
        assert self.data is not None
        order, total = self.data.order("train"), EPOCHS * self.data.size("train")
        for start in range(0, total, BATCH):
            rows = epoch_indices(samples=order, start=start, count=min(BATCH, total - start), seed=self.seed)
            self.data._take("train", "moments", rows).float()
            self.data.embeddings("train", rows)

    def plain_read(self, _: int) -> None:
        """As many epochs, shards and a buffer of samples shuffled."""
        for _epoch in range(EPOCHS):
            source = plain(self.tars, shuffle=True).shuffle(200).decode().to_tuple("moments.npy", "text.npy")
            for moments, texts in source.batched(BATCH, partial=True, collation_fn=_transposed):
                torch.from_numpy(np.stack(moments)).float()
                torch.from_numpy(np.stack(texts)).float()


def plain(paths: list[Path], *, shuffle: bool = False) -> Any:
    """The library's own reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return webdataset.WebDataset(
            [str(path) for path in paths], shardshuffle=len(paths) if shuffle else False
        )


def _fit(item: tuple[str, Any, str]) -> tuple[str, Tensor, str]:
    key, image, text = item
    square = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    return key, torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1), text


def _transposed(rows: list[Any]) -> Iterator[Any]:
    return zip(*rows, strict=True)


class Watched:
    """Prepared data that count the seconds spent in them."""

    def __init__(self, data: PreparedData) -> None:
        self._data, self.seconds = data, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._data, name)
        if name not in ("latents", "training_embeddings", "embeddings"):
            return found

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.monotonic()
            try:
                return found(*arguments, **named)
            finally:
                self.seconds += time.monotonic() - started

        return timed


def elsewhere(data: PreparedData, folder: Path) -> PreparedData:
    """The same data in a store on S3, seen from a machine that has nothing of it."""
    here = LocalStore(folder / "here", durable=False)
    split: Any = data.ref.splits["train"]
    size = sum(shard.object.bytes for shard in split.shards)
    config = StoreConfig(root=f"s3://{BUCKET}/store", cache_gib=size / (1 << 30))
    sender = S3Store(config, here.folder)
    for sha256, length in object_refs(json.loads(data.ref.to_json())):
        ref = ObjectRef(uri=f"sha256:{sha256}", sha256=sha256, bytes=length or 0)
        sender.put_file(data._store.path_of(ref))
    return PreparedData.load(S3Store(config, folder / "there"), data.ref)


def wait_share(data: PreparedData, folder: Path, iterations: int) -> float:
    """Share of a training's time that is spent in the data."""
    unet = UNet2DConditionModel(
        sample_size=LATENT[1], block_out_channels=(32, 64, 64, 64), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=WIDTH, attention_head_dim=4,
    )  # fmt: skip
    watched: Any = Watched(data)
    sampling = Sampling(watched, NoiseSchedule.from_config(SCHEDULE), 0.1, torch.device("cpu"))
    loss = VelocityLoss(unet, sampling, 0.0, 1.0)
    started = time.monotonic()
    train(
        unet, loss, training=TrainingConfig(iterations=iterations, batch_size=4), samples=data.order("train"), seed=0,
        folder=folder / "checkpoints",
    )  # fmt: skip
    return float(watched.seconds / (time.monotonic() - started))


def ratio(name: str, plain_s: list[float], ours_s: list[float], note: str) -> Metric:
    """Plain webdataset's median time over ours."""
    each = [p / o for p, o in zip(plain_s, ours_s, strict=True)]
    value = statistics.median(plain_s) / statistics.median(ours_s)
    return Metric(name, value, "x", len(each), percentile(each, 0.1), percentile(each, 0.9), note)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32, help="pictures a shard")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20, help="of the training that waits")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    quiet_libraries()
    configure_torch(ComputeConfig(threads=options.threads))
    with tempfile.TemporaryDirectory() as name:
        rivals = Rivals(Path(name), options)
        for number in range(options.repeats):
            rivals.turn(number)
            print({key: round(values[-1], 2) for key, values in rivals.times.items()}, file=sys.stderr)
        rows = metrics(rivals, Path(name), options.iterations)
    publish(result(rows, module="benchmarks.data_streaming", seed=options.seed), options.json)
    return 0


def metrics(rivals: Rivals, folder: Path, iterations: int) -> list[Metric]:
    """What was measured, by its published names."""
    data = rivals.data
    assert data is not None
    shards: Any = data.ref.splits["train"]
    size = sum(shard.object.bytes for shard in shards.shards) / shards.size / (1 << 20)
    share = rivals.total / shards.size  # the held-out pictures are not read
    times = rivals.times
    ours = [seconds * share for seconds in times["read"]]
    note = "plain webdataset's median time over the pipeline's; spread: p10 and p90 of the turns"
    rows = [
        Metric(
            "data.mib_per_picture_512",
            size,
            "MiB",
            shards.size,
            size,
            size,
            "of the train split's objects, captions included",
        ),
        ratio("data.preparing_ratio", times["plain_prepare"], times["prepare"], note),
        ratio("data.reading_ratio", times["plain_read"], ours, note),
    ]
    speeds: dict[str, Callable[[float], float]] = {
        "prepare": lambda s: rivals.total / s, "plain_prepare": lambda s: rivals.total / s,
        "read": lambda s: EPOCHS * shards.size / s, "plain_read": lambda s: EPOCHS * rivals.total / s,
    }  # fmt: skip
    for key, speed in speeds.items():
        values = [speed(seconds) for seconds in times[key]]
        rows.append(
            Metric(f"data.{key}_speed", statistics.median(values), "pictures/s", len(values),
                   percentile(values, 0.1), percentile(values, 0.9), "median, p10 and p90")
        )  # fmt: skip
    with serve(folder / "server", stop_s=0.0) as server:
        server.create_bucket(BUCKET)
        os.environ.update(server.environment())
        wait = wait_share(elsewhere(data, folder), folder, iterations)
    rows.append(
        Metric(
            "data.wait_share", wait, "", iterations, wait, wait, "of the seconds of a small UNet's training"
        )
    )
    return rows


if __name__ == "__main__":
    sys.exit(main())
