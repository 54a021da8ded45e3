"""`coreml_compression`: the smallest weights with which the whole bundle still draws the same pictures.

Every scheme is tried on every component alone; then the smallest combination of those that passed which passes
together is chosen. What decides are pictures drawn by the interpreter from the packages as they were written, beside
torch's from the same noise.
"""

import itertools
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from artifacts_schema.bundle import REQUIRED_COMPONENTS, Component, DrawingScores, Scheme
from artifacts_schema.compression import Combination, CompressedVariant, CompressionRecord
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.references import WeightsRef
from artifacts_schema.result_configs import CoremlCompressionConfig, CoremlExportConfig
from steps.export.bundle_pictures import drawing_noise, torch_images
from steps.export.bundle_run import Bundle
from steps.export.compression import compress, weights
from steps.export.interpreter import ChunkedProgram, Program, load_packages
from steps.export.mixed_bits import search, sensitivities, with_bits
from steps.export.picture_gate import PictureGate, missed
from steps.export.program_check import Sample
from steps.export.samples import Pictures, decoder_samples, text_samples, unet_samples
from steps.files.errors import ExportError
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.stages.bundle import assemble
from steps.store.base import put_folder

logger = logging.getLogger(__name__)

_COMPONENTS: tuple[Component, ...] = ("text_encoder", "unet", "vae_decoder")
_COMBINATIONS = 4  # drawn at most; after these the components stay as they were exported
_UNIFORM: Scheme = "palette_6"  # what mixed bits are to beat


