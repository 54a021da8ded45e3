"""The sections of the configuration that measuring, exporting and compressing read."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen
from artifacts_schema.ranges import (
    Count,
    CountOrZero,
    Decibel,
    Positive,
    setting,
)

KEPT_PICTURES = 64
"""So many pictures of every evaluated point are kept, for the report; all others are only measured."""


VariantName = Literal[
    "base_50",
    "base_8",
    "base_8_dpm",
    "base_4_dpm",
    "base_2_dpm",
    "teacher_16",
    "student_16",
    "student_8",
    "student_8_small_decoder",
    "student_8_compressed",
    "student_4_small_decoder",
    "student_2_small_decoder",
]
"""What can be evaluated; `student_8_compressed` are the packages that ship, the others are torch's."""


class EvaluationConfig(Frozen):
    """`guidance_selection`, `evaluation` and `real_pictures`.

    The evaluators count by what is in their folders, the steps by variant.
    """

    volatile: ClassVar[frozenset[str]] = frozenset(
        {"signal_clip", "measure_clip", "inception", "protocols", "variants", "base_steps", "grid_pictures"}
    )

    signal_clip: str = setting(
        "assets/evaluators/openclip_signal",
        "OpenCLIP folder that guides evolution and the choice of guidance",
    )
    measure_clip: str = setting(
        "assets/evaluators/openclip_measure", "OpenCLIP folder that only measures", origin="ours; P: ViT-g/14"
    )
    features: Literal["efficientnet_lite0", "inception"] = setting(
        "efficientnet_lite0",
        "what the distances are taken between; inception gives the standard FID",
        origin="ours; P: FID",
    )
    inception: str | None = setting(
        None, 'the file of features = "inception", NVIDIA\'s inception-2015-12-05.pt'
    )
    protocols: Annotated[str, Field(min_length=1)] = setting(
        "splits", "splits: the data's own, without a licence; frozen: docs/protocols; or a folder"
    )
    variants: tuple[VariantName, ...] = setting(
        (
            "base_50",
            "base_8",
            "base_8_dpm",
            "teacher_16",
            "student_16",
            "student_8",
            "student_8_small_decoder",
            "student_8_compressed",
        ),
        "what is drawn and measured",
    )
    guidance_scales: tuple[Positive, ...] = setting(
        (3.0,), "one is chosen for each variant, on validation", min_length=1
    )
    validation_pictures: Count = setting(
        64, "of each variant and guidance scale, where there is a choice", unit="pictures"
    )
    pictures: Count = setting(64, "of each variant", unit="pictures", origin="ours; P: 30,000")
    base_steps: Count = setting(50, "of the base as the reference", origin="P")
    split: Literal["validation", "test"] = setting("test", "of the data: which captions are drawn")
    apart_pictures: CountOrZero = setting(
        0, "of seen and of novel captions each, with frozen protocols; never a headline", unit="pictures"
    )
    grid_pictures: Annotated[int, Field(ge=1, le=KEPT_PICTURES)] = setting(
        16, "shown in the report", unit="pictures"
    )

    @model_validator(mode="after")
    def _inception_has_a_file(self) -> Self:
        if self.features == "inception" and not self.inception:
            raise ValueError('features = "inception" needs inception, the path of inception-2015-12-05.pt')
        if "student_8_compressed" in self.variants and "student_8_small_decoder" not in self.variants:
            raise ValueError(
                "variants: student_8_compressed is drawn at the guidance scale of student_8_small_decoder, which must be there"
            )
        if self.apart_pictures and self.protocols == "splits":
            raise ValueError(
                "apart_pictures needs frozen protocols, which name the captions that are reported apart"
            )
        return self


class ProgramCheckConfig(Frozen):
    """What a saved package must reach beside its torch model, and on how much it is tried."""

    volatile: ClassVar[frozenset[str]] = frozenset({"pictures", "min_image_psnr_db"})  # of the bundle

    captions: Count = setting(4, "of the validation split, with their latents", unit="captions")
    timesteps: tuple[CountOrZero, ...] = setting(
        (999, 499, 124), "at which the UNet is tried: first, middle and last of the 8-step grid", min_length=1
    )
    min_exact_db: Decibel = setting(
        65.0, "in float32; measured 75 to 110, a fault of the conversion gives less than 50", unit="dB"
    )
    min_rounded_db: Decibel = setting(
        50.0, "with float16 results; Apple's own converter asks for 35", unit="dB"
    )
    max_loss_db: Decibel = setting(3.0, "against torch with float16 weights and results", unit="dB")
    pictures: Count = setting(4, "drawn with the whole bundle", unit="pictures")
    min_image_psnr_db: Decibel = setting(30.0, "of the worst picture against torch's", unit="dB")


class CoremlExportConfig(Frozen):
    """`coreml_export`. What only the bundle has (guidance, pictures) is volatile here: its stages name it themselves."""

    volatile: ClassVar[frozenset[str]] = frozenset({"components", "guidance_scale"})

    minimum_deployment_target: Literal["iOS17", "iOS18"] = setting(
        "iOS17", "oldest system that runs the packages"
    )
    attention: Literal["original", "split_einsum"] = setting(
        "original", "original: for the GPU; split_einsum: for the Neural Engine"
    )
    batch_size: Literal[1, 2] = setting(2, "of the UNet; 2: guided in one call")
    chunked_unet: bool = setting(
        False, "in two packages: what the Neural Engine loads of large models is limited"
    )
    components: tuple[
        Literal["text_encoder", "unet", "vae_decoder", "vae_encoder", "safety_checker"], ...
    ] = setting(("text_encoder", "unet", "vae_decoder"), "what is exported")
    guidance_scale: Positive = setting(3.0, "written into the manifest as the recommended one")
    program_check: ProgramCheckConfig = ProgramCheckConfig()

    def meaning_for(self, component: str) -> dict[str, Any]:
        """What the export of one component depends on: some settings are of the UNet alone."""
        if component == "unet":
            return self.meaning()
        check = self.program_check.meaning(without={"timesteps"})
        return self.meaning(without={"attention", "batch_size", "chunked_unet"}) | {"program_check": check}


class CoremlCompressionConfig(Frozen):
    """`coreml_compression`. The pictures are those of `coreml_export.program_check.pictures` captions."""

    schemes: tuple[Literal["palette_8", "palette_6", "palette_4", "linear_8", "mixed"], ...] = setting(
        (
            "palette_8",
            "palette_6",
            "palette_4",
        ),
        'tried on each component; none: no compression; "mixed" needs "palette_6" before it',
    )
    min_image_psnr_db: Decibel = setting(
        30.0, "of the worst picture against torch's, as for the export", unit="dB"
    )
    max_clip_drop: Annotated[float, Field(ge=0.0, le=2.0)] = setting(
        0.01, "mean cosine of the signal evaluator that may be lost"
    )
    smallest_weight: Count = setting(2048, "smaller weights stay as they are", unit="numbers")

    @model_validator(mode="after")
    def _mixed_has_a_measure(self) -> Self:
        if "mixed" in self.schemes and "palette_6" not in self.schemes[: self.schemes.index("mixed")]:
            raise ValueError('schemes: "mixed" is held against "palette_6", which must come before it')
        return self
