"""Collective work of the ranks of one training. With one rank nothing here does anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]

# A held-out check, in which rank 0 works alone, takes minutes. A rank that ends is noticed at once and without this.
TIMEOUT_S = 1800.0


@contextmanager
def joined(rank: int, world: int, device: torch.device, meeting: Path) -> Iterator[None]:
    """This process is rank `rank` of `world`, for as long as the block lasts; they meet by the file `meeting`.

    nccl between GPUs, gloo between CPUs. Every rank sees a GPU of its own as the first. The file, and not an address: no
    port is open to others.
    """
    if world == 1:
        yield
        return
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # it would keep what it found when it was first asked
    threads = str(torch.get_num_threads())
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world))
    known = {"RANK": str(rank), "LOCAL_RANK": "0", "OMP_NUM_THREADS": threads, **sizes}
    with patch.dict(os.environ, known):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=FileStore(str(meeting), world),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
        try:
            yield
        except BaseException:
            if device.type != "cuda":  # nccl would wait for ranks that are gone; the process ends anyway
                dist.destroy_process_group()
            raise
        else:
            dist.destroy_process_group()
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Element-wise mean over all ranks, of equal shares; every rank must call it."""
    if not dist.is_initialized():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def mean_terms(terms: list[dict[str, float]], device: torch.device) -> list[dict[str, float]]:
    """The same of named numbers, a dictionary a micro-batch, all with the same names."""
    if not dist.is_initialized():
        return terms
    rows = torch.tensor([list(row.values()) for row in terms], dtype=torch.float64, device=device)
    return [dict(zip(terms[0], row, strict=True)) for row in mean_over_ranks(rows).tolist()]
