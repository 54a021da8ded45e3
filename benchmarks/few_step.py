"""What step distillation is worth: students of 8, 4 and 2 steps against plain sampling in as many steps.

    python -m benchmarks.few_step --iterations 300 --json benchmarks/results/few_step.json

The v UNet is its own first teacher: 16 steps are halved to 8, these to 4, these to 2. Everything is drawn
from the same noise and test captions. Distances to the 50-step result are between final latents, whose
variance is about 1; kernel distance and CLIP score are those of `steps.evaluation`. Interrupted runs go on
where they were.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts_schema.base import content_hash
from artifacts_schema.distillation_configs import DistillationStageConfig, StepDistillationConfig
from artifacts_schema.run_configs import ComputeConfig
from artifacts_schema.stage_configs import TrainingConfig
from benchmarks.few_step_metrics import REFERENCE, Measured, metrics, picture_grid
from benchmarks.published import ROOT, publish, result
from benchmarks.setting import TestCaptions, begin, parser_for, prepared, velocity_unet
from steps.diffusion.losses import Sampling
from steps.diffusion.parameterization import PredictionType
from steps.diffusion.sampler import Sampler, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.distances import clustered_mean
from steps.files.progress import TerminalProgress
from steps.inputs.context import StageContext, select_device
from steps.models.base import load_base
from steps.models.base_folder import folder_identity
from steps.stages.step_distillation import distil
from steps.store import LocalStore
from steps.training.randomness import spawn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One way to draw pictures."""

    name: str
    unet: nn.Module
    steps: int
    prediction_type: PredictionType
    sampler: Sampler = "ddim"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = parser_for(__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / ".snapfusion/benchmarks/few_step")
    parser.add_argument(
        "--students", type=int, nargs="+", default=[8, 4, 2], help="steps, each half of the last"
    )
    parser.add_argument("--iterations", type=int, default=300, help="per halving")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--cfg-probability", type=float, default=0.1)
    parser.add_argument("--cfg-range", type=float, nargs=2, default=[2.0, 14.0])
    parser.add_argument("--gamma", type=float, default=0.2)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--data-limit", type=int, help="at most so many pictures per split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", type=Path, help="PNG with a row per variant")
    return parser.parse_args()


