"""Instruments: which captions are exchanged, what is published, and that a trial licenses nothing."""

from pathlib import Path

from artifacts_schema.licences import LicenceRecord
from benchmarks.instruments import exchanged, metrics, random_unet, write_licences
from steps.data.groups import picture_group
from steps.evaluation.licences import evidence
from steps.evaluation.protocol import read_protocol
from steps.inputs.folders import FROZEN_PROTOCOLS
from tests.factories import two_level_unet
from tests.steps.evaluation.test_licences import levels


def record(pictures: int, step: float = 1.0) -> LicenceRecord:
    found = evidence("clip_score", [levels("clip_score", step)] * 2)
    return LicenceRecord(
        stage="instruments",
        name="test",
        protocol="p",
        evaluator="e",
        features="f",
        pictures=pictures,
        instruments=(found,),
    )


def test_a_shuffled_caption_is_of_another_group_and_each_is_used() -> None:
    captions = [
        f"{who} {what}"
        for who in ("man", "woman", "person")
        for what in ("surfing", "surfing dark skin tone")
    ]
    found = exchanged(captions)
    pairs = zip(captions, found, strict=True)
    assert all(picture_group(first) != picture_group(second) for first, second in pairs)
    assert sorted(found) == sorted(captions)


def test_published_are_the_order_and_the_numbers_behind_it() -> None:
    for step, ordered in ((1.0, 1.0), (0.05, 0.0)):
        rows = {row.name: row for row in metrics(record(2048, step))}
        assert rows["instrument.clip_score.ordered"].value == ordered
        assert rows["instrument.clip_score.base_50_minus_base_2.noise_1"].value > 0
        assert {"instrument.clip_score.real.noise_0", "instrument.clip_score.shuffled.noise_1"} <= set(rows)


def test_a_trial_of_few_pictures_licenses_nothing(tmp_path: Path) -> None:
    protocol, folder = read_protocol(FROZEN_PROTOCOLS / "test.json"), tmp_path / "protocols"
    assert write_licences(record(protocol.pictures - 1), protocol, folder) is None
    path = write_licences(record(protocol.pictures), protocol, folder)
    assert path == tmp_path / "licences" / "test.json"
    assert LicenceRecord.from_json(path.read_text()).pictures == protocol.pictures


def test_the_untrained_unet_shares_no_weights_and_is_always_the_same() -> None:
    unet = two_level_unet(seed=5)
    first, second = (random_unet(unet).state_dict()["conv_in.weight"] for _ in range(2))
    assert first.equal(second) and not first.equal(unet.state_dict()["conv_in.weight"])