class Compression:
    """One run of the stage on the uncompressed bundle in `folder`."""

    def __init__(
        self,
        folder: Path,
        inputs: StageInputs,
        config: CoremlCompressionConfig,
        context: StageContext,
        *,
        export: CoremlExportConfig,
        unet_ref: WeightsRef | None,
        decoder_ref: WeightsRef | None,
    ) -> None:
        self.folder, self.inputs, self.export, self.config, self.context = (
            folder, inputs, export, config, context,
        )  # fmt: skip
        self.bundle = Bundle.open(folder)
        self.pictures = Pictures.of(inputs.data, export.program_check.pictures)
        captions = self.pictures.captions
        noise = drawing_noise(inputs.base, len(captions))
        expected = torch_images(
            self.bundle,
            inputs.base,
            captions,
            noise,
            context.store,
            unet_ref=unet_ref,
            decoder_ref=decoder_ref,
        )
        self.gate = PictureGate(self.bundle, captions, noise, expected, inputs.signal_clip)
        # A component in chunks is compressed chunk by chunk: each is a package of its own.
        self.sources: dict[str, tuple[Path, ...]] = {
            name: tuple(folder / package for package in self.bundle.manifest.components[name].packages)
            for name in _COMPONENTS
        }

    def uncompressed(self) -> Combination:
        """The bundle as it was exported. It passes whatever its scores: the program check has judged it."""
        return Combination(
            schemes=dict.fromkeys(_COMPONENTS, "fp16"),
            bytes=sum(self.sizes().values()),
            scores=self.gate.scores({}),
            passed=True,
        )

    def variant(
        self, component: Component, scheme: Scheme, made: Sequence[CompressedVariant]
    ) -> CompressedVariant:
        """Compress one component and draw with it; a failure is recorded, with its reason."""
        fields: dict[str, object] = {"component": component, "scheme": scheme}
        try:
            bits = self._mixed(component, made) if scheme == "mixed" else {}
            with tempfile.TemporaryDirectory(dir=self.context.work) as scratch:
                targets = [Path(scratch) / source.name for source in self.sources[component]]
                for source, target in zip(self.sources[component], targets, strict=True):
                    compress(component, source, target, bits or scheme, smallest=self.config.smallest_weight)
                fields |= {"bits": bits, "bytes": folder_bytes(Path(scratch))}
                # As the exported ones are stored: one package as itself, chunks in a folder each.
                whole = targets[0] if len(targets) == 1 else Path(scratch)
                fields["package"] = put_folder(self.context.store, whole)
                scores = self.gate.scores({component: load_packages(component, targets)})
        except ExportError as error:
            return CompressedVariant.model_validate({"bytes": 0, **fields, "note": str(error)})
        note = missed(scores, self.config)
        return CompressedVariant.model_validate(fields | {"scores": scores, "passed": not note, "note": note})

    def combine(
        self, variants: Sequence[CompressedVariant], uncompressed: Combination
    ) -> tuple[Combination, ...]:
        """Draw with combinations of what passed, smallest first, until one passes."""
        tried: list[Combination] = []
        for combination, parts in candidates(variants, self.sizes(), uncompressed, self.config):
            if len(tried) == _COMBINATIONS:
                break
            try:
                scores = self.gate.scores({part.component: self._program(part) for part in parts})
                note = missed(scores, self.config)
            except ExportError as error:
                tried.append(combination.model_copy(update={"note": str(error)}))
                continue
            tried.append(combination.model_copy(update={"scores": scores, "passed": not note, "note": note}))
            if not note:
                break
        return tuple(tried)

    def sizes(self) -> dict[str, int]:
        """Bytes of the packages as they were exported."""
        return {name: sum(map(folder_bytes, paths)) for name, paths in self.sources.items()}

    def _program(self, variant: CompressedVariant) -> Program | ChunkedProgram:
        """The stored package of a variant, read back."""
        if variant.package is None:
            raise ExportError(f"{variant.component}: there is no package of the scheme {variant.scheme}")
        with tempfile.TemporaryDirectory(dir=self.context.work) as scratch:
            targets = [Path(scratch) / source.name for source in self.sources[variant.component]]
            whole = targets[0] if len(targets) == 1 else Path(scratch)
            for relative, ref in variant.package.files.items():
                (whole / relative).parent.mkdir(parents=True, exist_ok=True)
                (whole / relative).write_bytes(self.context.store.path_of(ref).read_bytes())
            return load_packages(variant.component, targets)

    def _mixed(self, component: Component, made: Sequence[CompressedVariant]) -> dict[str, int]:
        """Bits by weight with which pictures are no worse than with six bits everywhere."""
        uniform = next((v.scores for v in made if (v.component, v.scheme) == (component, _UNIFORM)), None)
        if uniform is None:
            raise ExportError(f"{component}: mixed bits are held against {_UNIFORM}, which was not drawn")
        if len(self.sources[component]) > 1:
            raise ExportError(f"{component}: mixed bits are searched in one package, this has chunks")
        program = Program.load(component, self.sources[component][0])
        found = weights(program, smallest=self.config.smallest_weight)
        sensitivity = sensitivities(program, found, self._samples(component))

        def no_worse(bits: Mapping[str, int]) -> bool:
            scores = self.gate.scores({component: with_bits(program, found, bits)})
            return _no_worse(scores, uniform)

        bits = search(sensitivity, 6, no_worse)
        if bits is None:
            raise ExportError(f"{component}: no mixture of bits draws as well as {_UNIFORM}")
        return bits

    def _samples(self, component: Component) -> list[Sample]:
        """What the sensitivity of the component's weights is measured on."""
        base, pictures = self.inputs.base, Pictures(self.pictures.captions[:1], self.pictures.latents[:1])
        if component == "text_encoder":
            return list(text_samples(base, self.pictures.captions))
        if component == "vae_decoder":
            return list(decoder_samples(self.pictures))
        velocity = self.bundle.manifest.model_prediction == "v_prediction"
        batch = self.bundle.unet.inputs["sample"][0]
        return list(unet_samples(base, pictures, self.export.program_check, batch=batch, velocity=velocity))


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> CompressionRecord:
    """The stage, see `compress_bundle`; a run without all of the components compresses none."""
    folder: Path | None = None
    reports = [inputs.earlier(name) for name in REQUIRED_COMPONENTS if name in inputs.earlier_names]
    if len(reports) == len(REQUIRED_COMPONENTS):
        folder = context.work / "uncompressed"
        assemble(reports, inputs, config, folder)
    return compress_bundle(
        folder,
        inputs,
        config.coreml_compression,
        context,
        export=config.coreml_export,
        unet_ref=inputs.earlier("torch unet"),
        decoder_ref=inputs.earlier("torch decoder"),
    )


