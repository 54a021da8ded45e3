"""Model cards of the shipped weights: curves, pictures and numbers, from what the trainings left behind."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import torch
import vl_convert

from steps.data.openmoji import ATTRIBUTION
from steps.data.prepared import PreparedData
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.features import EfficientNetLite0
from steps.evaluation.pictures import grid, png
from steps.models.base import BaseModel
from steps.pretraining.seeds import seed_ratios
from steps.training.randomness import keyed_normal

_SAMPLES = 24
_SEEDS = 4
_STEPS = 50
_GUIDANCE = 3.0
_LICENCE = f"""
## Licence and data

CC BY-SA 4.0, because of the pictures it was trained on. {ATTRIBUTION}.
Captions are the English names of the PyPI package `emoji` (BSD-3-Clause).
"""


def write_model_cards(output: Path, work: Path, base: BaseModel, data: PreparedData) -> dict[str, Any]:
    """Write README.md, curves and pictures beside every shipped model; returns the numbers they state."""
    summaries = {
        path.stem: json.loads(path.read_text()) for path in sorted((work / "summaries").glob("*.json"))
    }
    ratios = seed_ratios(
        base,
        data,
        EfficientNetLite0(),
        captions=_SAMPLES,
        seeds=_SEEDS,
        steps=_STEPS,
        guidance_scale=_GUIDANCE,
    )
    _base_card(output / "base", summaries, base, data, ratios)
    for name in ("openclip_signal", "openclip_measure"):
        if name in summaries:
            _openclip_card(output / "evaluators" / name, name, summaries[name])
    for name in ("velocity", "robust"):
        if f"{name}_warm_start" in summaries:
            _warm_start_card(output / "warm_starts" / name, name, summaries[f"{name}_warm_start"])
    cards = sorted(path.relative_to(output).as_posix() for path in output.rglob("README.md"))
    return {"cards": cards, "seed_ratios": ratios}


def _write_curves(folder: Path, vae: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """The curves of both trainings, as pictures and as tables."""
    _write_curve(folder / "curve_unet.png", unet["curve"], "loss", "UNet: eps mean squared error", skip=4)
    _write_curve(
        folder / "curve_validation.png",
        [row for row in unet["curve"] if "validation_l_ori" in row],
        "validation_l_ori",
        "UNet: L_ori on validation, averaged weights",
    )
    _write_curve(
        folder / "curve_autoencoder.png", vae["curve"], "mse", "Autoencoder: mean squared error", skip=2
    )
    # Not JSON: every JSON file of a base belongs to its identity.
    pd.DataFrame(unet["curve"]).to_csv(folder / "curve_unet.csv", index=False)
    pd.DataFrame(vae["curve"]).to_csv(folder / "curve_autoencoder.csv", index=False)


def _base_card(
    folder: Path,
    summaries: Mapping[str, Any],
    base: BaseModel,
    data: PreparedData,
    ratios: Mapping[str, float],
) -> None:
    vae, unet = summaries["autoencoder"], summaries["unet"]
    captions = _write_samples(folder / "samples.png", base, data)
    _write_reconstructions(folder / "reconstructions.png", base, data)
    _write_curves(folder, vae, unet)
    training = unet["config"]["training"]
    (folder / "README.md").write_text(
        f"""# The embedded base: a Stable Diffusion in miniature

Text to 64 x 64 emoji. CLIPTextModel, AutoencoderKL (f = 4) and UNet2DConditionModel with Stable Diffusion 1's topology,
eps-prediction, trained from scratch on the train split of OpenMoji ({data.size("train")} drawings) on two CPU cores.
It exists so that the pipeline has something real to make small without any download. It is a small model, briefly
trained: people, skin tones, flags and simple objects come out, fine detail does not.

| part | parameters | training | measured |
|---|---|---|---|
| text encoder | {_count(base.text_encoder)} | the text tower of `openclip_signal`, frozen | |
| autoencoder | {_count(base.vae)} | {vae["iterations"]} iterations | PSNR {vae["validation_psnr_db"]:.1f} dB on validation, {vae["test_psnr_db"]:.1f} dB on test |
| UNet | {_count(base.unet)} | {unet["iterations"]} iterations of {training["batch_size"]}, learning rate {training["learning_rate"]:g} | validation L_ori {unet["best_validation_l_ori"]:.3f} at iteration {unet["best_iteration"]:.0f}, which was chosen |

Made by `python flows/pretrain_flow.py run` (configuration: `configs/pretrain.toml`). More iterations continue from the
checkpoints. The byte-level BPE learner breaks ties between merges at random, so a training from scratch gets other
token ids than the shipped ones.

