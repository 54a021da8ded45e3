"""(e) Preparing data against the loop of a notebook over img2dataset's shards: webdataset reads, the encoders take a batch at
once, latents and embeddings are written as npy files of another shard. The encoders are the embedded base's:
`benchmarks.data_streaming` has what lies round them.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

from artifacts_schema.data import RawData
from artifacts_schema.references import FolderRef
from artifacts_schema.run_configs import DataConfig, StoreConfig
from benchmarks.plain.setting import SEED, Setting, agreement, ratio, speed, timed
from benchmarks.published import Metric
from steps.data.places import identified
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_shards
from steps.data.workers import ShardEncoder, jobs_of
from steps.files.hashes import FileHashes
from steps.files.progress import NullProgress
from steps.models.base import BaseModel, token_ids
from steps.store import LocalStore
from steps.training.randomness import keyed_normal

BATCH = 16  # what the product encodes at once on a CPU


def write_shard(data: PreparedData, path: Path, count: int) -> Path:
    """Pictures as JPEG with their captions, as img2dataset leaves them at the base's own size."""
    pictures = data.images("train", torch.arange(data.size("train")))
    captions = data.captions("train")
    with webdataset.TarWriter(str(path)) as shard:
        for number in range(count):
            row, file = number % len(captions), io.BytesIO()
            Image.fromarray(pictures[row].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
            text = f"{captions[row]} {number}"
            shard.write({"__key__": f"{number:08d}", "jpg": file.getvalue(), "txt": text})
    return path


@torch.no_grad()
def plain(base: BaseModel, shard: Path, target: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of the latents by caption; everything is written to `target`."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    samples = (
        webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil").to_tuple("__key__", "jpg", "txt")
    )
    vae: Any = base.vae
    with webdataset.TarWriter(str(target)) as out:
        for keys, pictures, captions in samples.batched(
            BATCH, collation_fn=lambda rows: list(zip(*rows, strict=True))
        ):
            arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
            pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            latents = vae.encode(pixels).latent_dist
            embeddings = base.text_encoder(token_ids(base.tokenizer, captions))[0]
            for row, (key, caption) in enumerate(zip(keys, captions, strict=True)):
                moments = torch.cat([latents.mean[row], latents.std[row]])
                out.write(
                    {
                        "__key__": key,
                        "latent.npy": moments.numpy(),
                        "text.npy": embeddings[row].numpy(),
                        "txt": caption,
                    }
                )
                found[caption] = (latents.mean[row], latents.std[row])
    return found


def ours(base: BaseModel, shard: Path, folder: Path) -> PreparedData:
    """Prepared into an empty store, as `start` does it."""
    config = DataConfig(source="webdataset", shards=(str(shard),), held_out_fraction=0.1)
    number = sum(1 for _ in folder.glob("store-*")) if folder.is_dir() else 0
    store, access = LocalStore(folder / f"store-{number}"), StoreConfig()
    raw = RawData(files=identified(config.shards, FileHashes(folder / "hashes"), access))
    jobs = jobs_of(config, folder, raw, FolderRef(files={}), size=base.image_size)
    found = ShardEncoder(base, config, store, work=folder / f"work-{number}", access=access).run(
        jobs, NullProgress()
    )
    return PreparedData.load(store, prepare_shards(base, found, config, store))


def measure(setting: Setting) -> list[Metric]:
    """Speed-up over the notebook's loop; latents of both."""
    base, count = setting.base(), 96 if setting.quick else 512
    shard = write_shard(setting.data(base), setting.folder / "a.tar", count)
    folder = setting.folder / "prepared"
    theirs, mine = plain(base, shard, setting.folder / "out.tar"), ours(base, shard, folder)
    pairs = []
    for number, caption in enumerate(mine.captions("train")):
        at = torch.tensor([number])
        noise = keyed_normal(base.latent_shape, seed=SEED, name="vae", iteration=0, indices=at)[0]
        mean, std = theirs[caption]
        expected = (mean + std * noise) * base.scaling_factor
        found = mine.latents("train", at, seed=SEED, iteration=0)[0]
        pairs.append((float((found - expected).norm() / expected.norm()) + 1.0, 1.0))
    same = agreement("preparing.latent_difference", pairs, 1e-2)  # bfloat16 moments where they are kept so
    times = timed(
        setting,
        {
            "plain": lambda: plain(base, shard, setting.folder / "out.tar"),
            "ours": lambda: ours(base, shard, folder),
        },
        repeats=1 if setting.quick else 5,
        warmup=0 if setting.quick else 1,
    )
    note = (
        f"{count} pictures of {base.image_size} pixels, batches of {BATCH}, {torch.get_num_threads()} threads"
    )
    return [
        same,
        ratio("preparing.speedup", times["plain"], times["ours"], note),
        speed("preparing.plain", times["plain"], count),
        speed("preparing.ours", times["ours"], count),
    ]
