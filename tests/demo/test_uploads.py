"""Limits of what visitors send."""

from __future__ import annotations

import os
import struct
import time
import zlib

import pytest
from PIL import Image

from focalnet.demo import uploads
from focalnet.demo.uploads import Sweeper, inside, read_upload, shown_name
from focalnet.errors import ImageError


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_image_is_read(sent, tmp_path):
    upload = read_upload(sent(Image.new("RGB", (40, 30), "red"), "a/b\\street.png"), tmp_path)
    assert (upload.name, upload.image.size, upload.original, upload.note) == ("street.png", (40, 30), (40, 30), "")


def test_a_large_image_is_reduced_and_the_visitor_told(sent, tmp_path):
    upload = read_upload(sent(Image.new("L", (4000, 1000))), tmp_path)
    assert upload.image.size == (1600, 400)
    assert upload.image.mode == "RGB"
    assert upload.note == "reduced from 4000 x 1000 to 1600 x 400 pixels"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello" * 100, "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (b"%PDF-1.7\n", "is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"\(SVG\).*export it as PNG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a --><svg></svg>", r"\(SVG\)"),
        (png_header(60_000, 60_000), "more than 50 megapixels: send a smaller image"),
        (png_header(8000, 6251), "more than 50 megapixels"),
        (png_header(100, 100), "truncated or damaged"),
    ],
    ids=["empty", "text", "eps", "pdf", "svg", "svg-xml", "bomb", "just-too-large", "damaged"],
)
def test_what_is_no_image_is_refused_by_the_visitors_name_of_it(content, said, sent, tmp_path):
    with pytest.raises(ImageError, match=said) as caught:
        read_upload(sent(content, "mine.png"), tmp_path)
    assert str(caught.value).startswith("mine.png: ")
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_too_many_bytes_is_refused_unread(sent, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 1 << 20)
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        read_upload(sent(bytes((1 << 20) + 1)), tmp_path)


@pytest.mark.parametrize("value", [None, {}, {"path": None}, {"path": ""}, {"path": 3}, [], "x", 0])
def test_no_image_says_what_to_do(value, tmp_path):
    with pytest.raises(ImageError, match="drop one, or take an example"):
        read_upload(value, tmp_path)


def test_only_files_of_the_folder_are_opened(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (folder / "link.png").symlink_to(secret)
    (folder / "mine.png").write_bytes(secret.read_bytes())
    neighbor = tmp_path / "uploads-of-others.png"
    neighbor.write_bytes(secret.read_bytes())
    tricks = [
        secret, f"{folder}/../secret.png", folder / "link.png", folder, neighbor, "secret.png", "/dev/zero", "~", "",
        f"{folder}/mine.png\0", f"{folder}/{'x' * 5000}", f"file://{folder}/mine.png", "http://127.0.0.1/a.png",
        "/etc/passwd",
    ]  # fmt: skip
    for trick in map(str, tricks):
        assert inside(trick, folder) is None, trick
        if trick:
            with pytest.raises(ImageError, match="not a file that was uploaded here"):
                read_upload({"path": trick}, folder)
    assert inside(f"{folder}/./mine.png", folder) == folder / "mine.png"


def test_names_are_short_and_printable():
    assert shown_name("../../etc/pass\x1b[31mwd\u202e.png") == "pass?[31mwd?.png"
    assert len(shown_name("x" * 5000 + ".jpeg")) == uploads.LONGEST_NAME
    assert shown_name("x" * 5000 + ".jpeg").endswith("….jpeg"[1:])
    assert shown_name("folder/") == "image"


def test_pillows_limit_is_as_before_afterwards(sent, tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    read_upload(sent(Image.new("RGB", (4, 4))), tmp_path)
    with pytest.raises(ImageError):
        read_upload(sent(png_header(60_000, 60_000)), tmp_path)
    assert before == Image.MAX_IMAGE_PIXELS


def test_old_files_and_too_many_bytes_are_swept(tmp_path):
    def write(name: str, age: float) -> None:
        path = tmp_path / name / "a"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (time.time() - age,) * 2)

    sweeper = Sweeper(tmp_path, seconds=60, most_bytes=350)
    write("example", 1000)
    sweeper.keep()
    for name, age in (("old", 61), ("first", 30), ("second", 20), ("third", 10)):
        write(name, age)
    sweeper.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example", "first", "second", "third"]
    write("fourth", 0)
    sweeper.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example", "fourth", "second", "third"]
