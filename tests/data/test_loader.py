"""Broken pictures are named, or skipped and reported; a dead worker is called that; streams keep their promises."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from focalnet.data import Augmentation, ClassificationData
from focalnet.data import loader as loading
from focalnet.data.dataset import ImageDataset
from focalnet.data.readers import webdataset as shards
from focalnet.data.readers.collection import detect
from focalnet.data.readers.webdataset import ShardDataset
from focalnet.errors import DataError, ImageError
from tests.data.conftest import CLASSES, jpeg, write_tar


def data(root: Path, **options) -> ClassificationData:
    module = ClassificationData(root, **{"image_size": 12, "batch_size": 6, "num_workers": 0, **options})
    module.setup("fit")
    return module


def paths(loader) -> list[str]:
    return [path for batch in loader for path in batch.paths]


# --- batches


def test_a_batch(folder: Path):
    batch = next(iter(data(folder).train_dataloader()))
    assert (len(batch), len(batch.infos), batch.sizes, batch.views) == (6, 6, [(12, 12)] * 6, [])
    assert (batch.images.shape, batch.images.dtype) == ((6, 3, 12, 12), torch.float32)
    assert batch.targets.dtype == torch.int64
    assert [CLASSES[label] for label in batch.targets] == [Path(path).parent.name for path in batch.paths]


def test_what_a_model_must_know(folder: Path):
    module = data(folder, image_size=20, crop_pct=1.0, mean=(0.5, 0.5, 0.5))
    assert (module.class_names, module.num_classes) == (CLASSES, 3)
    assert module.preprocessing.image_size == 20
    assert module.preprocessing.mean == (0.5, 0.5, 0.5)
    assert next(iter(module.val_dataloader())).images.shape[1:] == (3, 20, 20)


def test_loading_moves_no_random_numbers(folder: Path):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    list(data(folder).train_dataloader())
    torch.testing.assert_close(torch.rand(2), expected)


def test_cached_and_read_anew_are_the_same(folder: Path):
    ours, theirs = (list(data(folder, cache_in_memory=cache).train_dataloader()) for cache in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        assert one.paths == other.paths
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=0)


# --- broken pictures


@pytest.fixture
def broken(folder: Path) -> Path:
    """Two broken pictures to train, one to validate."""
    (folder / "train/ant/003.jpg").write_bytes(jpeg(0)[:300])
    (folder / "train/bee/004.jpg").write_bytes(b"")
    (folder / "val/cat/001.jpg").write_bytes(b"not an image")
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_in_one_line(broken: Path, workers: int):
    with pytest.raises(ImageError, match=r'(ant/003|bee/004)\.jpg: is .*on_error "skip"') as caught:
        list(data(broken, num_workers=workers).train_dataloader())
    assert "\n" not in str(caught.value)
    assert "Caught" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [False, True])
def test_skipping_in_training_substitutes_and_reports(broken: Path, workers: int, cache: bool, caplog):
    expected = paths(data(broken, on_error="skip").train_dataloader())
    assert len(expected) == 24  # batches keep their size
    assert [Path(path).name for path in expected].count("004.jpg") == 3  # ant, cat, and in place of ant's 003
    assert not any("ant/003" in path or "bee/004" in path for path in expected)

    caplog.clear()
    module = data(broken, on_error="skip", num_workers=workers, cache_in_memory=cache)
    assert paths(module.train_dataloader()) == expected
    assert "skipped 2 broken images (" in caplog.text
    assert "ant/003.jpg" in caplog.text
    assert "bee/004.jpg" in caplog.text


def test_skipping_in_evaluation_leaves_out(broken: Path, caplog):
    found = paths(data(broken, on_error="skip").val_dataloader())
    assert len(found) == len(set(found)) == 8
    assert "skipped 1 broken images" in caplog.text


def test_nothing_is_reported_where_all_is_well(folder: Path, caplog):
    list(data(folder, on_error="skip").train_dataloader())
    assert "skipped" not in caplog.text


@pytest.mark.parametrize("part", ["train", "val"])
def test_all_broken_is_too_many(folder: Path, part: str):
    for path in (folder / part).rglob("*.jpg"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="too many to skip"):
        list(getattr(data(folder, on_error="skip"), f"{part}_dataloader")())


def test_a_broken_picture_is_logged_once(broken: Path, caplog):
    loader = data(broken, on_error="skip").train_dataloader()
    list(loader), list(loader)
    assert caplog.text.count("skipped a broken image") == 2


# --- dead workers


class Dying(ImageDataset):
    def __getitems__(self, keys):
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out


def test_a_dead_worker_is_said_to_be_one(folder: Path):
    module = data(folder, num_workers=1)
    module.samples["train"].__class__ = Dying
    with pytest.raises(DataError, match=r"a process that loads images died .*num_workers") as caught:
        list(module.train_dataloader())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_worker_lost_while_it_hands_over_is_dead_too(folder: Path, lost: Exception, monkeypatch: pytest.MonkeyPatch):
    def fail(self):
        raise lost

    loader = data(folder, num_workers=1).train_dataloader()
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", fail)
    with pytest.raises(DataError, match=r"a process that loads images died \((EOFError|.*Connection reset)"):
        list(loader)


class Failing(ImageDataset):
    def __getitems__(self, keys):
        raise RuntimeError("a defect of ours")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_defect_in_a_worker_is_not_taken_for_its_death(folder: Path, workers: int):
    module = data(folder, num_workers=workers)
    module.samples["train"].__class__ = Failing
    with pytest.raises(RuntimeError, match="a defect of ours"):
        list(module.train_dataloader())


# --- WebDataset


def write_shards(root: Path, names: list[str], per_shard: int = 5, info: bool = False) -> Path:
    """Every picture and label another one; ``cls`` counts through the classes."""
    number = 0
    for name in names:
        content = {}
        for _ in range(per_shard):
            content[f"{number:04}.jpg"] = jpeg(number)
            content[f"{number:04}.cls"] = str(number % 3).encode()
            number += 1
        write_tar(root / f"{name}.tar", content)
    (root / "classes.txt").write_text("ant\nbee\ncat\n")
    if info:
        split = {"name": "train", "filenames": [f"{name}.tar" for name in names]}
        split |= {"shard_lengths": [per_shard] * len(names), "num_samples": per_shard * len(names)}
        (root / "_info.json").write_text(json.dumps({"splits": {"train": split, "val": {**split, "name": "val"}}}))
    return root


TRAIN = [f"set-train-{number:03}" for number in range(4)]
VAL = [f"set-val-{number:03}" for number in range(3)]


@pytest.fixture
def streamed(tmp_path: Path) -> Path:
    return write_shards(tmp_path, TRAIN + VAL)


def stream(root: Path, **options) -> ClassificationData:
    return data(root, class_map=root / "classes.txt", **options)


def test_a_class_map_of_one_class_is_refused(streamed: Path):
    (streamed / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r'classes\.txt: only one class \("cat"\)'):
        stream(streamed)


def test_shards_are_found_and_read(streamed: Path):
    assert detect(streamed) == "wds"
    module = stream(streamed)
    assert module.class_names == CLASSES
    batches = list(module.val_dataloader())
    assert [len(batch.targets) for batch in batches] == [6, 6, 3]
    assert [path for batch in batches for path in batch.paths] == [
        f"set-val-{shard:03}.tar/{20 + 5 * shard + number:04}" for shard in range(3) for number in range(5)
    ]
    assert [label for batch in batches for label in batch.targets] == [number % 3 for number in range(20, 35)]


@pytest.mark.parametrize("options", [{}, {"train_split": "set-train-{000..003}.tar", "val_split": "set-val-000.tar"}])
def test_shards_by_info_or_pattern(tmp_path: Path, options: dict):
    module = stream(write_shards(tmp_path, TRAIN + VAL, info=not options), **options)
    assert sum(count for _, count in module.samples["train"].shards) == 20 if options else 35


def test_shards_in_folders(tmp_path: Path):
    module = stream(write_shards(tmp_path, ["train/0", "train/1", "val/0"]))
    assert [len(module.samples[part].shards) for part in ("train", "val")] == [2, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_shards(streamed: Path, workers: int):
    loader = stream(streamed, num_workers=workers, batch_size=4).train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == 5
        assert all(len(batch.targets) == 4 for batch in batches)
        orders.append([path for batch in batches for path in batch.paths])
    assert orders[0] == orders[2] != orders[1]
    if workers == 0:
        assert len(set(orders[0])) == 20
    assert len(paths(stream(streamed, num_workers=workers).val_dataloader())) == 15


def test_a_streamed_sample_depends_on_seed_epoch_and_name(streamed: Path, monkeypatch: pytest.MonkeyPatch):
    def images(**options) -> dict[str, torch.Tensor]:
        loader = stream(streamed, augmentation=Augmentation(), batch_size=4, **options).train_dataloader()
        loader.sampler.set_epoch(2)
        return {p: image for b in loader for p, image in zip(b.paths, b.images, strict=True)}

    alone, other = images(), images(num_workers=2)
    for path in set(alone) & set(other):
        torch.testing.assert_close(alone[path], other[path], rtol=0, atol=0)
    assert any(not torch.equal(alone[path], image) for path, image in images(seed=1).items() if path in alone)


def test_a_stream_goes_on_within_an_epoch(streamed: Path):
    whole = list(stream(streamed, batch_size=4).train_dataloader())
    loader = stream(streamed, batch_size=4).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 3})
    rest = list(loader)
    assert [batch.paths for batch in rest] == [batch.paths for batch in whole[3:]]
    torch.testing.assert_close(rest[0].images, whole[3].images, rtol=0, atol=0)


def test_processes_read_different_shards(streamed: Path, monkeypatch: pytest.MonkeyPatch):
    lengths, seen = [], []
    for rank in range(2):
        monkeypatch.setattr(loading, "world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(shards, "world", lambda rank=rank: (rank, 2))
        module = stream(streamed, batch_size=4)
        lengths.append(len(list(module.train_dataloader())))
        seen += paths(module.val_dataloader())
    assert lengths == [5, 5]
    assert len(seen) == len(set(seen)) == 15


def test_broken_pictures_in_shards(streamed: Path, caplog):
    write_tar(streamed / "set-val-000.tar", {"a.jpg": b"x", "a.cls": b"0", "b.png": jpeg(0), "b.cls": b"1"})
    with pytest.raises(ImageError, match=r"set-val-000\.tar/a: is not an image.*skip"):
        list(stream(streamed).val_dataloader())
    assert len(paths(stream(streamed, on_error="skip").val_dataloader())) == 11
    assert "skipped 1 broken images so far" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.jpg": jpeg(0), "a.cls": b"7"}, "set-val-000.tar/a: label '7' does not fit the class map's 3 classes"),
        ({"a.txt": b"", "a.cls": b"1"}, "set-val-000.tar/a: has no image"),
        ({"a.jpg": jpeg(0), "b.cls": b"1"}, "has no label"),
        ({"a.jpg": jpeg(0), "a.cls": b"ant"}, "set-val-000.tar/a: label 'ant' does not fit"),
    ],
)
def test_samples_that_cannot_be_used(streamed: Path, content: dict, message: str):
    write_tar(streamed / "set-val-000.tar", content)
    with pytest.raises(DataError, match=message):
        list(stream(streamed).val_dataloader())


def test_shards_that_cannot_be_used(streamed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"do not name their classes; list them in a data\.class_map"):
        data(streamed)
    with pytest.raises(DataError, match="not split further"):
        stream(streamed, holdout=0.1)
    monkeypatch.setattr(shards, "world", lambda: (0, 5))
    with pytest.raises(DataError, match="4 shards with images are too few for 5 processes"):
        ShardDataset([(tmp_path, 1)] * 4, CLASSES, lambda image: None, batch_size=5)


def test_shards_without_samples_are_no_endless_wait(streamed: Path):
    module = stream(streamed)
    for name in TRAIN:
        write_tar(streamed / f"{name}.tar", {"notes.md": b""})  # after they were counted
    with pytest.raises(DataError, match="has no image"):
        list(module.train_dataloader())
    for name in TRAIN:
        write_tar(streamed / f"{name}.tar", {})
    with pytest.raises(DataError, match="hold no samples"):
        list(module.train_dataloader())
    with pytest.raises(DataError, match="0 shards with images"):
        stream(streamed)


def test_an_info_file_that_says_nothing(streamed: Path):
    (streamed / "_info.json").write_text('{"splits": [1]}')
    with pytest.raises(DataError, match=r"_info\.json: does not list splits"):
        stream(streamed)


def test_a_shard_cut_short_is_named(streamed: Path):
    module = stream(streamed)
    whole = (streamed / "set-val-001.tar").read_bytes()
    (streamed / "set-val-001.tar").write_bytes(whole[:1000])
    with pytest.raises(DataError, match=r"set-val-001\.tar: cannot be read as a tar file of samples"):
        list(module.val_dataloader())
