"""Scoring changes: paired probes with and without each, more of them where the round's choice hangs on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from artifacts_schema.architecture import UnitScore
from steps.evolution.evidence import Estimate, drift_variance, estimate, pooled
from steps.evolution.kept import ProbeFile
from steps.evolution.probe import Probe
from steps.evolution.rule import Change
from steps.inputs.context import StageContext
from steps.unet.architecture import copy_block
from steps.unet.conversion import build
from steps.unet.evolved import EvolvedUNet

Undecided = Callable[[Mapping[str, Estimate]], set[str]]


@dataclass(frozen=True)
class Evidence:
    """What a round's probes say, alone (`own`) and with those of earlier rounds (`pooled`); by the change's key.

    `baseline` is the mean CLIP score of the UNet as it is; `drift` the standard deviation by which true losses are found to
    have moved since the last round.
    """

    baseline: float
    own: dict[str, Estimate]
    pooled: dict[str, Estimate]
    drift: float

    @classmethod
    def of(
        cls,
        whole: Sequence[float],
        differences: Mapping[str, Sequence[float]],
        earlier: Mapping[str, Estimate],
    ) -> "Evidence":
        """From the scores of the UNet as it is, and what each change lost of them."""
        own = {key: estimate(values) for key, values in differences.items()}
        drift = drift_variance(earlier, own)
        return cls(fmean(whole), own, pooled(earlier, own, drift), drift**0.5)

    def scores(self, changes: Sequence[Change]) -> tuple[UnitScore, ...]:
        """The record of it."""
        return tuple(
            UnitScore(
                action=change.kind,
                unit=change.target,
                difference=self.own[change.key].mean,
                standard_error=self.own[change.key].error,
                n=self.own[change.key].n,
                pooled=self.pooled[change.key].mean,
                pooled_error=self.pooled[change.key].error,
                latency=change.saves,
            )
            for change in changes
        )


def earlier_evidence(scores: Sequence[UnitScore]) -> dict[str, Estimate]:
    """What a finished round knew, for the next one."""
    return {f"{item.action} {item.unit}": Estimate(item.pooled, item.pooled_error, item.n) for item in scores}


def score_changes(
    unet: EvolvedUNet,
    changes: Sequence[Change],
    probe: Probe,
    earlier: Mapping[str, Estimate],
    *,
    undecided: Undecided,
    context: StageContext,
    folder: Path,
) -> Evidence:
    """Evidence on every change: a batch of captions for all, then one after the other for those `undecided` names.

    It ends when none is named or the round has no captions left. Finished probes are kept in `folder` and not made again
    after an interruption. Raises EvaluationError for scores that are not finite.
    """
    finished = ProbeFile(context, folder / "probes.json", unet.spec.layout())
    whole: list[float] = []
    differences: dict[str, list[float]] = {change.key: [] for change in changes}
    wanted = set(differences)
    context.progress.start("probing units", probe.batches * (len(changes) + 1))
    try:
        for number in range(probe.batches):
            tried = [change for change in changes if change.key in wanted]
            for done, change in enumerate([None, *tried]):
                name = _name(number, change)
                if name not in finished.scores:
                    finished.add(name, _probed(unet, change, probe, number))
                context.progress.update(number * (len(changes) + 1) + done + 1)
            before = finished.scores[_name(number, None)]
            whole += before
            for change in tried:
                after = finished.scores[_name(number, change)]
                differences[change.key] += [one - other for one, other in zip(before, after, strict=True)]
            evidence = Evidence.of(whole, differences, earlier)
            wanted = undecided(evidence.pooled)
            if not wanted:
                break
    finally:
        context.progress.close()
    return evidence


def _name(number: int, change: Change | None) -> str:
    """Key of one probe: the batch, and the change or none."""
    return f"{number} {change.key if change else 'as it is'}"


def _probed(unet: EvolvedUNet, change: Change | None, probe: Probe, number: int) -> list[float]:
    """Scores of one batch with a change made: a unit skipped equals one removed, a copy is plain and untrained."""
    if change is not None and change.kind == "copy":
        return probe.scores(build(copy_block(unet.spec, unet.geometry(), change.target), unet), number)
    unet.set_skipped([] if change is None else [change.target])
    try:
        return probe.scores(unet, number)
    finally:
        unet.set_skipped()
