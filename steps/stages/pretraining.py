"""The stages of `flows/pretrain_flow.py`, each resumable and skipped when it is done.

python -m steps.stages.pretraining unet        # one stage, without Metaflow
"""

import argparse
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from artifacts_schema.data import PreparedDataRef
from artifacts_schema.pretraining import ClipModelConfig, PretrainingConfig, load_pretraining_config
from artifacts_schema.run_configs import DataConfig
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_data
from steps.files.progress import Progress, TerminalProgress
from steps.inputs.context import StageContext
from steps.models.base import BaseModel, load_base
from steps.models.base_folder import folder_identity
from steps.models.clip import save_clip
from steps.models.stored import load_model
from steps.models.whole import load_whole
from steps.pretraining.autoencoder import LATENT_CHANNELS, psnr_db, train_autoencoder
from steps.pretraining.base import SHARD, new_unet, train_unet, write_base
from steps.pretraining.openclip import model_cfg, retrieval_top1, text_tower, train_openclip
from steps.pretraining.pictures import Pictures, load_pictures
from steps.pretraining.tokenizer import load_tokenizer, train_tokenizer
from steps.store import LocalStore
from steps.training.outcome import TrainingOutcome

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    "tokenizer",
    "openclip_signal",
    "autoencoder",
    "openclip_measure",
    "unet",
    "velocity_warm_start",
    "robust_warm_start",
    "model_cards",
)
_MEASURED_VARIANTS = 2  # of every held-out caption, for the evaluators' retrieval
# Every training has its own stream of random draws, numbered and not named so that they are easy to read in a card.
_STREAMS = {
    "openclip_signal": 1,
    "autoencoder": 2,
    "unet": 3,
    "openclip_measure": 4,
    "velocity": 5,
    "robust": 6,
}


