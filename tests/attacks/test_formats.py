"""Annotations of every format and data of every kind, changed at random: read, or refused in one line."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet.data.formats.coco import load, read_coco
from focalnet.data.formats.coco_panoptic import check_panoptic, read_panoptic
from focalnet.data.formats.label_maps import LabelRule, check_masks
from focalnet.data.formats.pairs import LAYOUTS, find_pairs
from focalnet.data.formats.sets import find_set
from focalnet.data.readers import webdataset
from focalnet.data.readers.classes import read_class_map, read_class_names
from focalnet.data.readers.parquet import Parquet
from focalnet.data.readers.tar import Tar
from focalnet.data.readers.webdataset import ShardDataset, find_shards
from focalnet.errors import DataError, FocalNetError
from focalnet.inference.video import frames
from tests.attacks.fuzz import damaged, fuzz, mutated
from tests.data.coco import content, write_json
from tests.data.formats import test_sets as sets
from tests.data.panoptic import panoptic_content, write_panoptic
from tests.data.semantic import write_semantic

FORMATS = [
    *(sets.yolo, sets.yolo_of_roboflow, sets.darknet, sets.voc_beside, sets.labelme, sets.via, sets.label_studio),
    *(sets.label_studio_short, sets.cvat, sets.open_images),
]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_annotations_of_other_tools(
    tmp_path: Path, write: Callable[[Path], Path], attacks: Callable[[int], None]
) -> None:
    root = tmp_path / "set"
    found = write(root)
    kinds = (".json", ".xml", ".txt", ".yaml", ".csv", ".names", ".data")
    files = {path: path.read_bytes() for path in root.rglob("*") if path.suffix in kinds}
    assert files

    def attempt(draw: random.Random) -> None:
        file = draw.choice(sorted(files))
        file.write_bytes(changed(files[file], file.suffix, draw))
        try:
            objects = find_set(found)
            for split in (None, *(objects.splits if objects else ())):
                if objects is not None:
                    written = objects.content(split).content
                    json.dumps(written)
        finally:
            file.write_bytes(files[file])

    attacks(fuzz(attempt, named=str(root)))


def changed(whole: bytes, suffix: str, draw: random.Random) -> bytes:
    if suffix == ".json" and draw.random() < 0.7:
        return json.dumps(mutated(json.loads(whole), draw)).encode()
    return damaged(whole, draw)


def test_coco(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    path = tmp_path / "a.json"
    whole = json.loads(json.dumps(content()))

    def attempt(draw: random.Random) -> None:
        write_json(path, mutated(whole, draw))
        json.dumps(read_coco(path, masks=draw.random() < 0.5).to_coco())

    attacks(fuzz(attempt, named=str(path)))


def test_panoptic(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    root = write_panoptic(tmp_path / "set", 3)
    path = root / "annotations/panoptic_train.json"
    whole = json.loads(json.dumps(panoptic_content(3)[0]))
    png = root / "annotations/panoptic_train/01.png"
    pixels = png.read_bytes()

    def attempt(draw: random.Random) -> None:
        if draw.random() < 0.7:
            write_json(path, mutated(whole, draw))
            read_panoptic(path)
        else:
            write_json(path, whole)
            png.write_bytes(damaged(pixels, draw))
            check_panoptic(root, path, decode=True)

    attacks(fuzz(attempt, named=str(root)))


def test_label_maps(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    root = write_semantic(tmp_path / "set", 2)
    pairs = find_pairs(root, "train", LAYOUTS)
    assert pairs is not None
    files = [
        Path(place.path(name))
        for names in pairs.names
        for place, name in zip((pairs.images, pairs.masks), names, strict=True)
    ]
    whole = {file: file.read_bytes() for file in files}

    def attempt(draw: random.Random) -> None:
        file = draw.choice(files)
        file.write_bytes(damaged(whole[file], draw))
        checked = check_masks(pairs, LabelRule(), None, decode=True)
        assert all("\n" not in str(problem) and str(root) in str(problem) for problem in checked.problems)
        file.write_bytes(whole[file])

    attacks(fuzz(attempt, named=str(root)))


@pytest.mark.parametrize("mode", ["I;16", "I", "P", "L", "1", "RGB", "CMYK", "F"])
def test_label_maps_of_strange_numbers(tmp_path: Path, mode: str, attacks: Callable[[int], None]) -> None:
    attacks(1)
    root = write_semantic(tmp_path / "set", 2)
    pairs = find_pairs(root, "train", LAYOUTS)
    assert pairs is not None
    mask = Path(pairs.masks.path(pairs.names[0][1]))
    with Image.open(mask) as opened:
        size = opened.size
    suffix = ".tif" if mode in ("I", "F", "CMYK") else mask.suffix
    mask.unlink()
    Image.new(mode, size).save(mask.with_suffix(suffix))
    found = find_pairs(root, "train", LAYOUTS)
    assert found is not None
    for problem in check_masks(found, LabelRule(), 2).problems:
        assert str(root) in str(problem)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "a\tA\nb\nc"),
        ("c.json", '{"classes": ["sky", "sea"], "ignore_index": 3}'),
        ("o.txt", "Idx,Name\n1,a;b"),
    ],
)
def test_lists_of_classes(tmp_path: Path, name: str, text: str, attacks: Callable[[int], None]) -> None:
    path = tmp_path / name

    def attempt(draw: random.Random) -> None:
        path.write_bytes(changed(text.encode(), path.suffix, draw))
        read_class_names(path)
        read_class_map(path)

    attacks(fuzz(attempt, named=str(path)))


# --- Archives ---------------------------------------------------------------------------------------------------------


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


SHARD = tar({f"{i}.{kind}": data for i in range(4) for kind, data in (("jpg", jpeg(i)), ("cls", b"%d" % (i % 2)))})


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.zeros(3, 2, 2)


def shards(root: Path, **options: Any) -> list[Any]:
    listed = find_shards(root, "train")
    batches = ShardDataset(listed, ("a", "b"), tensor, batch_size=2, **options)
    return [sample for batch in batches for sample in batch]


def test_shards(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    path = tmp_path / "train-0000.tar"

    def attempt(draw: random.Random) -> None:
        path.write_bytes(damaged(SHARD, draw))
        shards(tmp_path)

    attacks(fuzz(attempt, named="train-0000.tar"))


@pytest.mark.parametrize("label", [b"9" * 5000, b"-1", b"x", b"", "²".encode(), "٣".encode(), b"\xff", b"1.0"])
def test_a_label_that_is_none(tmp_path: Path, label: bytes, attacks: Callable[[int], None]) -> None:
    attacks(1)
    (tmp_path / "train-0000.tar").write_bytes(tar({"0.jpg": jpeg(0), "0.cls": label}))
    with pytest.raises(DataError, match=r"train-0000\.tar/0: label .* does not fit") as error:
        shards(tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("kept", [0.7, 0.5, 0.1])
def test_a_shard_cut_short_is_named_and_counted(
    tmp_path: Path, kept: float, listed: bool, attacks: Callable[[int], None]
) -> None:
    attacks(1)
    whole = tar({f"{i:02}.{kind}": data for i in range(20) for kind, data in (("jpg", jpeg(i)), ("cls", b"0"))})
    content = whole[: int(kept * len(whole))]
    (tmp_path / "train-0000.tar").write_bytes(content)
    if listed:
        info = {"splits": {"train": {"filenames": ["train-0000.tar"], "shard_lengths": [20]}}}
        (tmp_path / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"train-0000\.tar: .*cut short after \d+ (of 20 )?samples"):
        shards(tmp_path)


def test_a_shard_cut_between_two_samples_is_named_and_counted(tmp_path: Path) -> None:
    whole = SHARD.rstrip(b"\0")
    members = tarfile.open(fileobj=io.BytesIO(SHARD)).getmembers()
    (tmp_path / "train-0000.tar").write_bytes(whole[: members[4].offset])
    with pytest.raises(DataError, match=r"train-0000\.tar: .*cut short after 2 samples"):
        shards(tmp_path)


def test_a_shard_with_fewer_samples_than_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-0000.tar").write_bytes(SHARD)
    info = {"splits": {"train": {"filenames": ["train-0000.tar"], "shard_lengths": [9]}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"train-0000\.tar: .*cut short after 4 of 9 samples"):
        shards(tmp_path)


def listed_shards(root: Path) -> list[tuple[Path, int]]:
    return find_shards(root, "train") if "train" in webdataset.splits(root) else []


INFO = {"splits": {"train": {"filenames": ["train-0000.tar"], "shard_lengths": [4]}}}


def test_lists_of_shards(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    (tmp_path / "train-0000.tar").write_bytes(SHARD)

    def attempt(draw: random.Random) -> None:
        (tmp_path / "_info.json").write_bytes(changed(json.dumps(INFO).encode(), ".json", draw))
        if any(count for _, count in listed_shards(tmp_path)):
            shards(tmp_path)

    attacks(fuzz(attempt, named=str(tmp_path)))


def test_tar_files_of_class_folders(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    whole = tar({f"{name}/{i}.jpg": jpeg(i) for name in "ab" for i in range(3)})
    path = tmp_path / "train.tar"

    def attempt(draw: random.Random) -> None:
        path.write_bytes(damaged(whole, draw))
        source = Tar(path)
        for index in range(len(source)):
            source.read(index)

    attacks(fuzz(attempt, named=str(path)))


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacks: Callable[[int], None]) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": jpeg(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    root = tmp_path / "set"
    root.mkdir()
    path = root / "train-00000-of-00001.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    whole = path.read_bytes()

    def attempt(draw: random.Random) -> None:
        path.write_bytes(damaged(whole, draw))
        source = Parquet(root, "train")
        for index in range(len(source)):
            source.read(index)

    attacks(fuzz(attempt, named=str(root), tries=60))


@pytest.mark.parametrize("labels", [[0, 2**40], [-5, 1], [True, False], [1.5, 2.0], [None, 1], [[1], [2]]])
def test_parquet_with_strange_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[Any], attacks: Callable[[int], None]
) -> None:
    attacks(1)
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"image": [{"bytes": jpeg(i), "path": None} for i in range(2)], "label": labels}
    root = tmp_path / "set"
    root.mkdir()
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(str(root / "train-00000-of-00001.parquet"))
    try:
        assert len(Parquet(root, "train").class_names) == 2
    except FocalNetError as error:
        message = str(error)
        assert str(root) in message


# --- Videos -----------------------------------------------------------------------------------------------------------


def test_videos(tmp_path: Path, attacks: Callable[[int], None], capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    from focalnet.inference.video import write_video

    whole = write_video(
        [Image.new("RGB", (32, 24), c) for c in ("red", "teal")] * 3, tmp_path / "a.mp4", 10
    ).read_bytes()
    path = tmp_path / "b.mp4"

    def attempt(draw: random.Random) -> None:
        path.write_bytes(damaged(whole, draw))
        for image in frames(path):
            assert image.mode == "RGB"

    attacks(fuzz(attempt, named=str(path)))


def test_json_of_coco_that_is_none(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    attacks(4)
    for text in ("[" * 100_000, "9" * 5000, '{"images": ' + "9" * 5000 + "}", "\0"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match=r"a\.json") as error:
            load(tmp_path / "a.json")
        assert "\n" not in str(error.value)
