"""Two ranks train as one does on both their shares, also where units are skipped."""

import json
import socket
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.steps.unet.ranks import rank, train_rank


def test_two_ranks_that_skip_units_have_the_gradient_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank, args=(port, tmp_path), nprocs=2)
    train_rank(tmp_path / "alone")
    first, second, alone = (
        load_file(tmp_path / name / "gradient.safetensors") for name in ("0", "1", "alone")
    )
    assert first.keys() == second.keys() == alone.keys()
    assert len(alone) < len(load_file(tmp_path / "alone" / "weights.safetensors"))  # units were skipped
    for name, gradient in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], gradient, rtol=1e-5, atol=1e-5)
    states = [json.loads((tmp_path / name / "state.json").read_text()) for name in ("0", "1", "alone")]
    assert states[0] == states[1]
    assert states[0]["averaged"] == [False, True] * 3  # once a step
    assert [c["iteration"] for c in states[0]["selection"]["candidates"]] == [0, 3]
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("0", "1")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
