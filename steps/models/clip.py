"""CLIP scores from an OpenCLIP model folder, loaded by OpenCLIP itself.

A folder is what OpenCLIP's own `save_for_hf` writes and its schema `local-dir:` reads: `open_clip_config.json`, weights as
safetensors, and the files of a tokenizer where the model does not use OpenAI's.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

from steps.files.errors import EvaluationError
from steps.models.weights_fit import misfit

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# What OpenCLIP takes before any pickle that lies beside them.
_WEIGHTS = (WEIGHTS, "open_clip_pytorch_model.safetensors")
_OPENAI_ENTRIES = 49408
_SAID = 300  # characters of a library's message

Tokenize = Callable[[list[str]], Tensor]
_CPU = torch.device("cpu")


class ClipScorer:
    """Cosine similarity of pictures and captions, computed on `device`; what comes back lies on the CPU."""

    def __init__(self, model: Any, preprocess: Any, tokens: Tokenize, device: torch.device = _CPU) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.preprocess, self.tokens, self.device = preprocess, tokens, device

    @classmethod
    def load(cls, folder: Path, device: torch.device = _CPU) -> "ClipScorer":
        """Read a model folder. Raises EvaluationError with what is missing, unknown or does not fit."""
        config, weights = check_clip(folder)
        name = f"local-dir:{folder}"
        try:
            with _quiet_root():
                model, _, preprocess = open_clip.create_model_and_transforms(name)
                _check_shapes(model, weights)
                tokens = _tokens(folder, config["text_cfg"])
        except EvaluationError:
            raise
        except Exception as error:  # a configuration is a stranger's, and OpenCLIP checks none of it
            said = " ".join(str(error).split())
            shown = said if len(said) <= _SAID else f"{said[:_SAID]} ..."
            raise EvaluationError(
                f"the evaluator {folder} cannot be loaded by OpenCLIP: {type(error).__name__}: {shown}"
            ) from error
        return cls(model, preprocess, tokens, device)

    @torch.no_grad()
    def image_embeddings(self, images: Tensor, batch_size: int = 128) -> Tensor:
        """Unit embeddings (n, d) of uint8 pictures (n, 3, H, W), resized and cut as the folder's configuration says."""
        parts = []
        for part in torch.split(images, batch_size):
            rows = part.permute(0, 2, 3, 1).contiguous().numpy()  # (n, H, W, 3)
            x = torch.stack([self.preprocess(Image.fromarray(row)) for row in rows]).to(self.device)
            parts.append(self.model.encode_image(x, normalize=True).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def text_embeddings(self, captions: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit embeddings (n, d) of captions."""
        parts = []
        for start in range(0, len(captions), batch_size):
            tokens = self.tokens(list(captions[start : start + batch_size])).to(self.device)
            parts.append(encode_text(self.model, tokens).float().cpu())
        return torch.cat(parts)

    def scores(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine (n,) of each picture with its own caption."""
        if len(images) != len(captions):
            raise EvaluationError(
                f"expected one caption per picture, found {len(captions)} for {len(images)}"
            )
        return (self.image_embeddings(images) * self.text_embeddings(captions)).sum(-1)

    def try_out(self, image_size: int) -> None:
        """Score one grey picture (image_size, image_size): a folder that passes works to the end of a run.

        Raises EvaluationError.
        """
        picture = torch.full((1, 3, image_size, image_size), 128, dtype=torch.uint8)
        try:
            score = float(self.scores(picture, ["a picture"]))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise EvaluationError(
                f"the evaluator cannot score a picture of {image_size} x {image_size}: {error}"
            ) from error
        if not -1.01 <= score <= 1.01:  # NaN, too
            raise EvaluationError(f"the evaluator gives a picture the score {score}, expected a cosine")


def check_clip(folder: Path) -> tuple[dict[str, Any], Path]:
    """OpenCLIP's own configuration (`model_cfg`) of a model folder, and the file of its weights; reads no weights.

    Raises EvaluationError for a folder without them, and for a model that needs a hub or code of its own.
    """
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None or not (folder / CONFIG).is_file():
        raise EvaluationError(
            f"expected an OpenCLIP model folder with {CONFIG} and {' or '.join(_WEIGHTS)} in {folder}; weights as pickles "
            "are never read: save the model with open_clip.push_to_hf_hub.save_for_hf(..., safe_serialization=True)"
        )
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        text, vision = config["text_cfg"], config["vision_cfg"]
        tower = vision.get("timm_model_name") or ""
        hub = text.get("hf_model_name") or (tower if ":" in tower else "")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvaluationError(f"the evaluator's {folder / CONFIG} cannot be read: {error!r}") from error
    if hub:
        raise EvaluationError(
            f"the evaluator {folder} builds a tower from {hub!r}, for which OpenCLIP asks a model hub; no run does: "
            "use a model that is whole in its folder"
        )
    return config, weights


def _check_shapes(model: Any, weights: Path) -> None:
    """Raise EvaluationError for a tensor of another shape, which OpenCLIP would have interpolated without a word."""
    try:
        with safe_open(weights, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise EvaluationError(f"{weights} cannot be read: {error}") from error
    expected = {name: value.shape for name, value in model.state_dict().items() if value.ndim > 1}
    wrong = [name for name in expected.keys() & found.keys() if tuple(expected[name]) != found[name]]
    if fault := misfit(mismatched=wrong):
        raise EvaluationError(f"{weights} and {CONFIG} do not belong together: {fault}")


def _tokens(folder: Path, text_cfg: dict[str, Any]) -> Tokenize:
    """The tokenizer that OpenCLIP takes for this folder, or the folder's own.

    Where the configuration names none, OpenCLIP takes OpenAI's. The ids of that one lie beyond a smaller vocabulary: such
    a model, as this project trains them, was trained with the CLIPTokenizer in its folder, without OpenCLIP's cleaning
    (which makes a typewriter's apostrophe of every other). Raises EvaluationError when its ids do not fit either.
    """
    entries = int(text_cfg.get("vocab_size", _OPENAI_ENTRIES))
    name = f"local-dir:{folder}"
    if text_cfg.get("hf_tokenizer_name"):
        # Never code from the folder, whatever its `tokenizer_kwargs` say.
        named: Tokenize = open_clip.get_tokenizer(name, trust_remote_code=False, local_files_only=True)
        return named
    if entries >= _OPENAI_ENTRIES:
        usual: Tokenize = open_clip.get_tokenizer(name)
        return usual
    own = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if len(own) > entries:
        raise EvaluationError(
            f"the tokenizer of the evaluator {folder} has {len(own)} entries, but vocab_size in {CONFIG} is {entries}"
        )
    return lambda captions: tokenize(own, captions)


@contextmanager
def _quiet_root() -> Iterator[None]:
    """OpenCLIP tells of every file it looks at, in the name of nobody (the root logger)."""

    def loud(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO

    logging.getLogger().addFilter(loud)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(loud)


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


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Unit text embeddings (n, d) of token ids (n, length).

    Equals OpenCLIP's `encode_text`, but stops after the longest caption where attention is causal: then what follows the
    end token changes nothing before it, and short captions cost a quarter.
    """
    plain = type(model) is CLIP and model.text_pool_type == "argmax" and model.attn_mask is not None
    if not plain or not torch.is_tensor(model.text_projection):
        embedded: Tensor = model.encode_text(tokens, normalize=True)
        return embedded
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
