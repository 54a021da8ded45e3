"""Evolution against other ways to as fast a UNet, at equal latency and equal repair.

    python -m benchmarks.evolution_rivals --json benchmarks/results/evolution_rivals.json

evolution: the stage. one_shot: the same in a single round. random, slowest: units in random order (--draws of them) or the
slowest first, until the budget is met. pattern: what the paper's final UNet lacks (P Table 3), then the slowest. Latency is
counted in MACs; all train --iterations in all. Scored by the evaluator that guided none of it, on validation captions;
intervals cluster by picture group. Interrupted runs go on.
"""

import argparse
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from artifacts_schema.architecture import ArchitectureSpec
from artifacts_schema.stage_configs import ArchitectureEvolutionConfig, TrainingConfig
from benchmarks.evolution_setup import Setup, parser
from benchmarks.published import ROOT, Metric, publish, result
from steps.data.groups import picture_group
from steps.diffusion.losses import Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.evolution.actions import Budget
from steps.evolution.probe import SPLIT, Probe
from steps.models.clip import ClipScorer
from steps.models.stored import load_model, save_model
from steps.stages import architecture_evolution
from steps.training.loop import train
from steps.training.randomness import epoch_indices, keyed_normal
from steps.unet.architecture import SNAPFUSION_SD15_REMOVED, list_units, remove_unit
from steps.unet.conversion import as_evolved, build
from steps.unet.dropping import SkippingLoss
from steps.unet.evolved import EvolvedUNet

logger = logging.getLogger(__name__)


def arguments() -> argparse.Namespace:
    """The command line."""
    found = parser(__doc__, "evolution_rivals")
    found.add_argument("--measure-clip", type=Path, default=ROOT / "assets/evaluators/openclip_measure")
    found.add_argument("--budget", type=float, default=0.5, help="of the base's MACs")
    found.add_argument("--iterations", type=int, default=600)
    found.add_argument("--batch-size", type=int, default=16)
    found.add_argument("--learning-rate", type=float, default=1e-3)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--actions", type=int, default=18, help="in all rounds together")
    found.add_argument("--captions", type=int, nargs=2, default=[16, 96], help="per batch, and at most")
    found.add_argument("--probe-steps", type=int, default=8)
    found.add_argument("--draws", type=int, default=3, help="of random")
    found.add_argument("--pictures", type=int, default=512)
    found.add_argument("--steps", type=int, default=8)
    found.add_argument("--guidance", type=float, default=3.0)
    return found.parse_args()


def main() -> None:
    """Make every rival, score it, publish the differences."""
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    options = arguments()
    rivals = Rivals(Setup(options))
    scores: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}
    for name in (
        "evolution",
        "one_shot",
        "slowest",
        "pattern",
        *(f"random_{i}" for i in range(options.draws)),
    ):
        unet = rivals.made(name)
        ratios[name] = rivals.budget.predict(unet.spec) / rivals.budget.table.whole
        scores[name] = rivals.scored(name, unet)
        logger.info(
            "%s: %.3f of the latency, CLIP %.4f", name, ratios[name], sum(scores[name]) / len(scores[name])
        )
    metrics = compared(scores, ratios, rivals.captions, seed=options.seed)
    publish(result(metrics, module="benchmarks.evolution_rivals", seed=options.seed), options.json)


