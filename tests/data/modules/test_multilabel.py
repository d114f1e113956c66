"""Images with several classes: which table and image is which, what is held out, and what is refused."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet.data import MultiLabelData
from focalnet.data.modules.multilabel import held_out_images
from focalnet.errors import ConfigError, DataError

ROWS = {"a": "cat|dog", "b": "", "c": "dog", "d": "cat", "e": "dog", "f": "cat|dog"}


def write_images(folder, names, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (12, 10), (40 * i, 90, 30)).save(folder / f"{name}{suffix}")


def write_table(path, rows, suffix=".png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("image,labels\n" + "".join(f"{name}{suffix},{labels}\n" for name, labels in rows.items()))


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path / "images", ROWS)
    write_table(tmp_path / "train.csv", ROWS)
    return tmp_path


def opened(root, stage="fit", **options):
    data = MultiLabelData(root, image_size=8, batch_size=2, num_workers=0, **options)
    data.class_order = options.pop("class_order", ())
    data.setup(stage)
    return data


def rows_of(samples):
    names = [name.rpartition(".")[0] for name in samples.names]
    return {
        name: "|".join(samples.class_names[i] for i in target.nonzero().flatten().tolist())
        for name, target in zip(names, samples.targets, strict=True)
    }


def test_a_fifth_is_held_out_the_same_for_training_and_validation(root, caplog):
    with caplog.at_level(logging.WARNING):
        data = opened(root)
    train, val = (rows_of(data.samples[split]) for split in ("train", "val"))
    assert train | val == ROWS
    assert not train.keys() & val.keys()
    assert rows_of(opened(root, "validate").samples["val"]) == val
    assert "20 % of its images are held out" in caplog.text
    assert not data.has_test_split()
    counts, images = data.label_counts()
    assert images == len(train)
    assert counts.tolist() == [sum(name in labels for labels in train.values()) for name in ("cat", "dog")]


def test_batches_have_a_row_of_targets_for_each_image(root):
    data = opened(root)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (2, 3, 8, 8)
    assert batch.targets.shape == (2, 2)
    assert batch.targets.dtype == torch.float32
    assert batch.infos[0].original_size == (10, 12)


def test_each_split_has_its_table_and_validation_may_lack_classes(root):
    write_images(root / "valid", ["v", "w"])
    write_table(root / "valid" / "_classes.csv", {"v": "dog", "w": ""})
    write_images(root / "test", ["t"])
    write_table(root / "test.csv", {"t": "cat"})
    data = opened(root)
    assert rows_of(data.samples["train"]) == ROWS
    assert rows_of(data.samples["val"]) == {"v": "dog", "w": ""}
    assert data.samples["val"].class_names == ("cat", "dog")
    assert data.has_test_split()
    data.setup("test")
    assert rows_of(data.samples["test"]) == {"t": "cat"}


def test_names_may_lack_their_suffix(tmp_path):
    write_images(tmp_path / "train", ROWS, ".JPG")
    write_table(tmp_path / "train.csv", ROWS, "")
    data = opened(tmp_path)
    assert len(data.samples["train"]) + len(data.samples["val"]) == 6
    data.samples["train"].read(0)


def test_a_column_for_each_class(tmp_path):
    write_images(tmp_path, ROWS)
    lines = [f"{name}.png,{int('dog' in labels)},{int('cat' in labels)}" for name, labels in ROWS.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["file,dog,cat", *lines]))
    data = opened(tmp_path)
    assert data.class_names == ("dog", "cat")
    assert {k: set(v.split("|")) for k, v in rows_of(data.samples["train"]).items()} == {
        k: set(v.split("|")) for k, v in ROWS.items() if k in rows_of(data.samples["train"])
    }
    (tmp_path / "val.csv").write_text("file,dog,bird\na.png,1,0\n")
    with pytest.raises(DataError, match=r'val.csv: the class "bird" is not among'):
        opened(tmp_path)
    (tmp_path / "val.csv").write_text("file,dog,fold\na.png,1,7\n")
    with pytest.raises(DataError, match=r"which columns hold the labels\? Of dog, fold"):
        opened(tmp_path)
    (tmp_path / "val.csv").write_text("file,dog,cat,cow\na.png,1,0,0\n")
    with pytest.raises(DataError, match='the class "cow" is not among the 2'):
        opened(tmp_path)
    assert rows_of(opened(tmp_path, class_columns=["dog", "cat"]).samples["val"]) == {"a": "dog"}


def test_a_class_map_orders_renames_and_refuses(root):
    (root / "names.txt").write_text("dog\tHund\ncow\ncat\n")
    data = opened(root, class_map=root / "names.txt")
    assert data.class_names == ("Hund", "cow", "cat")
    assert data.samples["train"].targets[:, 1].sum() == 0
    (root / "names.txt").write_text("dog\ncow\n")
    with pytest.raises(DataError, match=r'train.csv, line 2: the class "cat" is not among the 2') as error:
        opened(root, class_map=root / "names.txt")
    assert "data.class_map" in str(error.value)


def test_a_network_is_measured_in_the_order_of_its_classes(root):
    data = MultiLabelData(root, image_size=8, batch_size=2, num_workers=0)
    data.class_order = ("dog", "cow", "cat")
    data.setup("validate")
    assert data.class_names == ("dog", "cow", "cat")
    reference = rows_of(opened(root, "validate").samples["val"])
    assert {k: set(v.split("|")) for k, v in rows_of(data.samples["val"]).items()} == {
        k: set(v.split("|")) for k, v in reference.items()
    }
    data = MultiLabelData(root, image_size=8, batch_size=2, num_workers=0)
    data.class_order = ("dog", "cow")
    with pytest.raises(DataError, match='the weights do not know the class "cat"'):
        data.setup("validate")


def test_a_label_that_training_does_not_have_is_refused(root):
    write_table(root / "val.csv", {"a": "dogs"})
    with pytest.raises(DataError, match=r'val.csv, line 2: the class "dogs" is not among the 2 .*did you mean "dog"'):
        opened(root)


def test_a_missing_image_is_named_or_left_out(root, caplog):
    (root / "images" / "c.png").unlink()
    (root / "images" / "d.png").unlink()
    with pytest.raises(DataError, match=r'train.csv, line 4: the image "c.png": not in .*images.*, and 1 more'):
        opened(root)
    with caplog.at_level(logging.WARNING):
        data = opened(root, on_error="skip", holdout=0.4)
    assert "left out" in caplog.text
    train, val = (rows_of(data.samples[split]) for split in ("train", "val"))
    assert train | val == {name: labels for name, labels in ROWS.items() if name not in "cd"}


def test_images_that_are_nowhere_and_tables_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder"):
        opened(tmp_path / "no")
    with pytest.raises(DataError, match=r"which table has the labels for training\? There is no CSV file"):
        opened(tmp_path)
    write_table(tmp_path / "train.csv", ROWS)
    with pytest.raises(DataError, match=r"train.csv: none of its images"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"nope.csv: no such file \(data.val_labels\)"):
        opened(tmp_path, val_labels="nope.csv")
    write_table(tmp_path / "train.csv", dict.fromkeys(ROWS, ""))
    write_images(tmp_path / "images", ROWS)
    with pytest.raises(DataError, match="no image has any class"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"label_column": "a", "class_columns": ["b"]},
        {"label_delimiter": ""},
        {"label_delimiter": "|", "class_columns": ["b"]},
        {"class_columns": []},
        {"holdout": 1.0},
        {"image_size": 0},
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options):
    with pytest.raises(ConfigError):
        MultiLabelData(tmp_path, **options)


def test_images_of_training_that_are_measured_with_are_told(root, caplog):
    write_table(root / "val.csv", {"a": "cat"})
    with caplog.at_level(logging.WARNING):
        opened(root)
    assert "1 of its 1 images are those of training" in caplog.text


def test_rare_classes_are_held_out_in_proportion():
    random = np.random.default_rng(3)
    targets = random.random((400, 4)) < (0.5, 0.2, 0.05, 0.01)
    targets[:2, 3] = True
    held = held_out_images(targets, 0.25)
    assert 0.2 < held.mean() < 0.3
    for of_class in targets.T:
        assert 1 <= held[of_class].sum() < of_class.sum()
        assert abs(held[of_class].mean() - 0.25) < 0.15 or of_class.sum() < 10
    assert (held_out_images(targets, 0.25) == held).all()
