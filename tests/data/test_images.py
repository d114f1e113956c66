"""Every kind of picture a person may have comes out as upright 8-bit RGB; every broken one as an ImageError."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from focalnet.data import images
from focalnet.errors import DataError, ImageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def four_colours() -> Image.Image:
    """8 x 16 pixels; every quarter has its own colour, so that each of the eight orientations differs."""
    image = Image.new("RGB", (8, 16), WHITE)
    for colour, corner in ((RED, (0, 0)), (GREEN, (4, 0)), (BLUE, (0, 8))):
        image.paste(colour, (*corner, corner[0] + 4, corner[1] + 8))
    return image


def noise(mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(values)


def grey_of(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    values = np.asarray(image)
    assert (values == values[..., :1]).all()
    return values[..., 0]


# --- sources


def test_file_bytes_and_picture_read_the_same(tmp_path: Path):
    picture = noise()
    picture.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), picture):
        result = images.read(source)
        assert result.mode == "RGB"
        assert result.tobytes() == picture.tobytes()


def test_the_result_is_independent_of_its_source(tmp_path: Path):
    picture = noise()
    result = images.read(picture)
    picture.paste(RED, (0, 0, 24, 20))
    assert result.tobytes() == noise().tobytes()


def test_content_decides_not_the_suffix(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(encode(noise(), "PNG"))
    assert images.read(tmp_path / "a.jpg").tobytes() == noise().tobytes()


def test_reading_a_picture_needs_no_torch():
    check = "import sys, focalnet.data.images; sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


# --- modes


def test_cmyk_jpeg_keeps_its_colours():
    for colour in (RED, GREEN, BLUE, WHITE, (40, 90, 200)):
        content = encode(Image.new("RGB", (16, 16), colour).convert("CMYK"), "JPEG", quality=100)
        assert b"Adobe" in content  # stored inverted, as Photoshop does
        assert np.abs(np.asarray(images.read(content)).astype(int) - colour).max() <= 3


def test_cmyk_tiff_keeps_its_colours():
    content = encode(Image.new("RGB", (4, 4), (40, 90, 200)).convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(np.asarray(images.read(content))[0, 0], (40, 90, 200))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format: str):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    result = grey_of(images.read(encode(Image.fromarray(values), format)))
    np.testing.assert_array_equal(result, np.arange(256).reshape(16, 16))


def test_16_bit_big_endian_is_scaled_too():
    picture = Image.frombytes("I;16B", (2, 1), np.array([0x0101, 0xFFFF], dtype=">u2").tobytes())
    np.testing.assert_array_equal(grey_of(images.read(picture)), [[1, 255]])


def test_16_bit_colour_png_is_scaled():
    # Pillow cannot write one: 2 x 1 pixels, red at full and at half strength.
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = b"\0" + struct.pack(">6H", 65535, 0, 0, 32768, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(np.asarray(images.read(png)), [[[255, 0, 0], [128, 0, 0]]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [[0, 128, 255]]),  # white is 1
        (np.array([[0.0, 99.6, 255.0]], np.float32), [[0, 100, 255]]),  # white is 255
        (np.array([[0.0, 65535.0, 257.0]], np.float32), [[0, 255, 1]]),  # white is 65535
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [[0, 128, 255]]),  # stretched
        (np.array([[7.0, 7.0]], np.float32) * -1, [[0, 0]]),  # nothing to stretch
        (np.array([[0, 1, 255]], np.int32), [[0, 1, 255]]),
        (np.array([[0, 257, 65535]], np.int32), [[0, 1, 255]]),
        (np.array([[0, 600_000, 1_000_000]], np.int32), [[0, 153, 255]]),
    ],
)
def test_32_bit_values_are_scaled_by_their_range(values, expected):
    content = encode(Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(grey_of(images.read(content)), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_refused(bad: float, tmp_path: Path):
    Image.fromarray(np.array([[0.0, bad]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: holds values that are not numbers"):
        images.read(tmp_path / "a.tif")


def test_alpha_lies_over_white():
    picture = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)]):
        picture.putpixel((x, 0), pixel)
    result = np.asarray(images.read(encode(picture, "PNG")))
    np.testing.assert_array_equal(result, [[RED, WHITE, (204, 204, 204)]])


def test_grey_with_alpha_lies_over_white():
    picture = Image.new("LA", (2, 1))
    picture.putpixel((0, 0), (10, 255))
    picture.putpixel((1, 0), (10, 0))
    np.testing.assert_array_equal(grey_of(images.read(encode(picture, "PNG"))), [[10, 255]])


def test_palette_with_and_without_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    for format in ("PNG", "GIF", "BMP"):
        np.testing.assert_array_equal(np.asarray(images.read(encode(picture, format))), [[RED, BLUE]])
    for format in ("PNG", "GIF"):
        content = encode(picture, format, transparency=1)
        np.testing.assert_array_equal(np.asarray(images.read(content)), [[RED, WHITE]])
    graded = encode(picture, "PNG", transparency=bytes([255, 51]))  # one alpha for each entry
    np.testing.assert_array_equal(np.asarray(images.read(graded)), [[RED, (204, 204, 255)]])


def test_one_transparent_colour():
    picture = Image.new("RGB", (2, 1), RED)
    picture.putpixel((1, 0), BLUE)
    content = encode(picture, "PNG", transparency=BLUE)
    np.testing.assert_array_equal(np.asarray(images.read(content)), [[RED, WHITE]])


def test_grey_and_1_bit():
    grey = np.asarray(noise("L"))
    np.testing.assert_array_equal(grey_of(images.read(encode(noise("L"), "PNG"))), grey)
    black_white = noise("L").convert("1")
    np.testing.assert_array_equal(
        grey_of(images.read(encode(black_white, "PNG"))), np.asarray(black_white).astype(np.uint8) * 255
    )


def test_a_mode_without_rgb_is_named():
    with pytest.raises(ImageError, match="image: has the color mode LAB"):
        images.read(Image.new("LAB", (2, 2)))


# --- orientation and animation


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_upright(orientation: int, format: str):
    # The stored picture is the upright one under the inverse of what the tag asks for.
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = four_colours()
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    result = images.read(encode(stored, format, exif=exif, **options))
    assert result.size == upright.size
    assert np.abs(np.asarray(result).astype(int) - np.asarray(upright)).max() <= 2


def test_damaged_exif_does_not_spoil_the_picture():
    content = encode(four_colours(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert images.read(content).tobytes() == four_colours().tobytes()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(format: str):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(np.asarray(images.read(content))[0, 0], RED)


# --- broken files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not an image at all", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),  # would start an interpreter
        (encode(noise(), "PNG")[:200], "is truncated or damaged"),
        (encode(noise(), "JPEG")[:400], "is truncated or damaged"),  # in its header
        (encode(noise(), "JPEG")[:800], "is truncated or damaged"),  # in its pixels
        (encode(noise(), "BMP")[:400], "is truncated or damaged"),
        (encode(noise(), "TIFF")[:400], "is truncated or damaged"),
        (encode(noise(), "WEBP", lossless=True)[:400], "is truncated or damaged"),
        (encode(noise(), "GIF")[:900], "is truncated or damaged"),
    ],
)
def test_a_broken_file_is_named(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"broken.jpg: {message}") as caught:
        images.read(path)
    assert "\n" not in str(caught.value)


def test_no_file_folder_and_pipe_are_named(tmp_path: Path):
    with pytest.raises(ImageError, match=r"none\.jpg: cannot be read: No such file"):
        images.read(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="cannot be read: File name too long"):
        images.read("a" * 300 + ".jpg")
    with pytest.raises(ImageError, match="is a folder"):
        images.read(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        images.read("a\0b.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    with pytest.raises(ImageError, match="not a regular file"):
        images.read(tmp_path / "pipe.jpg")


def test_a_decompression_bomb_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="is too large"):
        images.read(encode(noise(), "PNG"))


def test_a_picture_without_pixels():
    with pytest.raises(ImageError, match=r"has no pixels \(0 x 5\)"):
        images.read(Image.new("RGB", (0, 5)))


SEEDS = [
    encode(noise(), "PNG"),
    encode(noise("RGBA"), "PNG"),
    encode(noise("L").quantize(8), "PNG", transparency=3),
    encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    encode(noise().convert("CMYK"), "JPEG"),
    encode(noise(), "JPEG", progressive=True),
    encode(noise(), "GIF"),
    encode(noise(), "BMP"),
    encode(noise(), "TIFF"),
    encode(noise(), "TIFF", compression="tiff_lzw"),
    encode(noise(), "WEBP"),
    encode(noise("RGBA"), "WEBP", lossless=True),
    encode(noise(), "PPM"),
    encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "PNG"),
    encode(Image.fromarray(np.arange(64, dtype=np.float32).reshape(8, 8)), "TIFF"),
]


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), max_size=6),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_fuzz_only_image_errors_come_out(content: bytes, changes: list[tuple[float, bytes]], keep: float):
    mutated = bytearray(content)
    for where, replacement in changes:
        start = int(where**2 * len(mutated))  # the head, where the structure is, twice as often
        mutated[start : start + len(replacement)] = replacement
    mutated = mutated[: int(keep * len(mutated))]
    try:
        result = images.read(bytes(mutated), "fuzzed")
    except ImageError as error:
        message = str(error)
    else:
        assert result.mode == "RGB"
        assert min(result.size) > 0
        return
    assert message.startswith("fuzzed: ")
    assert "\n" not in message


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_fuzz_arbitrary_bytes(content: bytes):
    with pytest.raises(ImageError, match=r"^fuzzed: "):
        images.read(content, "fuzzed")


# --- find


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.tif", ".git/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_find_in_a_folder(tree: Path):
    assert images.find(tree) == [tree / "a.PNG", tree / "b.jpg", tree / "sub/c.webp", tree / "sub/deep/d.tif"]


def test_find_keeps_the_given_order_and_each_file_once(tree: Path):
    assert images.find([tree / "b.jpg", tree / "notes.txt", tree]) == [
        tree / "b.jpg",
        tree / "notes.txt",  # named one by one: opened whatever its suffix
        tree / "a.PNG",
        tree / "sub/c.webp",
        tree / "sub/deep/d.tif",
    ]


def test_find_patterns(tree: Path):
    assert images.find(f"{tree}/*") == [tree / "a.PNG", tree / "b.jpg", tree / "sub/c.webp", tree / "sub/deep/d.tif"]
    assert images.find(f"{tree}/**/*.tif") == [tree / "sub/deep/d.tif"]


def test_a_file_whose_name_looks_like_a_pattern(tree: Path):
    (tree / "what[1].jpg").write_bytes(b"x")
    assert images.find(tree / "what[1].jpg") == [tree / "what[1].jpg"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.jpg", r"none\.jpg: no such file"),
        ("*.bmp", r"\*\.bmp: no images there"),
        ("empty", r"empty: no images there \(looked for .*\.jpg"),
    ],
)
def test_nothing_found_is_named(tree: Path, path: str, message: str):
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        images.find(tree / path)


def test_find_what_cannot_be_looked_at():
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        images.find("a" * 300)


def test_find_nothing_asked():
    with pytest.raises(DataError, match="name at least one"):
        images.find([])


def test_find_in_a_folder_that_cannot_be_listed(tree: Path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # as root, chmod would not keep us out
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        images.find(tree)
