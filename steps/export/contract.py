"""Names, shapes and types that Apple's ml-stable-diffusion runtime expects (revision e12202c).

It finds the UNet's inputs and the text encoder's output by name, but takes the *first* output of UNet and
decoder and the *first* input of text encoder and decoder: there must be exactly one.
"""

from coremltools.proto.Model_pb2 import Model

from artifacts_schema.bundle import Component, TensorContract
from steps.files.errors import ExportError

CONTRACT_REVISION = "e12202c"
VERSION_KEY = "com.github.apple.ml-stable-diffusion.version"

DESCRIPTIONS: dict[Component, str] = {
    "text_encoder": "CLIP text encoder of a Stable-Diffusion-style text-to-image model.",
    "unet": "Noise predictor of a Stable-Diffusion-style text-to-image model that draws in few steps.",
    "vae_decoder": "Turns latents of a Stable-Diffusion-style text-to-image model into a picture.",
    "vae_encoder": "Turns a picture into the latents of a Stable-Diffusion-style text-to-image model.",
    "safety_checker": "Says of a picture whether it shows what should not be shown.",
}

Contract = tuple[tuple[TensorContract, ...], tuple[TensorContract, ...]]

# FeatureType's ArrayDataType
_DTYPES = {65552: "float16", 65568: "float32"}


def package_name(component: Component, model_id: str) -> str:
    """Apple's file name of a component. Raises ExportError when `model_id` cannot be part of a file name."""
    safe = model_id.replace("/", "_")
    if not safe or safe.startswith(".") or not all(c.isalnum() or c in "._-" for c in safe):
        raise ExportError(f"model id: expected letters, digits, '.', '_', '-' and '/', found {model_id!r}")
    return f"Stable_Diffusion_version_{safe}_{component}.mlpackage"


def text_encoder_contract(*, tokens: int, width: int) -> Contract:
    """(inputs, outputs) of the text encoder."""
    return (
        (
            TensorContract(
                name="input_ids", dtype="float32", shape=(1, tokens), description="Token ids, padded."
            ),
        ),
        (
            TensorContract(
                name="last_hidden_state",
                dtype="float32",
                shape=(1, tokens, width),
                description="One vector per token; the UNet's text input after a change of layout.",
            ),
            TensorContract(
                name="pooled_outputs",
                dtype="float32",
                shape=(1, width),
                description="The vector of the end-of-text token; not used here.",
            ),
        ),
    )


def unet_contract(*, batch: int, latent: tuple[int, int, int], tokens: int, width: int) -> Contract:
    """(inputs, outputs) of the UNet; `latent` is (channels, height, width), `width` that of the text."""
    return (
        (
            # float32: the last addition of a velocity UNet reads it, and float16 would cost it its precision.
            TensorContract(
                name="sample", dtype="float32", shape=(batch, *latent), description="Noisy latents."
            ),
            TensorContract(
                name="timestep",
                dtype="float16",
                shape=(batch,),
                description="Training timestep, a whole number.",
            ),
            TensorContract(
                name="encoder_hidden_states",
                dtype="float16",
                shape=(batch, width, 1, tokens),
                description="Text vectors, channels first; in a batch of 2 first the negative prompt's.",
            ),
        ),
        (
            TensorContract(
                name="noise_pred",
                dtype="float32",
                shape=(batch, *latent),
                description="Predicted noise (eps).",
            ),
        ),
    )


def vae_decoder_contract(*, latent: tuple[int, int, int], scale: int) -> Contract:
    """(inputs, outputs) of the decoder; `scale` is the side of the picture over that of the latent."""
    channels, height, width = latent
    return (
        (
            TensorContract(
                name="z",
                dtype="float16",
                shape=(1, channels, height, width),
                description="Denoised latents divided by 0.18215.",
            ),
        ),
        (
            TensorContract(
                name="image",
                dtype="float32",
                shape=(1, 3, scale * height, scale * width),
                description="Red, green, blue in about [-1, 1].",
            ),
        ),
    )


def vae_encoder_contract(*, latent: tuple[int, int, int], scale: int) -> Contract:
    """(inputs, outputs) of the encoder; `scale` is the side of the picture over that of the latent."""
    channels, height, width = latent
    return (
        (
            TensorContract(
                name="x",
                dtype="float16",
                shape=(1, 3, scale * height, scale * width),
                description="Red, green, blue in [-1, 1].",
            ),
        ),
        (
            TensorContract(
                name="latent",
                dtype="float32",
                shape=(1, 2 * channels, height, width),
                description="Means, then logarithms of variances, of the latents divided by 0.18215.",
            ),
        ),
    )


def safety_checker_contract(*, side: int, concepts: int) -> Contract:
    """(inputs, outputs) of the safety checker; `side` is that of the picture it looks at."""
    # The runtime feeds an empty picture of this size, whatever the size of what it draws.
    filtered = (1, 512, 512, 3)
    return (
        (
            TensorContract(
                name="clip_input",
                dtype="float16",
                shape=(1, 3, side, side),
                description="The picture to look at, normalised as CLIP wants it.",
            ),
            TensorContract(
                name="images",
                dtype="float16",
                shape=filtered,
                description="The picture to blacken if unsafe.",
            ),
            TensorContract(
                name="adjustment",
                dtype="float16",
                shape=(1,),
                description="Above 0 it is stricter; usually 0.",
            ),
        ),
        (
            TensorContract(
                name="concept_scores",
                dtype="float32",
                shape=(1, concepts),
                description="Above 0 where the picture shows the concept.",
            ),
            TensorContract(
                name="has_nsfw_concepts",
                dtype="float32",
                shape=(1,),
                description="1 if any score is above 0.",
            ),
            TensorContract(
                name="filtered_images", dtype="float32", shape=filtered, description="Black if unsafe."
            ),
        ),
    )


def check_contract(component: Component, spec: Model, contract: Contract) -> None:
    """Compare a saved model with the contract. Raises ExportError naming the first difference."""
    for kind, features, expected in (
        ("input", spec.description.input, contract[0]),
        ("output", spec.description.output, contract[1]),
    ):
        found = {feature.name: feature.type.multiArrayType for feature in features}
        names = [tensor.name for tensor in expected]
        if sorted(found) != sorted(names):
            raise ExportError(f"{component}: expected the {kind}s {names}, found {sorted(found)}")
        for tensor in expected:
            array = found[tensor.name]
            shape, dtype = tuple(array.shape), _DTYPES.get(array.dataType, f"type {array.dataType}")
            if shape != tensor.shape or dtype != tensor.dtype:
                raise ExportError(
                    f"{component}: expected {kind} {tensor.name} to be {tensor.dtype} {tensor.shape}, "
                    f"found {dtype} {shape}"
                )
