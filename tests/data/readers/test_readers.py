"""Every format gives the right pictures, labels and class names, and says what is wrong with a set it cannot use."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focalnet.data import ClassificationData, images
from focalnet.data.readers.collection import Collection, detect
from focalnet.data.readers.digits import Digits
from focalnet.data.readers.source import InMemory, Source, hold_out
from focalnet.errors import ConfigError, DataError, ImageError
from tests.data.conftest import CLASSES, jpeg, write_folder, write_tar

pytestmark = pytest.mark.usefixtures("private_cache")


def open_part(root: Path, part: str = "train", **options) -> Source:
    return Collection(root, detect(root), wanted=options.pop("wanted", {}), **options).open(part)


def fit(root: Path | None, **options) -> ClassificationData:
    data = ClassificationData(root, **{"batch_size": 2, "num_workers": 0, "image_size": 12, **options})
    data.setup("fit")
    return data


def write_parquet(root: Path, splits: dict[str, list[dict]], features: dict) -> Path:
    import datasets

    for split, rows in splits.items():
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        (root / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def rows(per_class: int, first: int = 0) -> list[dict]:
    """Of every class in turn: label, and a picture that no other row has."""
    return [
        {"image": {"bytes": jpeg(first + number), "path": f"{number:03}.jpg"}, "label": number % 3}
        for number in range(3 * per_class)
    ]


def labeled_image_features() -> dict:
    import datasets

    return {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}


# --- folders


def test_folder(folder: Path):
    assert detect(folder) == "folder"
    train, val = open_part(folder), open_part(folder, "val")
    assert train.class_names == val.class_names == CLASSES
    assert (len(train), len(val)) == (24, 9)
    assert train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert train.path(9) == str(folder / "train/bee/001.jpg")
    assert train.read(9).tobytes() == images.read(jpeg(1001)).tobytes()


@pytest.mark.parametrize("name", ["validation", "valid", "dev"])
def test_usual_names_of_splits(folder: Path, name: str):
    (folder / "val").rename(folder / name)
    assert len(open_part(folder, "val")) == len(open_part(folder, "test")) == 9


def test_wanted_splits(folder: Path):
    (folder / "train").rename(folder / "everything")
    assert len(open_part(folder, wanted={"train": "everything"})) == 24
    with pytest.raises(DataError, match='no split "everythin"; did you mean "everything"'):
        open_part(folder, wanted={"train": "everythin"})


def test_every_suffix_and_depth_counts_but_hidden_ones_do_not(tmp_path: Path):
    picture = images.read(jpeg(0))
    for name in ("ant/a.PNG", "ant/b.tif", "bee/deep/bee/c.webp", "bee/._d.jpg", ".cache/e.jpg", "ant/.x/f.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        format = {".PNG": "PNG", ".tif": "TIFF", ".webp": "WEBP", ".jpg": "JPEG"}[Path(name).suffix]
        picture.save(tmp_path / name, format)
    (tmp_path / "ant/notes.txt").write_text("not a picture")
    source = open_part(tmp_path)
    assert [Path(source.path(i)).name for i in range(len(source))] == ["a.PNG", "b.tif", "c.webp"]
    assert source.class_names == ("ant", "bee")


def test_classes_are_in_natural_order(tmp_path: Path):
    write_folder(tmp_path, 1, classes=("class10", "class9", "class1"))
    assert open_part(tmp_path).class_names == ("class1", "class9", "class10")


def test_a_class_called_train_is_no_split(tmp_path: Path):
    write_folder(tmp_path, 2, classes=("car", "train", "bus"))
    assert open_part(tmp_path).class_names == ("bus", "car", "train")


def test_stray_pictures_are_left_out_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "train/preview.jpg").write_bytes(jpeg(0))
    assert open_part(folder).class_names == CLASSES
    assert "left out 1 images outside any class folder" in caplog.text


def test_images_of_one_class_are_not_trained_on_whatever_the_class_map(folder: Path, tmp_path: Path):
    class_map = tmp_path / "classes.txt"
    class_map.write_text("ant\nbee\ncat\ndog\n")
    names = {path.name for path in (folder / "train").iterdir() if path.is_dir()}
    for name in sorted(names)[1:]:
        shutil.rmtree(folder / "train" / name)
    with pytest.raises(DataError, match=r'train: all images are of one class \("'):
        fit(folder, class_map=class_map, batch_size=1)


def test_class_map_sets_labels_and_titles(folder: Path, tmp_path: Path):
    class_map = tmp_path / "classes.txt"
    class_map.write_text("cat\tgreat cat\nbee\ndog\nant\n")
    data = fit(folder, class_map=class_map)
    assert data.class_names == ("great cat", "bee", "dog", "ant")
    assert Counter(data.samples["train"].source.labels.tolist()) == {0: 8, 1: 8, 3: 8}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\nbee\n", 'class "ant" is not in the class map'),
        ("", "lists no classes"),
        ("cat\ncat\nbee\nant", "names a class twice"),
        (None, "cannot be read as a list of classes"),
    ],
)
def test_a_class_map_that_cannot_be(folder: Path, tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        fit(folder, class_map=tmp_path / "classes.txt")


# --- holding out


def test_hold_out_takes_the_fraction_of_every_class_and_never_another(tmp_path: Path):
    source = open_part(write_folder(tmp_path, 10))
    rest, held = hold_out(source, 0.2)
    assert Counter(held.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    paths = [[part.path(i) for i in range(len(part))] for part in (rest, held)]
    assert sorted(paths[0] + paths[1]) == [source.path(i) for i in range(30)]
    assert [held.path(i) for i in range(6)] == [hold_out(source, 0.2)[1].path(i) for i in range(6)]
    for part in (rest, held):
        index = len(part) // 2
        assert Path(part.path(index)).parent.name == part.class_names[part.labels[index]]
        assert part.read(index).tobytes() == images.read(part.path(index)).tobytes()


def test_hold_out_keeps_one_of_a_small_class(tmp_path: Path):
    rest, held = hold_out(open_part(write_folder(tmp_path, 2)), 0.05)
    assert len(rest) == len(held) == 3
    with pytest.raises(DataError, match='class "ant" has 1 image;'):
        hold_out(open_part(write_folder(tmp_path / "one", 1)), 0.5)


def test_a_flat_folder_with_a_held_out_part(tmp_path: Path):
    data = fit(write_folder(tmp_path, 10), holdout=0.2)
    assert (len(data.samples["train"]), len(data.samples["val"])) == (24, 6)
    data.setup("test")
    assert len(data.samples["test"]) == 6  # never pictures that were trained on


def test_a_flat_folder_is_evaluated_whole(tmp_path: Path):
    data = ClassificationData(write_folder(tmp_path, 3), batch_size=4, num_workers=0, image_size=12)
    data.setup("validate")
    assert sum(len(batch.targets) for batch in data.val_dataloader()) == 9


# --- tar files


def members(per_class: int, prefix: str = "", first: int = 0) -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{number:03}.jpg": jpeg(first + 1000 * label + number)
        for label, name in enumerate(CLASSES)
        for number in range(per_class)
    }


def check_tar(source: Source) -> None:
    assert source.class_names == CLASSES
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for index in range(6):
        assert source.content(index) == jpeg(1000 * (index // 2) + index % 2)


def test_tar_of_class_folders(tmp_path: Path):
    root = write_tar(tmp_path / "all.tar", {**members(2, "some/folder/"), "some/ant/._x.jpg": b"", "a.txt": b"x"})
    assert detect(root) == "tar"
    source = open_part(root)
    check_tar(source)
    assert source.path(0) == f"{root}/some/folder/ant/000.jpg"
    assert pickle.loads(pickle.dumps(source)).content(3) == source.content(3)


def test_a_tar_that_went_away_is_named(tmp_path: Path):
    source = open_part(write_tar(tmp_path / "all.tar", members(2)))
    (tmp_path / "all.tar").unlink()
    with pytest.raises(ImageError, match=r"all\.tar/ant/000\.jpg: cannot be read"):
        source.read(0)


def test_tar_for_each_split(tmp_path: Path):
    write_tar(tmp_path / "train.tar", members(2))
    write_tar(tmp_path / "val.tar", members(1))
    check_tar(open_part(tmp_path))
    assert len(open_part(tmp_path, "val")) == 3


@pytest.mark.parametrize("flat", [True, False])
def test_tar_for_each_class(tmp_path: Path, flat: bool):
    root = tmp_path if flat else tmp_path / "train"
    for label, name in enumerate(CLASSES):
        write_tar(root / f"{name}.tar", {f"{n:03}.jpg": jpeg(1000 * label + n) for n in range(2)})
    check_tar(open_part(tmp_path))


def test_tars_in_a_tar(tmp_path: Path):
    inner = {}
    for label, name in enumerate(CLASSES):
        tar = write_tar(tmp_path / "x.tar", {f"{n:03}.jpg": jpeg(1000 * label + n) for n in range(2)})
        inner[f"{name}.tar"] = tar.read_bytes()
        tar.unlink()
    check_tar(open_part(write_tar(tmp_path / "train.tar", inner)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.jpg": jpeg(0)}, "outside any class folder"),
        ({"readme.txt": b""}, "no images there"),
        ({"ant/a.jpg": jpeg(0)}, r'only one class \("ant"\)'),
    ],
)
def test_a_tar_that_cannot_be_used(tmp_path: Path, content: dict, message: str):
    with pytest.raises(DataError, match=message):
        open_part(write_tar(tmp_path / "a.tar", content))


def test_a_file_that_is_no_tar(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"a\.tar: cannot be read as a tar file"):
        open_part(tmp_path / "a.tar")


# --- Parquet


def test_parquet(tmp_path: Path):
    write_parquet(tmp_path, {"train": rows(2), "validation": rows(1, first=50)}, labeled_image_features())
    assert detect(tmp_path) == "parquet"
    train, val = open_part(tmp_path), open_part(tmp_path, "val")
    assert train.class_names == CLASSES
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.path(4) == f"{tmp_path} (train)/004.jpg"
    assert [train.content(i) for i in range(6)] == [jpeg(i) for i in range(6)]
    assert [val.content(i) for i in range(3)] == [jpeg(50 + i) for i in range(3)]


def test_parquet_with_other_columns_and_labels(tmp_path: Path):
    import datasets

    table = [{"id": i, "img": {"bytes": jpeg(i), "path": None}, "labels": name} for i, name in enumerate("bab")]
    features = {"id": datasets.Value("int64"), "img": datasets.Image(), "labels": datasets.Value("string")}
    source = open_part(write_parquet(tmp_path / "named", {"train": table}, features))
    assert source.class_names == ("a", "b")
    assert source.labels.tolist() == [1, 0, 1]
    assert source.path(2).endswith("row 2")

    for row, number in zip(table, (2, 0, 1), strict=True):
        row["labels"] = number
    features["labels"] = datasets.Value("int64")
    source = open_part(write_parquet(tmp_path / "numbered", {"train": table}, features))
    assert (source.class_names, source.labels.tolist()) == (("0", "1", "2"), [2, 0, 1])


def test_parquet_with_a_class_map(tmp_path: Path):
    write_parquet(tmp_path / "data", {"train": rows(1), "val": rows(1)}, labeled_image_features())
    (tmp_path / "map.txt").write_text("cat\tCat\nbee\tBee\nant\tAnt\n")
    data = fit(tmp_path / "data", class_map=tmp_path / "map.txt")
    assert data.class_names == ("Cat", "Bee", "Ant")
    assert data.samples["train"].source.labels.tolist() == [2, 1, 0]


def test_parquet_that_cannot_be_used(tmp_path: Path):
    import datasets

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="broken: cannot be read as Parquet"):
        open_part(tmp_path / "broken")
    write_parquet(tmp_path / "text", {"train": [{"text": "a"}]}, {"text": datasets.Value("string")})
    with pytest.raises(DataError, match="no column image or img; its columns are text"):
        open_part(tmp_path / "text")
    hidden = [{**row, "label": -1} for row in rows(1)]
    write_parquet(tmp_path / "hidden", {"train": hidden}, labeled_image_features())
    with pytest.raises(DataError, match="images without a label"):
        open_part(tmp_path / "hidden")


@pytest.mark.parametrize(
    ("name", "split", "count", "classes"),
    [("cifar10", "test", 10_000, 10), ("tiny_imagenet_100", "val", 2_500, 100)],
)
def test_the_real_parquet_sets(shared: Path, name: str, split: str, count: int, classes: int):
    source = open_part(shared / "data" / name, split)
    assert (len(source), len(source.class_names)) == (count, classes)
    assert set(np.bincount(source.labels)) == {count // classes}
    assert all(source.read(index).mode == "RGB" for index in range(0, count, 50))
    if name == "cifar10":
        assert source.class_names[:3] == ("airplane", "automobile", "bird")


# --- digits and memory


def test_digits():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert np.bincount(test.labels).min() >= 34
    assert not {train.path(i) for i in range(1437)} & {test.path(i) for i in range(360)}
    assert [test.path(i) for i in range(4)] == ["digits/21", "digits/24", "digits/28", "digits/34"]
    from sklearn.datasets import load_digits

    everything = load_digits()
    for source, index in ((train, 700), (test, 99)):
        original = int(source.path(index).split("/")[1])
        assert source.labels[index] == everything.target[original]
        grey = np.asarray(source.read(index))[..., 0]
        np.testing.assert_allclose(grey, everything.images[original] * 255 / 16, atol=0.51)


def test_in_memory_is_the_same_set(folder: Path):
    Image.new("RGB", (5, 7), "red").save(folder / "train/ant/000.jpg")  # sizes may differ
    (folder / "train/bee/000.jpg").write_bytes(b"broken")
    source = open_part(folder)
    stored = InMemory(source)
    assert (stored.class_names, stored.labels.tolist()) == (source.class_names, source.labels.tolist())
    for index in set(range(24)) - {8}:
        assert stored.read(index).tobytes() == source.read(index).tobytes()
        assert stored.path(index) == source.path(index)
    with pytest.raises(ImageError, match=r"bee/000\.jpg: is not an image"):
        stored.read(8)


# --- sets that cannot be used


def test_class_lists_that_differ(folder: Path):
    (folder / "val/bee").rename(folder / "val/dog")
    with pytest.raises(DataError, match=r'val: its classes differ from those of .*train, e\.g\. "bee"; .*class_map'):
        fit(folder)


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (None, {}, "no such file or folder; point data.root"),
        (None, {"format": "tar"}, "no such file or folder; point data.root"),
        ([], {}, "no class folders"),
        (["a.jpg", "b.jpg"], {}, r"no class folders.*put images in .*/train/<class>/"),
        (["train/a.jpg"], {"holdout": 0.5}, "train: has images but no class folders|only one class"),
        (["cat/a.jpg", "cat/b.jpg"], {"holdout": 0.5}, r'only one class \("cat"\)'),
        (["cat/", "dog/"], {"holdout": 0.5}, "no images there"),
        (["cat/a.jpg", "dog/b.jpg"], {}, "no images to validate on; set data.holdout"),
        (["train/cat/a.jpg", "train/dog/b.jpg"], {}, "no val split; it has train; set data.holdout"),
        (["val/cat/a.jpg", "val/dog/b.jpg"], {}, "no train split; it has val"),
        (["train/cat/a.jpg", "train/dog/b.jpg", "val/cat/", "val/dog/"], {}, "val: no images there"),
        (["train/cat/a.jpg", "val/cat/b.jpg"], {}, "train: only one class"),
        (["train/a.jpg", "train/x/", "val/x/a.jpg"], {}, "train: has images but no class folders"),
        (["notes.txt"], {}, "no class folders"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, layout: list[str] | None, options: dict, message: str):
    root = tmp_path / "root"
    for name in layout or []:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).mkdir() if name.endswith("/") else (root / name).write_bytes(jpeg(0))
    if layout == []:
        root.mkdir()
    with pytest.raises(DataError, match=message) as caught:
        fit(root, **options)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_data_set(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    with pytest.raises(DataError, match=r"a\.jpg: is not a data set"):
        fit(tmp_path / "a.jpg")


def test_fewer_images_than_a_batch(folder: Path):
    with pytest.raises(DataError, match="24 images do not fill one batch of batch_size=25"):
        fit(folder, batch_size=25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "data.root is missing"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"crop_pct": 0}, "data.crop_pct=0"),
        ({"holdout": 1.0}, r"data.holdout=1\.0"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        ClassificationData(**{"root": tmp_path, **options})


def test_a_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # as root, chmod would not keep us out
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        fit(folder)