class FewStep:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = select_device(ComputeConfig())
        self.store = LocalStore(options.work / "store")
        self.base = load_base(options.base)
        self.schedule = NoiseSchedule.from_config(self.base.scheduler_config)
        self.data = prepared(self.base, self.store, options.data_limit)
        self.test = TestCaptions(self.base, self.data, options, noise="few step", count=options.pictures)

    def students(self, velocity: nn.Module) -> dict[int, nn.Module]:
        """Halve the number of steps again and again; every student is the next one's teacher and start."""
        teacher, students = velocity, {}
        for steps in self.options.students:
            student = _copy(teacher)
            outcome = self.distil(teacher, student, steps)
            teacher = students[steps] = outcome.requires_grad_(False)
        return students

    def distil(self, teacher: nn.Module, student: nn.Module, steps: int) -> nn.Module:
        """One halving, in a work folder named after everything that decides its result."""
        options = self.options
        shared = StepDistillationConfig(
            cfg_probability=options.cfg_probability,
            cfg_range=tuple(options.cfg_range),
            gamma=options.gamma,
        )
        training = TrainingConfig(
            iterations=options.iterations,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        )
        context = StageContext(
            stage=f"student_{steps}",
            store=self.store,
            work=self.work_folder(f"student_{steps}"),
            seed=spawn(options.seed, f"student_{steps}"),
            device=self.device,
            progress=TerminalProgress(),
        )
        outcome = distil(
            teacher.to(self.device),
            student.requires_grad_(True).to(self.device),
            Sampling(self.data, self.schedule, shared.caption_dropout, self.device),
            self.base.latent_shape,
            shared=shared,
            config=DistillationStageConfig(training=training),
            context=context,
            student_steps=steps,
            cfg_aware=True,
        )
        return outcome.model

    def work_folder(self, name: str) -> Path:
        """Where what `name` stands for is kept; another training gets another folder."""
        options = vars(self.options)
        decisive = (
            "students",
            "iterations",
            "batch_size",
            "learning_rate",
            "cfg_probability",
            "cfg_range",
            "gamma",
        )
        key = content_hash(
            {key: options[key] for key in (*decisive, "data_limit", "seed")}
            | {"base": folder_identity(options["base"]), "velocity": folder_identity(options["velocity"])}
        )
        folder = Path(options["work"]) / key[:16] / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def variants(self) -> list[Variant]:
        """Reference, students, and plain sampling of the v UNet (DDIM) and of the base (DPM-Solver++)."""
        velocity = velocity_unet(self.options).to(self.device)
        base = self.base.unet.to(self.device)
        kind = self.base.prediction_type
        variants = [
            Variant(REFERENCE, velocity, 50, "v_prediction"),
            Variant("base_50", base, 50, kind),
        ]
        for steps, student in self.students(velocity).items():
            variants += [
                Variant(f"student_{steps}", student, steps, "v_prediction"),
                Variant(f"velocity_{steps}_ddim", velocity, steps, "v_prediction"),
                Variant(f"velocity_{steps}_dpm", velocity, steps, "v_prediction", "dpm"),
                Variant(f"base_{steps}_dpm", base, steps, kind, "dpm"),
            ]
        return variants

    def draw(self, variant: Variant) -> Tensor:
        """Final latents (n, c, h, w) of a variant, kept on disk."""
        options = self.options
        path = (
            self.work_folder("latents")
            / f"{variant.name}-{options.pictures}-{options.guidance:g}.safetensors"
        )
        if path.is_file():
            return load_file(path)["latents"]
        progress = TerminalProgress()
        progress.start(variant.name, options.pictures)
        latents = sample_latents(
            variant.unet,
            self.schedule,
            noise=self.test.noise,
            embeddings=self.test.embeddings,
            empty_embedding=self.data.empty_embedding,
            steps=variant.steps,
            guidance_scale=options.guidance,
            prediction_type=variant.prediction_type,
            sampler=variant.sampler,
            progress=progress,
        )
        progress.close()
        partial = path.with_suffix(".partial")
        save_file({"latents": latents.contiguous()}, partial)
        partial.rename(path)
        return latents


def measure(run: FewStep, variants: Sequence[Variant]) -> dict[str, Measured]:
    """Draw and measure every variant."""
    reference = run.draw(variants[0])
    run.base.vae.to(run.device)
    measured = {}
    for variant in variants:
        latents = run.draw(variant)
        judged = run.test.judge(latents)
        errors = (latents - reference).square().flatten(1).mean(1).double().numpy()
        error, clip = (clustered_mean(values, run.test.groups) for values in (errors, judged.clip))
        measured[variant.name] = Measured(judged.pictures, error, clip, judged.distance)
        logger.info(
            "%s: squared error %.4f, kernel distance %.4f", variant.name, error.value, judged.distance.value
        )
    return measured


def _copy(model: Any) -> nn.Module:
    fresh: nn.Module = type(model).from_config(model.config)
    fresh.load_state_dict(model.state_dict())
    return fresh


def main(parse: Callable[[], argparse.Namespace] = arguments) -> None:
    """Train, draw, measure, publish."""
    options = parse()
    begin(options)
    run = FewStep(options)
    variants = run.variants()
    measured = measure(run, variants)
    rows = metrics(measured, options.students)
    publish(result(rows, module="benchmarks.few_step", seed=options.seed), options.json)
    if options.grid is not None:
        names = [REFERENCE] + [
            name
            for n in options.students
            for name in (f"student_{n}", f"velocity_{n}_ddim", f"velocity_{n}_dpm")
        ]
        options.grid.parent.mkdir(parents=True, exist_ok=True)
        options.grid.write_bytes(picture_grid(measured, names))
        logger.info("%s: rows are %s", options.grid, ", ".join(names))


if __name__ == "__main__":
    main()
