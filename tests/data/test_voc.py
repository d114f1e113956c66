"""Pascal VOC's XML becomes a COCO file that means the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from focalnet.data.datasets.coco import read_coco
from focalnet.data.voc import convert_voc
from focalnet.errors import ConfigError, DataError

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def write(root: Path, name: str, *objects: tuple, filename: str | None = None) -> Path:
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    body = "".join(OBJECT.format(name=n, box=b, difficult=d) for n, b, d in objects)
    size = "<size><width>80</width><height>60</height></size>"
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(f"<annotation><filename>{filename or name + '.jpg'}</filename>{size}{body}</annotation>")
    Image.new("RGB", (80, 60)).save(root / "JPEGImages" / f"{name}.jpg")
    return path


def test_it_means_the_same(tmp_path):
    write(tmp_path, "a", ("dog", (1, 1, 80, 60), 0), ("cat", (11, 21, 20, 40), 1))
    write(tmp_path, "b", filename="wrong.png")
    coco = read_coco(convert_voc(tmp_path, tmp_path / "all.json"))
    assert coco.class_names == ("cat", "dog")
    assert [image.file_name for image in coco.images] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    dog, cat = coco.images[0].annotations
    assert (dog["bbox"], dog["iscrowd"]) == ([0, 0, 80, 60], 0)  # the whole picture, pixels counted from 1
    assert (cat["bbox"], cat["iscrowd"]) == ([10, 20, 10, 20], 1)  # difficult: neither to be found nor a mistake
    assert coco.images[1].annotations == []
    assert coco.problems == []


def test_splits_and_classes(tmp_path):
    write(tmp_path, "a", ("dog", (1, 1, 8, 6), 0))
    write(tmp_path, "b", ("cat", (1, 1, 8, 6), 0))
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("b 1\n")
    coco = read_coco(convert_voc(tmp_path, tmp_path / "val.json", split="val", classes=["dog", "cat"]))
    assert (coco.class_names, len(coco.images)) == (("dog", "cat"), 1)
    with pytest.raises(DataError, match=r'b\.xml: class "cat" is not among dog'):
        convert_voc(tmp_path, tmp_path / "val.json", split="val", classes=["dog"])
    with pytest.raises(DataError, match=r"test\.txt"):
        convert_voc(tmp_path, tmp_path / "test.json", split="test")
    with pytest.raises(ConfigError, match="twice"):
        convert_voc(tmp_path, tmp_path / "val.json", classes=["dog", "dog"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<annotation>", "cannot be read as XML"),
        ("<annotation/>", "size height is None"),
        ("<annotation><size><height>x</height><width>1</width></size></annotation>", "size height is 'x'"),
        ("<annotation><size><height>1</height><width>1</width></size><object/></annotation>", "object 1 has no name"),
        (
            "<annotation><size><height>1</height><width>1</width></size><object><name>a</name></object></annotation>",
            "object 1: bndbox xmin is None",
        ),
    ],
)
def test_files_that_cannot_be_read_are_named(text, expected, tmp_path):
    write(tmp_path, "a").write_text(text)
    with pytest.raises(DataError, match=expected) as error:
        convert_voc(tmp_path, tmp_path / "all.json")
    assert "a.xml" in str(error.value)
    assert not (tmp_path / "all.json").exists()


def test_a_folder_without_annotations_is_named(tmp_path):
    with pytest.raises(DataError, match="Annotations"):
        convert_voc(tmp_path, tmp_path / "all.json")