class Rivals:
    """Makes and scores them."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.options = setup, setup.options
        self.budget: Budget = setup.budget(self.options.budget)
        self.start = setup.robust()
        self.indices = epoch_indices(
            samples=setup.data.size(SPLIT), start=0, count=self.options.pictures, seed=self.options.seed
        )
        captions = setup.data.captions(SPLIT)
        self.captions = [captions[i] for i in self.indices.tolist()]

    def made(self, name: str) -> EvolvedUNet:
        """The trained UNet of one rival."""
        if name in ("evolution", "one_shot"):
            return self._evolved(self.options.rounds if name == "evolution" else 1)
        return self._repaired(removed_in_order(self.start.spec, self._order(name), self.budget))

    def scored(self, name: str, unet: EvolvedUNet) -> list[float]:
        """CLIP score of every picture, all rivals from the same noise."""
        options, setup = self.options, self.setup
        probe = Probe(
            base=setup.base,
            scorer=ClipScorer.load(options.measure_clip),
            captions=self.captions,
            embeddings=setup.data.embeddings(SPLIT, self.indices),
            empty_embedding=setup.data.empty_embedding,
            noise=keyed_normal(
                setup.base.latent_shape,
                seed=options.seed,
                name="rivals",
                iteration=0,
                indices=torch.arange(options.pictures),
            ),
            batch=32,
            steps=options.steps,
            guidance_scale=options.guidance,
        )
        what = {
            key: str(value) for key, value in vars(options).items() if key not in ("json", "work", "threads")
        }
        found: list[float] = setup.remember(
            f"scores_{name}", lambda: [x for i in range(probe.batches) for x in probe.scores(unet, i)], **what
        )
        return found

    def _training(self) -> TrainingConfig:
        options = self.options
        return TrainingConfig(
            iterations=options.iterations, batch_size=options.batch_size, learning_rate=options.learning_rate
        )

    def _evolved(self, rounds: int) -> EvolvedUNet:
        """The stage itself; it keeps its rounds and takes them up again."""
        options, setup = self.options, self.setup
        config = ArchitectureEvolutionConfig(
            training=self._training(),
            latency_budget=options.budget,
            rounds=rounds,
            actions_per_round=-(-options.actions // rounds),
            captions_per_batch=options.captions[0],
            most_captions=options.captions[1],
            probe_steps=options.probe_steps,
        )
        context = setup.context("evolution", config=config.meaning())
        robust = save_model(setup.store, self.start, schema=architecture_evolution.SCHEMA)
        record = architecture_evolution.evolve(
            setup.base, robust, setup.table, setup.data, setup.scorer, config=config, context=context
        )
        return as_evolved(load_model(setup.store, record.weights)).to(setup.device)

    def _repaired(self, spec: ArchitectureSpec) -> EvolvedUNet:
        """The architecture with the robust UNet's weights, trained on as evolution's last round is."""
        setup, training = self.setup, self._training()
        context = setup.context("repair", layout=spec.layout(), training=training.meaning())
        finished = context.work / "unet"
        if finished.is_dir():
            unet: EvolvedUNet = EvolvedUNet.from_pretrained(
                finished, use_safetensors=True, local_files_only=True
            )
            return unet.eval().requires_grad_(False).to(setup.device)
        sampling = Sampling(
            data=setup.data,
            schedule=NoiseSchedule.from_config(setup.base.scheduler_config),
            caption_dropout=0.1,
            device=setup.device,
        )
        outcome = train(
            build(spec, self.start).requires_grad_(True),
            SkippingLoss(sampling, probability=0.0),
            training=training,
            samples=setup.data.size("train"),
            seed=self.options.seed,
            folder=context.checkpoints(),
            progress=context.progress,
            description="repair",
            device=setup.device,
        )
        unet = as_evolved(outcome.model.requires_grad_(False))
        unet.save_pretrained(context.work / "unet.partial", safe_serialization=True)
        (context.work / "unet.partial").rename(finished)
        return unet

    def _order(self, name: str) -> list[str]:
        """Ids of the units of the unchanged UNet, first to go first."""
        removals = sorted(self.budget.removals(self.start.spec), key=lambda change: -change.saves)
        order = [change.target for change in removals]
        if name == "pattern":
            order = [*(unit for unit in SNAPFUSION_SD15_REMOVED if unit in order), *order]
        elif name != "slowest":
            random.Random(f"{self.options.seed} {name}").shuffle(order)
        return order


def removed_in_order(spec: ArchitectureSpec, order: Sequence[str], budget: Budget) -> ArchitectureSpec:
    """`spec` without the first units of `order`, as few as meet the budget. Raises SystemExit when all do not."""
    for unit in order:
        if budget.is_met(spec):
            return spec
        if unit in {item.id for item in list_units(spec, budget.unet_config)}:
            spec = remove_unit(spec, budget.unet_config, unit)
    if budget.is_met(spec):
        return spec
    raise SystemExit(
        f"all removals together do not reach the budget; the least is {budget.predict(spec):.4g}"
    )


def compared(
    scores: dict[str, list[float]], ratios: dict[str, float], captions: Sequence[str], *, seed: int
) -> list[Metric]:
    """Each one's CLIP score, and evolution's lead over it; the random ones as one, by the mean of every picture."""
    rows = {name: torch.tensor(row, dtype=torch.float64) for name, row in scores.items()}
    names = [name for name in rows if name.startswith("random_")]
    if names:
        rows = {name: row for name, row in rows.items() if name not in names} | {
            "random": torch.stack([rows[name] for name in names]).mean(0)
        }
        ratios = ratios | {"random": sum(ratios[name] for name in names) / len(names)}
    metrics = []
    for name, row in rows.items():
        note = f"{ratios[name]:.3f} of the base's MACs"
        metrics.append(_metric(f"rivals.{name}.clip", row, captions, note, seed))
        if name != "evolution":
            lead = rows["evolution"] - row
            metrics.append(_metric(f"rivals.evolution_minus_{name}.clip", lead, captions, note, seed))
    return metrics


def _metric(name: str, row: torch.Tensor, captions: Sequence[str], note: str, seed: int) -> Metric:
    """Mean with its 95 % interval, resampling whole picture groups."""
    groups: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        groups.setdefault(picture_group(caption), []).append(i)
    sums = torch.stack([row[members].sum() for members in groups.values()])
    sizes = torch.tensor([float(len(members)) for members in groups.values()], dtype=torch.float64)
    draws = torch.randint(len(groups), (2000, len(groups)), generator=torch.Generator().manual_seed(seed))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Metric(name, float(row.mean()), "", len(groups), low, high, f"{note}; n is picture groups")


if __name__ == "__main__":
    main()
