"""Class folders as people have them."""

import numpy as np
import pytest
from PIL import Image

from focalnet.data import ClassificationData
from focalnet.data.formats.label_maps import LabelRule, check_masks
from focalnet.data.formats.pairs import find_pairs, own_layout
from focalnet.data.readers.classes import read_class_map
from focalnet.data.readers.collection import Collection, detect
from focalnet.data.readers.folder import Folder
from focalnet.errors import DataError


def save(path, count=2):
    path.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (8, 8)).save(path / f"{index}.png")


def test_a_class_folder_under_several_others_is_refused(tmp_path):
    for name in ("a/indoor", "a/outdoor", "c/outdoor"):
        save(tmp_path / name)
    with pytest.raises(DataError, match='"outdoor" lies under several folders'):
        Folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("animals/train/cat", "animals/test/cat"), "give the folder they are in as data.root: .*animals$"),
        (("seg_train/seg_train/cat", "seg_test/seg_test/cat"), "or name them by data.train_split and data.val_split$"),
        (("cat/train", "dog/train"), "the splits are to be above the classes, not below: train/<class>/$"),
        (("x/train/cat", "y/test/cat"), "folders of splits must lie right below data.root"),
    ],
)
def test_no_message_advises_to_merge_splits(tmp_path, names, expected):
    for name in (*names, "other"):
        save(tmp_path / name)
    with pytest.raises(DataError, match=expected):
        Folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "valid"), "train: has images but no class folders; put those of each class in"),
        (("images", "masks"), "which are not classes: for label maps use a segmentation recipe"),
        (("img", "GT"), "which are not classes"),
    ],
)
def test_splits_images_and_masks_are_no_classes(tmp_path, names, expected):
    for name in names:
        save(tmp_path / name)
    with pytest.raises(DataError, match=expected):
        Folder(tmp_path)
    save(tmp_path / "bus")  # then they may be
    assert len(Folder(tmp_path).class_names) == 3


def test_what_is_read_in_an_unexpected_way_is_said(tmp_path, caplog):
    for name in ("birds/Robin", "birds/robin", "dog", "__MACOSX/dog", "__pycache__"):
        save(tmp_path / name)
    assert Folder(tmp_path).class_names == ("dog", "Robin", "robin")  # always in this order
    assert '"Robin" and "robin" are two classes' in caplog.text
    assert "class folders within other folders, e.g. birds/Robin: the innermost folder is the class" in caplog.text


def test_classes_that_lose_files_are_named(tmp_path, caplog):
    for name in ("cat", "cow"):
        save(tmp_path / name)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog/1.HEIC").write_bytes(b"")
    (tmp_path / "pig").mkdir()
    assert Folder(tmp_path).class_names == ("cat", "cow")
    assert "dog: 1 files are not read (.heic)" in caplog.text
    assert "pig: is empty" in caplog.text


def test_splits_have_any_case_and_a_holdout_leaves_the_test_images_alone(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / "Training" / name, 4)
        save(tmp_path / "Testing" / name)
    found = Collection(tmp_path, "folder", wanted={}, holdout=0.25)
    assert [len(found.open(split)) for split in ("train", "val", "test")] == [6, 2, 4]


def opened(root, stage="fit", **options):
    data = ClassificationData(root, batch_size=1, num_workers=0, image_size=8, **options)
    data.setup(stage)
    return data


@pytest.mark.parametrize("below", [".", "train"])
def test_a_folder_is_enough(tmp_path, caplog, below):
    for name in ("cat", "dog"):
        save(tmp_path / below / name, 10)
    data = opened(tmp_path)
    assert [len(data.samples[split]) for split in ("train", "val")] == [16, 4]
    assert caplog.text.count("20 % of its images are held out") == 1
    data.setup("test")
    paths = {split: {samples.path(i) for i in range(len(samples))} for split, samples in data.samples.items()}
    assert paths["test"] == paths["val"]  # never images of training
    assert not paths["val"] & paths["train"]
    assert [opened(tmp_path, holdout=0.2).samples["val"].path(i) for i in range(4)] == sorted(paths["val"])


def test_evaluating_a_folder_without_splits_says_that_it_holds_images_of_training(tmp_path, caplog):
    for name in ("cat", "dog"):
        save(tmp_path / name, 10)
    assert len(opened(tmp_path, "validate").samples["val"]) == 20
    assert "those of training, too; data.holdout 0.2 evaluates those that training holds out" in caplog.text
    assert len(opened(tmp_path, "validate", holdout=0.2).samples["val"]) == 4


def test_where_there_is_a_test_split_nothing_is_held_out_unasked(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        save(tmp_path / name, 10)
    with pytest.raises(DataError, match=r"no val split; it has test, train; .*data\.val_split"):
        opened(tmp_path)


def test_an_archive_beside_folders_does_not_win(tmp_path, caplog):
    save(tmp_path / "train/cat")
    (tmp_path / "train.tar").write_bytes(b"")
    assert detect(tmp_path) == "folder"
    assert "archives beside folders" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_classes_have_any_mark_and_line_end(encoding, tmp_path):
    (tmp_path / "map.txt").write_bytes("cat\r\ndog\r\n".encode(encoding))
    assert read_class_map(tmp_path / "map.txt") == {"cat": "cat", "dog": "dog"}


def test_a_mask_stored_as_jpeg_is_refused_whatever_its_suffix(tmp_path):
    save(tmp_path / "images/train", 1)
    (tmp_path / "masks/train").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "masks/train/0.png", "JPEG")
    pairs = find_pairs(tmp_path, "train", own_layout(None, None, ""))
    assert pairs is not None
    assert "lossy" in check_masks(pairs, LabelRule(), None).problems[0].what


def test_names_of_classes_are_the_same_whatever_their_unicode_normalization(tmp_path):
    save(tmp_path / "train/caf\u00e9", 2)
    save(tmp_path / "train/tea", 2)
    save(tmp_path / "val/cafe\u0301", 1)
    save(tmp_path / "val/tea", 1)
    parts = [Folder(tmp_path / part) for part in ("train", "val")]
    assert [part.class_names for part in parts] == [("caf\u00e9", "tea")] * 2
    assert [len(part) for part in parts] == [4, 2]
    titles = {"tea": "Tea", "cafe\u0301": "Coffee"}
    assert Folder(tmp_path / "train", titles).class_names == ("Tea", "Coffee")
    save(tmp_path / "train/cafe\u0301", 1)  # both spellings beside each other are one class
    both = Folder(tmp_path / "train")
    assert (both.class_names, both.labels.tolist()) == (("caf\u00e9", "tea"), [0, 0, 0, 1, 1])


def test_a_class_folder_within_another_is_told(tmp_path, caplog):
    for name in ("cat", "cat/more", "dog"):
        save(tmp_path / name)
    assert Folder(tmp_path).class_names == ("cat", "dog", "more")
    assert 'cat: has images, and so has the folder "more"' in caplog.text
