"""What the benchmarks of architecture evolution share: base, robust UNet, data, evaluators, a table of MACs, and a memory."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts_schema.base import content_hash
from artifacts_schema.run_configs import ComputeConfig
from artifacts_schema.stage_configs import ArchitectureEvolutionConfig, LatencyProfileConfig
from benchmarks.published import ROOT
from benchmarks.setting import prepared
from steps.evolution.actions import Budget
from steps.evolution.probe import Probe
from steps.files.progress import TerminalProgress
from steps.inputs.context import StageContext, configure_torch, select_device
from steps.models.base import load_base
from steps.models.base_folder import folder_identity
from steps.models.clip import ClipScorer
from steps.stages import latency_profile
from steps.store import LocalStore
from steps.unet.conversion import as_evolved
from steps.unet.evolved import EvolvedUNet


def parser(doc: str | None, work: str) -> argparse.ArgumentParser:
    """The options that both have."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--base", type=Path, default=ROOT / "assets/base", help="diffusers folder")
    found.add_argument(
        "--robust", type=Path, default=ROOT / "assets/warm_starts/robust", help="UNet after robust training"
    )
    found.add_argument("--clip", type=Path, default=ROOT / "assets/evaluators/openclip_signal")
    found.add_argument("--work", type=Path, default=ROOT / ".snapfusion/benchmarks" / work)
    found.add_argument("--data-limit", type=int, help="at most so many pictures per split")
    found.add_argument("--threads", type=int, default=0, help="0: all cores")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--json", type=Path)
    return found


class Setup:
    """Loaded once per run; what `remember` keeps in the work folder is not computed again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        compute = ComputeConfig(threads=options.threads)
        configure_torch(compute)
        self.device = select_device(compute)
        self.store = LocalStore(options.work / "store")
        self.base = load_base(options.base)
        self.data = prepared(self.base, self.store, self.options.data_limit)
        self.scorer = ClipScorer.load(options.clip)
        self.table = latency_profile.count(self.base, LatencyProfileConfig(backend="macs"))
        self.base.vae.to(self.device)

    def robust(self) -> EvolvedUNet:
        """The UNet that evolution starts from."""
        folder = self.options.robust
        loaded = type(self.base.unet).from_pretrained(folder, use_safetensors=True, local_files_only=True)
        return as_evolved(loaded.float().eval().requires_grad_(False)).to(self.device)

    def budget(self, fraction: float) -> Budget:
        """In multiply-accumulates."""
        return Budget.of(self.table, self.base.unet.config, fraction)

    def probe(self, config: ArchitectureEvolutionConfig, *, seed: int, index: int = 0) -> Probe:
        """As evolution draws it."""
        return Probe.of_round(self.base, self.data, self.scorer, config, seed=seed, index=index)

    def context(self, name: str, **what: Any) -> StageContext:
        """A work folder named after everything that decides its contents."""
        work = self.options.work / f"{name}_{self.key(**what)}"
        work.mkdir(parents=True, exist_ok=True)
        return StageContext(
            stage=name,
            store=self.store,
            work=work,
            seed=self.options.seed,
            device=self.device,
            progress=TerminalProgress(),
        )

    def key(self, **what: Any) -> str:
        """Short hash of the models, the data and `what`."""
        folders = [
            folder_identity(path) for path in (self.options.base, self.options.robust, self.options.clip)
        ]
        return content_hash([folders, self.options.data_limit, self.options.seed, what])[:16]

    def remember(self, name: str, compute: Callable[[], Any], **what: Any) -> Any:
        """`compute`'s JSON-able result, from the work folder when it is there."""
        path = self.options.work / f"{name}_{self.key(**what)}.json"
        if not path.is_file():
            text = json.dumps(compute())
            path.write_text(text, encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))
