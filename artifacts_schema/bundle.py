"""What the Core ML export leaves: one report per component, and the manifest of the finished bundle."""

from typing import Any, ClassVar, Literal

from artifacts_schema.base import Frozen, Record
from artifacts_schema.references import FolderRef

Component = Literal["text_encoder", "unet", "vae_decoder"]
Prediction = Literal["epsilon", "v_prediction"]

NOT_MEASURED = "not measured"


class TensorContract(Frozen):
    """One input or output of a component: what the runtime finds it by and must feed or read."""

    name: str
    dtype: Literal["float16", "float32"]
    shape: tuple[int, ...]
    description: str


class ExportCost(Frozen):
    """Seconds of tracing, converting and saving, and the process's highest memory use until then (bytes)."""

    trace_s: float
    convert_s: float
    save_s: float
    peak_memory_bytes: int


class ComponentReport(Record):
    """One exported component.

    `package` is the stored .mlpackage, called `package_name` in the bundle. `output_prediction` is
    what the exported UNet returns: `epsilon` also for a velocity UNet, whose conversion is part of the
    graph (`velocity_folded`). `decoder_factor` is what the exported decoder multiplies its input by, because
    the runtime divides latents by 0.18215 whatever the model's `scaling_factor`. `float32_operations` counts
    the operations kept in float32, by type. `parity` is None where it was not
    measured; `parity_note` says so.
    """

    schema_name: ClassVar[str] = "snapfusion.component"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "cost"})

    component: Component
    package_name: str
    package: FolderRef
    source_class: str
    parameters: int
    weights_sha256: str
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    prediction_type: Prediction
    output_prediction: Prediction | None = None
    velocity_folded: bool = False
    scaling_factor: float
    decoder_factor: float | None = None
    float32_operations: dict[str, int] = {}
    attribution: str = ""
    parity: dict[str, float] | None = None
    parity_note: str = NOT_MEASURED
    cost: ExportCost


class BundleFile(Frozen):
    """One file of the bundle, for a later check that nothing was lost or changed."""

    sha256: str
    bytes: int


class BundleComponent(Frozen):
    """What the runtime needs to know of one component."""

    package: str
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    parameters: int
    weights_sha256: str
    bytes: int
    parity: dict[str, float] | None = None
    parity_note: str = NOT_MEASURED


class BundleManifest(Record):
    """`manifest.json` of a bundle: everything a runtime needs beside the packages.

    `model_prediction` is what the trained UNet predicts, `output_prediction` what the exported one returns.
    `schedule` holds the diffusers keys of the noise schedule, `timesteps` the sampling grid, falling.
    `files` names every other file of the bundle by its path in it. `complete` is False when a component was
    left out of the export.
    """

    schema_name: ClassVar[str] = "snapfusion.bundle"
    schema_version: ClassVar[int] = 1

    components: dict[str, BundleComponent]
    complete: bool
    files: dict[str, BundleFile]
    steps: int
    guidance_scale: float
    schedule: dict[str, Any]
    timesteps: tuple[int, ...]
    model_prediction: Prediction
    output_prediction: Prediction | None
    scaling_factor: float
    runtime_scaling_factor: float
    decoder_factor: float | None
    weights: dict[str, str]
    attribution: str
