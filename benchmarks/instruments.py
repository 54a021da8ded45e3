"""Whether each instrument orders what is known, on a frozen protocol, from two sets of noise; leaves its licences.

    python -m benchmarks.instruments --protocol test --json benchmarks/results/instruments.json

Levels: real pictures, the base in 50, 25, 8, 4 and 2 plain DDIM steps, an untrained UNet, other captions, other noise. What
must be better than what stands in docs/adr/0037. Drawn latents are kept in --work, and an interrupted run goes on. With fewer
pictures than the protocol's it is a trial, which is printed and licenses nothing.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifacts_schema.base import Interval, content_hash
from artifacts_schema.licences import INSTRUMENTS, Instrument, LicenceRecord
from artifacts_schema.protocol import ProtocolRecord
from artifacts_schema.run_configs import ComputeConfig
from benchmarks.published import ROOT, Metric, publish, result
from benchmarks.setting import begin
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.bench import EVALUATOR_OF, Bench, groups_of
from steps.evaluation.distances import Estimate, clustered_mean, kernel_distance
from steps.evaluation.licences import INCLUDED, evidence
from steps.evaluation.protocol import read_protocol
from steps.evaluation.subject import reference_of
from steps.files.errors import SnapFusionError
from steps.files.progress import TerminalProgress
from steps.inputs.context import StageContext, select_device
from steps.inputs.folders import FROZEN_PROTOCOLS
from steps.models.base import load_base
from steps.models.base_folder import folder_identity
from steps.models.clip import ClipScorer
from steps.store import LocalStore
from steps.training.randomness import keyed_normal, spawn

logger = logging.getLogger(__name__)
STEPS = {"base_50": 50, "base_25": 25, "base_8": 8, "base_4": 4, "base_2": 2, "untrained": 8}
SETS = 2  # of noise
Levels = list[dict[str, Estimate]]  # by set of noise


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", choices=sorted(EVALUATOR_OF), default="test")
    parser.add_argument("--protocols", type=Path, default=FROZEN_PROTOCOLS, help="folder of frozen ones")
    parser.add_argument("--base", type=Path, default=ROOT / "assets/base", help="diffusers folder")
    parser.add_argument("--clip", type=Path, help="the protocol's evaluator; none: the included one")
    parser.add_argument("--pictures", type=int, help="of each level; fewer than the protocol's: a trial")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--work", type=Path, default=ROOT / ".snapfusion/benchmarks/instruments")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Known:
    """Draws levels of known quality on one protocol, and measures them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.base = load_base(options.base)
        self.device = select_device(ComputeConfig())
        self.schedule = NoiseSchedule.from_config(self.base.scheduler_config)
        self.bench = Bench(self._inputs(), options.protocol, "efficientnet_lite0", self._context())
        self.protocol = read_protocol(options.protocols / f"{options.protocol}.json")
        self.count: int = options.pictures or self.protocol.pictures
        self.captions = self.bench.drawn(self.count)
        self.groups = groups_of(self.captions)
        pictures, captions = reference_of(self.bench.subject)
        self.reference = self.bench.features(pictures).numpy(), groups_of(captions)
        self.bench.check_environment(self.reference[0])
        self.base.vae.to(self.device)

    def _inputs(self) -> Any:
        """What the bench asks of a run's inputs."""
        options, evaluator = self.options, EVALUATOR_OF[self.options.protocol]
        folder = options.clip or ROOT / "assets/evaluators" / f"openclip_{evaluator.removesuffix('_clip')}"
        return SimpleNamespace(
            base=self.base,
            protocols=options.protocols,
            inception=None,
            identity=lambda name: folder_identity(folder),
            **{evaluator: ClipScorer.load(folder, self.device)},
        )

    def _context(self) -> StageContext:
        work: Path = self.options.work
        work.mkdir(parents=True, exist_ok=True)
        return StageContext("instruments", LocalStore(work / "store"), work, seed=0, device=self.device)

    def latents(self, level: str, seeds: int) -> Tensor:
        """Final latents (n, c, h, w) of a level from one set of noise, kept on disk."""
        key = content_hash(
            {
                "base": folder_identity(self.options.base),
                "captions": self.captions,
                "noise": self.protocol.noise_seed,
                "guidance": self.options.guidance,
                "level": [level, STEPS[level], seeds],
            }
        )
        path = self.options.work / f"{level}-{seeds}-{key[:16]}.safetensors"
        if path.is_file():
            return load_file(path)["latents"]
        embeddings, empty = self.bench.subject.embeddings(self.base, self.bench.chosen(self.count).tolist())
        progress = TerminalProgress()
        progress.start(f"{level}, noise {seeds}", self.count)
        untrained = level == "untrained"
        found = sample_latents(
            (random_unet(self.base.unet) if untrained else self.base.unet).to(self.device),
            self.schedule,
            noise=keyed_normal(
                self.base.latent_shape,
                seed=self.protocol.noise_seed
                if seeds == 0
                else spawn(self.protocol.noise_seed, f"set {seeds}"),
                name="evaluation",
                iteration=0,
                indices=torch.arange(self.count),
            ),
            embeddings=embeddings,
            empty_embedding=empty,
            steps=STEPS[level],
            guidance_scale=self.options.guidance,
            prediction_type=self.base.prediction_type,
            progress=progress,
        )
        progress.close()
        partial = path.with_suffix(".partial")
        save_file({"latents": found.contiguous()}, partial)
        partial.rename(path)
        return found

    def measured(self) -> dict[Instrument, Levels]:
        """Every instrument's estimates by level, for each set of noise."""
        found: dict[Instrument, Levels] = {name: [] for name in INSTRUMENTS}
        other = self._features(self.latents("base_50", SETS - 1))
        for seeds in range(SETS):
            latents = {name: self.latents(name, seeds) for name in STEPS}
            features = {name: self._features(value) for name, value in latents.items()}
            latents["other_noise"], features["other_noise"] = (
                self.latents("base_50", (seeds + 1) % SETS),
                other,
            )
            other = features["base_50"]
            levels = self._pictures(latents, features)
            levels["fidelity_latents"] = self._fidelity(latents)
            levels["fidelity_features"] = self._fidelity(features)
            for name, estimates in levels.items():
                found[name].append(estimates)
        return found

    def _pictures(
        self, latents: Mapping[str, Tensor], features: Mapping[str, Tensor]
    ) -> dict[Instrument, dict[str, Estimate]]:
        """Kernel distance, CLIP score and retrieval of what is drawn, of real pictures, and of captions of others."""
        real, names = self._real()
        distance = {
            name: self._distance(features[name], self.groups) for name in ("base_50", "base_2", "untrained")
        } | {"real": self._distance(self.bench.features(real), groups_of(names))}
        shuffled = exchanged(self.captions)
        drawn = {name: self._decoded(latents[name]) for name in ("base_50", "base_2")}
        scored = {name: (images, self.captions) for name, images in drawn.items()}
        scored |= {"real": (real, names), "shuffled": (drawn["base_50"], shuffled)}
        clip, hits = {}, {}
        for name, (images, captions) in scored.items():
            cosine, found = self.bench.told(images, captions)
            groups = self.groups if name == "shuffled" else groups_of(captions)
            clip[name] = clustered_mean(cosine.tolist(), groups)
            hits[name] = clustered_mean(found.float().tolist(), groups)
        return {"kernel_distance": distance, "clip_score": clip, "retrieval_top1": hits}

    def _real(self) -> tuple[Tensor, list[str]]:
        """Real pictures of the groups that are drawn, so that every difference is paired."""
        there = set(self.groups)
        kept = [i for i, group in enumerate(groups_of(self.bench.captions)) if group in there]
        return self.bench.subject.images()[kept], [self.bench.captions[i] for i in kept]

    def _distance(self, features: Tensor, groups: list[str]) -> Estimate:
        return kernel_distance(
            features.numpy(), self.reference[0], groups=groups, real_groups=self.reference[1]
        )

    def _fidelity(self, found: Mapping[str, Tensor]) -> dict[str, Estimate]:
        """Mean square difference from base_50's, by level."""
        apart = {
            name: (found[name] - found["base_50"]).double().square().flatten(1).mean(1).tolist()
            for name in ("base_25", "base_8", "base_4", "base_2", "other_noise")
        }
        return {name: clustered_mean(values, self.groups) for name, values in apart.items()}

    def _decoded(self, latents: Tensor) -> Tensor:
        return decode_latents(self.base.vae, latents, scaling_factor=self.base.scaling_factor)

    def _features(self, latents: Tensor) -> Tensor:
        return self.bench.features(self._decoded(latents))

    def licences(self, found: Mapping[Instrument, Levels]) -> LicenceRecord:
        """The record that reports read."""
        return LicenceRecord(
            stage="instruments",
            config={"guidance_scale": self.options.guidance, "base": folder_identity(self.options.base)},
            name=self.protocol.name,
            protocol=self.protocol.identity(),
            evaluator=self.protocol.evaluator_sha256,
            features=self.protocol.features,
            pictures=self.count,
            instruments=tuple(evidence(name, levels) for name, levels in found.items()),
        )


