"""Small Pascal VOC folders, written for the test that asks for one."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def write_voc(root: Path, name: str, *objects: tuple, filename: str | None = None) -> Path:
    """An XML file and its picture of 80 x 60 pixels; each object is its class, its box and whether it is difficult."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    body = "".join(OBJECT.format(name=n, box=b, difficult=d) for n, b, d in objects)
    size = "<size><width>80</width><height>60</height></size>"
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(f"<annotation><filename>{filename or name + '.jpg'}</filename>{size}{body}</annotation>")
    Image.new("RGB", (80, 60)).save(root / "JPEGImages" / f"{name}.jpg")
    return path


def write_split(root: Path, split: str, *names: str) -> None:
    """The list of a split's images."""
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
