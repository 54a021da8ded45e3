"""Frozen protocols: read from their files, their pictures checked, and the environment measured against them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from artifacts_schema.base import json_object
from artifacts_schema.protocol import CalibrationPicture, ProtocolPicture, ProtocolRecord
from steps.data.openmoji import draw
from steps.evaluation.distances import mean_kernel
from steps.evaluation.features import FeatureExtractor
from steps.files.errors import EvaluationError
from steps.models.clip import ClipScorer

_SEAL = "sha256"  # of the protocol, in its file
_LIST = (list, tuple)


def read_protocol(path: Path) -> ProtocolRecord:
    """A protocol's file. Raises EvaluationError for one that is missing, unreadable, or not as it was frozen."""
    try:
        payload = json_object(path.read_text(encoding="utf-8"))
        seal = payload.pop(_SEAL, None)
        found = ProtocolRecord.from_payload(payload)
    except FileNotFoundError:
        raise EvaluationError(
            f"expected a frozen protocol in {path}, found none; make one with `python -m steps.evaluation.freeze`"
        ) from None
    except ValidationError as error:
        raise EvaluationError(f"the protocol {path} is not usable: {error.errors()[0]['msg']}") from error
    except (OSError, ValueError) as error:
        raise EvaluationError(f"the protocol {path} cannot be read: {error}") from error
    if seal != found.identity():
        raise EvaluationError(
            f"the protocol {path} was edited after it was frozen: expected the SHA-256 {str(seal)[:12]}, found "
            f"{found.identity()[:12]}; take the file as it was, or freeze a protocol of another name"
        )
    return found


def write_protocol(protocol: ProtocolRecord, path: Path) -> None:
    """Write a protocol with its hash, one picture a line."""
    payload = {_SEAL: protocol.identity(), **json.loads(protocol.to_json())}
    lines = [f"  {json.dumps(key)}: {_value(value)}" for key, value in payload.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _value(value: Any) -> str:
    if not isinstance(value, _LIST) or not value:
        return json.dumps(value, ensure_ascii=False)
    return "[\n    " + ",\n    ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n  ]"


def pixels_sha256(image: Tensor) -> str:
    """SHA-256 (hex) of the pixels of a picture, uint8 (3, H, W)."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def pictures_of(protocol: ProtocolRecord, pictures: Sequence[ProtocolPicture], folder: Path) -> Tensor:
    """uint8 (n, 3, size, size), drawn from the packages or read from `<name>.safetensors` beside the protocol.

    Raises EvaluationError naming the first picture that is not the one that was frozen.
    """
    names = [item.name for item in pictures]
    if protocol.source == "openmoji":
        images = draw(names, protocol.image_size)
    else:
        images = _stored(folder / f"{protocol.name}.safetensors", names, protocol)
    for item, image in zip(pictures, images, strict=True):
        if pixels_sha256(image) != item.sha256:
            raise EvaluationError(
                f"protocol {protocol.name!r}: the picture {item.name!r} ({item.caption!r}) is not the one that was "
                "frozen; install the versions in constraints.txt, or put the pictures back"
            )
    return images


def _stored(path: Path, names: Sequence[str], protocol: ProtocolRecord) -> Tensor:
    if not path.is_file():
        raise EvaluationError(f"expected the protocol's pictures in {path}, found no such file")
    images = torch.empty((len(names), 3, protocol.image_size, protocol.image_size), dtype=torch.uint8)
    with safe_open(path, framework="pt") as file:
        known = set(file.keys())
        for number, name in enumerate(names):
            if name not in known:
                raise EvaluationError(f"protocol {protocol.name!r} names {name!r}, which {path.parent} lacks")
            if (found := file.get_tensor(name)).shape != images.shape[1:]:
                raise EvaluationError(
                    f"protocol {protocol.name!r}: the picture {name!r} is not the one that was frozen, but of the shape "
                    f"{tuple(found.shape)}"
                )
            images[number] = found
    return images


def check_evaluator(protocol: ProtocolRecord, evaluator: str, features: str, features_sha256: str) -> None:
    """Raises EvaluationError for another evaluator or other features than the protocol's, which are given by hash."""
    for what, expected, found in (
        ("evaluator", protocol.evaluator_sha256, evaluator),
        ("features", protocol.features, features),
        ("weights of the features", protocol.features_sha256, features_sha256),
    ):
        if expected != found:
            raise EvaluationError(
                f"protocol {protocol.name!r} was frozen with the {what} {expected[:20]}, found {found[:20]}; measure with "
                "that one, freeze protocols of your own (`python -m steps.evaluation.freeze`), or set "
                'evaluation.protocols = "splits"'
            )


def calibrate(
    pictures: Sequence[ProtocolPicture],
    images: Tensor,
    *,
    clip: ClipScorer,
    candidates: tuple[list[str], Tensor],
    features: FeatureExtractor,
    reference: NDArray[Any],
) -> tuple[CalibrationPicture, ...]:
    """What the instruments say of these pictures, uint8 (n, 3, H, W).

    `candidates` are the retrieval's captions with their embeddings, `reference` the features (m, d) of the reference.
    """
    captions = [item.caption for item in pictures]
    embedded, found = clip.image_embeddings(images), features(images)
    own = (embedded * clip.text_embeddings(captions)).sum(-1)
    names, texts = candidates
    same = torch.tensor([[name == caption for name in names] for caption in captions])
    margin = own - (embedded @ texts.T).masked_fill(same, -2.0).amax(-1)
    kernel = mean_kernel(found.numpy(), reference)
    apart = (found - found.roll(-1, 0)).double().square().mean(1)
    return tuple(
        CalibrationPicture(
            name=item.name,
            clip_score=float(own[i]),
            retrieval_margin=float(margin[i]),
            kernel=float(kernel[i]),
            feature_distance=float(apart[i]),
        )
        for i, item in enumerate(pictures)
    )


def check_environment(protocol: ProtocolRecord, found: Sequence[CalibrationPicture]) -> None:
    """Raises EvaluationError naming the instrument and picture that are off by more than the protocol tolerates."""
    for instrument in ("clip_score", "retrieval_margin", "kernel", "feature_distance"):
        expected, here = (
            np.array([getattr(item, instrument) for item in items]) for items in (protocol.calibration, found)
        )
        off = np.abs(here - expected) / max(float(np.abs(expected).max()), 1e-12)
        worst = int(off.argmax())
        if not off[worst] <= protocol.tolerance:  # not a number, too
            raise EvaluationError(
                f"calibration failed: protocol {protocol.name!r} expects {instrument} {expected[worst]:.6g} of the "
                f"picture {protocol.calibration[worst].name!r}, found {here[worst]:.6g}; tolerated are "
                f"{protocol.tolerance:.1%} of the largest. Install the versions in constraints.txt"
            )
