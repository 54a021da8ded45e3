"""Memory that ran out in a stage, in words: what to set, in place of a library's counts of bytes. Imports no torch.

A preflight has told what every training needs (`steps.latency.fit`); this is for what it could not know, such as another program
on the same GPU. Where the system ends the process instead (Linux, exit status 137 or -9), nothing can be said from in here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from artifacts_schema.config import SnapFusionConfig
from steps.files.errors import RankError, ShortOfMemoryError
from steps.latency.bounds import TRAINED

# torch on a CPU, on a GPU, and cuBLAS; a rank's error comes in its own words.
_SAID = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_OTHERS = {
    "latency_profile": "latency_profile.batch_size",
    "guidance_selection": "evaluation.validation_pictures",
    "evaluation": "evaluation.pictures",
    "coreml_export": "coreml_export.chunked_unet = true",
}


@contextmanager
def memory_told(stage: str, config: SnapFusionConfig, *, on_gpu: bool) -> Iterator[None]:
    """Raises ShortOfMemoryError, with the setting to change, in place of what memory that ran out raises in the block."""
    try:
        yield
    except (MemoryError, RuntimeError, RankError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _SAID):
            raise
        where = "the GPU's memory" if on_gpu else "this machine's memory"
        first = next(iter(str(error).splitlines()), "")
        raise ShortOfMemoryError(
            f"{stage}: {where} did not suffice; {_advice(stage, config, on_gpu)}. Finished stages and checkpoints stay"
            + (f". It was said: {first[:200]}" if first else "")
        ) from error


def _advice(stage: str, config: SnapFusionConfig, on_gpu: bool) -> str:
    larger = f"use a machine with more (resources.{stage}.memory_mb where it runs elsewhere)"
    if stage in TRAINED:
        from steps.latency.fit import with_less

        change = with_less(stage, config, on_gpu=on_gpu)
        return f"set {change}, end other programs that use it, or {larger}" if change else larger
    setting = _OTHERS.get(stage)
    return f"change {setting}, end other programs that use it, or {larger}" if setting else larger
