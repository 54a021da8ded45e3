"""A UNet that really lacks its removed blocks.

It is made of diffusers' own blocks under diffusers' own names, so that weights map one to one onto those of a
UNet2DConditionModel; only the wiring is ours. Importing this module is all that loading a saved folder needs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from diffusers import UNet2DConditionModel
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from artifacts_schema.architecture import ArchitectureSpec
from steps.files.errors import ArchitectureError
from steps.unet.architecture import from_payload, to_payload, units_by_id, validate
from steps.unet.blocks import full_spec, module_path, normalise
from steps.unet.blockwise import BlockwiseUNet
from steps.unet.weights import placed_like

# diffusers loads a model of a foreign module only if it finds its own base class in that module.
__all__ = ["EvolvedUNet", "ModelMixin"]

_README = """# Evolved UNet ({name})

`diffusion_pytorch_model.safetensors` and `config.json` of a UNet of {parameters:,} parameters in which whole
blocks of the base were removed or copied. diffusers alone cannot build it. With the package that holds
`{module}` on the Python path:

    from {module} import EvolvedUNet
    unet = EvolvedUNet.from_pretrained("this/folder")
    StableDiffusionPipeline.from_pretrained("base/folder", unet=unet)

The key `architecture` in `config.json` lists the blocks in order of execution; the other keys are those of a
UNet2DConditionModel. Removed: {removed}. Copied: {copied}.
"""


class EvolvedUNet(BlockwiseUNet):
    """UNet of the blocks that an ArchitectureSpec lists; called like UNet2DConditionModel.

    `architecture` is the record's JSON payload (None: the base's own architecture); the other arguments are
    UNet2DConditionModel's. Raises ArchitectureError when the blocks do not fit together.
    """

    spec: ArchitectureSpec

    def _blocks_of(self, architecture: dict[str, Any] | None) -> dict[str, tuple[str, ...]]:
        geometry = self.geometry()
        self.spec = from_payload(architecture) if architecture else full_spec(geometry)
        validate(self.spec, geometry)
        return super()._blocks_of(architecture)

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel) -> Self:
        """The same network with the same weights (copied) and the same output. Raises ArchitectureError."""
        geometry = normalise(unet.config)
        evolved: Self = cls(**geometry, architecture=to_payload(full_spec(geometry)))
        evolved.load_state_dict(unet.state_dict())
        return placed_like(evolved, unet)

    def to_unet(self) -> UNet2DConditionModel:
        """The plain UNet2DConditionModel with these weights (copied), for the base's own architecture only.

        Raises ArchitectureError when blocks were removed or copied.
        """
        if not self.spec.is_full:
            raise ArchitectureError(
                f"architecture {self.spec.name} lacks {len(self.spec.removed)} blocks of the base and copies "
                f"{len(self.spec.copied)}; only the full architecture is a UNet2DConditionModel"
            )
        unet = UNet2DConditionModel(**self.geometry())
        unet.load_state_dict(self.state_dict())
        return placed_like(unet, self)

    def block(self, block_id: str) -> nn.Module:
        """The module of a block. Raises KeyError for a block that is not there."""
        return (
            self.get_submodule(module_path(block_id)) if block_id in self.spec.blocks else _missing(block_id)
        )

    @property
    def skipped(self) -> frozenset[str]:
        """Ids of the blocks that the forward pass leaves out at present."""
        return self._skipped

    def set_skipped(self, unit_ids: Iterable[str] = ()) -> None:
        """Leave these units out of every forward pass from now on, exactly as if they were removed; () undoes
        it.

        A skipped block's hidden input passes through, a skipped pair neither makes nor takes its skip, and
        the skip of an up ResNet skipped alone is dropped. Raises ArchitectureError for unknown units.
        """
        units = units_by_id(self.spec, self.geometry(), unit_ids)
        self._skipped = frozenset(block for unit in units for block in unit.blocks)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As ModelMixin's; also leaves a README that says what the folder needs to be loaded."""
        super().save_pretrained(save_directory, *args, **kwargs)
        text = _README.format(
            name=self.spec.name,
            module=type(self).__module__,
            parameters=sum(parameter.numel() for parameter in self.parameters()),
            removed=", ".join(self.spec.removed) or "nothing",
            copied=", ".join(self.spec.copied) or "nothing",
        )
        (Path(save_directory) / "README.md").write_text(text, encoding="utf-8")


def _missing(block_id: str) -> nn.Module:
    raise KeyError(f"block {block_id} is not part of this architecture")
