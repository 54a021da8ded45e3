"""The bundle: packages, tokenizer files, manifest and licence, in a folder that is there whole or not."""

import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from artifacts_schema.bundle import (
    REQUIRED_COMPONENTS,
    BundleComponent,
    BundleFile,
    BundleManifest,
    Component,
    ComponentReport,
    DrawingScores,
    Prediction,
    Scheme,
)
from steps.diffusion.schedule import schedule_keys
from steps.export.wrappers import RUNTIME_SCALING_FACTOR
from steps.files.disk import check_disk, file_sha256
from steps.files.errors import ExportError
from steps.store.base import Store, get_folder

logger = logging.getLogger(__name__)

_ALL: tuple[Component, ...] = (*REQUIRED_COMPONENTS, "vae_encoder", "safety_checker")
_SCRIPT = "finalize_on_mac.sh"
_SCHEDULER = "DDIMScheduler.swift"
# Of putting a bundle in place; each is lost only to somebody who publishes another at that moment.
_TRIES = 10
_DISK_SPARE = 16 << 20  # tokenizer, manifest, and room to breathe


def assemble_bundle(  # noqa: PLR0913 - the manifest's own fields
    reports: Sequence[ComponentReport],
    base_folder: Path,
    store: Store,
    target: Path,
    *,
    steps: int,
    guidance_scale: float,
    schedule: Mapping[str, object],
    timesteps: Sequence[int],
    prediction_type: Prediction,
    scaling_factor: float,
    weights: Mapping[str, str],
    attribution: str,
    made_of: Mapping[str, str] | None = None,
    schemes: Mapping[str, Scheme] | None = None,
    draw: Callable[[Path], DrawingScores] | None = None,
) -> BundleManifest:
    """Write the bundle to `target`, replacing whatever is already there, except a whole bundle that equals this one.

    `base_folder` is the base model's (its `tokenizer/` is read), `schedule` its scheduler configuration,
    `timesteps` the falling sampling grid, `weights` names and hashes of the weights that went in, `made_of`
    stages and identities of the records these come from (the reports' are added), `schemes` how the
    components hold theirs (float16 where it does not say). `draw` is given
    the folder of a complete bundle before it is put in place; what it returns goes into the manifest. Raises
    ExportError when the reports do not belong together, DiskFullError when there is no room; after that and any
    other failure, of `draw` too, `target` is as it was.
    """
    by_name = _check_reports(reports, prediction_type=prediction_type, scaling_factor=scaling_factor)
    if len(timesteps) != steps or list(timesteps) != sorted(set(timesteps), reverse=True):
        raise ExportError(f"expected a falling grid of {steps} timesteps, found {list(timesteps)}")
    with _published(target, sum(report.package.bytes for report in reports)) as folder:
        _write_contents(by_name, base_folder, store, folder, attribution)
        unet, decoder = by_name.get("unet"), by_name.get("vae_decoder")
        manifest = BundleManifest(
            stage="bundle",
            parents=tuple(report.identity() for report in by_name.values()),
            components={name: _entry(r, (schemes or {}).get(name, "fp16")) for name, r in by_name.items()},
            complete=set(by_name) >= set(REQUIRED_COMPONENTS),
            files=_files(folder),
            steps=steps,
            guidance_scale=guidance_scale,
            schedule=schedule_keys(schedule),
            timesteps=tuple(timesteps),
            model_prediction=prediction_type,
            output_prediction=unet.output_prediction if unet else None,
            scaling_factor=scaling_factor,
            runtime_scaling_factor=RUNTIME_SCALING_FACTOR,
            decoder_factor=decoder.decoder_factor if decoder else None,
            weights=dict(weights),
            made_of=dict(made_of or {}) | {f"{r.stage} {name}": r.identity() for name, r in by_name.items()},
            attribution=attribution,
        )
        _write(manifest, folder)
        if draw is not None and manifest.complete:
            manifest = manifest.model_copy(update={"drawing": draw(folder)})
            _write(manifest, folder)
    logger.info("bundle=%s files=%d steps=%d", target, len(manifest.files) + 1, steps)
    return manifest


