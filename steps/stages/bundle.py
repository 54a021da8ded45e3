"""`bundle`: everything that a runtime needs in one folder, named by what is in it, once it has drawn pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from artifacts_schema.base import Record
from artifacts_schema.bundle import BundleManifest, ComponentReport, DrawingScores, Scheme
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.references import WeightsRef
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.variants import steps_of_what_ships
from steps.export.bundle import assemble_bundle
from steps.inputs.loaded import StageInputs


def assemble(
    reports: Sequence[ComponentReport],
    inputs: StageInputs,
    config: SnapFusionConfig,
    target: Path,
    *,
    made_of: Mapping[str, Record] | None = None,
    schemes: Mapping[str, Scheme] | None = None,
    draw: Callable[[Path], DrawingScores] | None = None,
) -> BundleManifest:
    """Write a bundle of the run's models to `target`, see `assemble_bundle`; `made_of` are the records they come from."""
    base = inputs.base
    steps = steps_of_what_ships(config)
    unet: WeightsRef | None = inputs.earlier("torch unet")
    decoder: WeightsRef | None = inputs.earlier("torch decoder")
    stored = {"unet": unet, "vae_decoder": decoder}
    return assemble_bundle(
        reports,
        base.path,
        inputs.context.store,
        target,
        steps=steps,
        guidance_scale=config.coreml_export.guidance_scale,
        schedule=base.scheduler_config,
        timesteps=NoiseSchedule.from_config(base.scheduler_config).grid(steps).tolist(),
        prediction_type=base.prediction_type if unet is None else "v_prediction",
        scaling_factor=base.scaling_factor,
        weights={name: ref.sha256 for name, ref in stored.items() if ref} | {"base": inputs.base_identity},
        made_of={name: record.identity() for name, record in (made_of or {}).items()},
        attribution=inputs.data.ref.attribution,
        schemes=schemes,
        draw=draw,
    )
