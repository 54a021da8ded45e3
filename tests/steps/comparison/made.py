"""Finished runs that nobody ran, in a store: for tests of what is said of several."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from artifacts_schema.base import Interval, Provenance
from artifacts_schema.licences import Licence
from artifacts_schema.readers import read_record
from artifacts_schema.report import StageSummary
from steps.cache.notes import report_of_run
from steps.comparison.runs import Run
from steps.store import LocalStore

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"
SUBJECT = "student_8_small_decoder"
CAPTIONS = tuple(f"thing {number}" for number in range(12)) * 2
LICENCES = {
    name: Licence(instrument=name, licensed=True, reason="orders what is known")
    for name in ("kernel_distance", "clip_score")
}


def stored(name: str) -> Any:
    return read_record((RECORDS / f"{name}.json").read_text())


def made_run(
    store: LocalStore,
    run_id: str,
    *,
    clip: float = 0.0,
    away: float = 0.0,
    latency: float = 1.0,
    size: float = 4.0,
    learning_rate: float = 1e-4,
    licensed: bool = True,
    name: str = "",
    protocol: dict[str, Any] | None = None,
) -> Run:
    """A run in the store whose pictures' CLIP scores are raised by `clip` and whose features lie `away` from real ones."""
    evolution = stored("evolution_v1")
    evolution = evolution.model_copy(update={"predicted_latency": 10.0 * latency, "latency_unit": "ms"})
    evaluation = _evaluation(store, clip, away, protocol or {})
    records = {"architecture_evolution": evolution, f"evaluation {SUBJECT}": evaluation}
    report = stored("report_v1")
    config = report.config | {"student_8": {"training": {"learning_rate": learning_rate}}}
    stages = [
        StageSummary(stage=stage, identity=key, key=key, wall_time_s=30.0, peak_memory_bytes=1 << 30)
        for stage, key in (
            ("start", "a"),
            ("student_8", f"b{learning_rate}"),
            (f"evaluation {SUBJECT}", run_id),
        )
    ]
    report = report.model_copy(
        update={
            "name": name or f"run-{run_id}",
            "smoke": False,
            "labels": (),
            "folder": f"/runs/{run_id}",
            "config": config,
            "licences": LICENCES if licensed else {},
            "headline": {"coreml.unet.size_mib": size, "student8_vs_base50.clip_difference": clip},
            "quality": {
                "student8_vs_base50.clip_difference": Interval(
                    value=clip, low=clip - 0.1, high=clip + 0.1, n=24
                )
            },
            "stages": tuple(stages),
            "inputs": {stage: record.identity() for stage, record in records.items()},
            "provenance": Provenance(created_at=f"2026-11-26T07:0{run_id[-1]}:00+00:00"),
        }
    )
    report_of_run(store, run_id, report, records.values())
    return Run(report, records)


def _evaluation(store: LocalStore, clip: float, away: float, protocol: dict[str, Any]) -> Any:
    """24 pictures of 12 groups, all of one colour each; the noise in their scores is the same in every run."""
    draws = np.random.default_rng(0)
    features = draws.normal(size=(24, 8)).astype(np.float32)
    noise = draws.normal(scale=0.01, size=24).astype(np.float32)
    real = draws.normal(size=(24, 8)).astype(np.float32)
    tensors = {
        "images": np.full((6, 3, 8, 8), round(100 + 100 * clip), dtype=np.uint8),
        "features": features + np.float32(away),
        "clip": 0.6 + noise + np.float32(clip) * (1 + np.arange(24, dtype=np.float32) / 24),
        "caption": np.arange(24) % 12,
    }
    record = stored("evaluation_v1")
    split = record.real.model_copy(
        update={"features": store.put_bytes(save({"features": real})), "captions": CAPTIONS}
    )
    point = record.point.model_copy(update={"images": store.put_bytes(save(tensors))})
    return record.model_copy(
        update={
            "variant": SUBJECT,
            "point": point,
            "real": split,
            "captions": CAPTIONS,
            "pictures": 24,
            "protocol": {"split": "test", "pictures": 24, "noise_seed": 1} | protocol,
        }
    )
