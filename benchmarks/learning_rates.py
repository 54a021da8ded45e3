"""Which learning rate a step distillation wants: its held-out check after equal iterations, from the shipped weights.

    python -m benchmarks.learning_rates --stage teacher_16 --rates 1e-5 3e-5 1e-4 --json FILE

teacher_16 starts from the v UNet and has it as teacher. student_16 and student_8 start from the robust UNet without the
units of `--remove`, which stands in for an evolved one, and have the v UNet as teacher. Finished rates are kept in
`--work`, and an interrupted one goes on from its checkpoint. Compare rates by their last state: the best one is never
worse than the start.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from artifacts_schema.base import content_hash
from artifacts_schema.distillation_configs import DistillationStageConfig, StepDistillationConfig
from artifacts_schema.run_configs import ComputeConfig
from artifacts_schema.stage_configs import TrainingConfig
from artifacts_schema.training import Selection
from benchmarks.published import ROOT, Metric, publish, result
from benchmarks.setting import prepared
from steps.diffusion.losses import Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.files.progress import TerminalProgress
from steps.inputs.context import StageContext, configure_torch, select_device
from steps.models.base import load_base
from steps.models.base_folder import folder_identity
from steps.models.whole import load_whole
from steps.stages.step_distillation import distil
from steps.store import LocalStore
from steps.unet.architecture import remove_unit
from steps.unet.blocks import full_spec, normalise
from steps.unet.conversion import build

logger = logging.getLogger(__name__)
STAGES = {"teacher_16": (16, True), "student_16": (16, False), "student_8": (8, True)}
_REMOVED = ("down.0.attentions.0", "down.0.attentions.1", "up.3.attentions.1", "up.3.attentions.2")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=sorted(STAGES), default="teacher_16")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-5, 3e-5, 1e-4, 3e-4])
    parser.add_argument("--remove", nargs="*", default=_REMOVED, help="units that a student lacks")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--checks", type=int, default=2, help="after that of the start")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--captions", type=int, default=32, help="of every check")
    parser.add_argument("--cfg-range", type=float, nargs=2, default=[2.0, 5.0])
    parser.add_argument("--data-limit", type=int, help="at most so many pictures per split")
    parser.add_argument("--base", type=Path, default=ROOT / "assets/base")
    parser.add_argument("--velocity", type=Path, default=ROOT / "assets/warm_starts/velocity")
    parser.add_argument("--robust", type=Path, default=ROOT / "assets/warm_starts/robust")
    parser.add_argument("--work", type=Path, default=ROOT / ".snapfusion/benchmarks/learning_rates")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Search:
    """What all rates share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        compute = ComputeConfig(threads=options.threads)
        configure_torch(compute)
        self.device = select_device(compute)
        self.store = LocalStore(options.work / "store")
        self.base = load_base(options.base)
        self.data = prepared(self.base, self.store, self.options.data_limit)
        self.folders = [folder_identity(options.base), folder_identity(options.velocity)]
        if options.stage != "teacher_16":
            self.folders += [folder_identity(options.robust), *options.remove]

    def student(self) -> Any:
        """A fresh start of the stage."""
        options = self.options
        if options.stage == "teacher_16":
            return load_whole(UNet2DConditionModel, options.velocity)
        robust = load_whole(UNet2DConditionModel, options.robust)
        geometry = normalise(robust.config)
        spec = full_spec(geometry)
        for unit in options.remove:
            spec = remove_unit(spec, geometry, unit)
        return build(spec, robust)

    def selection(self, rate: float) -> Selection:
        """Held-out numbers of one rate; from the disk when they are there."""
        options, (steps, cfg_aware) = self.options, STAGES[self.options.stage]
        shared = StepDistillationConfig(
            cfg_range=tuple(options.cfg_range), validation_captions=options.captions
        )
        training = TrainingConfig(
            iterations=options.iterations,
            batch_size=options.batch_size,
            learning_rate=rate,
            held_out_checks=options.checks,
        )
        key = content_hash([options.stage, self.folders, shared.meaning(), training.meaning(),
                            options.data_limit, options.seed])  # fmt: skip
        work = options.work / key[:16]
        done = work / "selection.json"
        if done.is_file():
            return Selection.model_validate_json(done.read_text())
        context = StageContext(
            stage=f"{options.stage} at {rate:g}",
            store=self.store,
            work=work,
            seed=options.seed,
            device=self.device,
            progress=TerminalProgress(),
        )
        outcome = distil(
            load_whole(UNet2DConditionModel, options.velocity).requires_grad_(False).to(self.device),
            self.student().requires_grad_(True).to(self.device),
            Sampling(
                self.data,
                NoiseSchedule.from_config(self.base.scheduler_config),
                shared.caption_dropout,
                self.device,
            ),
            self.base.latent_shape,
            shared=shared,
            config=DistillationStageConfig(training=training),
            context=context,
            student_steps=steps,
            cfg_aware=cfg_aware,
        )
        assert outcome.selection is not None  # noqa: S101 - a distillation always has one
        work.mkdir(parents=True, exist_ok=True)
        done.write_text(outcome.selection.model_dump_json())
        return outcome.selection


def metric(stage: str, rate: float, selection: Selection) -> Metric:
    """The last held-out number over that of the start; under 1 the training has helped."""
    first, last = selection.candidates[0], selection.candidates[-1]
    ratio = last.held_out / first.held_out
    course = ", ".join(f"{item.iteration}: {item.held_out:.3g}" for item in selection.candidates)
    note = f"{selection.measure} after iterations {course}; handed on: {selection.chosen}; low, high: no interval"
    return Metric(f"learning_rate.{stage}.{rate:g}", ratio, "x", selection.samples, ratio, ratio, note)


def main(parse: Callable[[], argparse.Namespace] = arguments) -> None:
    """Train at every rate, publish."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse()
    search, rows = Search(options), []
    for rate in options.rates:
        rows.append(metric(options.stage, rate, search.selection(rate)))
        logger.info("%s %.4g: %s", rows[-1].name, rows[-1].value, rows[-1].note)
    publish(result(rows, module="benchmarks.learning_rates", seed=options.seed), options.json)


if __name__ == "__main__":
    main()
