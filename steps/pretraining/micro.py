"""Random-weight models of a few thousand parameters, for tests and the smoke preset. Never a result."""

from pathlib import Path

from artifacts_schema.pretraining import AutoencoderConfig, ClipModelConfig, UNetConfig
from artifacts_schema.stage_configs import TrainingConfig
from steps.data.openmoji import list_openmoji
from steps.models.clip import save_clip
from steps.pretraining.autoencoder import LATENT_CHANNELS, new_autoencoder
from steps.pretraining.base import new_unet, write_base
from steps.pretraining.openclip import model_cfg, new_model, text_tower
from steps.pretraining.tokenizer import load_tokenizer, train_tokenizer

IMAGE_SIZE = 64
_NONE = TrainingConfig(iterations=0)
_WIDTH = 16


def write_micro_base(folder: Path, seed: int = 0) -> Path:
    """A complete base folder with the embedded base's topology and sizes of picture and latent, tiny widths."""
    if (folder / "model_index.json").is_file():
        return folder
    tokenizer = load_tokenizer(_tokenizer(folder.parent / "micro_tokenizer"))
    clip = _clip_config(seed)
    cfg = model_cfg(clip, image_size=IMAGE_SIZE, vocabulary=len(tokenizer))
    vae = new_autoencoder(
        AutoencoderConfig(seed=seed, widths=(8, 8, 16), norm_groups=4, training=_NONE), image_size=IMAGE_SIZE
    )
    vae.register_to_config(scaling_factor=0.5)
    unet = new_unet(
        UNetConfig(seed=seed, widths=(8, 16, 16, 16), norm_groups=4, heads=2, training=_NONE),
        latent_size=IMAGE_SIZE // 4,
        latent_channels=LATENT_CHANNELS,
        text_width=_WIDTH,
    )
    text = text_tower(new_model(clip, cfg), cfg, tokenizer)
    return write_base(folder, unet=unet, vae=vae, text_encoder=text, tokenizer=tokenizer)


def write_micro_openclip(folder: Path, seed: int = 1) -> Path:
    """An OpenCLIP folder with random weights; its scores mean nothing."""
    if (folder / "open_clip_config.json").is_file():
        return folder
    tokenizer_folder = _tokenizer(folder.parent / "micro_tokenizer")
    clip = _clip_config(seed)
    cfg = model_cfg(clip, image_size=IMAGE_SIZE, vocabulary=len(load_tokenizer(tokenizer_folder)))
    return save_clip(new_model(clip, cfg), tokenizer_folder, folder, model_cfg=cfg, size=IMAGE_SIZE)


def _clip_config(seed: int) -> ClipModelConfig:
    return ClipModelConfig(
        seed=seed,
        embed_dim=_WIDTH,
        patch_size=16,
        vision_width=_WIDTH,
        vision_layers=1,
        vision_head_width=8,
        text_width=_WIDTH,
        text_layers=1,
        text_heads=2,
        training=_NONE,
    )


def _tokenizer(folder: Path) -> Path:
    if (folder / "vocab.json").is_file():
        return folder
    captions = [item.caption for item in list_openmoji()[:200]]
    return train_tokenizer(captions, folder, entries=600)
