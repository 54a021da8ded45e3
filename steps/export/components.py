"""What there is to export: for every component its model, its wrapper, its contract and what it is tried on."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn

from artifacts_schema.bundle import Component, Prediction
from artifacts_schema.references import WeightsRef
from artifacts_schema.result_configs import CoremlExportConfig
from steps.diffusion.parameterization import PredictionType
from steps.diffusion.schedule import NoiseSchedule
from steps.export.attention import SplitEinsumProcessor
from steps.export.contract import (
    Contract,
    safety_checker_contract,
    text_encoder_contract,
    unet_contract,
    vae_decoder_contract,
    vae_encoder_contract,
)
from steps.export.optional import EncoderForExport, SafetyCheckerForExport, load_safety_checker
from steps.export.program_check import Sample
from steps.export.samples import (
    Pictures,
    decoder_samples,
    encoder_samples,
    safety_samples,
    text_samples,
    unet_samples,
)
from steps.export.wrappers import (
    RUNTIME_SCALING_FACTOR,
    DecoderForExport,
    TextEncoderForExport,
    UNetForExport,
)
from steps.files.errors import ExportError
from steps.models.base import BaseModel, WeightsOf
from steps.models.stored import load_model
from steps.store.base import Store


@dataclass(frozen=True)
class Source:
    """What a component is made of: the base, and the stored weights that take the place of its own, if there are any.

    `prediction_type` is what the UNet that ships predicts.
    """

    base: BaseModel
    weights: WeightsRef | None
    prediction_type: PredictionType
    config: CoremlExportConfig
    store: Store

    @property
    def text_shape(self) -> dict[str, int]:
        """Tokens of a caption, and the width of the vector that the base makes of each."""
        base = self.base
        return {"tokens": base.tokenizer.model_max_length, "width": int(base.text_encoder.config.hidden_size)}


class Exportable(ABC):
    """One component of a source. The torch model is the caller's to hold: a large one must not outlive its use."""

    name: ClassVar[Component]
    needs: ClassVar[tuple[WeightsOf, ...]]
    """Components of the base whose weights are read; a large base need not be in memory whole."""
    quantity: str
    """What the program check compares, for people."""
    chunked = False
    """Whether the package is split in two."""
    velocity = False
    """Whether a conversion of velocity to noise becomes part of the program."""
    output_prediction: Prediction | None = None
    """As in `ComponentReport`."""
    own_model = False
    """Whether the model is loaded for the export alone, so that its weights may be rounded in place."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def stored(self) -> WeightsRef | None:
        """The stored weights it is made of; None for the base's own."""
        return None

    @property
    def decoder_factor(self) -> float | None:
        """As in `ComponentReport`."""
        return None

    @property
    def vocabulary(self) -> int | None:
        """As in `ComponentReport`."""
        return None

    @abstractmethod
    def model(self) -> nn.Module:
        """The torch model."""

    @abstractmethod
    def wrapper(self, model: nn.Module) -> nn.Module:
        """The module to convert."""

    @abstractmethod
    def contract(self, model: nn.Module) -> Contract:
        """What the runtime expects of it."""

    @abstractmethod
    def samples(self, pictures: Pictures, contract: Contract) -> Iterable[Sample]:
        """What its package is tried on."""


class TextEncoder(Exportable):
    """The base's own."""

    name = "text_encoder"
    needs = ("text_encoder",)
    quantity = "hidden states"

    @property
    def vocabulary(self) -> int:
        return int(self.source.base.text_encoder.config.vocab_size)

    def model(self) -> nn.Module:
        return self.source.base.text_encoder

    def wrapper(self, model: nn.Module) -> nn.Module:
        return TextEncoderForExport(model)

    def contract(self, model: nn.Module) -> Contract:
        return text_encoder_contract(**self.source.text_shape)

    def samples(self, pictures: Pictures, contract: Contract) -> Iterable[Sample]:
        return text_samples(self.source.base, pictures.captions)


