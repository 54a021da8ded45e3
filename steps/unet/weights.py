"""Which entries of a state dict an architecture takes, and where a new model belongs."""

from collections.abc import Mapping
from typing import TypeVar

from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from artifacts_schema.architecture import ArchitectureSpec, original_of
from steps.files.errors import ArchitectureError
from steps.unet.blocks import module_path

Model = TypeVar("Model", bound=nn.Module)


def weights_for(spec: ArchitectureSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict that `spec` has, with those of new copies taken from their originals."""
    gone = {module_path(block_id) for block_id in spec.removed}
    own = {module_path(block_id) for block_id in spec.blocks}
    result = {}
    for name, value in weights.items():
        block = ".".join(name.split(".")[: 3 if name.startswith("mid_block") else 4])
        is_block = ".resnets." in name or ".attentions." in name
        if block not in gone and (block in own or not is_block):
            result[name] = value
    for block_id in spec.copied:
        path = module_path(block_id)
        if any(name.startswith(f"{path}.") for name in result):
            continue
        original = module_path(original_of(block_id))
        taken = {n: v for n, v in weights.items() if n.startswith(f"{original}.")}
        if not taken:
            raise ArchitectureError(f"the source of the weights has neither {block_id} nor its original")
        result |= {path + name.removeprefix(original): value for name, value in taken.items()}
    return result


def placed_like(model: Model, source: ModelMixin) -> Model:
    """`model` on the device, in the dtype and in the mode of `source`."""
    # nn.Module's own `to`: ModelMixin's warns about every cast.
    nn.Module.to(model, device=source.device, dtype=source.dtype)
    return model.train(source.training)