## Pictures

{_SAMPLES} captions of the test split: known words in combinations that no training saw; DDIM, {_STEPS} steps, guidance {_GUIDANCE:g}:

![samples](samples.png)

{"; ".join(captions)}.

Distance between {_SEEDS} seeds of one caption, as a share of that between captions (EfficientNet-Lite0 features, {_SAMPLES}
captions of validation): {ratios["base"]:.2f}; between real pictures of one caption: {_or_unknown(ratios.get("real"))}.

Reconstructions of test pictures by the autoencoder (above: real, below: decoded):

![reconstructions](reconstructions.png)

## Curves

![UNet](curve_unet.png)
![UNet, validation](curve_validation.png)
![autoencoder](curve_autoencoder.png)
{_LICENCE}""",
        encoding="utf-8",
    )


def _openclip_card(folder: Path, name: str, summary: Mapping[str, Any]) -> None:
    role = (
        "Guides decisions (evolution); its text tower is the base's."
        if name.endswith("signal")
        else "Only measures."
    )
    _write_curve(folder / "curve.png", summary["curve"], "loss", f"{name}: contrastive loss")
    config = summary["config"]
    (folder / "README.md").write_text(
        f"""# {name}

{role} A small OpenCLIP model ({summary["parameters"] / 1e6:.2f} M parameters, seed {config["seed"]}), trained for
{summary["iterations"]} iterations of {config["training"]["batch_size"]} on the train split of OpenMoji alone.

Chosen at iteration {summary["best_iteration"]:.0f} by retrieval on validation. Retrieval of a real picture's own caption among
all captions of its split (chance: 0.4 %; the other skin tones of a pair count as wrong): test
{summary["test_retrieval_top1"]:.0%}, validation {summary["validation_retrieval_top1"]:.0%}; novel (a word that train lacks)
{summary["novel_retrieval_top1"]:.0%}.

![curve](curve.png)
{_LICENCE}""",
        encoding="utf-8",
    )


def _warm_start_card(folder: Path, name: str, summary: Mapping[str, Any]) -> None:
    stage = {"velocity": "velocity_finetuning", "robust": "robust_training"}[name]
    _write_curve(folder / "curve.png", summary["curve"], "loss", f"{stage}: loss")
    (folder / "README.md").write_text(
        f"""# Warm start: {name}

The base's UNet after {summary["iterations"]} iterations of `{stage}`, with v-prediction. Runs with
`base.warm_start = true` start this stage from here; `false` trains it from the base.

![curve](curve.png)
{_LICENCE}""",
        encoding="utf-8",
    )


def _write_samples(path: Path, base: BaseModel, data: PreparedData) -> list[str]:
    """Test captions drawn by the base; returns the captions."""
    every = data.captions("test")
    indices = torch.arange(0, len(every), max(1, len(every) // _SAMPLES))[:_SAMPLES]
    latents = sample_latents(
        base.unet,
        NoiseSchedule.from_config(base.scheduler_config),
        noise=keyed_normal(base.latent_shape, seed=0, name="card", iteration=0, indices=indices),
        embeddings=data.embeddings("test", indices),
        empty_embedding=data.empty_embedding,
        steps=_STEPS,
        guidance_scale=_GUIDANCE,
        prediction_type=base.prediction_type,
    )
    images = decode_latents(base.vae, latents, scaling_factor=base.scaling_factor)
    path.write_bytes(png(grid(images, columns=8)))
    return [every[index] for index in indices.tolist()]


def _write_reconstructions(path: Path, base: BaseModel, data: PreparedData) -> None:
    indices = torch.linspace(0, data.size("test") - 1, 12).long()
    real = data.images("test", indices)
    with torch.no_grad():
        latents = base.vae.encode(real.float() / 127.5 - 1).latent_dist.mean * base.scaling_factor
    decoded = decode_latents(base.vae, latents, scaling_factor=base.scaling_factor)
    path.write_bytes(png(grid(torch.cat([real, decoded]), columns=12)))


def _write_curve(path: Path, curve: Any, name: str, title: str, skip: int = 0) -> None:
    frame = pd.DataFrame([{"iteration": row["iteration"], name: row[name]} for row in curve[skip:]])
    chart = (
        alt.Chart(frame, title=title)
        .mark_line()
        .encode(x="iteration:Q", y=alt.Y(f"{name}:Q", scale=alt.Scale(zero=False)))
        .properties(width=560, height=200)
    )
    path.write_bytes(vl_convert.vegalite_to_png(json.dumps(chart.to_dict()), scale=1.5))


def _or_unknown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _count(module: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"
