"""What the Core ML export leaves: one report per component, and the manifest of the finished bundle."""

from typing import Any, ClassVar, Literal

from artifacts_schema.base import Frozen, Measurement, Record
from artifacts_schema.references import FolderRef, ObjectRef

Component = Literal["text_encoder", "unet", "vae_decoder", "vae_encoder", "safety_checker"]
REQUIRED_COMPONENTS: tuple[Component, ...] = ("text_encoder", "unet", "vae_decoder")
"""What drawing a picture from a caption takes; the others are extras of a runtime."""

Prediction = Literal["epsilon", "v_prediction"]
# How a package holds its weights: float16, palettes of so many bits, 8-bit integers, palettes of different bits.
Scheme = Literal["fp16", "palette_8", "palette_6", "palette_4", "linear_8", "mixed"]

NOT_MEASURED = "not measured"


class TensorContract(Frozen):
    """One input or output of a component: what the runtime finds it by and must feed or read."""

    name: str
    dtype: Literal["float16", "float32"]
    shape: tuple[int, ...]
    description: str


class ExportCost(Frozen):
    """Seconds of tracing, converting, saving and checking, and the process's highest memory use until then (bytes)."""

    trace_s: float
    convert_s: float
    save_s: float
    check_s: float = 0.0
    peak_memory_bytes: int


class ParityPoint(Frozen):
    """The worst of `inputs` comparisons at one place, such as one timestep. Peak signal-to-noise ratios in dB.

    All are against the torch model in float32. `exact_db`: the saved program in float32 arithmetic. `weights_db`: torch
    with weights rounded to float16, which is all that `exact_db` should show. `rounded_db`: the program with every
    float16 result rounded. `torch_rounded_db`: torch with weights and results rounded; `loss_db` is how much worse
    than that the program is, the mean over the inputs. `output_exact_db` and `output_rounded_db` compare the
    component's own output, where the others compare the quantity recovered from it.
    """

    place: str
    inputs: int
    exact_db: float
    weights_db: float
    rounded_db: float
    torch_rounded_db: float
    loss_db: float
    output_exact_db: float
    output_rounded_db: float


class Parity(Frozen):
    """How the saved program's numbers compare with torch's, both computed on this machine.

    `quantity` is what was compared. `largest_activation` is the largest result declared float16, of the operation
    `largest_operation`. `error_jump` names the first operation where rounding suddenly costs much, `exact_note` says
    why the exact run is less exact than asked; None where there is nothing to say.
    """

    quantity: str
    points: tuple[ParityPoint, ...]
    largest_activation: float
    largest_operation: str
    error_jump: str | None = None
    exact_note: str | None = None

    @property
    def exact_db(self) -> float:
        """The worst place's, dB."""
        return min(point.exact_db for point in self.points)

    @property
    def rounded_db(self) -> float:
        """The worst place's, dB."""
        return min(point.rounded_db for point in self.points)


class ComponentReport(Record):
    """One exported component.

    `package` is the stored .mlpackage, called `package_name` in the bundle. A component in two pieces has their names
    in `chunks`, in the order they run; `package` then holds both, each in a folder of its name. `output_prediction` is
    what the exported UNet returns: `epsilon` also for a velocity UNet, whose conversion is part of the
    graph (`velocity_folded`). `decoder_factor` is what the exported decoder multiplies its input by, because
    the runtime divides latents by 0.18215 whatever the model's `scaling_factor`. `float32_operations` counts
    the operations kept in float32, by type. `vocabulary` is the number of tokens a text encoder knows. `parity`
    is None where it was not measured; `parity_note` says so.
    """

    schema_name: ClassVar[str] = "snapfusion.component"
    schema_version: ClassVar[int] = 1
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "cost"})

    component: Component
    package_name: str
    package: FolderRef
    chunks: tuple[str, ...] = ()
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
    vocabulary: int | None = None
    attribution: str = ""
    parity: Parity | None = None
    parity_note: str = NOT_MEASURED
    cost: ExportCost


class BundleFile(Frozen):
    """One file of the bundle, for a later check that nothing was lost or changed."""

    sha256: str
    bytes: int


class BundleComponent(Frozen):
    """What the runtime needs to know of one component: one package or, in order, its `chunks`."""

    package: str
    chunks: tuple[str, ...] = ()
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    parameters: int
    weights_sha256: str
    bytes: int
    scheme: Scheme = "fp16"
    parity: Parity | None = None
    parity_note: str = NOT_MEASURED

    @property
    def packages(self) -> tuple[str, ...]:
        """File names, in the order they run."""
        return self.chunks or (self.package,)


class DrawingScores(Frozen):
    """Pictures that a whole bundle drew, float16 results rounded, beside torch's: same captions, same noise.

    `psnr_db` has one value a picture, of numbers in [0, 1] (peak 1) before they become bytes.
    CLIP scores are mean cosines by the measuring evaluator, `clip_drop` is torch's minus the bundle's.
    """

    pictures: int
    psnr_db: Measurement
    worst_psnr_db: float
    clip_score: float
    torch_clip_score: float
    clip_drop: float


class BundleDrawing(Record):
    """Left by `bundle_drawing`. `grid` is a PNG: above what torch drew, below what the bundle drew."""

    schema_name: ClassVar[str] = "snapfusion.bundle_drawing"
    schema_version: ClassVar[int] = 1

    captions: tuple[str, ...]
    guidance_scale: float
    steps: int
    scores: DrawingScores
    grid: ObjectRef


class BundleManifest(Record):
    """`manifest.json` of a bundle: everything a runtime needs beside the packages.

    `model_prediction` is what the trained UNet predicts, `output_prediction` what the exported one returns.
    `schedule` holds the diffusers keys of the noise schedule, `timesteps` the sampling grid, falling.
    `files` names every other file of the bundle by its path in it. `made_of` names the records it was made from by
    stage, with their identities. `complete` is False when a component that
    drawing takes was left out of the export. `drawing` is what the whole bundle drew on the machine that made it,
    None where it drew nothing.
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
    made_of: dict[str, str] = {}
    attribution: str
    drawing: DrawingScores | None = None