class UNet(Exportable):
    """The stored UNet or the base's, returning noise whatever it predicts."""

    name = "unet"
    needs = ("text_encoder",)  # of which its samples are made
    own_model = True
    output_prediction = "epsilon"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.chunked = source.config.chunked_unet
        self.velocity = source.prediction_type == "v_prediction"
        self.quantity = "recovered velocity" if self.velocity else "noise"

    @property
    def stored(self) -> WeightsRef | None:
        return self.source.weights

    def model(self) -> nn.Module:
        base = self.source.base
        unet: nn.Module = base.unet if self.stored is None else load_model(self.source.store, self.stored)
        return unet

    def wrapper(self, model: UNet2DConditionModel) -> nn.Module:
        if self.source.config.attention == "split_einsum":
            model.set_attn_processor(SplitEinsumProcessor())
        schedule = NoiseSchedule.from_config(self.source.base.scheduler_config)
        return UNetForExport(model, schedule if self.velocity else None)

    def contract(self, model: nn.Module) -> Contract:
        latent, batch = self.source.base.latent_shape, self.source.config.batch_size
        return unet_contract(batch=batch, latent=latent, **self.source.text_shape)

    def samples(self, pictures: Pictures, contract: Contract) -> Iterable[Sample]:
        base, config = self.source.base, self.source.config
        return unet_samples(
            base, pictures, config.program_check, batch=config.batch_size, velocity=self.velocity
        )


class VaeDecoder(Exportable):
    """The stored decoder or the base's. Latents are scaled by the base's factor, whatever its configuration says."""

    name = "vae_decoder"
    needs = ("vae",)
    quantity = "picture"

    @property
    def decoder_factor(self) -> float:
        return RUNTIME_SCALING_FACTOR / self.source.base.scaling_factor

    @property
    def stored(self) -> WeightsRef | None:
        return self.source.weights

    def model(self) -> nn.Module:
        base = self.source.base
        vae: nn.Module = base.vae if self.stored is None else load_model(self.source.store, self.stored)
        return vae

    def wrapper(self, model: nn.Module) -> nn.Module:
        return DecoderForExport(model, self.source.base.scaling_factor)

    def contract(self, model: nn.Module) -> Contract:
        return vae_decoder_contract(latent=self.source.base.latent_shape, scale=_scale(model))

    def samples(self, pictures: Pictures, contract: Contract) -> Iterable[Sample]:
        return decoder_samples(pictures)


class VaeEncoder(Exportable):
    """The base's own."""

    name = "vae_encoder"
    needs = ("vae",)
    quantity = "moments of the latents"

    def model(self) -> nn.Module:
        vae: nn.Module = self.source.base.vae
        return vae

    def wrapper(self, model: nn.Module) -> nn.Module:
        return EncoderForExport(model, self.source.base.scaling_factor)

    def contract(self, model: nn.Module) -> Contract:
        return vae_encoder_contract(latent=self.source.base.latent_shape, scale=_scale(model))

    def samples(self, pictures: Pictures, contract: Contract) -> Iterable[Sample]:
        return encoder_samples(pictures)


class SafetyChecker(Exportable):
    """The base's own, which is not among the weights that `load_base` reads."""

    name = "safety_checker"
    needs = ()
    quantity = "scores of the concepts"

    def model(self) -> nn.Module:
        checker: nn.Module = load_safety_checker(self.source.base.path)
        return checker

    def wrapper(self, model: nn.Module) -> nn.Module:
        return SafetyCheckerForExport(model)

    def contract(self, model: StableDiffusionSafetyChecker) -> Contract:
        side, concepts = int(model.config.vision_config.image_size), len(model.concept_embeds_weights)
        return safety_checker_contract(side=side, concepts=concepts)

    def samples(self, pictures: Pictures, contract: Contract) -> Iterable[Sample]:
        return safety_samples(pictures, side=contract[0][0].shape[-1])


COMPONENTS: dict[Component, type[Exportable]] = {
    described.name: described for described in (TextEncoder, UNet, VaeDecoder, VaeEncoder, SafetyChecker)
}


def exportable(component: Component, source: Source) -> Exportable:
    """The component of `source`. Raises ExportError for one that there is not."""
    if component not in COMPONENTS:
        raise ExportError(f"expected one of the components {', '.join(COMPONENTS)}, found {component!r}")
    return COMPONENTS[component](source)


def _scale(vae: AutoencoderKL) -> int:
    """The side of a picture over that of its latents."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))
