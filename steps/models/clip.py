"""CLIP scores from an OpenCLIP model folder.

A folder holds `open_clip_config.json` (OpenCLIP's own `model_cfg`, and `preprocess_cfg` with mean, std and size),
`open_clip_model.safetensors`, and a CLIPTokenizer.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

from steps.files.errors import EvaluationError
from steps.models.weights_fit import misfit

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class ClipScorer:
    """Cosine similarity of pictures and captions."""

    def __init__(self, model: CLIP, tokenizer: CLIPTokenizer, preprocess: dict[str, Any]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.size = int(preprocess["size"])
        self._mean = torch.tensor(preprocess["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess["std"]).view(1, 3, 1, 1)

    @classmethod
    def load(cls, folder: Path) -> "ClipScorer":
        """Read a model folder. Raises EvaluationError, see `check_clip`."""
        config = check_clip(folder)
        model = build_clip(config["model_cfg"])
        # Not strict: a stored attn_mask, which the model computes. All that is missing or too much is refused above.
        model.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()}, strict=False)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer, config["preprocess_cfg"])

    @torch.no_grad()
    def image_embeddings(self, images: Tensor, batch_size: int = 128) -> Tensor:
        """Unit embeddings (n, d) of uint8 pictures (n, 3, H, W)."""
        parts = []
        for start in range(0, len(images), batch_size):
            x = images[start : start + batch_size].float() / 255.0
            if x.shape[-1] != self.size:
                x = functional.interpolate(
                    x, size=(self.size, self.size), mode="bicubic", antialias=True
                ).clamp(0, 1)
            parts.append(self.model.encode_image((x - self._mean) / self._std, normalize=True))
        return torch.cat(parts)

    @torch.no_grad()
    def text_embeddings(self, captions: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit embeddings (n, d) of captions."""
        parts = []
        for start in range(0, len(captions), batch_size):
            tokens = tokenize(self.tokenizer, captions[start : start + batch_size])
            parts.append(encode_text(self.model, tokens))
        return torch.cat(parts)

    def scores(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine (n,) of each picture with its own caption."""
        if len(images) != len(captions):
            raise EvaluationError(
                f"expected one caption per picture, found {len(captions)} for {len(images)}"
            )
        return (self.image_embeddings(images) * self.text_embeddings(captions)).sum(-1)


def check_clip(folder: Path) -> dict[str, Any]:
    """The configuration of a model folder whose weights are there and are all that it asks for; reads none of them.

    Raises EvaluationError with the file, and the first tensors that are missing, too much or of another shape.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise EvaluationError(f"expected an OpenCLIP model folder, but {folder / name} does not exist")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        with torch.device("meta"):
            model = build_clip(config["model_cfg"])
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise EvaluationError(f"the evaluator {folder} cannot be read: {error!r}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    fault = misfit(
        missing=expected.keys() - found.keys(),
        mismatched=[name for name in expected.keys() & found.keys() if expected[name] != found[name]],
        unexpected=found.keys() - expected.keys(),
    )
    if fault:
        raise EvaluationError(f"{folder / WEIGHTS} and {CONFIG} do not belong together: {fault}")
    return config


def build_clip(model_cfg: dict[str, Any]) -> CLIP:
    """An OpenCLIP model of a custom configuration, random weights."""
    return CLIP(
        embed_dim=model_cfg["embed_dim"],
        vision_cfg=dict(model_cfg["vision_cfg"]),
        text_cfg=dict(model_cfg["text_cfg"]),
        quick_gelu=bool(model_cfg.get("quick_gelu", False)),
    )


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (n, max_length), padded and cut as StableDiffusionPipeline does."""
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = tokens.input_ids
    return ids


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Unit text embeddings (n, d) of token ids (n, length).

    Equals OpenCLIP's `encode_text`, but stops after the longest caption: attention is causal, so what follows the end
    token changes nothing before it, and short captions cost a quarter.
    """
    end = tokens.argmax(-1)  # the end token has the highest id, which OpenCLIP's own pooling relies on
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(tokens)), end] @ model.text_projection
    return functional.normalize(pooled, dim=-1)


def save_clip(
    model: CLIP, tokenizer_folder: Path, folder: Path, *, model_cfg: dict[str, Any], size: int
) -> Path:
    """Write a model folder in float16; pictures are normalised to [-1, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"size": size, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (folder / CONFIG).write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}, indent=2) + "\n"
    )
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"},
        folder / WEIGHTS,
    )
    CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True).save_pretrained(folder)
    return folder
