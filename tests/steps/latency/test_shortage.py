"""Memory that ran out in a stage becomes a message with the setting to change."""

import pytest
import torch

from artifacts_schema.config import parse_config
from steps.files.errors import RankError, ShortOfMemoryError
from steps.latency.shortage import memory_told

TOO_MUCH = 1 << 50


def message(stage: str, error: Exception, *, on_gpu: bool = False, **training: object) -> str:
    config = parse_config({stage: {"training": training}} if training else {})
    with pytest.raises(ShortOfMemoryError) as caught, memory_told(stage, config, on_gpu=on_gpu):
        raise error
    return str(caught.value)


def test_what_torch_raises_on_a_cpu_is_told() -> None:
    with (
        pytest.raises(
            ShortOfMemoryError, match=r"set robust_training\.training\.gradient_checkpointing = true, "
        ),
        memory_told("robust_training", parse_config({}), on_gpu=False),
    ):
        torch.empty(TOO_MUCH, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RankError("rank 1 failed: OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_every_kind_is_told(error: Exception) -> None:
    said = message("teacher_16", error, on_gpu=True)
    assert said.startswith("teacher_16: the GPU's memory did not suffice; set teacher_16.training.")


def test_the_next_setting_is_one_that_is_not_set_yet() -> None:
    full = {"batch_size": 8, "accumulation": 2}
    assert "gradient_checkpointing = true," in message("student_8", MemoryError(), on_gpu=True, **full)
    full |= {"gradient_checkpointing": True}
    assert "student_8.training.ema_on_host = true," in message(
        "student_8", MemoryError(), on_gpu=True, **full
    )
    halves = "student_8.training.batch_size = 4, student_8.training.accumulation = 4,"
    assert halves in message("student_8", MemoryError(), on_gpu=False, **full)
    full |= {"batch_size": 1}
    assert "did not suffice; use a machine with more" in message("student_8", MemoryError(), **full)


def test_stages_that_train_nothing_have_settings_too() -> None:
    assert "change evaluation.pictures, " in message("evaluation", MemoryError())
    assert "use a machine with more (resources.start.memory_mb" in message("start", MemoryError())


def test_other_errors_stay_as_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="^shapes differ$"),
        memory_told("student_8", parse_config({}), on_gpu=False),
    ):
        raise RuntimeError("shapes differ")
