"""What a run is told, and refused for, once its inputs are known: time and memory of every stage."""

import json
import os
from pathlib import Path
from typing import Any

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.plan import RunPlan
from steps.store import Store, get_bytes

_GPU = Path("/dev/nvidia0")
# Set by Metaflow in a task on another machine, which need not be like those that the trainings get.
_ELSEWHERE = ("METAFLOW_KUBERNETES_WORKLOAD", "AWS_BATCH_JOB_ID")


def estimates(config: SnapFusionConfig, plan: RunPlan) -> str:
    """Time, memory and cost per stage, as far as they can be told beforehand."""
    from steps.latency.estimates import format_estimates, stage_estimates

    if not plan.estimates:
        return "no estimates: this plan was made by a version that measured none"
    origin = plan.provenance
    machine = f"{origin.device}, {origin.threads} threads" if origin else "an unknown machine"
    found = stage_estimates(config, plan.estimates)
    return format_estimates(found, price_of=config.compute.price_of, measured_on=machine)


def check_memory(config: SnapFusionConfig, plan: RunPlan, store: Store) -> None:
    """Refuse a run whose trainings cannot fit into this machine's memory, with settings that would.

    Asked of every run, cached or not; imports torch only where it is not plain that everything fits. Raises ConfigError.
    """
    on_gpu = _GPU.exists() and config.compute.device != "cpu"
    if not plan.estimates or (not on_gpu and any(name in os.environ for name in _ELSEWHERE)):
        return
    from steps.latency.bounds import host_memory, surely_fits

    available = gpu_memory() if on_gpu else host_memory()
    if surely_fits(config, plan.estimates, available):
        return
    from steps.latency.fit import check_fits

    check_fits(config, shapes_of(plan, store), available, where="the GPU" if on_gpu else "this machine")


def shapes_of(plan: RunPlan, store: Store) -> Any:
    """What memory depends on, out of the stored base: `steps.latency.fit.Shapes`."""
    from steps.latency.fit import Shapes

    unet, vae, text = (
        json.loads(get_bytes(store, plan.base.files[f"{part}/config.json"]))
        for part in ("unet", "vae", "text_encoder")
    )
    return Shapes(unet=unet, vae=vae, tokens=int(text["max_position_embeddings"]))


def gpu_memory() -> float:
    """Bytes of the first GPU."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory)
