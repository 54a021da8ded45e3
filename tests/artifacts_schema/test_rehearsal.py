"""A rehearsal is short, keeps every size, and cannot be taken for the run."""

from pathlib import Path

import pytest

from artifacts_schema.config import load_config_file, parse_config
from artifacts_schema.parts import STARTS_FROM
from artifacts_schema.rehearsal import rehearsal_of
from flows.config import parse

PRESETS = sorted(
    path for path in (Path(__file__).parents[2] / "configs").glob("*.toml") if path.stem != "pretrain"
)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_sizes_stay_and_everything_else_is_short(path: Path) -> None:
    real = load_config_file(path)
    short = rehearsal_of(real)
    assert (short.base, short.run.skip, short.run.seed) == (real.base, real.run.skip, real.run.seed)
    for stage in STARTS_FROM:
        before, after = getattr(real, stage).training, getattr(short, stage).training
        assert after.iterations <= 10 and after.warmup_iterations <= 2
        for name in ("batch_size", "accumulation", "precision", "gradient_checkpointing", "ema_on_host"):
            assert getattr(after, name) == getattr(before, name)
    assert short.data.limit is not None and short.data.limit <= 1000
    assert short.step_distillation.final_steps == real.step_distillation.final_steps
    assert short.evaluation.base_steps == real.evaluation.base_steps


def test_nothing_of_it_mixes_with_the_run() -> None:
    real = parse_config({"store": {"root": "s3://bucket/runs/"}})
    short = rehearsal_of(real)
    assert short.run.rehearsal and short.run.name == "openmoji-rehearsal"
    assert short.store.root == "s3://bucket/runs-rehearsal"
    assert short.report.output == ".snapfusion/runs-rehearsal"


def test_the_flow_reads_it_from_json() -> None:
    """None has no word in TOML."""
    short = rehearsal_of(parse_config({}))
    assert parse_config(parse(short.model_dump_json())) == short
