"""Whether evolution's cheap probes rank units as the paper's expensive ones do.

    python -m benchmarks.evolution_scoring --json benchmarks/results/evolution_scoring.json

The paper's protocol in a reduced form scores --units units with --pictures pictures of 50 steps at guidance 7.5, twice with
other captions and noise; its rank correlation with itself is the yardstick. Evolution's own probes draw --captions captions,
one per picture group, in 8 steps. Ranked is CLIP lost per latency saved. Costs are calls of the UNet; interrupted runs go on.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from artifacts_schema.stage_configs import ArchitectureEvolutionConfig
from benchmarks.evolution_setup import Setup, parser
from benchmarks.published import Metric, publish, result
from steps.evolution.probe import SPLIT, Probe
from steps.evolution.rule import Change
from steps.training.randomness import epoch_indices, keyed_normal
from steps.unet.evolved import EvolvedUNet

logger = logging.getLogger(__name__)
_RESAMPLES = 2000
Scores = dict[str, list[float]]  # of every picture, by the change's key


def arguments() -> argparse.Namespace:
    """The command line."""
    found = parser(__doc__, "evolution_scoring")
    found.add_argument("--units", type=int, default=12, help="spread evenly over all, in order of execution")
    found.add_argument("--pictures", type=int, default=512, help="of the paper's protocol; P: 2,000")
    found.add_argument("--steps", type=int, default=50, help="P: 50")
    found.add_argument("--guidance", type=float, default=7.5, help="P: 7.5")
    found.add_argument("--captions", type=int, default=96, help="of evolution's own probes")
    found.add_argument("--own-steps", type=int, default=8)
    found.add_argument("--own-guidance", type=float, default=5.0)
    found.add_argument("--batch-size", type=int, default=32)
    return found.parse_args()


def main() -> None:
    """Probe thrice, compare, publish."""
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    options = arguments()
    setup = Setup(options)
    unet = setup.robust()
    removals = setup.budget(1.0).removals(unet.spec)
    count = min(options.units, len(removals))
    changes = [removals[round(i * (len(removals) - 1) / max(1, count - 1))] for i in range(count)]
    protocol = [
        scored(setup, unet, changes, protocol_probe(setup, index), f"protocol_{index}") for index in (0, 1)
    ]
    own = own_probe(setup)
    cheap = scored(setup, unet, changes, own, "own")
    metrics = compared(changes, protocol, cheap, seed=options.seed)
    metrics += costs(options, len(changes) + 1, len(own.captions))
    publish(result(metrics, module="benchmarks.evolution_scoring", seed=options.seed), options.json)


def own_probe(setup: Setup) -> Probe:
    """As evolution probes its first round."""
    options = setup.options
    config = ArchitectureEvolutionConfig(
        captions_per_batch=options.batch_size,
        most_captions=options.captions,
        probe_steps=options.own_steps,
        probe_guidance_scale=options.own_guidance,
    )
    return setup.probe(config, seed=options.seed)


def protocol_probe(setup: Setup, index: int) -> Probe:
    """The paper's: any captions of the split, in its steps and at its guidance."""
    options = setup.options
    chosen = epoch_indices(
        samples=setup.data.size(SPLIT),
        start=index * options.pictures,
        count=options.pictures,
        seed=options.seed,
    )
    captions = setup.data.captions(SPLIT)
    noise = keyed_normal(
        setup.base.latent_shape,
        seed=options.seed,
        name="protocol",
        iteration=index,
        indices=torch.arange(options.pictures),
    )
    return replace(
        own_probe(setup),
        captions=[captions[i] for i in chosen.tolist()],
        embeddings=setup.data.embeddings(SPLIT, chosen),
        noise=noise,
        steps=options.steps,
        guidance_scale=options.guidance,
    )


