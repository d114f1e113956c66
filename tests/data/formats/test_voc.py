"""Pascal VOC's XML becomes a COCO file that means the same."""

from __future__ import annotations

import shutil

import pytest

from focalnet.data.formats.coco import read_coco
from focalnet.data.formats.voc import VocSet, convert_voc
from focalnet.errors import ConfigError, DataError
from tests.data.voc import write_split, write_voc


def test_it_means_the_same(tmp_path):
    write_voc(tmp_path, "a", ("dog", (1, 1, 80, 60), 0), ("cat", (11, 21, 20, 40), 1))
    write_voc(tmp_path, "b", filename="wrong.png")
    coco = read_coco(convert_voc(tmp_path, tmp_path / "all.json"))
    assert coco.class_names == ("cat", "dog")
    assert [image.file_name for image in coco.images] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    dog, cat = coco.images[0].annotations
    assert (dog["bbox"], dog["iscrowd"]) == ([0, 0, 80, 60], 0)  # the whole picture, pixels counted from 1
    assert (cat["bbox"], cat["iscrowd"]) == ([10, 20, 10, 20], 1)  # difficult: neither to be found nor a mistake
    assert coco.images[1].annotations == []
    assert coco.problems == []


def test_an_xml_file_is_for_the_image_called_like_it(tmp_path):
    """Tools leave the name in the file as it was when images are renamed; torchvision and detectron2 read likewise."""
    write_voc(tmp_path, "a", ("dog", (1, 1, 8, 6), 0), filename="b.jpg")
    write_voc(tmp_path, "b", ("cat", (1, 1, 8, 6), 0))
    written = VocSet(tmp_path).content(None)
    assert [image["file_name"] for image in written.content["images"]] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    assert [one["category_id"] for one in written.content["annotations"]] == [2, 1]
    assert len(written.remarks) == 1
    assert "1 XML files name another image" in written.remarks[0]
    (tmp_path / "JPEGImages/a.jpg").rename(tmp_path / "JPEGImages/c.jpg")
    write_voc(tmp_path, "a", filename="c.jpg")
    (tmp_path / "JPEGImages/a.jpg").unlink()
    images = VocSet(tmp_path).content(None).content["images"]
    assert images[0]["file_name"] == "JPEGImages/c.jpg"


def test_lists_may_name_images_and_what_is_not_read_is_said(tmp_path):
    for name in "abc":
        write_voc(tmp_path, name, ("dog", (0, 1, 8, 6), 0), ("dog", (1, 1, 8, 6), 0))
    write_split(tmp_path, "train", "a.jpg", "b.JPG")
    written = VocSet(tmp_path).content("train")
    assert len(written.content["images"]) == 2
    assert "2 of 4 boxes begin at 0" in written.remarks[0]
    shutil.rmtree(tmp_path / "ImageSets")
    (tmp_path / "Annotations/c.xml").unlink()
    assert VocSet(tmp_path).content(None).remarks[1:] == [
        "1 images have no XML file, and are left out, e.g. JPEGImages/c.jpg"
    ]


def test_splits_and_classes(tmp_path):
    write_voc(tmp_path, "a", ("dog", (1, 1, 8, 6), 0))
    write_voc(tmp_path, "b", ("cat", (1, 1, 8, 6), 0))
    write_split(tmp_path, "val", "b 1")
    coco = read_coco(convert_voc(tmp_path, tmp_path / "val.json", split="val", classes=["dog", "cat"]))
    assert (coco.class_names, len(coco.images)) == (("dog", "cat"), 1)
    with pytest.raises(DataError, match=r'b\.xml: class "cat" is not among dog'):
        convert_voc(tmp_path, tmp_path / "val.json", split="val", classes=["dog"])
    with pytest.raises(DataError, match=r"test\.txt"):
        convert_voc(tmp_path, tmp_path / "test.json", split="test")
    with pytest.raises(ConfigError, match="twice"):
        convert_voc(tmp_path, tmp_path / "val.json", classes=["dog", "dog"])


def test_all_splits_have_the_same_classes(tmp_path):
    write_voc(tmp_path, "a", ("dog", (1, 1, 8, 6), 0))
    write_voc(tmp_path, "b", ("cat", (1, 1, 8, 6), 0))
    for split, name, category in (("train", "a", 2), ("val", "b", 1)):
        write_split(tmp_path, split, name)
        coco = read_coco(convert_voc(tmp_path, tmp_path / f"{split}.json", split=split))
        assert coco.class_names == ("cat", "dog")
        assert [[one["category_id"] for one in image.annotations] for image in coco.images] == [[category]]


def test_without_any_class_nothing_is_written(tmp_path):
    write_voc(tmp_path, "a")
    for classes in (None, []):
        with pytest.raises(DataError, match="neither objects"):
            convert_voc(tmp_path, tmp_path / "all.json", classes=classes)
    assert not (tmp_path / "all.json").exists()
    assert read_coco(convert_voc(tmp_path, tmp_path / "all.json", classes=["dog"])).class_names == ("dog",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<annotation>", "cannot be read as XML"),
        ("<annotation><size><height>x</height><width>1</width></size></annotation>", "size height is 'x'"),
        ("<annotation><size><height>1</height><width>1</width></size><object/></annotation>", "object 1 has no name"),
        (
            "<annotation><size><height>1</height><width>1</width></size><object><name>a</name></object></annotation>",
            "object 1: bndbox xmin is None",
        ),
        ("<annotation><filename>x.jpg</filename><object/></annotation>", "object 1 has no name"),
    ],
)
def test_files_that_cannot_be_read_are_named(text, expected, tmp_path):
    write_voc(tmp_path, "a").write_text(text)
    with pytest.raises(DataError, match=expected) as error:
        convert_voc(tmp_path, tmp_path / "all.json")
    assert "a.xml" in str(error.value)
    assert not (tmp_path / "all.json").exists()


def test_a_folder_without_annotations_is_named(tmp_path):
    with pytest.raises(DataError, match="Annotations"):
        convert_voc(tmp_path, tmp_path / "all.json")