def compress_bundle(
    folder: Path | None,
    inputs: StageInputs,
    config: CoremlCompressionConfig,
    context: StageContext,
    *,
    export: CoremlExportConfig,
    unet_ref: WeightsRef | None,
    decoder_ref: WeightsRef | None,
) -> CompressionRecord:
    """Try `config.schemes` on the uncompressed bundle in `folder` and choose.

    None for a bundle that lacks a component: it cannot draw, and is left as it is. What misses a gate of `config` is
    in the record, not an error.
    """
    common = {"stage": context.stage, "config": config.meaning(), "seed": context.seed}
    if folder is None or not config.schemes:
        return CompressionRecord(
            **common, captions=(), uncompressed=None, variants=(), combinations=(), chosen={}
        )
    stage = Compression(
        folder, inputs, config, context, export=export, unet_ref=unet_ref, decoder_ref=decoder_ref
    )
    tasks = list(itertools.product(_COMPONENTS, config.schemes))
    context.progress.start("compression", len(tasks) + 1)
    uncompressed = stage.uncompressed()
    variants: list[CompressedVariant] = []
    for component, scheme in tasks:
        variants.append(stage.variant(component, scheme, variants))
        _log(variants[-1])
        context.progress.update(len(variants))
    combinations = stage.combine(variants, uncompressed)
    context.progress.close()
    passed = [item for item in combinations if item.passed]
    chosen = (passed or [uncompressed])[-1].schemes
    return CompressionRecord(
        **common,
        captions=stage.pictures.captions,
        uncompressed=uncompressed,
        variants=tuple(variants),
        combinations=combinations,
        chosen=chosen,
    )


def candidates(
    variants: Sequence[CompressedVariant],
    sizes: Mapping[str, int],
    uncompressed: Combination,
    config: CoremlCompressionConfig,
) -> list[tuple[Combination, tuple[CompressedVariant, ...]]]:
    """Combinations of variants that passed and save bytes (or none for a component), smallest first, all fp16 left out.

    Left out, too, are those that the sum of their components' square errors already keeps from passing: errors of
    different components add up, so that drawing them would be a waste.
    """
    passing: list[list[CompressedVariant | None]] = [
        [None, *(v for v in variants if v.component == name and v.passed and v.bytes < sizes[name])]
        for name in _COMPONENTS
    ]
    found = []
    for choice in itertools.product(*passing):
        parts = tuple(part for part in choice if part is not None)
        if not parts or _expected_worst(parts, uncompressed) < config.min_image_psnr_db:
            continue
        schemes: dict[str, Scheme] = dict.fromkeys(_COMPONENTS, "fp16")
        schemes |= {part.component: part.scheme for part in parts}
        packages = dict(sizes) | {str(part.component): part.bytes for part in parts}
        found.append((Combination(schemes=schemes, bytes=sum(packages.values())), parts))
    return sorted(found, key=lambda item: item[0].bytes)


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _expected_worst(parts: Sequence[CompressedVariant], uncompressed: Combination) -> float:
    """dB of the worst picture if the square errors that each part adds to the uncompressed ones simply add up."""
    before = _square(uncompressed.scores)
    return -10.0 * math.log10(before + sum(max(_square(part.scores) - before, 0.0) for part in parts))


def _square(scores: DrawingScores | None) -> float:
    return 10.0 ** (-scores.worst_psnr_db / 10) if scores else 1.0


def _no_worse(scores: DrawingScores, other: DrawingScores) -> bool:
    return scores.psnr_db.median >= other.psnr_db.median and scores.worst_psnr_db >= other.worst_psnr_db


def _log(variant: CompressedVariant) -> None:
    scores = variant.scores
    logger.info(
        "component=%s scheme=%s bytes=%d psnr=%s clip_drop=%s %s",
        variant.component,
        variant.scheme,
        variant.bytes,
        f"{scores.worst_psnr_db:.1f}dB" if scores else "none",
        f"{scores.clip_drop:.4f}" if scores else "none",
        variant.note or "passed",
    )