@contextmanager
def _published(target: Path, size: int) -> Iterator[Path]:
    """A folder to fill; it takes `target`'s place at the end, and goes where an error comes before."""
    target.parent.mkdir(parents=True, exist_ok=True)
    check_disk(target.parent, size + _DISK_SPARE, "the bundle")
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        (scratch / "new").mkdir()
        yield scratch / "new"
        _publish(scratch / "new", target, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_contents(
    reports: Mapping[str, ComponentReport], base_folder: Path, store: Store, folder: Path, attribution: str
) -> None:
    """Everything but the manifest."""
    for report in reports.values():
        # A chunked component's files lie in one folder a chunk already.
        get_folder(store, report.package, folder if report.chunks else folder / report.package_name)
    _write_tokenizer(base_folder / "tokenizer", folder)
    _check_tokenizer(folder, reports.get("text_encoder"))
    (folder / "LICENSE").write_text(_licence(attribution), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(_SCRIPT), folder / _SCRIPT)
    shutil.copyfile(Path(__file__).parent / "swift" / _SCHEDULER, folder / _SCHEDULER)


def _write(manifest: BundleManifest, folder: Path) -> None:
    (folder / "manifest.json").write_text(manifest.to_json() + "\n", encoding="utf-8")


def _check_reports(
    reports: Sequence[ComponentReport], *, prediction_type: Prediction, scaling_factor: float
) -> dict[str, ComponentReport]:
    """The reports by component, in the order the runtime uses them. Raises ExportError when they disagree."""
    by_name = {report.component: report for report in reports}
    if len(by_name) != len(reports) or not reports:
        raise ExportError(f"expected one report per component, found {[r.component for r in reports]}")
    for report in reports:
        found = (report.prediction_type, report.scaling_factor)
        if found != (prediction_type, scaling_factor):
            raise ExportError(
                f"{report.component}: expected prediction type and scaling factor {prediction_type}, "
                f"{scaling_factor}, found {found[0]}, {found[1]}; export it again"
            )
    shapes = {(r.component, t.name): t.shape for r in reports for t in (*r.inputs, *r.outputs)}
    text, sample = shapes.get(("unet", "encoder_hidden_states")), shapes.get(("unet", "sample"))
    hidden, latent = shapes.get(("text_encoder", "last_hidden_state")), shapes.get(("vae_decoder", "z"))
    if text and hidden and (text[1], text[3]) != (hidden[2], hidden[1]):
        raise ExportError(f"unet expects text {text}, text_encoder gives {hidden}; export both of one base")
    moments = shapes.get(("vae_encoder", "latent"))
    if sample and moments and (2 * sample[1], *sample[2:]) != moments[1:]:
        raise ExportError(
            f"unet takes latents {sample}, vae_encoder gives moments {moments}; export both of one base"
        )
    if sample and latent and sample[1:] != latent[1:]:
        raise ExportError(
            f"unet gives latents {sample}, vae_decoder expects {latent}; export both of one base"
        )
    return {name: by_name[name] for name in _ALL if name in by_name}


def _entry(report: ComponentReport, scheme: Scheme) -> BundleComponent:
    return BundleComponent(
        package=report.package_name,
        chunks=report.chunks,
        inputs=report.inputs,
        outputs=report.outputs,
        parameters=report.parameters,
        weights_sha256=report.weights_sha256,
        bytes=report.package.bytes,
        scheme=scheme,
        parity=report.parity,
        parity_note=report.parity_note,
    )


def _write_tokenizer(source: Path, folder: Path) -> None:
    """vocab.json and merges.txt, from the files of those names or, lacking them, from tokenizer.json."""
    if (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(source / name, folder / name)
        return
    try:
        model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        vocab = json.dumps(model["vocab"], ensure_ascii=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"expected vocab.json and merges.txt, or a tokenizer.json with both, in {source}: {error}"
        ) from error
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def _check_tokenizer(folder: Path, text_encoder: ComponentReport | None) -> None:
    """A token that the text encoder does not know would be read from beyond its table on the device."""
    highest = max(json.loads((folder / "vocab.json").read_text(encoding="utf-8")).values(), default=0)
    known = text_encoder.vocabulary if text_encoder else None
    if known is not None and highest >= known:
        raise ExportError(
            f"text_encoder: it knows {known} tokens, but the tokenizer's vocab.json goes up to {highest}; "
            "export both of one base"
        )


def _licence(attribution: str) -> str:
    stated = attribution or "Not stated: the terms of base model and training data apply."
    return f"Terms of the weights in this folder, and where their training data comes from:\n\n{stated}\n"


def _files(folder: Path) -> dict[str, BundleFile]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            found[path.relative_to(folder).as_posix()] = BundleFile(sha256=file_sha256(path), bytes=size)
    return found


def _publish(folder: Path, target: Path, scratch: Path) -> None:
    """Put `folder` in `target`'s place, unless an equal bundle is there: another run's, which may be in use.

    No rename replaces a filled folder, so another bundle steps aside; when somebody publishes in between, look again.
    """
    for number in range(_TRIES):
        if _is_equal(target, folder):
            return
        old = scratch / f"old-{number}"
        with suppress(FileNotFoundError):
            target.rename(old)
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue
            with suppress(OSError):  # there was none, or somebody's is there now
                old.rename(target)
            raise ExportError(f"the bundle cannot be moved to {target}: {error}") from error
        return
    raise ExportError(
        f"others put unlike bundles into {target} all the time; give every run a folder of its own"
    )


def _is_equal(target: Path, folder: Path) -> bool:
    """True when `target` holds the bundle of `folder`, file by file, whenever and wherever it was made."""
    try:
        there, here = (
            BundleManifest.from_json((each / "manifest.json").read_text(encoding="utf-8"))
            for each in (target, folder)
        )
        same = there.identity() == here.identity()
        return same and {**_files(target), "manifest.json": None} == {**here.files, "manifest.json": None}
    except (OSError, ValueError, AttributeError):  # none there, none any more, or no manifest
        return False
