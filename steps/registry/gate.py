"""The conditions under which a run may become champion: pure decisions over reports. docs/adr/0029-champion.md"""

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import VariantComparison
from artifacts_schema.licences import Instrument
from artifacts_schema.operating import PromotionConfig
from artifacts_schema.promotion import GateCheck, PromotionDecision
from artifacts_schema.report import RunReport

_INSTRUMENTS: tuple[Instrument, ...] = ("kernel_distance", "clip_score")
_MIB = float(1 << 20)


def decide(
    config: PromotionConfig,
    report: RunReport,
    champion: RunReport | None,
    *,
    run: str,
    champion_run: str | None,
    quality: VariantComparison | str | None = None,
) -> PromotionDecision:
    """Whether a run may become champion; its outcome is "promoted" where it may.

    `quality` compares the champion (reference) with the run on the validation protocol, or says why that is not possible;
    None without a champion.
    """
    if champion is not None and is_unchanged(report, champion):
        return PromotionDecision(run=run, champion=champion_run, outcome="unchanged")
    compared = quality if isinstance(quality, VariantComparison) else None
    checks = (
        _maturity(config, report),
        *_quality(config, quality),
        _licence(config, report, compared),
        _latency(config, report),
        _size(config, report),
        _parity(config, report),
    )
    holds = all(check.passed is not False for check in checks)
    return PromotionDecision(
        run=run,
        champion=champion_run,
        outcome="promoted" if holds else "kept",
        checks=checks,
        distance=compared.distance_difference if compared else None,
        clip=compared.clip_difference if compared else None,
    )


def is_unchanged(report: RunReport, champion: RunReport) -> bool:
    """True when what ships is the champion's own: the manifest names every file by its hash."""
    return report.inputs.get("bundle", "") == champion.inputs.get("bundle")


def _maturity(config: PromotionConfig, report: RunReport) -> GateCheck:
    smoke = [label for label in report.labels if label.startswith("smoke")] or (
        ["smoke run"] if report.smoke else []
    )
    return GateCheck(
        name="size of the run",
        passed=not smoke or config.allow_smoke,
        wanted="any" if config.allow_smoke else "no smoke run",
        found="; ".join(smoke) or "large enough",
    )


def _quality(config: PromotionConfig, quality: VariantComparison | str | None) -> tuple[GateCheck, ...]:
    if quality is None:
        return (GateCheck(name="quality", passed=None, wanted="a champion", found="no champion yet"),)
    if isinstance(quality, str):
        return (GateCheck(name="quality", passed=False, wanted="a comparison", found=quality),)
    return (
        _not_worse(
            "kernel distance", quality.distance_difference, config.distance_margin, lower_is_better=True
        ),
        _not_worse("CLIP score", quality.clip_difference, config.clip_margin, lower_is_better=False),
    )


def _not_worse(name: str, difference: Interval, margin: float | None, *, lower_is_better: bool) -> GateCheck:
    """Worse is up for a distance and down for a score; `margin` bounds the interval's bad end, None its good one."""
    worst, best = (
        (difference.high, difference.low) if lower_is_better else (-difference.low, -difference.high)
    )
    end = "upper" if lower_is_better else "lower"
    return GateCheck(
        name=name,
        passed=best <= 0.0 if margin is None else worst <= margin,
        wanted="not worse with its whole interval"
        if margin is None
        else f"{end} end at most {margin:g} worse",
        found=f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] against the champion",
    )


def _licence(config: PromotionConfig, report: RunReport, compared: VariantComparison | None) -> GateCheck:
    """Reports of programs without licences name none: no instrument is licensed there."""
    found = [report.licences.get(name) for name in _INSTRUMENTS]
    missing = [
        name for name, licence in zip(_INSTRUMENTS, found, strict=True) if not (licence and licence.licensed)
    ]
    if compared is None:
        return GateCheck(name="instruments", passed=None, wanted="licensed", found="nothing was compared")
    words = f"{' and '.join(missing)} not licensed" if missing else "licensed"
    allowed = not config.require_licence
    return GateCheck(
        name="instruments",
        passed=not missing or allowed,
        wanted="licensed or not" if allowed else "licensed (promotion.require_licence)",
        found=words,
    )


def _latency(config: PromotionConfig, report: RunReport) -> GateCheck:
    budget = config.latency_budget
    if budget is None:
        budget = report.config.get("architecture_evolution", {}).get("latency_budget")
    ratio = report.headline.get("unet.predicted_latency_ratio")
    if budget is None or ratio is None:
        missing = "latency budget" if budget is None else "latency"
        return GateCheck(
            name="latency", passed=False, wanted="within budget", found=f"the report names no {missing}"
        )
    return GateCheck(
        name="latency",
        passed=1.0 / ratio <= budget,
        wanted=f"at most {budget:.3f} of the base UNet's",
        found=f"{1.0 / ratio:.3f} of it",
    )


def _size(config: PromotionConfig, report: RunReport) -> GateCheck:
    files = report.outputs.files if report.outputs else {}
    mib = sum(ref.bytes for name, ref in files.items() if name.startswith("bundle/")) / _MIB
    limit = config.max_bundle_mib
    return GateCheck(
        name="bundle size",
        passed=None if limit is None else mib <= limit,
        wanted="any" if limit is None else f"at most {limit:g} MiB",
        found=f"{mib:.1f} MiB",
    )


def _parity(config: PromotionConfig, report: RunReport) -> GateCheck:
    """A component that failed its thresholds ended the run; what was not measured has no number."""
    names = [
        name.removeprefix("coreml.").removesuffix(".size_mib")
        for name in report.headline
        if name.startswith("coreml.") and name.endswith(".size_mib")
    ]
    untested = [name for name in names if f"coreml.{name}.psnr_exact_db" not in report.headline]
    if not names:
        found = "no component was exported"
    else:
        found = f"not measured for {', '.join(untested)}" if untested else "every component passed"
    return GateCheck(
        name="parity",
        passed=not config.require_parity or (bool(names) and not untested),
        wanted="every component passed" if config.require_parity else "any",
        found=found,
    )
