"""(f) Stable Diffusion 1.5 at full size on random weights: guided step, decoder, and both together, of the base, of BK-SDM's
pattern (arXiv 2305.15798), of `snapfusion-sd15`, and of what our rule removes down to sd15.toml's budget in MACs.
"""

from functools import partial
from statistics import median
from typing import Any

import torch

from artifacts_schema.latency import LatencyTable
from artifacts_schema.stage_configs import LatencyProfileConfig
from benchmarks.evolved_unet import largest_removed
from benchmarks.plain.setting import Setting, ratio, timed
from benchmarks.published import Metric
from benchmarks.sd15_networks import meta_base, random_weights, unet_config
from steps.latency.macs import count_macs
from steps.latency.timing import quiet
from steps.stages import latency_profile

_BUDGET = 0.6  # configs/sd15.toml
_STEPS = {"base": 50, "bk-sdm-base": 50, "snapfusion-sd15": 8, "ours": 8}
_TOKENS = 77


def measure(setting: Setting) -> list[Metric]:
    """Parameters, MACs, milliseconds and ratios to the base. All four UNets are in memory at once: 11 GiB."""
    micro = setting.quick
    table = latency_profile.count(meta_base(micro=micro), LatencyProfileConfig(backend="macs"))
    unets = {name: _unet(name, table, micro) for name in _STEPS}
    decoders = {name: random_weights(name, micro=micro) for name in ("decoder", "small_decoder")}
    repeats = 1 if setting.quick else 3
    with quiet(*unets.values(), *decoders.values()):
        calls: dict[str, Any] = {name: partial(_guided_step, unet) for name, unet in unets.items()}
        times = timed(setting, calls, repeats=repeats, warmup=1)
        latent = torch.randn(1, 4, *(2 * [unet_config(micro=micro)["sample_size"]]))
        pictures = timed(
            setting, {name: partial(one, latent) for name, one in decoders.items()}, repeats=repeats, warmup=1
        )
    found = [*_unet_metrics(unets, times), *_decoder_metrics(decoders, latent, pictures)]
    return found + _end_to_end(times, pictures)


def _unet(name: str, table: LatencyTable, micro: bool) -> Any:
    spec = largest_removed(table, unet_config(micro=micro), _BUDGET) if name == "ours" else None
    return random_weights(name, micro=micro, spec=spec)


def _guided_step(unet: Any) -> None:
    side, device = unet.config.sample_size, next(unet.parameters()).device
    text = torch.ones(2, _TOKENS, unet.config.cross_attention_dim, device=device)
    unet(
        torch.ones(2, 4, side, side, device=device),
        torch.full((2,), 500, device=device),
        text,
        return_dict=False,
    )


def _unet_metrics(unets: dict[str, Any], times: dict[str, list[float]]) -> list[Metric]:
    found = []
    for name, unet in unets.items():
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        macs, _ = count_macs(partial(_guided_step, unet.to("meta")))
        found += [
            _one(f"full_size.unet.{name}.parameters", parameters / 1e6, "M"),
            _one(f"full_size.unet.{name}.macs", macs / 1e9, "G", "of a guided step, batch 2"),
            _one(f"full_size.unet.{name}.step_ms", median(times[name]), "ms", "guided, batch 2"),
            _one(f"full_size.unet.{name}.weights", 4 * parameters / (1 << 30), "GiB", "fp32"),
        ]
        if name != "base":
            found.append(
                ratio(f"full_size.unet.{name}.latency_ratio", times["base"], times[name], "base over this")
            )
    return found


def _decoder_metrics(
    decoders: dict[str, Any], latent: torch.Tensor, times: dict[str, list[float]]
) -> list[Metric]:
    macs, parameters = {}, {}
    for name, decoder in decoders.items():
        parameters[name] = sum(parameter.numel() for parameter in decoder.parameters()) / 1e6
        macs[name] = count_macs(partial(decoder.to("meta"), latent.to("meta")))[0] / 1e9
    return [
        *(_one(f"full_size.{name}.parameters", value, "M") for name, value in parameters.items()),
        *(_one(f"full_size.{name}.macs", value, "G") for name, value in macs.items()),
        *(_one(f"full_size.{name}.picture_ms", median(values), "ms") for name, values in times.items()),
        _one("full_size.decoder.mac_ratio", macs["decoder"] / macs["small_decoder"], "x"),
        ratio("full_size.decoder.latency_ratio", times["decoder"], times["small_decoder"]),
    ]


def _end_to_end(times: dict[str, list[float]], pictures: dict[str, list[float]]) -> list[Metric]:
    """A picture's seconds, put together from its steps and its decoding; nobody waits for fifty full-size steps."""
    whole = {}
    for name, steps in _STEPS.items():
        decoder = pictures["decoder" if name in ("base", "bk-sdm-base") else "small_decoder"]
        whole[name] = [steps * step + last for step, last in zip(times[name], decoder, strict=True)]
    return [
        *(
            _one(
                f"full_size.end_to_end.{name}",
                median(values) / 1e3,
                "s",
                f"{_STEPS[name]} guided steps and decoding, added up",
            )
            for name, values in whole.items()
        ),
        *(
            ratio(f"full_size.end_to_end.{name}.latency_ratio", whole["base"], whole[name], "base over this")
            for name in whole
            if name != "base"
        ),
    ]


def _one(name: str, value: float, unit: str, note: str = "") -> Metric:
    return Metric(name, value, unit, 1, value, value, note)
