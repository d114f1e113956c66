"""Images that several splits share."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focalnet.data.formats.shared_images import SharedImages


def picture(seed: int) -> Image.Image:
    """An image of a few large areas and some noise."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), np.uint8)).resize((192, 160), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) * 0.9 + draw.integers(0, 25, (160, 192, 3))).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def remarks(*splits: dict[str, bytes | Path | Image.Image], decode: bool = False) -> list[str]:
    shared = SharedImages(decode=decode)
    for split, files in zip(("train", "val", "test"), splits, strict=False):
        shared.add(split, [(name, partial(lambda content: content, content)) for name, content in files.items()])
    return shared.remarks()


def test_the_same_bytes_are_found_wherever_they_are(tmp_path):
    a, b = (encoded(picture(seed), "PNG") for seed in (0, 1))
    for name, content in (("a.png", a), ("copy.png", a), ("b.png", b)):
        (tmp_path / name).write_bytes(content)
    train = {"a.png": tmp_path / "a.png", "again.png": a, "missing.png": tmp_path / "missing.png"}
    assert remarks(train) == []
    assert remarks(train, {"b.png": tmp_path / "b.png"}) == []
    (line,) = remarks(train, {"copy.png": tmp_path / "copy.png", "b.png": b}, {"c.png": picture(2)})
    assert line.startswith("val: 1 of its images is also in train (metrics of ")
    assert line.endswith(": copy.png is a.png")
    many = {f"{i}.png": a for i in range(5)}
    one, other, last = remarks(train, many, {"a.png": a})
    assert "5 of its images are also in train" in one
    assert one.endswith("0.png is a.png, 1.png is a.png, 2.png is a.png and 2 more")
    assert other.endswith(": a.png")
    assert last.startswith("test: 1 of its images is also in val")


def test_files_of_one_size_and_beginning_are_not_the_same():
    content = bytes(100_000)
    assert remarks({"a": content + b"a"}, {"b": content + b"b"}) == []


@pytest.mark.parametrize(
    "again",
    [
        encoded(picture(0), "BMP"),
        encoded(picture(0), "JPEG", quality=50),
        encoded(picture(0).resize((96, 80)), "JPEG", quality=80),
        picture(0),
    ],
)
def test_decoded_images_are_compared_by_what_they_show(again):
    train = {"0.png": encoded(picture(0), "PNG"), "1.png": encoded(picture(1), "PNG"), "broken.png": b"x"}
    val = {"2.png": encoded(picture(2), "PNG"), "again": again}
    assert remarks(train, val) == []
    (line,) = remarks(train, val, decode=True)
    assert line.endswith(": again is 0.png")


def test_images_that_show_nothing_are_not_compared():
    black = Image.new("RGB", (40, 30))
    assert remarks({"a.png": encoded(black, "PNG")}, {"b.bmp": encoded(black, "BMP")}, decode=True) == []
