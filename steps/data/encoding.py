"""One of the user's shards, encoded: latent moments, text embeddings and captions of what it holds, as objects of the store."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from artifacts_schema.data import EncodedShard, Shard, SplitName
from artifacts_schema.run_configs import DataConfig
from steps.data.source import well_mixed
from steps.data.webdataset import FilteredItem, Sample, SkippedItem, own_pixel_limit, picture_of, split_of
from steps.files.disk import no_space_is_said
from steps.models.base import BaseModel, encode_captions
from steps.store.base import Store

logger = logging.getLogger(__name__)
FORMAT = 1  # of the objects; another makes other keys
_BATCH = 64
_ENCODED_PIXELS = (
    1 << 21
)  # pictures encoded together have at most so many pixels: 8 of 512 x 512 take some 4 GB
_ENCODED_TOGETHER = 16  # on a CPU more at once leave its cache: 64 take 1.4 times as long a picture
_ELSEWHERE = "held out, of other shards than data.held_out_from"


@torch.no_grad()
def encode_moments(base: BaseModel, images: Tensor) -> Tensor:
    """Mean and standard deviation of the unscaled latents: float32 (n, 2*c, h, w).

    `images` are uint8 (n, 3, H, W) of the base's size.
    """
    together = max(1, min(_ENCODED_TOGETHER, _ENCODED_PIXELS // (images.shape[-2] * images.shape[-1])))
    parts = []
    for part in torch.split(images, together):
        pixels = part.to(base.vae.device, torch.float32) / 127.5 - 1.0
        distribution = base.vae.encode(pixels).latent_dist
        parts.append(torch.cat([distribution.mean, distribution.std], dim=1).float().cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class Rules:
    """What of a shard is encoded: at most `most` captions of each split (None: all), of `size` pixels a side; validation and
    test only where the shard `holds_out`. `name` is the shard's.
    """

    config: DataConfig
    size: int
    name: str
    most: int | None = None
    holds_out: bool = True


def encode_shard(
    base: BaseModel, path: Path, samples: Sequence[Sample], rules: Rules, store: Store
) -> EncodedShard:
    """Encode the samples of the shard at `path` on the device of the base's encoders, and store what becomes of them."""
    chosen = _chosen(samples, rules)
    made = _Rows(base, rules)
    with own_pixel_limit():
        for batch in _decoded(path, chosen, rules):
            made.add(batch)
    with TemporaryDirectory(dir=store.work_folder("encoding")) as folder:
        splits = {name: made.stored(name, Path(folder) / name, store) for name in sorted(made.captions)}
    return EncodedShard(
        splits=splits,
        captions={name: tuple(texts) for name, texts in sorted(made.captions.items()) if name != "train"},
        examined=len(chosen),
        skipped=dict(sorted(made.skipped.items())),
        filtered=dict(sorted(made.filtered.items())),
        enlarged=made.enlarged,
    )


def _chosen(samples: Sequence[Sample], rules: Rules) -> list[Sample]:
    """Well mixed, where the shard gives a part only; unusable ones take part, so that their share stays what it is."""
    if rules.most is None:
        return list(samples)
    splits: dict[SplitName, dict[str, Sample]] = {}
    for sample in samples:
        split = split_of(sample.caption or sample.key, rules.config.held_out_fraction)
        splits.setdefault(split, {})[f"{rules.name}/{sample.key}"] = sample
    kept = {id(named[key]) for named in splits.values() for key in well_mixed(named, rules.most)}
    return [sample for sample in samples if id(sample) in kept]


@dataclass(frozen=True)
class _Outcome:
    """What decoding has made of a sample: a picture of a split, or why there is none."""

    sample: Sample
    split: SplitName = "train"
    image: Tensor | None = None
    enlarged: bool = False
    skipped: str = ""
    filtered: str = ""


def _decoded(path: Path, samples: Sequence[Sample], rules: Rules) -> Iterator[list[_Outcome]]:
    """Batches in order; while one is encoded the next is decoded, on all cores."""
    batches = [samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH)]
    with path.open("rb") as file, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

        def begin(batch: Sequence[Sample]) -> list[Future[_Outcome]]:
            return [pool.submit(_decode, file.fileno(), sample, rules) for sample in batch]

        coming = begin(batches[0]) if batches else []
        for number in range(len(batches)):
            ready = [future.result() for future in coming]
            coming = begin(batches[number + 1]) if number + 1 < len(batches) else []
            yield ready


def _decode(file: int, sample: Sample, rules: Rules) -> _Outcome:
    if sample.problem or sample.filtered:
        return _Outcome(sample, skipped=sample.problem, filtered=sample.filtered)
    split = split_of(sample.caption, rules.config.held_out_fraction)
    if split != "train" and not rules.holds_out:
        return _Outcome(sample, filtered=_ELSEWHERE)
    try:
        data = os.pread(file, sample.size, sample.offset)
        image, enlarged = picture_of(data, rules.config, rules.size)
    except SkippedItem as problem:
        return _Outcome(sample, skipped=str(problem))
    except FilteredItem as reason:
        return _Outcome(sample, filtered=str(reason))
    return _Outcome(sample, split, image, enlarged)


@dataclass
class _Rows:
    """The rows of a shard so far, by split and kind, and the counts of what has none."""

    base: BaseModel
    rules: Rules
    rows: dict[SplitName, dict[str, list[Tensor]]] = field(default_factory=dict)
    captions: dict[SplitName, list[str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    enlarged: int = 0

    def add(self, batch: Sequence[_Outcome]) -> None:
        """Encode the pictures of a batch together, whatever their splits."""
        for item in batch:
            if item.skipped:
                self.skipped[item.skipped] += 1
                logger.info("skipped %s of shard %s: %s", item.sample.key, self.rules.name, item.skipped)
        self.filtered.update(item.filtered for item in batch if item.filtered)
        found = [item for item in batch if item.image is not None]
        self.enlarged += sum(item.enlarged for item in found)
        if not found:
            return
        images = torch.stack([item.image for item in found if item.image is not None])
        moments = encode_moments(self.base, images).bfloat16()
        texts = [item.sample.caption for item in found]
        embeddings = encode_captions(self.base.tokenizer, self.base.text_encoder, texts).bfloat16()
        for split in dict.fromkeys(item.split for item in found):
            own = torch.tensor([item.split == split for item in found])
            kinds = {"moments": moments[own], "embeddings": embeddings[own]}
            if split != "train":
                kinds["images"] = images[own]
            rows = self.rows.setdefault(split, {})
            for kind, tensor in kinds.items():
                rows.setdefault(kind, []).append(tensor)
            self.captions.setdefault(split, []).extend(
                text for text, item in zip(texts, found, strict=True) if item.split == split
            )

    def stored(self, split: SplitName, path: Path, store: Store) -> Shard:
        """One object of a split's rows; a cache of the store does not keep it: there may be more than its disk holds."""
        tensors = {
            kind: torch.cat(self.rows[split].pop(kind)).contiguous() for kind in list(self.rows[split])
        }
        captions = json.dumps(self.captions[split], ensure_ascii=False)
        with no_space_is_said("an encoded shard", path.parent):
            save_file(tensors, path, metadata={"captions": captions})
        found = Shard(object=store.put_file(path), rows=len(self.captions[split]))
        if store.cache is not None:
            store.cache.delete_object(found.object.sha256)
        return found