def scored(setup: Setup, unet: EvolvedUNet, changes: Sequence[Change], probe: Probe, name: str) -> Scores:
    """Scores of all pictures without any change (key "") and with each, batch by batch."""
    found: Scores = {}
    for key, target in [("", None), *((change.key, change.target) for change in changes)]:
        unet.set_skipped([] if target is None else [target])
        found[key] = []
        for number in range(probe.batches):
            found[key] += setup.remember(
                f"{name}_{number}",
                lambda number=number: probe.scores(unet, number),  # type: ignore[misc]
                change=key,
                batch=probe.batch,
                captions=probe.captions,
                steps=probe.steps,
                guidance=probe.guidance_scale,
            )
        logger.info("%s %s: %d pictures", name, key or "as it is", len(found[key]))
    unet.set_skipped()
    return found


def values(changes: Sequence[Change], scores: Scores) -> list[float]:
    """CLIP lost per latency saved, by change."""
    whole = sum(scores[""]) / len(scores[""])
    return [(whole - sum(scores[c.key]) / len(scores[c.key])) / c.saves for c in changes]


def compared(
    changes: Sequence[Change], protocol: Sequence[Scores], own: Scores, *, seed: int
) -> list[Metric]:
    """Rank correlations: of the protocol with itself, and of our probes with each of its runs, in the mean."""
    first, second = (values(changes, scores) for scores in protocol)
    ours = values(changes, own)

    def retest(chosen: list[int]) -> float:
        return spearman(first, second, chosen)

    def cheap(chosen: list[int]) -> float:
        return (spearman(ours, first, chosen) + spearman(ours, second, chosen)) / 2.0

    n, note = len(changes), "95 % by bootstrap over units"
    return [
        Metric(
            "evolution_scoring.retest",
            *_interval(retest, n, seed),
            note=f"the paper's protocol twice; {note}",
        ),
        Metric(
            "evolution_scoring.own", *_interval(cheap, n, seed), note=f"ours with each of them, mean; {note}"
        ),
        Metric(
            "evolution_scoring.own_minus_retest",
            *_interval(lambda chosen: cheap(chosen) - retest(chosen), n, seed),
            note=f"aim: at least -0.05; {note}",
        ),
    ]


def spearman(one: Sequence[float], other: Sequence[float], chosen: Sequence[int]) -> float:
    """Rank correlation over the chosen units; 0 where one of them does not vary."""
    a, b = (ranks([items[i] for i in chosen]) for items in (one, other))
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0.0 else 0.0


def ranks(values: list[float]) -> Tensor:
    """Places in ascending order, float64 (n,), ties sharing their mean place."""
    tensor = torch.tensor(values, dtype=torch.float64)
    below = (tensor[:, None] > tensor[None, :]).sum(1)
    equal = (tensor[:, None] == tensor[None, :]).sum(1)
    return below + (equal - 1) / 2.0


def costs(options: argparse.Namespace, probes: int, captions: int) -> list[Metric]:
    """Calls of the UNet, and which part of the saving is fewer steps."""
    theirs, ours = probes * options.pictures * options.steps, probes * captions * options.own_steps
    steps = options.steps / options.own_steps
    exact = [
        ("cost_ratio", theirs / ours, "guided steps of the paper's protocol over ours"),
        ("cost_ratio.steps", steps, "what fewer steps give"),
        ("cost_ratio.beyond_steps", theirs / ours / steps, "what fewer pictures give; aim: at least 5"),
    ]
    return [Metric(f"evolution_scoring.{name}", v, "x", 1, v, v, note) for name, v, note in exact]


def _interval(
    statistic: Callable[[list[int]], float], n: int, seed: int
) -> tuple[float, str, int, float, float]:
    """Value, unit, n, and 95 % interval by bootstrap over units: what a Metric takes after its name."""
    draws = torch.randint(n, (_RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    spread = torch.tensor([statistic(draw) for draw in draws.tolist()], dtype=torch.float64)
    low, high = spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return statistic(list(range(n))), "", n, low, high


if __name__ == "__main__":
    main()
