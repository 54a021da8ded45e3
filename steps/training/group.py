"""Collective work of the ranks of one training. With one rank nothing here does anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]


def backend_of(device: torch.device) -> str:
    """What carries gradients between ranks."""
    return "nccl" if device.type == "cuda" else "gloo"


def _meet(meeting: str, world: int, timeout: timedelta) -> Store:
    """A file of this machine, or tcp://host:port/prefix of the node that leads."""
    if not meeting.startswith("tcp://"):
        return FileStore(meeting, world)
    place = urlsplit(meeting)
    return PrefixStore(place.path, TCPStore(str(place.hostname), int(place.port or 0), None, False, timeout))


@contextmanager
def joined(rank: int, world: int, device: torch.device, meeting: str, *, timeout_s: float) -> Iterator[None]:
    """This process is rank `rank` of `world`, for as long as the block lasts; they meet at `meeting`.
    A rank that is silent for `timeout_s` ends the others' collectives.

    Every rank sees a GPU of its own as the first. On one machine they meet by a file, and no port is open to others.
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
            backend_of(device),
            store=_meet(meeting, world, timedelta(seconds=timeout_s)),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout_s),
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
