"""The card of a student's folder, README.md, written from a run's report: Markdown, and none of it foreign."""

import re
from collections.abc import Iterator, Mapping, Sequence

from artifacts_schema.base import Interval
from artifacts_schema.references import ObjectRef
from artifacts_schema.report import RunReport
from steps.latency.table import predict
from steps.report.page import RunRecords

SHIPS = "student_8_small_decoder"
_SHOWN = ("base_50", SHIPS)
_MARKUP = re.compile(r"""([\\`*_{}\[\]<>()|#!~&@$]|:(?=//)|(?<=www)\.)""")
_MEANING = {
    "clip_difference": "CLIP score, student - reference; higher is better",
    "distance_difference": "kernel distance to real pictures, student - reference; lower is better",
    "distance_ratio": "the same as a ratio; lower is better",
    "retrieval_top1": "share of pictures whose own caption is the nearest",
}


def plain(text: str) -> str:
    """Foreign text on one line as Markdown shows it letter for letter; never at the beginning of a line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def card_pictures(report: RunReport) -> dict[str, ObjectRef]:
    """The card's pictures by their path beside it."""
    return {f"pictures/{name}.png": report.grids[name] for name in _SHOWN if name in report.grids}


def model_card(records: RunRecords, report: RunReport) -> str:
    """README.md of the student of a finished run."""
    parts = [
        _front_matter(records),
        f"# {plain(report.name)}: text to picture in {records.manifest.steps} steps",
        *(f"> **{plain(label)}**" for label in report.labels),
        _what(records),
        _use(records),
        *_pictures(records, report),
        *_quality(records, report.quality),
        _latency(records),
        _limits(records),
        _licence(records, report),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(records: RunRecords) -> str:
    licence = "cc-by-sa-4.0" if "CC BY-SA 4.0" in records.manifest.attribution else "other"
    lines = [f"license: {licence}", "library_name: diffusers", "pipeline_tag: text-to-image"]
    return "\n".join(["---", *lines, "tags: [snapfusion, step-distillation, stable-diffusion]", "---"])


def _what(records: RunRecords) -> str:
    evolution, steps = records.evolution, records.manifest.steps
    decoder = records.trainings["decoder_distillation"].metrics
    small = decoder.get("parameters_small")
    size = f" of {small / 1e6:.2f} M parameters" if small else ""
    unet, blocks = "the base's UNet, every block kept", ""
    if evolution is not None:
        spec, before = evolution.architecture, f"{evolution.base_parameters / 1e6:.2f} M"
        unet = f"a UNet of {evolution.parameters / 1e6:.2f} M parameters instead of {before}"
        removed, copied = (", ".join(found) or "none" for found in (spec.removed, spec.copied))
        blocks = f" Removed blocks: {removed}. Copied blocks: {copied}."
    return (
        f"A Stable-Diffusion-style model made small and quick with SnapFusion's method (arXiv 2306.00980): {unet}, "
        f"distilled to {steps} steps, and a decoder{size}.{blocks}"
    )


def guidance_of(records: RunRecords) -> float:
    """The guidance scale that was chosen for what ships, or else the one of the bundle."""
    found = [e.point.guidance_scale for e in records.evaluations if e.variant == SHIPS]
    return found[0] if found else records.manifest.guidance_scale


def _use(records: RunRecords) -> str:
    steps, scale = records.manifest.steps, guidance_of(records)
    return f"""## Use

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("this/folder", trust_remote_code=True)
pipe("woman surfing", num_inference_steps={steps}, guidance_scale={scale:g}).images[0].save("picture.png")
```

It takes diffusers, transformers and torch. `trust_remote_code` lets diffusers import the three small files in `unet/`,
`vae/` and `scheduler/`, classes that diffusers does not have (it says that it expected others, which does no harm);
weights are safetensors. The scheduler steps on the grid
that the student was distilled on: another scheduler draws something else."""


def _pictures(records: RunRecords, report: RunReport) -> Iterator[str]:
    found = [name for name in _SHOWN if name in report.grids]
    if not found:
        return
    by_name = {record.variant: record for record in records.evaluations}
    shown = "\n\n".join(
        f"{by_name[name].title}, guidance {by_name[name].point.guidance_scale:g}:\n\n"
        f"![{name}](pictures/{name}.png)"
        for name in found
    )
    count = int(report.config["evaluation"]["grid_pictures"])
    captions = "; ".join(plain(text) for text in by_name[found[0]].captions[:count])
    yield f"## Pictures\n\nThe same captions and the same noise, not selected.\n\n{shown}\n\nCaptions: {captions}."


def _quality(records: RunRecords, numbers: Mapping[str, Interval]) -> Iterator[str]:
    if not records.evaluations:
        return
    first = records.evaluations[0]
    rows = [
        (
            name,
            f"{v.value:.4f}",
            f"{v.low:.4f} to {v.high:.4f}",
            str(v.n),
            _MEANING.get(name.rsplit(".", 1)[1], ""),
        )
        for name, v in numbers.items()
    ]
    yield (
        f"## Numbers\n\n{_table(('number', 'value', '95 % interval', 'n', 'meaning'), rows)}\n\n"
        f"Protocol: {first.pictures} pictures per variant for captions of the {plain(str(first.protocol['split']))} "
        f"split, the same noise for all, each variant at the guidance scale that was chosen for it on the validation "
        f"split; distances over {plain(str(first.protocol['features']))} features. Intervals are over groups of "
        f"pictures that differ in skin tone or seed alone. Protocol hash `{first.protocol_hash[:16]}`."
    )


def _latency(records: RunRecords) -> str:
    table = records.latency_table
    evolved = predict(table, records.evolution.architecture) if records.evolution else table.whole
    measured = [
        (
            name,
            f"{row.latency.median:.4g}",
            f"{row.latency.p10:.4g} to {row.latency.p90:.4g}",
            str(row.latency.n),
        )
        for name, row in table.rows.items()
        if name in ("text_encoder", "unet", "decoder")
    ]
    return (
        f"## Latency\n\nMeasured on the base ({plain(table.backend)} on {plain(table.device)}, {table.threads} threads, "
        f"{plain(table.dtype)}, batch {table.batch}), in {table.unit}:\n\n"
        f"{_table(('model', 'median', '10th to 90th percentile', 'n'), measured)}\n\n"
        f"By that table one guided step of this UNet takes {evolved:.4g} {table.unit}, {evolved / table.whole:.0%} of "
        "the base's."
    )


def _limits(records: RunRecords) -> str:
    return f"""## Limits

Made to draw in {records.manifest.steps} steps; fewer blur, more gain nothing it was trained for. It cannot draw what
its base could not. The folder has a decoder and no encoder: no image-to-image, no inpainting. There is no safety
checker. LoRAs must be made for this UNet; those of its base have weights for blocks that are gone."""


def _licence(records: RunRecords, report: RunReport) -> str:
    stated = records.manifest.attribution or "Not stated: the terms of base model and training data apply."
    code = f" Made by {plain(report.code.text)}." if report.code else ""
    return f"## Licence and attribution\n\nData: {plain(stated)}\n\nThe source files are Apache-2.0.{code}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, ["---"] * len(headers), *rows))
