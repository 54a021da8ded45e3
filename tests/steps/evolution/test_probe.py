"""What a probe draws and scores: which captions, from which noise, sampled how."""

from typing import Any

import pytest
import torch
from torch import Tensor

from artifacts_schema.stage_configs import ArchitectureEvolutionConfig
from steps.data.groups import picture_group
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evolution.probe import Probe, one_per_group
from steps.files.errors import DataError
from steps.unet.evolved import EvolvedUNet
from tests.factories import tiny_base
from tests.steps.evolution.factories import BrightnessScorer, TinyData

CONFIG = ArchitectureEvolutionConfig(
    captions_per_batch=3, most_captions=7, probe_steps=2, probe_guidance_scale=4.0
)


class CaptionScorer(BrightnessScorer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, list[str]]] = []

    def scores(self, images: Tensor, captions: Any) -> Tensor:
        self.seen.append((images, list(captions)))
        return super().scores(images, captions)


def probe_of(scorer: BrightnessScorer, index: int = 0) -> Probe:
    return Probe.of_round(tiny_base(), TinyData(), scorer, CONFIG, seed=5, index=index)


def test_probes_of_a_round_share_captions_and_noise_and_rounds_differ() -> None:
    one, same, other = (probe_of(BrightnessScorer(), index) for index in (0, 0, 1))
    assert one.captions == same.captions
    assert torch.equal(one.noise, same.noise)
    assert set(one.captions) != set(other.captions)
    assert not torch.equal(one.noise, other.noise)


def test_a_batch_is_drawn_as_v_from_its_own_captions_and_noise_and_scored_with_them() -> None:
    scorer, data = CaptionScorer(), TinyData()
    probe = probe_of(scorer)
    unet = EvolvedUNet.from_unet(probe.base.unet)
    validation = data.captions("validation")
    assert probe.batches == 3
    for number, size in enumerate((3, 3, 1)):
        found = probe.scores(unet, number)
        images, captions = scorer.seen[-1]
        part = slice(3 * number, 3 * number + size)
        assert captions == probe.captions[part] and len(found) == size
        latents = sample_latents(
            unet,
            NoiseSchedule.from_config(probe.base.scheduler_config),
            noise=probe.noise[part],
            embeddings=data.embeddings("validation", torch.tensor([validation.index(c) for c in captions])),
            empty_embedding=data.empty_embedding,
            steps=2,
            guidance_scale=4.0,
            prediction_type="v_prediction",
        )
        expected = decode_latents(probe.base.vae, latents, scaling_factor=probe.base.scaling_factor)
        assert torch.equal(images, expected)


TONES = [
    f"{who} surfing{tone}" for who in ("man", "woman") for tone in ("", " dark skin tone", " light skin tone")
]


def test_captions_are_one_per_picture_group() -> None:
    captions = [*TONES, "moon", "sun"]
    drawn = set()
    for index in range(20):
        chosen = [captions[i] for i in one_per_group(captions, 9, seed=1, index=index).tolist()]
        assert sorted(map(picture_group, chosen)) == ["man surfing", "moon", "sun", "woman surfing"]
        drawn |= set(chosen)
    assert drawn == set(captions)  # every variant has its turn


def test_rounds_go_through_the_groups() -> None:
    captions = [f"thing {i}" for i in range(10)]
    rounds = [one_per_group(captions, 4, seed=1, index=index).tolist() for index in range(3)]
    assert len(set(rounds[0] + rounds[1])) == 8
    assert all(len(set(chosen)) == 4 for chosen in rounds)
    assert set(rounds[0] + rounds[1] + rounds[2]) == set(range(10))


def test_fewer_than_two_groups_are_refused() -> None:
    with pytest.raises(DataError, match="at least two picture groups, found 1"):
        one_per_group(TONES[:3], 8, seed=0, index=0)
