"""What a notebook or a program imports of the pipeline; nothing is loaded before it is asked for.

    import snapfusion

    snapfusion.runs()                                   # a pandas table of the finished runs, newest first
    run = snapfusion.Run.open()                         # the newest; run.report, .pictures, .architecture, .bundle()
    pipeline = snapfusion.load_pipeline(run.id)         # or a folder: a diffusers pipeline with the student in it
    pipeline("woman surfing", num_inference_steps=8, guidance_scale=3.0).images[0]

`EvolvedUNet` and `SmallDecoder` are diffusers models with `from_pretrained`, `GridDDIMScheduler` is their scheduler, an
`ArchitectureSpec` says which blocks a UNet has.
"""

import sys
import typing
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artifacts_schema.architecture import ArchitectureSpec
    from flows.load import load_pipeline
    from flows.run import Run
    from flows.runs import runs_frame as runs
    from steps.diffusion.scheduler import GridDDIMScheduler
    from steps.unet.evolved import EvolvedUNet
    from steps.unet.small_decoder import SmallDecoder

__all__ = [
    "ArchitectureSpec",
    "EvolvedUNet",
    "GridDDIMScheduler",
    "Run",
    "SmallDecoder",
    "load_pipeline",
    "runs",
]

# Public name to the module and what it is called there.
_PLACES = {
    "ArchitectureSpec": ("artifacts_schema.architecture", "ArchitectureSpec"),
    "EvolvedUNet": ("steps.unet.evolved", "EvolvedUNet"),
    "GridDDIMScheduler": ("steps.diffusion.scheduler", "GridDDIMScheduler"),
    "Run": ("flows.run", "Run"),
    "SmallDecoder": ("steps.unet.small_decoder", "SmallDecoder"),
    "load_pipeline": ("flows.load", "load_pipeline"),
    "runs": ("flows.runs", "runs_frame"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module 'snapfusion' has no attribute '{name}'; it has: {', '.join(__all__)}")
    _undo_metaflows_typing()
    module, attribute = _PLACES[name]
    found = globals()[name] = getattr(import_module(module), attribute)
    return found


def _undo_metaflows_typing() -> None:
    """Let torch be imported after Metaflow's `Runner` (until Metaflow, seen with 2.19, brings no typing_extensions of its own).

    Its copy replaces how `typing` collects type parameters, and takes those of the real package for ones with a default.
    """
    if "metaflow._vendor.typing_extensions" in sys.modules:
        import typing_extensions

        real = getattr(typing_extensions, "_collect_parameters", None)  # Python 3.13 needs none
        if real is not None:
            typing._collect_parameters = real  # type: ignore[attr-defined]


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
