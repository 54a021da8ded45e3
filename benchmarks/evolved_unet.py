"""What an evolved UNet saves, and how well the latency table foretells it.

    python -m benchmarks.evolved_unet --unet FOLDER --json benchmarks/results/evolved_unet.json

Base and evolved UNet make guided steps (batch 2) in turn; ratios are of medians, intervals by bootstrap over
the repeats. Without --unet or --spec the units of the largest latency are removed until the budget is met,
which says what that budget brings but nothing about pictures.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from artifacts_schema.architecture import ArchitectureSpec
from artifacts_schema.latency import LatencyTable
from artifacts_schema.run_configs import ComputeConfig
from artifacts_schema.stage_configs import LatencyProfileConfig
from benchmarks.published import ROOT, Metric, publish, result
from steps.evolution.actions import Budget
from steps.inputs.context import StageContext, configure_torch
from steps.latency.table import predict
from steps.latency.timing import clock_for, interleaved, quiet
from steps.models.base import BaseModel, load_base
from steps.pretraining.micro import write_micro_base
from steps.stages import latency_profile
from steps.store.local import LocalStore
from steps.unet.architecture import remove_unit
from steps.unet.blocks import full_spec
from steps.unet.conversion import build
from steps.unet.evolved import EvolvedUNet

logger = logging.getLogger(__name__)
_RESAMPLES = 2000


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default=str(ROOT / "assets/base"), help="diffusers folder, or 'micro'")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--unet", type=Path, help="folder of a saved EvolvedUNet")
    source.add_argument("--spec", type=Path, help="JSON file of an ArchitectureSpec")
    source.add_argument("--budget", type=float, default=0.5, help="remove the largest units down to this")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Parse, measure, publish."""
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    options = arguments()
    configure_torch(ComputeConfig(threads=options.threads))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        path = write_micro_base(scratch / "base") if options.base == "micro" else Path(options.base)
        base = load_base(path)
        table = measured_table(base, options, scratch)
        evolved = evolved_unet(base, table, options)
        metrics = compare(base, evolved, table, options)
    publish(result(metrics, module="benchmarks.evolved_unet", seed=options.seed), options.json)


def measured_table(base: BaseModel, options: argparse.Namespace, scratch: Path) -> LatencyTable:
    """The latency table of the base on this machine."""
    context = StageContext(
        stage="latency_profile", store=LocalStore(scratch / "store"), work=scratch, seed=options.seed
    )
    config = LatencyProfileConfig(repeats=options.repeats, warmup=options.warmup)
    return latency_profile.profile(base, config, context)


def evolved_unet(base: BaseModel, table: LatencyTable, options: argparse.Namespace) -> EvolvedUNet:
    """The UNet to measure."""
    if options.unet is not None:
        unet: EvolvedUNet = EvolvedUNet.from_pretrained(
            options.unet, use_safetensors=True, local_files_only=True
        ).float()
        return unet
    if options.spec is not None:
        return build(ArchitectureSpec.from_json(options.spec.read_text(encoding="utf-8")), base.unet)
    return build(largest_removed(table, base.unet.config, options.budget), base.unet)


def largest_removed(table: LatencyTable, unet_config: Any, fraction: float) -> ArchitectureSpec:
    """The base without its slowest units, as few of them as the budget asks for."""
    budget = Budget.of(table, unet_config, fraction)
    spec = full_spec(unet_config, name=f"largest-removed-{fraction:g}")
    while not budget.is_met(spec):
        removals = budget.removals(spec)
        if not removals:
            raise SystemExit(f"no removal reaches {fraction:g}; the least is {budget.predict(spec)}")
        spec = remove_unit(spec, unet_config, max(removals, key=lambda change: change.saves).target)
    return spec


def compare(
    base: BaseModel, evolved: EvolvedUNet, table: LatencyTable, options: argparse.Namespace
) -> list[Metric]:
    """Interleaved guided steps of both UNets, against the table's prediction."""
    inputs = guided_inputs(base, table.batch)
    calls = {"base": _call(base.unet, inputs), "evolved": _call(evolved, inputs)}
    with quiet(base.unet, evolved):
        times = interleaved(
            calls, clock=clock_for(torch.device("cpu")), warmup=options.warmup, repeats=options.repeats
        )
    ratio = median(times["base"]) / median(times["evolved"])
    low, high = bootstrap_ratio(times["base"], times["evolved"], seed=options.seed)
    predicted = table.whole / predict(table, evolved.spec)
    errors = sorted(abs(bound / predicted - 1.0) for bound in (low, high))
    sizes = [sum(p.numel() for p in unet.parameters()) for unet in (base.unet, evolved)]
    n = options.repeats
    note = (
        f"{evolved.spec.name}: {len(evolved.spec.removed)} blocks removed, {len(evolved.spec.copied)} copied"
    )
    return [
        Metric("unet.latency_ratio", ratio, "x", n, low, high, note),
        _exact("unet.param_ratio", sizes[0] / sizes[1], "x", note),
        Metric(
            "unet.table_error",
            abs(ratio / predicted - 1.0),
            "",
            n,
            0.0 if low <= predicted <= high else errors[0],
            errors[1],
            f"the table foretells {predicted:.3f}",
        ),
        Metric("unet.base_step_ms", median(times["base"]), "ms", n, *_spread(times["base"]), "p10, p90"),
        Metric(
            "unet.evolved_step_ms", median(times["evolved"]), "ms", n, *_spread(times["evolved"]), "p10, p90"
        ),
        _exact("unet.table_explained", table.explained, "", "sum of the parts over the whole guided step"),
    ]


def guided_inputs(base: BaseModel, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (B, c, h, w), timesteps (B,) and text (B, tokens, width)."""
    generator = torch.Generator().manual_seed(0)
    tokens, width = base.tokenizer.model_max_length, base.text_encoder.config.hidden_size
    latents = torch.randn(batch, *base.latent_shape, generator=generator)
    return latents, torch.full((batch,), 500), torch.randn(batch, tokens, width, generator=generator)


def bootstrap_ratio(one: Sequence[float], other: Sequence[float], *, seed: int) -> tuple[float, float]:
    """95 % interval of the ratio of medians, resampling the repeats in pairs."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.tensor([list(one), list(other)], dtype=torch.float64)
    draws = torch.randint(len(one), (_RESAMPLES, len(one)), generator=generator)
    medians = pairs[:, draws].median(dim=-1).values  # (2, resamples)
    low, high = (medians[0] / medians[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _call(unet: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Callable[[], Any]:
    return lambda: unet(*inputs, return_dict=False)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    low, high = (
        torch.tensor(values, dtype=torch.float64)
        .quantile(torch.tensor([0.1, 0.9], dtype=torch.float64))
        .tolist()
    )
    return low, high


def _exact(name: str, value: float, unit: str, note: str) -> Metric:
    return Metric(name, value, unit, 1, value, value, note)


if __name__ == "__main__":
    main()
