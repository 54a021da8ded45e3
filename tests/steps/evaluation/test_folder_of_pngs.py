"""On a folder of PNGs the numbers are those of open_clip and clean-fid, computed with their own code from the files."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from cleanfid import fid as cleanfid
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTokenizer

from steps.evaluation.distances import kernel_distance
from steps.evaluation.features import Inception
from steps.models.clip import ClipScorer
from steps.pretraining.micro import write_micro_openclip

COUNT = 12


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Tensor]:
    """A folder of PNGs, and the same as uint8 (n, 3, 64, 64)."""
    found = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, 3, 64, 64), dtype=np.uint8))
    found[:, :, 16:48] = found[:, :, 16:17]  # no noise alone: resizing matters
    (tmp_path / "png").mkdir()
    for number, image in enumerate(found):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "png" / f"{number:03d}.png")
    return tmp_path / "png", found


def test_clip_scores_are_open_clips(pictures: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder, images = pictures
    write_micro_openclip(tmp_path / "clip")
    captions = [f"picture {number}" for number in range(COUNT)]
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "clip", local_files_only=True)
    length = model.context_length
    ids = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        files = torch.stack([preprocess(Image.open(path)) for path in sorted(folder.iterdir())])
        model.eval()
        image = model.encode_image(files, normalize=True)
        text = model.encode_text(ids.input_ids, normalize=True)
    found = ClipScorer.load(tmp_path / "clip").scores(images, captions)
    assert found == pytest.approx((image * text).sum(-1).numpy(), abs=1e-6)


class Layers(nn.Module):
    """Features (n, 12) of pictures of 299 x 299: means of parts of them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_distances_are_clean_fids(pictures: tuple[Path, Tensor]) -> None:
    folder, images = pictures
    layers = Layers()

    def own_model(batch: Tensor) -> Tensor:
        return layers((batch - 128) / 128)

    theirs: Any = cleanfid.get_folder_features(
        str(folder),
        model=own_model,
        num_workers=0,
        batch_size=5,
        device=torch.device("cpu"),
        mode="clean",
        verbose=False,
    )
    inception = object.__new__(Inception)  # without the weights, which nobody may ship
    inception.device, inception.batch_size, inception.layers = torch.device("cpu"), 5, layers
    ours = inception(images).numpy()
    assert ours == pytest.approx(theirs, abs=1e-5)
    a, b = theirs[: COUNT // 2], theirs[COUNT // 2 :]
    expected = cleanfid.kernel_distance(
        a.astype(float), b.astype(float), num_subsets=1, max_subset_size=COUNT // 2
    )
    names = [str(number) for number in range(COUNT)]
    found = kernel_distance(
        ours[: COUNT // 2], ours[COUNT // 2 :], groups=names[: COUNT // 2], real_groups=names[COUNT // 2 :]
    )
    assert found.value == pytest.approx(expected, rel=1e-4)
