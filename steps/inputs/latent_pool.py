"""Synthetic latents and the full decoder's pictures of them: what the small decoder learns from.

SnapFusion makes the latents with the base from text alone (supplement B.2). They do not depend on the small
decoder, so they and the full decoder's pictures are made once, kept in the store, and shared by every later
training.
"""

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from artifacts_schema.base import content_hash
from artifacts_schema.references import ObjectRef
from steps.diffusion.losses import SPLIT, LatentData
from steps.diffusion.sampler import DECODED_AT_ONCE, Precision, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.files.errors import DamagedError
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.models.base_folder import folder_identity
from steps.store.base import Store
from steps.training.randomness import epoch_indices, keyed_normal

logger = logging.getLogger(__name__)
CHUNK = 32


@dataclass(frozen=True)
class PoolSettings:
    """How the pool is made: number of latents, DDIM steps, guidance scale, and the precision that its latents are drawn in."""

    size: int
    ddim_steps: int
    guidance_scale: float
    precision: Precision = "fp32"


class LatentPool:
    """Rows of (unscaled latent, picture), read from the store's files as they are needed."""

    def __init__(self, chunks: Sequence[Path]) -> None:
        self._chunks = tuple(chunks)
        self._files = [safe_open(path, framework="pt") for path in chunks]
        self._rows = [
            (file, row) for file in self._files for row in range(_slice(file, "latents").get_shape()[0])
        ]

    def __reduce__(self) -> tuple[type["LatentPool"], tuple[tuple[Path, ...]]]:
        return LatentPool, (self._chunks,)  # open files go to no other process

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (n, c, h, w) as a decoder takes them, and the full decoder's pictures (n, 3, H, W) in [-1,
        1].
        """
        chosen = [self._rows[index] for index in indices.tolist()]
        latents = torch.cat([_slice(file, "latents")[row : row + 1] for file, row in chosen])
        pictures = torch.cat([_slice(file, "pictures")[row : row + 1] for file, row in chosen])
        return latents.float(), pictures.float()


def _slice(file: Any, name: str) -> Any:
    return file.get_slice(name)


def build_pool(
    base: BaseModel, data: LatentData, settings: PoolSettings, context: StageContext
) -> LatentPool:
    """The pool of these settings: finished chunks come from the store, the rest is generated now.

    Captions come from the train split, noise is keyed by position: the pool depends on base, data, settings,
    seed and the stage's version. A damaged chunk is generated again, and with `store.cache = false` so is every
    chunk of another run.
    """
    identity = folder_identity(base.path)
    chunks: list[Path] = []
    context.progress.start("latents for the decoder", settings.size)
    for start in range(0, settings.size, CHUNK):
        positions = torch.arange(start, min(start + CHUNK, settings.size))
        captions = epoch_indices(
            samples=data.order(SPLIT), start=start, count=len(positions), seed=context.seed
        )
        embeddings = data.embeddings(SPLIT, captions)
        document = _document(identity, settings, context, positions, embeddings)
        chunk = _stored_chunk(context.store, document)
        if chunk is None:
            scaled = _generate(
                base,
                settings,
                context,
                positions,
                embeddings=embeddings,
                empty_embedding=data.empty_embedding,
            )
            ref = _store_chunk(base, scaled, context)
            context.store.put_document(document, ref.model_dump_json())
            chunk = context.store.path_of(ref)
        chunks.append(chunk)
        context.progress.update(start + len(positions))
    context.progress.close()
    return LatentPool(chunks)


def _document(
    base_identity: str, settings: PoolSettings, context: StageContext, positions: Tensor, embeddings: Tensor
) -> str:
    """Where a chunk is recorded: under everything it is made from, so that pools share it."""
    made_from = {
        "base": base_identity,
        "ddim_steps": settings.ddim_steps,
        "guidance_scale": settings.guidance_scale,
        "precision": settings.precision,
        "version": context.version,
        "run": context.own_run,
        "seed": context.seed,
        "positions": positions.tolist(),
        "embeddings": hashlib.sha256(embeddings.float().contiguous().numpy().tobytes()).hexdigest(),
    }
    return f"latent_pools/{content_hash(made_from)}"


def _stored_chunk(store: Store, document: str) -> Path | None:
    """A finished chunk's verified file; None when there is none that is undamaged."""
    try:
        text = store.get_document(document)
        ref = ObjectRef.model_validate_json(text) if text is not None else None
        return store.path_of(ref) if ref is not None and store.has(ref.sha256, ref.bytes) else None
    except (DamagedError, ValidationError) as error:
        logger.warning("%s is damaged and made again: %s", document, error)
        return None


def _generate(
    base: BaseModel,
    settings: PoolSettings,
    context: StageContext,
    positions: Tensor,
    *,
    embeddings: Tensor,
    empty_embedding: Tensor,
) -> Tensor:
    """Scaled latents (n, c, h, w) of the base, with noise keyed by position in the pool."""
    return sample_latents(
        base.unet.to(context.device),
        NoiseSchedule.from_config(base.scheduler_config),
        noise=keyed_normal(
            base.latent_shape, seed=context.seed, name="latent pool", iteration=0, indices=positions
        ),
        embeddings=embeddings,
        empty_embedding=empty_embedding,
        steps=settings.ddim_steps,
        guidance_scale=settings.guidance_scale,
        prediction_type=base.prediction_type,
        batch_size=CHUNK,
        precision=settings.precision,
    )


def _store_chunk(base: BaseModel, scaled: Tensor, context: StageContext) -> ObjectRef:
    """Decode with the full decoder, store latents and pictures."""
    latents = scaled / base.scaling_factor
    pictures = decode_unclipped(base, latents, device=context.device)
    context.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.work) as folder:
        path = Path(folder) / "chunk.safetensors"
        # Half precision keeps pictures to 2^-11 of their range: 70 dB, far beyond any decoder of half width.
        save_file({"latents": latents.contiguous(), "pictures": pictures.half().contiguous()}, path)
        return context.store.put_file(path)


@torch.no_grad()
def decode_unclipped(base: BaseModel, latents: Tensor, *, device: torch.device) -> Tensor:
    """The full decoder's pictures (n, 3, H, W) of unscaled latents, as they come, float32 on the CPU."""
    vae = base.vae.to(device)
    return torch.cat([vae.decode(z.to(device)).sample.cpu() for z in torch.split(latents, DECODED_AT_ONCE)])
