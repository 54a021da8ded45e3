"""Freezes the protocols `validation` and `test`: the included ones, MS-COCO's, or those of your own captions and pictures.

    python -m steps.evaluation.freeze                          # the embedded data, into docs/protocols/
    python -m steps.evaluation.freeze --source mine.toml --validation-clip DIR --test-clip DIR --image-size 512 --output DIR
    python -m steps.evaluation.freeze --coco captions_val2014.json --pictures val2014 --captions 30000 --features inception \
        --inception FILE --validation-clip DIR --test-clip DIR --output DIR

Run it again only when an evaluator was replaced: results on the old protocols cannot be compared with new ones. A source
of your own (TOML or JSON) has a section for each protocol:

    subject = "shoes"
    train_captions = "train.txt"        # optional, one a line: a held-out word that is not in it is refused
    [test]
    pictures = 2048                     # drawn for a claim
    captions = [{text = "red shoe", pictures = ["a.png", "b.png"]}]
    reference = [{text = "blue shoe", pictures = ["c.png"]}]   # what distances are measured to; none: the captions' own
    seen = []                           # captions of other categories, and
    novel = []                          # with unknown words: reported apart

Pictures are found beside the source, or below its `folder`. Those of MS-COCO are brought to 256 x 256, and so is what is drawn.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from artifacts_schema.protocol import ProtocolRecord
from steps.cache.provenance import measured_here
from steps.evaluation.coco import PICTURES, Coco, coco_drafts
from steps.evaluation.coco import SIZE as COCO_SIZE
from steps.evaluation.features import features_identity, load_features
from steps.evaluation.freeze_sources import SIZE, Draft, Role, openmoji_drafts, own_drafts
from steps.evaluation.protocol import calibrate, write_protocol
from steps.evaluation.subject import NOISE_SEED, halves, shuffled
from steps.files.errors import EvaluationError, SnapFusionError
from steps.inputs.folders import FROZEN_PROTOCOLS, INCEPTION_SHA256
from steps.models.base_folder import folder_identity
from steps.models.clip import ClipScorer

CALIBRATION = 16
TOLERANCE = 1e-3  # of the largest of its kind
SAMPLER = "DDIM or DPM-Solver++ on trailing timesteps, guided, noise keyed by picture (steps.diffusion)"
ROOT = Path(__file__).resolve().parents[2]


def freeze(draft: Draft, clip_folder: Path, features_name: str, inception: Path | None) -> ProtocolRecord:
    """The protocol of a draft, with what the instruments say here of its calibration pictures."""
    real, clip = draft.held_out, ClipScorer.load(clip_folder)
    if len(real.names) < CALIBRATION:
        raise EvaluationError(
            f"{draft.role}: a protocol needs at least {CALIBRATION} real pictures, found {len(real.names)}"
        )
    features = load_features(features_name, inception)
    texts = list(dict.fromkeys(real.captions))
    retrieval = shuffled(texts, NOISE_SEED)
    # Spread over all of them: neighbours differ in a skin tone alone.
    spread = [number * len(real.names) // CALIBRATION for number in range(CALIBRATION)]
    frozen = real.frozen()
    reference = draft.reference.images if draft.reference.names else real.images[halves(real.captions)[0]]
    return ProtocolRecord(
        name=draft.role,
        role=draft.role,
        subject=draft.subject,
        source=draft.source,
        image_size=draft.image_size,
        captions=tuple(texts),
        noise_seed=NOISE_SEED,
        pictures=draft.pictures,
        sampler=SAMPLER,
        retrieval=tuple(retrieval),
        features=features_name,
        features_sha256=INCEPTION_SHA256 if inception else features_identity(features_name),
        evaluator_sha256=folder_identity(clip_folder),
        real=frozen,
        reference=draft.reference.frozen(),
        seen=draft.seen.frozen(),
        novel=draft.novel.frozen(),
        calibration=calibrate(
            [frozen[number] for number in spread],
            real.images[spread],
            clip=clip,
            candidates=(retrieval, clip.text_embeddings(retrieval)),
            features=features,
            reference=features(reference).numpy(),
        ),
        tolerance=TOLERANCE,
        provenance=measured_here(torch.get_num_threads()),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--source", type=Path, help="TOML or JSON of your own; none: the embedded data")
    which.add_argument("--coco", type=Path, help="captions of MS-COCO, such as captions_val2014.json")
    _add_coco(parser.add_argument_group("of --coco"))
    evaluators = ROOT / "assets/evaluators"
    parser.add_argument("--validation-clip", type=Path, default=evaluators / "openclip_signal")
    parser.add_argument("--test-clip", type=Path, default=evaluators / "openclip_measure")
    parser.add_argument(
        "--features", choices=("efficientnet_lite0", "inception"), default="efficientnet_lite0"
    )
    parser.add_argument("--inception", type=Path, help="the file of --features inception")
    parser.add_argument(
        "--image-size",
        type=int,
        help=f"of --source: that of the base's pictures ({SIZE}); of --coco: what is measured ({COCO_SIZE})",
    )
    parser.add_argument("--output", type=Path, default=FROZEN_PROTOCOLS)
    found = parser.parse_args()
    if found.coco and not found.pictures:
        parser.error("--coco needs --pictures, the folder of its pictures")
    if found.coco and found.output == FROZEN_PROTOCOLS:
        parser.error("--coco needs --output, a folder of its own")
    if min(found.captions, found.validation_captions) < CALIBRATION:
        parser.error(f"--captions and --validation-captions must be at least {CALIBRATION}")
    if bool(found.validation_coco) != bool(found.validation_pictures):
        parser.error("--validation-coco and --validation-pictures go together")
    return found


def _add_coco(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--pictures", type=Path, help="their folder")
    group.add_argument("--captions", type=int, default=PICTURES["test"], help="of test; P: 30000, 6000, 5000")
    group.add_argument("--validation-captions", type=int, default=PICTURES["validation"])
    group.add_argument("--validation-coco", type=Path, help="other captions for validation; none: the same")
    group.add_argument("--validation-pictures", type=Path, help="their folder")
    group.add_argument("--seed", type=int, default=0, help="which pictures and captions")


def _drafts(options: argparse.Namespace) -> list[Draft]:
    if options.source:
        return own_drafts(options.source, options.image_size or SIZE)
    if not options.coco:
        return openmoji_drafts()
    test = Coco.read(options.coco, options.pictures)
    other = options.validation_coco
    validation = Coco.read(other, options.validation_pictures) if other else test
    counts: dict[Role, int] = {"test": options.captions, "validation": options.validation_captions}
    return coco_drafts(test, validation, counts, seed=options.seed, size=options.image_size or COCO_SIZE)


def main() -> None:
    """Freeze both and write them."""
    options = _arguments()
    try:
        drafts = _drafts(options)
        clips = {"validation": options.validation_clip, "test": options.test_clip}
        for draft in drafts:
            protocol = freeze(draft, clips[draft.role], options.features, options.inception)
            path = options.output / f"{draft.role}.json"
            write_protocol(protocol, path)
            if draft.source != "openmoji":
                _pack(draft, path.with_suffix(".safetensors"))
            sys.stdout.write(
                f"{path}: {len(protocol.captions)} captions, {len(protocol.reference)} reference pictures, "
                f"{protocol.identity()[:12]}\n"
            )
    except SnapFusionError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _pack(draft: Draft, path: Path) -> None:
    """The pixels beside the protocol: what is measured later is what was frozen, whatever happens to the folder."""
    parts = (draft.held_out, draft.reference, draft.seen, draft.novel)
    images: dict[str, torch.Tensor] = {
        name: image.contiguous()
        for part in parts
        for name, image in zip(part.names, part.images, strict=True)
    }
    save_file(images, path)


if __name__ == "__main__":
    main()
