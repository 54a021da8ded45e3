"""Preparing data, and reading it back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from artifacts_schema.data import PreparedDataRef
from artifacts_schema.readers import read_record
from artifacts_schema.run_configs import DataConfig
from steps.data import encoding, preparing
from steps.data.encoding import encode_moments
from steps.data.openmoji import SPLITS, draw, list_openmoji
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_data, prepare_source
from steps.data.source import OpenMojiSource, Picture, well_mixed
from steps.files.errors import DataError, StoreError
from steps.files.progress import NullProgress
from steps.models.base import BaseModel, encode_captions
from steps.store import LocalStore, get_bytes
from tests.factories import encoding_base
from tests.steps.data.tiny import IMAGE_SIZE, ListSource, noise_image

KEYS = {"seed": 1, "iteration": 5}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return encoding_base()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def _pictures(train: int = 5) -> list[Picture]:
    splits = ["train"] * train + ["validation"] * 2 + ["test"]
    return [Picture(split, f"picture {i}", noise_image(i)) for i, split in enumerate(splits)]


def _prepare(base: BaseModel, store: LocalStore, train: int = 5) -> PreparedDataRef:
    return prepare_source(base, ListSource(_pictures(train)), store, progress=NullProgress())


def test_everything_is_read_back_in_order(base: BaseModel, store: LocalStore) -> None:
    data = PreparedData.load(store, _prepare(base, store))
    assert [data.size(name) for name in ("train", "validation", "test", "novel")] == [5, 2, 1, 0]
    assert data.captions("validation") == ["picture 5", "picture 6"]
    indices = torch.tensor([4, 0, 4])
    assert torch.equal(data.images("train", indices), torch.stack([noise_image(i) for i in (4, 0, 4)]))
    expected = encode_captions(base.tokenizer, base.text_encoder, [f"picture {i}" for i in (4, 0, 4)])
    torch.testing.assert_close(data.embeddings("train", indices), expected)
    assert torch.equal(data.empty_embedding, encode_captions(base.tokenizer, base.text_encoder, [""]))
    assert data.latent_shape == (4, 8, 8)


def test_moments_are_the_encoders(base: BaseModel, store: LocalStore) -> None:
    ref = _prepare(base, store)
    moments = load(get_bytes(store, ref.splits["train"].moments[0].object))["rows"]
    pixels = torch.stack([noise_image(i) for i in range(5)]).float() / 127.5 - 1
    expected = base.vae.encode(pixels).latent_dist
    torch.testing.assert_close(moments[:, :4], expected.mean)
    torch.testing.assert_close(moments[:, 4:], expected.std)


def test_pictures_encoded_apart_give_the_same_moments(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.stack([noise_image(i) for i in range(3)])
    together = encode_moments(base, images)
    monkeypatch.setattr(encoding, "_ENCODED_PIXELS", 1)
    torch.testing.assert_close(encode_moments(base, images), together)


def test_latents_are_scaled_samples_of_the_moments(base: BaseModel, store: LocalStore) -> None:
    ref = _prepare(base, store)
    data = PreparedData.load(store, ref)
    moments = load(get_bytes(store, ref.splits["train"].moments[0].object))["rows"]
    index = torch.tensor([2])
    draws = torch.cat([data.latents("train", index, seed=0, iteration=i) for i in range(400)])
    mean, std = moments[2, :4] * 0.5, moments[2, 4:] * 0.5
    normal = (draws - mean) / std
    assert normal.mean().abs() < 0.02
    assert (normal.std() - 1).abs() < 0.02


def test_latents_depend_on_their_keys_alone(base: BaseModel, store: LocalStore) -> None:
    data = PreparedData.load(store, _prepare(base, store))
    both = data.latents("train", torch.tensor([1, 3]), **KEYS)
    assert torch.equal(both[1:], data.latents("train", torch.tensor([3]), **KEYS))
    for other in ({"seed": 2, "iteration": 5}, {"seed": 1, "iteration": 6}):
        assert not torch.equal(both, data.latents("train", torch.tensor([1, 3]), **other))


def test_shards_are_bounded_and_read_across(
    base: BaseModel, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PreparedData.load(store, _prepare(base, store, train=9))
    monkeypatch.setattr(preparing, "SHARD_BYTES", 1)
    monkeypatch.setattr(preparing, "_BATCH", 2)
    ref = _prepare(base, store, train=9)
    assert [shard.rows for shard in ref.splits["train"].embeddings] == [2, 2, 2, 2, 1]
    sharded = PreparedData.load(store, ref)
    indices = torch.tensor([8, 0, 3, 2, 7, 0])
    torch.testing.assert_close(sharded.embeddings("train", indices), whole.embeddings("train", indices))
    assert torch.equal(sharded.images("train", indices), whole.images("train", indices))
    torch.testing.assert_close(
        sharded.latents("train", indices, **KEYS), whole.latents("train", indices, **KEYS)
    )


def test_captions_are_dropped_at_the_asked_rate(base: BaseModel, store: LocalStore) -> None:
    data = PreparedData.load(store, _prepare(base, store))
    indices = torch.arange(5)

    def dropped(probability: float, iteration: int) -> torch.Tensor:
        rows = data.training_embeddings(
            "train", indices, seed=3, iteration=iteration, drop_probability=probability
        )
        kept = (rows == data.embeddings("train", indices)).flatten(1).all(1)
        empty = (rows == data.empty_embedding).flatten(1).all(1)
        assert torch.equal(kept, ~empty)
        return empty

    assert not dropped(0.0, 0).any()
    assert dropped(1.0, 0).all()
    share = torch.cat([dropped(0.1, i) for i in range(300)]).float().mean()
    assert 0.07 < share < 0.13
    assert torch.equal(dropped(0.5, 4), dropped(0.5, 4))


def test_an_empty_split_has_no_rows(base: BaseModel, store: LocalStore) -> None:
    data = PreparedData.load(store, _prepare(base, store))
    assert data.captions("novel") == []
    with pytest.raises(DataError, match="empty"):
        data.images("novel", torch.tensor([0]))


@pytest.mark.parametrize("variants", [1, 3])
def test_variants_share_caption_and_embedding(
    base: BaseModel, store: LocalStore, variants: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_BATCH", 4)  # ends inside a caption's variants
    pictures = [
        Picture(split, f"{split} {i}", noise_image(variants * i + v))
        for split, count in (("train", 5), ("validation", 1), ("test", 2))
        for i in range(count)
        for v in range(variants)
    ]
    data = PreparedData.load(
        store, prepare_source(base, ListSource(pictures, variants), store, progress=NullProgress())
    )
    captions = [f"train {i}" for i in range(5) for _ in range(variants)]
    every = torch.arange(data.size("train"))
    assert data.captions("train") == captions
    expected = encode_captions(base.tokenizer, base.text_encoder, captions)
    torch.testing.assert_close(data.embeddings("train", every), expected)
    assert torch.equal(data.images("train", every), torch.stack([noise_image(i) for i in every.tolist()]))


def test_wrong_split_and_index_are_refused(base: BaseModel, store: LocalStore) -> None:
    data = PreparedData.load(store, _prepare(base, store))
    with pytest.raises(DataError, match=r"found 'val'"):
        data.size("val")
    for index in (-1, 5):
        with pytest.raises(IndexError, match=r"\[0, 5\)"):
            data.embeddings("train", torch.tensor([index]))
    assert data.embeddings("train", torch.empty(0, dtype=torch.int64)).shape == (0, 77, 8)


def test_split_without_pictures_is_refused(base: BaseModel, store: LocalStore) -> None:
    source = ListSource([picture for picture in _pictures() if picture.split != "test"])
    with pytest.raises(DataError, match="pictures in every split"):
        prepare_source(base, source, store, progress=NullProgress())


def test_damaged_shard_is_named(base: BaseModel, store: LocalStore) -> None:
    ref = _prepare(base, store)
    shard = ref.splits["train"].embeddings[0].object
    path = store.path_of(shard)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=shard.sha256):
        PreparedData.load(store, ref).embeddings("train", torch.tensor([0]))


def test_preparing_twice_gives_one_identity(base: BaseModel, store: LocalStore) -> None:
    assert _prepare(base, store).identity() == _prepare(base, store).identity()


def test_openmoji_is_prepared_from_its_record(base: BaseModel, store: LocalStore) -> None:
    config = DataConfig(limit=3)
    ref = prepare_data(base, config, store, progress=NullProgress())
    record = read_record(ref.to_json())
    assert isinstance(record, PreparedDataRef)
    assert (record.source, record.image_size, record.examined) == ("openmoji", IMAGE_SIZE, 12)
    assert "CC BY-SA 4.0" in record.attribution
    data = PreparedData.load(store, record)
    by_caption = {item.caption: item for item in list_openmoji()}
    for split in SPLITS:
        items = [by_caption[caption] for caption in data.captions(split)]
        assert [item.split for item in items] == [split] * 3
        expected = draw([item.code for item in items], IMAGE_SIZE)
        assert torch.equal(data.images(split, torch.arange(3)), expected)


def test_a_larger_limit_keeps_what_a_smaller_one_chose() -> None:
    keys = [f"key {i}" for i in range(200)]
    few, more = well_mixed(keys, 20), well_mixed(keys, 60)
    assert set(few) <= set(more)
    assert few == sorted(few, key=keys.index)
    assert len(few) == 20
    assert 4 <= sum(keys.index(key) < 100 for key in few) <= 16
    assert well_mixed(keys, None) == keys


def test_openmoji_source_counts_what_it_yields() -> None:
    source = OpenMojiSource(8, 2, variants=3)
    pictures = list(source.pictures())
    assert len(pictures) == source.total == 24
    assert pictures[0].image.shape == (3, 8, 8)
    assert [p.caption for p in pictures[:3]] == [pictures[0].caption] * 3