def random_unet(unet: Any) -> nn.Module:
    """An untrained UNet of the same architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh: nn.Module = type(unet).from_config(unet.config)
    return fresh.eval().requires_grad_(False)


def exchanged(captions: list[str]) -> list[str]:
    """Every picture's caption replaced by one of another group: half the groups further on."""
    by_group: dict[str, list[str]] = {}
    for caption, group in zip(captions, groups_of(captions), strict=True):
        by_group.setdefault(group, []).append(caption)
    names = list(by_group)
    further = {name: names[(place + len(names) // 2) % len(names)] for place, name in enumerate(names)}
    taken = dict.fromkeys(names, 0)
    found = []
    for group in groups_of(captions):
        others = by_group[further[group]]
        found.append(others[taken[group] % len(others)])
        taken[group] += 1
    return found


def metrics(record: LicenceRecord) -> list[Metric]:
    """1 or 0 by instrument, and the numbers: every level, and every order that had to hold."""
    rows: list[Metric] = []
    for item in record.instruments:
        prefix, ordered = f"instrument.{item.instrument}", float(item.ordered)
        note = f"on {record.name}, {record.protocol[:12]}; 1: orders what is known, paired, on {SETS} sets of noise"
        rows.append(Metric(f"{prefix}.ordered", ordered, "", record.pictures, ordered, ordered, note))
        for level, values in item.levels.items():
            rows += [_metric(f"{prefix}.{level}.noise_{i}", value) for i, value in enumerate(values)]
        for order in item.orders:
            said = "apart" if order.apart else "NOT apart"
            name = f"{prefix}.{order.better}_minus_{order.worse}.noise_{order.seeds}"
            rows.append(_metric(name, order.difference, f"paired; {said}"))
    return rows


def _metric(name: str, value: Interval, note: str = "") -> Metric:
    return Metric(name, value.value, value.unit, value.n, value.low, value.high, note)


def write_licences(record: LicenceRecord, protocol: ProtocolRecord, protocols: Path) -> Path | None:
    """The file that reports read; None for a trial, which is of too few pictures for a claim."""
    if record.pictures < protocol.pictures:
        said = "too few pictures for a claim: protocol %s asks for %d, found %d; no licence is written"
        logger.warning(said, protocol.name, protocol.pictures, record.pictures)
        return None
    own = protocols.resolve() != FROZEN_PROTOCOLS.resolve()
    path = (protocols.resolve().parent / "licences" if own else INCLUDED) / f"{protocol.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.to_json() + "\n", encoding="utf-8")
    return path


def main() -> int:
    """Draw, measure, publish, license."""
    options = arguments()
    begin(options)
    try:
        known = Known(options)
        record = known.licences(known.measured())
    except SnapFusionError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    found = result(metrics(record), module="benchmarks.instruments", seed=known.protocol.noise_seed)
    publish(found, options.json)
    if path := write_licences(record, known.protocol, options.protocols):
        logger.info("licences: %s", path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
