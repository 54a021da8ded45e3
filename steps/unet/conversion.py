"""From one kind of UNet to another, with its weights."""

from typing import cast

from diffusers import UNet2DConditionModel
from torch import nn

from artifacts_schema.architecture import ArchitectureSpec
from steps.files.errors import ArchitectureError
from steps.unet.architecture import to_payload
from steps.unet.blocks import normalise
from steps.unet.evolved import EvolvedUNet
from steps.unet.weights import placed_like, weights_for


def build(
    spec: ArchitectureSpec, source: UNet2DConditionModel | EvolvedUNet, *, load_weights: bool = True
) -> EvolvedUNet:
    """The UNet of `spec` with weights copied from `source`, on its device and dtype.

    A copy that `source` does not have starts as a plain copy of its original. Raises ArchitectureError when
    the spec's blocks do not fit or `source` lacks one of them.
    """
    geometry = source.geometry() if isinstance(source, EvolvedUNet) else normalise(source.config)
    evolved: EvolvedUNet = EvolvedUNet(**geometry, architecture=to_payload(spec))
    if load_weights:
        evolved.load_state_dict(weights_for(spec, source.state_dict()))
    return placed_like(evolved, source)


def as_evolved(unet: nn.Module) -> EvolvedUNet:
    """`unet` itself when it is an EvolvedUNet, else its equal made from a UNet2DConditionModel."""
    if isinstance(unet, EvolvedUNet):
        return cast(EvolvedUNet, unet)
    if isinstance(unet, UNet2DConditionModel):
        evolved: EvolvedUNet = EvolvedUNet.from_unet(unet)
        return evolved
    raise ArchitectureError(f"expected a UNet2DConditionModel or an EvolvedUNet, found {type(unet).__name__}")
