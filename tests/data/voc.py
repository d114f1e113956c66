"""Writes small Pascal VOC folders."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def write_voc(root: Path, name: str, *objects: tuple, filename: str | None = None) -> Path:
    """Writes an XML file and its image of 80 x 60 pixels; an object is (class, box, whether it is difficult)."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    body = "".join(OBJECT.format(name=n, box=b, difficult=d) for n, b, d in objects)
    size = "<size><width>80</width><height>60</height></size>"
    path = root / "Annotations" / f"{name}.xml"
    path.write_text(f"<annotation><filename>{filename or name + '.jpg'}</filename>{size}{body}</annotation>")
    Image.new("RGB", (80, 60)).save(root / "JPEGImages" / f"{name}.jpg")
    return path


def write_split(root: Path, split: str, *names: str) -> None:
    """Writes the list of images of a split."""
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
