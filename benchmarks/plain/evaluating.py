"""(d) Evaluation of several variants against clean-fid's `compute_fid` and OpenCLIP, called once a variant on folders of PNGs.

Both measure with the same features (EfficientNet-Lite0: Inception's weights come with no package) and the same evaluator.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from cleanfid import fid
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from benchmarks.plain.setting import SEED, Setting, agreement, ratio, speed, timed
from benchmarks.published import ROOT, Metric
from steps.evaluation.bench import groups_of
from steps.evaluation.distances import frechet_distance, kernel_distance
from steps.evaluation.features import EfficientNetLite0
from steps.models.clip import ClipScorer
from steps.training.randomness import keyed_normal

_EVALUATOR = ROOT / "assets/evaluators/openclip_measure"
Values = dict[str, float]


def variants_of(pictures: Tensor, count: int) -> dict[str, Tensor]:
    """Pictures that are worse and worse: what each variant would have drawn."""
    noise = keyed_normal(
        tuple(pictures.shape[1:]), seed=SEED, name="plain", iteration=0, indices=torch.arange(len(pictures))
    )
    return {
        f"variant_{number}": (pictures.float() + 12.0 * number * noise).round().clamp(0, 255).byte()
        for number in range(1, count + 1)
    }


def write_pngs(pictures: Tensor, folder: Path) -> Path:
    """One file a picture, named by its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
    return folder


def plain(variants: dict[str, Tensor], captions: list[str], real: Path, folder: Path) -> Values:
    """Distance and mean CLIP score of every variant, as a script of a few lines has them."""
    found: Values = {}
    for name, pictures in variants.items():
        drawn = write_pngs(pictures, folder / name)
        features: Any = EfficientNetLite0()
        with contextlib.redirect_stdout(io.StringIO()):
            found[f"{name} distance"] = fid.compute_fid(
                str(drawn), str(real), custom_feat_extractor=features, custom_fn_resize=lambda picture: picture,
                num_workers=0, batch_size=32, device=torch.device("cpu"), verbose=False, use_dataparallel=False,
            )  # fmt: skip
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{_EVALUATOR}")
        model.eval()
        tokenizer = CLIPTokenizer.from_pretrained(_EVALUATOR)
        scores = []
        for start in range(0, len(captions), 32):
            files = sorted(drawn.glob("*.png"))[start : start + 32]
            images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
            tokens = tokenizer(
                captions[start : start + 32], padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            with torch.no_grad():
                image, text = (
                    model.encode_image(images, normalize=True),
                    model.encode_text(tokens, normalize=True),
                )
            scores.append((image * text).sum(-1))
        found[f"{name} clip"] = float(torch.cat(scores).mean())
    return found


def ours(
    variants: dict[str, Tensor], captions: list[str], real: Tensor, *, everything: bool = False
) -> Values:
    """The same values as the stages make them: real pictures measured once, models loaded once a variant.

    `everything`: the kernel distance with its jackknife, too, which decides.
    """
    found: Values = {}
    reference = EfficientNetLite0()(real).numpy()
    groups = groups_of(captions)
    for name, pictures in variants.items():
        features = EfficientNetLite0()(pictures).numpy()
        found[f"{name} distance"] = frechet_distance(features, reference)
        found[f"{name} clip"] = float(ClipScorer.load(_EVALUATOR).scores(pictures, captions).mean())
        if everything:
            kernel_distance(features, reference, groups=groups, real_groups=groups)
    return found


def measure(setting: Setting) -> list[Metric]:
    """Speed-up over the scripts; values of both."""
    base = setting.base()
    data = setting.data(base)
    pictures, many = (8, 1) if setting.quick else (128, 3)
    indices = torch.arange(min(pictures, data.size("test")))
    real, captions = data.images("test", indices), [data.captions("test")[i] for i in indices.tolist()]
    variants, folder = variants_of(real, many), setting.folder / "pngs"
    # Other pictures than the variants were made of.
    others = data.images("train", indices)
    reference = write_pngs(others, folder / "real")
    theirs, mine = plain(variants, captions, reference, folder), ours(variants, captions, others)
    same = agreement("evaluation.value_difference", [(theirs[name], mine[name]) for name in mine], 1e-3)
    times = timed(
        setting,
        {
            "plain": lambda: plain(variants, captions, reference, folder),
            "ours": lambda: ours(variants, captions, others),
            "everything": lambda: ours(variants, captions, others, everything=True),
        },
        repeats=1 if setting.quick else 3,
        warmup=0,
    )
    count = many * len(indices)
    note = f"{many} variants of {len(indices)} pictures, {torch.get_num_threads()} threads"
    return [
        same,
        ratio("evaluation.speedup", times["plain"], times["ours"], note),
        ratio(
            "evaluation.speedup_with_kernel",
            times["plain"],
            times["everything"],
            "with our kernel distance and its jackknife",
        ),
        speed("evaluation.plain", times["plain"], count),
        speed("evaluation.ours", times["ours"], count),
        *causes(variants, captions, reference, folder, np.mean(times["plain"]) / many),
    ]


def causes(
    variants: dict[str, Tensor], captions: list[str], real: Path, folder: Path, each_ms: Any
) -> list[Metric]:
    """Where a script's time for one variant goes, as shares of it."""
    from cleanfid.fid import frechet_distance as clean_distance
    from cleanfid.fid import get_folder_features

    from steps.latency.timing import CpuClock, time_call

    name, pictures = next(iter(variants.items()))
    features: Any = EfficientNetLite0()
    found = get_folder_features(
        str(real),
        features,
        num_workers=0,
        device=torch.device("cpu"),
        verbose=False,
        custom_fn_resize=lambda x: x,
    )
    mean, covariance = found.mean(0), np.cov(found, rowvar=False)
    with contextlib.redirect_stdout(io.StringIO()):
        parts = {
            "png_files": time_call(lambda: write_pngs(pictures, folder / name), CpuClock()),
            "real_features_again": time_call(lambda: features(next(iter(variants.values()))), CpuClock()),
            "matrix_root": time_call(lambda: clean_distance(mean, covariance, mean, covariance), CpuClock()),
        }
    shares = {key: value / float(each_ms) for key, value in parts.items()}
    note = "of the script's time for one variant; measured once"
    return [
        Metric(f"evaluation.plain.share.{key}", value, "", 1, value, value, note)
        for key, value in shares.items()
    ]
