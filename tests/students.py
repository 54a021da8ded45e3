"""A student of random weights in a folder, as a run leaves it."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from artifacts_schema.references import FolderRef, WeightsRef
from steps.export.diffusers_folder import diffusers_folder
from steps.models.base import BaseModel, load_base
from steps.models.base_folder import put_model_folder
from steps.models.stored import save_model
from steps.pretraining.micro import write_micro_base
from steps.store import LocalStore
from steps.store.base import get_folder
from steps.unet.architecture import copy_block, remove_unit
from steps.unet.conversion import build
from steps.unet.evolved import EvolvedUNet
from steps.unet.small_decoder import SmallDecoder


@dataclass(frozen=True)
class MicroStudent:
    """The folder, what it is made of, and the models as trainer and evaluator have them."""

    folder: Path
    store: LocalStore
    base: BaseModel
    base_ref: FolderRef
    files: FolderRef
    unet: EvolvedUNet
    decoder: SmallDecoder
    unet_ref: WeightsRef
    decoder_ref: WeightsRef


def micro_student(work: Path) -> MicroStudent:
    """An evolved UNet with a unit removed and a block copied, and a half-width decoder, on the micro base."""
    store = LocalStore(work / "store")
    base = load_base(write_micro_base(work / "base"))
    # As the included base has it: weights in half precision, and a configuration that says so.
    copy.deepcopy(base.text_encoder).half().save_pretrained(base.path / "text_encoder")
    base = load_base(base.path)
    torch.manual_seed(0)
    whole = EvolvedUNet.from_unet(base.unet)
    spec = remove_unit(whole.spec, whole.geometry(), "down.0.attentions.1")
    spec = copy_block(spec, whole.geometry(), "up.1.attentions.0")
    unet = build(spec, whole).eval()
    decoder = SmallDecoder.cut_from(base.vae, width_fraction=0.5).eval()
    unet_ref = save_model(store, unet, schema="snapfusion.EvolvedUNet")
    decoder_ref = save_model(store, decoder, schema="snapfusion.SmallDecoder")
    base_ref = put_model_folder(store, base.path)
    files = FolderRef(files=diffusers_folder(store, base_ref, unet=unet_ref, decoder=decoder_ref))
    folder = work / "student"
    get_folder(store, files, folder)
    return MicroStudent(folder, store, base, base_ref, files, unet, decoder, unet_ref, decoder_ref)