@dataclass(frozen=True)
class Pretraining:
    """One pretraining: its configuration and how it shows progress. `work` is kept, `output` is what ships."""

    config: PretrainingConfig
    progress: Progress

    @property
    def work(self) -> Path:
        """Checkpoints and summaries."""
        return ROOT / self.config.work

    @property
    def output(self) -> Path:
        """The folder that ships, `assets/`."""
        return ROOT / self.config.output

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of base and evaluators."""
        return load_tokenizer(self.work / "tokenizer")

    def pictures(self, split: Any, variants: int | None = None) -> Pictures:
        """One split of OpenMoji, with the configured number of variants unless told otherwise."""
        return load_pictures(
            split,
            size=self.config.image_size,
            tokenizer=self.tokenizer,
            variants=variants or self.config.variants,
            cache=self.work / "pictures",
        )

    def run(self, stage: str) -> dict[str, Any]:
        """Run one stage unless its summary is there already; returns the summary."""
        summary = self.work / "summaries" / f"{stage}.json"
        if summary.is_file() and stage != "model_cards":
            found: dict[str, Any] = json.loads(summary.read_text())
            if found.get("config") == self._section(stage):
                logger.info("stage=%s is done", stage)
                return found
        result: dict[str, Any] = getattr(self, f"_{stage}")() | {"config": self._section(stage)}
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(json.dumps(result, indent=2) + "\n")
        return result

    def _section(self, stage: str) -> Any:
        name = {"velocity_warm_start": "velocity_finetuning", "robust_warm_start": "robust_training"}.get(
            stage, stage
        )
        section = getattr(self.config, name, None)
        return section.model_dump(mode="json") if section is not None else None

    def _tokenizer(self) -> dict[str, Any]:
        from steps.data.openmoji import list_openmoji

        captions = [item.caption for item in list_openmoji() if item.split == "train"]
        train_tokenizer(captions, self.work / "tokenizer", entries=self.config.vocabulary)
        return {"captions": len(captions), "entries": len(load_tokenizer(self.work / "tokenizer"))}

    def _openclip_signal(self) -> dict[str, Any]:
        return self._openclip("openclip_signal", self.config.openclip_signal)

    def _openclip_measure(self) -> dict[str, Any]:
        return self._openclip("openclip_measure", self.config.openclip_measure)

    def _openclip(self, name: str, config: ClipModelConfig) -> dict[str, Any]:
        cfg = model_cfg(config, image_size=self.config.image_size, vocabulary=len(self.tokenizer))
        outcome, chosen = train_openclip(
            config,
            cfg,
            self.pictures("train"),
            self.pictures("validation", _MEASURED_VARIANTS),
            seed=self._seed(name),
            folder=self.work / name,
            progress=self.progress,
            description=name,
        )
        model: Any = outcome.model
        save_clip(
            model,
            self.work / "tokenizer",
            self.output / "evaluators" / name,
            model_cfg=cfg,
            size=self.config.image_size,
        )
        if name == "openclip_signal":
            text_tower(model, cfg, self.tokenizer).save_pretrained(self.work / "text_encoder")
        retrieval = {
            f"{split}_retrieval_top1": retrieval_top1(model, self.pictures(split, _MEASURED_VARIANTS))
            for split in ("validation", "test", "novel")
        }
        return _training_summary(outcome) | chosen | retrieval

    def _autoencoder(self) -> dict[str, Any]:
        outcome, chosen = train_autoencoder(
            self.config.autoencoder,
            self.pictures("train"),
            self.pictures("validation"),
            seed=self._seed("autoencoder"),
            folder=self.work / "autoencoder",
            progress=self.progress,
        )
        model: Any = outcome.model
        model.save_pretrained(self.work / "vae")
        scores = {
            f"{split}_psnr_db": psnr_db(model, self.pictures(split).spread(1024).images)
            for split in ("train", "validation", "test", "novel")
        }
        return _training_summary(outcome) | chosen | scores | {"scaling_factor": model.config.scaling_factor}

    def _unet(self) -> dict[str, Any]:
        unet, data = self._untrained_unet(), self._data()
        outcome, chosen = train_unet(
            self.config.unet,
            unet,
            data,
            seed=self._seed("unet"),
            folder=self.work / "unet",
            progress=self.progress,
        )
        self._write_base(self.output / "base", outcome.model)
        return _training_summary(outcome) | chosen

    def _velocity_warm_start(self) -> dict[str, Any]:
        from steps.stages import velocity_finetuning

        base, context = load_base(self.output / "base"), self._context("velocity")
        record = velocity_finetuning.finetune(base, self._data(), self.config.velocity_finetuning, context)
        self._write_warm_start("velocity", load_model(context.store, record.weights), base)
        (self.work / "velocity.json").write_text(record.to_json())
        return {"iterations": record.iterations, "curve": list(record.curve)}

    def _robust_warm_start(self) -> dict[str, Any]:
        from artifacts_schema.training import TrainingRecord
        from steps.stages import robust_training

        base, context = load_base(self.output / "base"), self._context("robust")
        velocity = TrainingRecord.from_json((self.work / "velocity.json").read_text())
        record = robust_training.train_robust(
            base, velocity.weights, self._data(), self.config.robust_training, context
        )
        self._write_warm_start("robust", load_model(context.store, record.weights), base)
        return {"iterations": record.iterations, "curve": list(record.curve)}

    def _model_cards(self) -> dict[str, Any]:
        from steps.pretraining.model_cards import write_model_cards

        return write_model_cards(self.output, self.work, load_base(self.output / "base"), self._data())

    def _seed(self, name: str) -> int:
        return self.config.seed + _STREAMS[name]

    def _context(self, name: str) -> StageContext:
        return StageContext(
            stage=f"{name}_warm_start",
            store=self._store,
            work=self.work / f"{name}_warm_start",
            seed=self._seed(name),
            progress=self.progress,
        )

    @property
    def _store(self) -> LocalStore:
        return LocalStore(self.work / "store")

    def _data(self) -> PreparedData:
        """Latents and embeddings of the shipped float16 encoder and text tower, made once."""
        draft = self._draft_base()
        note = self.work / "prepared.json"
        identity = folder_identity(draft.path)
        if note.is_file() and (found := json.loads(note.read_text()))["base"] == identity:
            return PreparedData.load(self._store, PreparedDataRef.from_json(found["data"]))
        config = DataConfig(variants=self.config.variants)
        ref = prepare_data(draft, config, self._store, progress=self.progress)
        note.write_text(json.dumps({"base": identity, "data": ref.to_json()}))
        return PreparedData.load(self._store, ref)

    def _draft_base(self) -> BaseModel:
        """The base before its UNet is trained."""
        folder = self.work / "draft_base"
        if not (folder / "model_index.json").is_file():
            self._write_base(folder, self._untrained_unet())
        return load_base(folder)

    def _write_base(self, folder: Path, unet: Any) -> None:
        write_base(
            folder,
            unet=unet,
            vae=load_whole(AutoencoderKL, self.work / "vae"),
            text_encoder=load_whole(CLIPTextModel, self.work / "text_encoder"),
            tokenizer=self.tokenizer,
        )

    def _untrained_unet(self) -> UNet2DConditionModel:
        vae = json.loads((self.work / "vae" / "config.json").read_text())
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return new_unet(
            self.config.unet,
            latent_size=self.config.image_size // factor,
            latent_channels=LATENT_CHANNELS,
            text_width=self.config.openclip_signal.text_width,
        )

    def _write_warm_start(self, name: str, unet: Any, base: BaseModel) -> None:
        folder = self.output / "warm_starts" / name
        unet.half().save_pretrained(folder, safe_serialization=True, max_shard_size=SHARD)
        note = {"base_identity": folder_identity(base.path), "prediction_type": "v_prediction"}
        (folder / "warm_start.json").write_text(json.dumps(note, indent=2) + "\n")


def _training_summary(outcome: TrainingOutcome) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in outcome.model.parameters())
    return {"iterations": outcome.iterations, "parameters": parameters, "curve": outcome.curve}


def main() -> None:
    """Command line: run the named stages, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", default=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "pretrain.toml")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    unknown = set(arguments.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; known are {', '.join(STAGES)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(arguments.threads)
    work = Pretraining(load_pretraining_config(arguments.config.read_text()), TerminalProgress())
    for stage in arguments.stages:
        work.run(stage)


if __name__ == "__main__":
    main()
