"""One flipped digit in any kind of file of a store is found, and what can be made again is removed."""

import random
import re
from pathlib import Path

import pytest
import torch

from flows.commands.fsck import main
from steps.cache.leases import in_use
from steps.files.disk import file_sha256
from steps.files.sealed import write_sealed
from steps.store import LocalStore, Store
from steps.training.checkpoint import Checkpoint, save_checkpoint
from tests.conftest import BUCKET, MakeS3
from tests.steps.cache.test_collector import finish, key, use


def fill(store: Store) -> None:
    """Everything that runs leave: a finished one, and an unfinished one with checkpoints."""
    finish(store, "1", a=use(store, "1", "a"))
    pool = store.put_bytes(b"latents 0.123")
    store.put_document("latent_pools/1", pool.model_dump_json())
    store.put_document("encoded_shards/1", pool.model_dump_json())
    store.put_document("champion", pool.model_dump_json())
    work = store.work_folder("architecture_evolution/1")
    for iteration in (1, 2):
        save_checkpoint(work / "checkpoints", Checkpoint(iteration, {"w": torch.arange(9.0)}, {"lr": 0.001}))
    (work / "round_1" / "unet").mkdir(parents=True)
    weights = work / "round_1" / "unet" / "config.json"
    weights.write_text('{"width": 320}')
    write_sealed(
        work / "round_1" / "round.json",
        {"round": {"score": 0.5}, "unet": {weights.name: file_sha256(weights)}},
    )
    write_sealed(work / "round_1" / "probes.json", {"layout": "1", "scores": {"mid.resnets.1": [0.25]}})


KINDS = {
    r"objects/../\w+": "object",
    r"documents/stages/.*": "document stages/a/",
    r"documents/records/.*": "document records/",
    r"documents/reports/1.json": "document reports/1",
    r"documents/runs/1/a-.*": "document runs/1/a-",
    r"documents/runs/1/report.json": "document runs/1/report",
    r"documents/latent_pools/1.json": "document latent_pools/1",
    r"documents/encoded_shards/1.json": "document encoded_shards/1",
    r"documents/champion.json": "document champion",
    r"documents/leases/stages/a/.*": "document leases/stages/a/",
    r"work/.*/checkpoint-000000002/state.json": "work .*/checkpoint-000000002",
    r"work/.*/checkpoint-000000002/tensors.safetensors": "work .*/checkpoint-000000002",
    r"work/.*/round.json": "work .*/round.json",
    r"work/.*/unet/config.json": "work .*/round.json",
    r"work/.*/probes.json": "work .*/probes.json",
}
LOST = ("document records/", "document reports/", "document runs/", "document champion")


def flip(path: Path, seed: int) -> None:
    """Change one digit of a file, or of one without any, one byte."""
    data = bytearray(path.read_bytes())
    places = [m.start() for m in re.finditer(rb"[0-9]", bytes(data))] or range(len(data))
    place = random.Random(seed).choice(places)
    data[place] = data[place] ^ 1  # 0 for 1, 8 for 9
    path.chmod(0o644)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("pattern", KINDS)
def test_one_flipped_digit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    fill(LocalStore(tmp_path, durable=False))
    options = ["--store", str(tmp_path)]
    assert main(options) == 0, capsys.readouterr().out
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    (path, *_) = [path for path in files if re.fullmatch(pattern, path.relative_to(tmp_path).as_posix())]
    good, found = path.read_bytes(), KINDS[pattern]
    for seed in range(5):
        flip(path, seed)
        capsys.readouterr()
        assert main(options) == 1
        assert re.search(f"damaged {found}", capsys.readouterr().out)
        path.write_bytes(good)
    flip(path, 0)
    left = main([*options, "--repair"])
    said = capsys.readouterr().out
    if found.startswith(LOST):
        assert left == 1
        assert path.is_file()
    else:
        assert re.search(f"removed {found}", said)
        assert not path.is_file() or "unet" in pattern
        # A record of the run may name the object that is gone; nothing else is damaged any more.
        assert all(
            "which it names, is gone" in line for line in said.splitlines() if line.startswith("damaged")
        )


def test_a_stage_whose_weights_were_damaged_is_done_again_after_the_repair(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, durable=False)
    record = use(store, "1", "a")
    flip(store.path_of(record.weights), 0)
    assert main(["--store", str(tmp_path), "--repair"]) == 0
    assert main(["--store", str(tmp_path)]) == 0
    assert use(store, "1", "a") == record
    assert main(["--store", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("document", "text", "why"),
    [
        ("stages/a/" + "0" * 64, None, "holds another record than its name says"),
        ("records/" + "0" * 64, None, "holds another record than its name says"),
        ("stages/a/" + "0" * 64, "{}", "is no record of this program"),
        ("records/1", "[]", "is no record of this program"),
        ("reports/7", "no JSON", "must hold JSON"),
        (
            "reports/7",
            f'{{"uri": "sha256:", "sha256": "{"0" * 64}", "bytes": 1}}',
            "is gone, damaged or cut short",
        ),
    ],
)
def test_a_document_that_is_not_what_its_name_says_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], document: str, text: str | None, why: str
) -> None:
    store = LocalStore(tmp_path, durable=False)
    record = use(store, "1", "a")
    entry = store.get_document(key("a").document) if document.startswith("stages/") else record.to_json()
    store.put_document(document, text or entry or "")
    assert main(["--store", str(tmp_path)]) == 1
    assert re.search(f"damaged document {document}: .*{why}", capsys.readouterr().out)


def test_repairing_needs_the_store_alone_and_reading_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LocalStore(tmp_path, durable=False)
    with in_use(store, "draw"):
        assert main(["--store", str(tmp_path)]) == 0
        assert main(["--store", str(tmp_path), "--repair"]) == 1
    assert "not now: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--store", str(tmp_path / "none")])


def test_damage_on_s3_and_in_its_cache_is_found_and_removed(
    make_s3: MakeS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_s3()
    record = use(store, "1", "a")
    cached = store.path_of(store.put_bytes(b"cached 0.5"))
    (tmp_path / "state.json").write_text('{"lr": 1}')
    mirror = store.mirror("b/1")
    assert mirror is not None
    mirror.send("checkpoints/state.json", tmp_path / "state.json")
    options = ["--store", store.root, "--local", str(tmp_path / "cache")]
    assert main(options) == 0, capsys.readouterr().out
    flip(cached, 0)
    client, start = store.bucket.client, store.bucket.location.key("")
    sha256 = record.weights.sha256
    for name in (
        f"objects/{sha256[:2]}/{sha256}",
        f"documents/{key('a').document}.json",
        "work/b/1/checkpoints/state.json",
    ):
        found = client.get_object(Bucket=BUCKET, Key=start + name)
        path = tmp_path / "body"
        path.write_bytes(found["Body"].read())
        flip(path, 0)
        client.put_object(Bucket=BUCKET, Key=start + name, Body=path.read_bytes(), Metadata=found["Metadata"])
    expected = (
        f"cached object {cached.name}",
        f"object {sha256}",
        f"document {key('a').document}",
        "work b/1/checkpoints",
    )
    for arguments, word, left in (
        (options, "damaged", 1),
        ([*options, "--repair"], "removed", 0),
        (options, "", 0),
    ):
        capsys.readouterr()
        assert main(arguments) == left
        said = capsys.readouterr().out
        assert not [what for what in expected if word and f"{word} {what}" not in said]
