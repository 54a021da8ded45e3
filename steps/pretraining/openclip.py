"""Contrastive training of the two OpenCLIP models, and the first one's text tower as a CLIPTextModel."""

from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from artifacts_schema.pretraining import ClipModelConfig
from steps.files.progress import Progress
from steps.models.clip import build_clip, encode_text
from steps.pretraining.best import Best
from steps.pretraining.pictures import Pictures, normalised, shifted
from steps.training.batch import Batch
from steps.training.loop import train
from steps.training.outcome import TrainingOutcome

_EVALUATE_EVERY = 50
_TOGETHER = 128


def model_cfg(
    config: ClipModelConfig, *, image_size: int, vocabulary: int, context_length: int = 77
) -> dict[str, Any]:
    """OpenCLIP's own configuration of the model."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": image_size,
            "patch_size": config.patch_size,
            "width": config.vision_width,
            "layers": config.vision_layers,
            "head_width": config.vision_head_width,
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocabulary,
            "width": config.text_width,
            "heads": config.text_heads,
            "layers": config.text_layers,
        },
        "quick_gelu": False,
    }


def new_model(config: ClipModelConfig, cfg: dict[str, Any]) -> CLIP:
    """Random weights from the configuration's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_clip(cfg)


def train_openclip(
    config: ClipModelConfig,
    cfg: dict[str, Any],
    train_set: Pictures,
    validation: Pictures,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    description: str,
) -> tuple[TrainingOutcome, dict[str, float]]:
    """Train on the train split; the state with the best retrieval among validation captions is kept."""
    best = Best(folder / "best", "retrieval_top1", highest=True)
    outcome = train(
        new_model(config, cfg),
        ContrastiveLoss(train_set),
        training=config.training,
        samples=len(train_set.captions),
        seed=seed,
        folder=folder,
        progress=progress,
        on_interval=best.watch(lambda model: retrieval_top1(model, validation), every=_EVALUATE_EVERY),
        description=description,
    )
    return outcome, best.load(outcome.model)


class ContrastiveLoss:
    """CLIP's symmetric cross-entropy; captions with the same tokens are not each other's negatives."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See steps.training.batch.LossFunction."""
        tokens = self.pictures.tokens[batch.indices]
        images = shifted(normalised(self.pictures.images[batch.indices]), batch)
        clip: Any = model
        embedded = clip.encode_image(images, normalize=True)
        logits = clip.logit_scale.exp() * embedded @ encode_text(clip, tokens).T
        same = (tokens[:, None] == tokens[None]).all(-1) & ~torch.eye(len(tokens), dtype=torch.bool)
        logits = logits.masked_fill(same, -1e4)
        own = torch.arange(len(tokens))
        return {"loss": (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2}


@torch.no_grad()
def retrieval_top1(model: nn.Module, pictures: Pictures) -> float:
    """Share of the pictures whose own caption is the nearest among all of theirs."""
    clip: Any = model
    was_training = model.training
    model.eval()
    texts = encode_text(clip, pictures.tokens[:: pictures.variants])
    own = torch.arange(len(pictures.images)) // pictures.variants
    images = [
        clip.encode_image(normalised(part), normalize=True) for part in pictures.images.split(_TOGETHER)
    ]
    model.train(was_training)
    return float((torch.cat(images) @ texts.T).argmax(1).eq(own).float().mean())


def text_tower(model: CLIP, cfg: dict[str, Any], tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text transformer as transformers' CLIPTextModel: the same hidden states after the last layer norm."""
    text = cfg["text_cfg"]
    result: CLIPTextModel = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["width"],
            intermediate_size=4 * text["width"],
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            max_position_embeddings=text["context_length"],
            projection_dim=cfg["embed_dim"],
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    own = result.state_dict()
    prefix = "text_model." if any(name.startswith("text_model.") for name in own) else ""
    weights = _text_weights(model.state_dict(), text["layers"], prefix)
    result.load_state_dict({name: weights.get(name, value) for name, value in own.items()})
    result.eval()
    return result


def _text_weights(source: dict[str, Tensor], layers: int, prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's names to transformers'."""
    weights = {
        f"{prefix}embeddings.token_embedding.weight": source["token_embedding.weight"],
        f"{prefix}embeddings.position_embedding.weight": source["positional_embedding"],
    }
    pairs = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    pairs |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        weights[f"{prefix}final_layer_norm.{kind}"] = source[f"ln_final.{kind}"]
        for layer in range(layers):
            there, here = f"transformer.resblocks.{layer}", f"{prefix}encoder.layers.{layer}"
            for name, other in pairs.items():
                weights[f"{here}.{name}.{kind}"] = source[f"{there}.{other}.{kind}"]
            fused = source[f"{there}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True):
                weights[f"{here}.self_attn.{name}.{kind}"] = part
    return weights
