"""Masks as tools write them: formats, colors, names and folders. Read right, or refused with the cause."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focalnet.data import SemanticData
from focalnet.data.formats.masks import read_numbers, voc_palette
from focalnet.data.formats.pairs import LAYOUTS, find_pairs, own_layout, suggest
from focalnet.data.readers.classes import read_class_names
from focalnet.errors import DataError, ImageError

NUMBERS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
PALETTE = {(0, 0, 0): 0, (250, 50, 83): 1, (128, 128, 128): 2}
COLORED = np.array(list(PALETTE), np.uint8)[NUMBERS]


def saved(image: Image.Image | np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def opaque(values: np.ndarray) -> np.ndarray:
    return np.dstack((values, np.full_like(NUMBERS, 255)))


def indexed(colors: dict[int, tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(NUMBERS).convert("P")
    image.putdata(NUMBERS.ravel().tolist())
    image.putpalette([channel for i in range(3) for channel in colors[i]])
    return image


READ = {
    "gray": saved(NUMBERS),
    "gray of 16 bits": saved(NUMBERS.astype(np.uint16)),
    "gray as RGB": saved(np.dstack([NUMBERS] * 3)),
    "gray as RGBA": saved(opaque(np.dstack([NUMBERS] * 3))),
    "gray with alpha": saved(Image.merge("LA", [Image.fromarray(NUMBERS), Image.new("L", (3, 2), 255)])),
    "float TIFF": saved(NUMBERS.astype(np.float32), "TIFF"),
    "32-bit TIFF": saved(NUMBERS.astype(np.int32), "TIFF"),
    "lossless WebP": saved(np.dstack([NUMBERS] * 3), "WEBP", lossless=True),
    "bytes": npy(NUMBERS),
    "whole floats": npy(NUMBERS.astype(np.float64)),
    "one channel last": npy(NUMBERS[..., None]),
    "one channel first": npy(NUMBERS[None]),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_one_number_a_pixel_is_read_however_it_is_stored(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mask").write_bytes(READ[kind])
    for source in (READ[kind], tmp_path / "mask"):
        found = read_numbers(source, "mask")
        assert found.dtype == np.int64
        assert np.array_equal(found, NUMBERS)


def test_two_values_are_0_and_1_where_they_are_false_and_true() -> None:
    for content in (npy(NUMBERS > 0), saved(Image.fromarray(NUMBERS > 0))):
        assert np.array_equal(read_numbers(content, "mask"), NUMBERS > 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (saved(NUMBERS, "JPEG"), "JPEG, which is lossy"),
        (saved(np.dstack([NUMBERS] * 3), "WEBP"), "lossy WebP"),
        (saved(np.zeros((16, 16, 3), np.uint8), "TIFF", compression="jpeg"), "TIFF compressed as JPEG"),
        (saved(COLORED), r"colors \(mode RGB, 3 colors: \(0, 0, 0\), \(128, 128, 128\), \(250, 50, 83\)\).*palette"),
        (saved((NUMBERS / 2).astype(np.float32), "TIFF"), "fractions, e.g. 0.5"),
        (saved(np.array([[0, np.nan]], np.float32), "TIFF"), "NaN"),
        (saved(np.dstack([NUMBERS] * 4)), "transparent pixels"),
        (npy(np.zeros((2, 3, 5))), r"an array of shape \(2, 3, 5\)"),
        (npy(np.array(["a"])), "values of type <U1"),
        (npy(NUMBERS)[:-2], "truncated or damaged"),
    ],
)
def test_what_is_no_label_map_is_refused(content: bytes, expected: str) -> None:
    with pytest.raises(ImageError, match=f"^x.png: .*{expected}"):
        read_numbers(content, "x.png")


def test_an_array_of_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "was_run",)

    values = np.empty(1, object)
    values[0] = Code()
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    with pytest.raises(ImageError):
        read_numbers(buffer.getvalue(), "x.npy")
    assert not (tmp_path / "was_run").exists()


def test_colors_are_the_numbers_of_the_palette() -> None:
    for content in (saved(COLORED), saved(opaque(COLORED)), npy(COLORED)):
        assert np.array_equal(read_numbers(content, "mask", PALETTE), NUMBERS)
    assert np.array_equal(read_numbers(saved(NUMBERS), "mask", PALETTE), NUMBERS)
    with pytest.raises(ImageError, match=r"1 color in 33.3% of its pixels that the palette .*: \(250, 50, 83\)"):
        read_numbers(saved(COLORED), "mask", {(0, 0, 0): 0, (128, 128, 128): 1})


def test_indices_count_unless_their_colors_are_those_of_other_numbers() -> None:
    colors = {number: color for color, number in PALETTE.items()}
    assert np.array_equal(read_numbers(saved(indexed(colors)), "mask", PALETTE), NUMBERS)
    turned = {0: colors[2], 1: colors[1], 2: colors[0]}  # as quantized from colors
    assert np.array_equal(read_numbers(saved(indexed(turned)), "mask", PALETTE), 2 - NUMBERS.astype(int))
    assert np.array_equal(read_numbers(saved(indexed(turned)), "mask"), NUMBERS)
    other = {0: colors[2], 1: (1, 2, 3), 2: colors[0]}
    assert np.array_equal(read_numbers(saved(indexed(other)), "mask", PALETTE), NUMBERS)


def test_the_palette_of_voc() -> None:
    by_number = {number: color for color, number in voc_palette().items()}
    assert [by_number[i] for i in (0, 1, 4, 15, 20, 255)] == [
        (0, 0, 0), (128, 0, 0), (0, 0, 128), (192, 128, 128), (0, 64, 128), (224, 224, 192),
    ]  # fmt: skip
    assert len(by_number) == 256


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:0,0,0::\ncar:250,50,83:wheel:\na:b:128,128,128::\n"),
        ("classes.json", json.dumps({"classes": ["sky", "car", "a:b"], "palette": [list(color) for color in PALETTE]})),
        ("classes.json", json.dumps({"classes": ["sky", "car", "a:b"], "palette": ["#000000", "#FA3253", "#808080"]})),
        (
            "classes.json",
            '{"classes": ["sky", "car", "a:b"], '
            '"palette": {"car": [250, 50, 83], "a:b": [128, 128, 128], "sky": [0, 0, 0]}}',
        ),
        ("class_dict.csv", "name,r,g,b\nsky,0,0,0\ncar,250,50,83\na:b,128,128,128\n"),
    ],
)
def test_palettes_are_read(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_class_names(tmp_path / name) == (("sky", "car", "a:b"), None, PALETTE)


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        ("[[0, 0, 0], [0, 0, 0]]", "color of two classes"),
        ("[[0, 0]]", "not a color"),
        ("[[0, 0, 256]]", "not a color"),
        ('{"a": [0, 0, 0]}', "a color for each of the classes"),
    ],
)
def test_palettes_that_cannot_be_are_refused(tmp_path: Path, palette: str, expected: str) -> None:
    (tmp_path / "classes.json").write_text(f'{{"classes": ["a", "b"], "palette": {palette}}}')
    with pytest.raises(DataError, match=rf"classes\.json: .*{expected}"):
        read_class_names(tmp_path / "classes.json")


def test_pixel_values_of_roboflow_are_read(tmp_path: Path) -> None:
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n")
    assert read_class_names(tmp_path / "_classes.csv").names == ("background", "cat")


# --- which mask is whose, and where they are


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".npy"):
            np.save(root / name, NUMBERS)
        else:
            Image.fromarray(NUMBERS).save(root / name, "JPEG" if name.lower().endswith("jpg") else None)
    return root


def pairs_of(root: Path, split="train", suffix: str = ""):
    found = find_pairs(root, split, own_layout(None, None, suffix))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("images", "masks", "told"),
    [
        (("a.jpg", "b.jpg"), ("a.png", "b.png"), False),
        (("a.jpg", "b.jpg"), ("a.npy", "b.tif"), False),
        (("0.jpg", "1.jpg"), ("0_mask.png", "1_mask.png"), True),
        (("0.jpg",), ("0_mask.png",), True),
        (("0.jpg", "10.jpg", "1.jpg"), ("0-seg.png", "10-seg.png", "1-seg.png"), True),
        (("0.jpg", "1.jpg"), ("mask_0.png", "mask_1.png"), True),
        (("0_sat.jpg", "1_sat.jpg"), ("0_mask.png", "1_mask.png"), True),
        (("0.jpg", "1.jpg"), ("0.jpg.png", "1.jpg.png"), True),
        (("IMG_0.JPG", "IMG_1.JPG"), ("img_0.png", "img_1.png"), True),
        (("caf\u00e9.jpg",), ("cafe\u0301.png",), True),
        (("a/0.jpg", "b/0.jpg"), ("a/0_mask.png", "b/0_mask.png"), True),
    ],
)
def test_masks_find_their_images(tmp_path: Path, images, masks, told: bool) -> None:
    write(tmp_path, *(f"images/train/{one}" for one in images), *(f"masks/train/{one}" for one in masks))
    found = pairs_of(tmp_path)
    assert found.names == sorted(zip(images, masks, strict=True))
    assert found.problems == []
    assert bool(found.remarks) == told


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("img_01.jpg", "img_02.jpg"), ("seg_11.png", "seg_12.png")),
        (("a.jpg", "b.jpg"), ("c.png", "d.png")),
        (("A.jpg", "a.jpg"), ("A_m.png", "b_m.png")),
    ],
)
def test_names_that_do_not_say_whose_mask_it_is_are_no_pairs(tmp_path: Path, images, masks) -> None:
    write(tmp_path, *(f"images/train/{one}" for one in images), *(f"masks/train/{one}" for one in masks))
    found = pairs_of(tmp_path)
    assert found.names == []
    assert len(found.problems) == 4
    assert "has no mask" in found.problems[0].what


@pytest.mark.parametrize(
    ("files", "split"),
    [
        (("Images/Train/a.jpg", "Masks/train/a.png"), "train"),
        (("training/images/a.jpg", "training/masks/a.png"), "train"),
        (("TRAIN/Images/a.jpg", "TRAIN/Masks/a.png"), "train"),
        (("train_images/a.jpg", "train_masks/a.png"), "train"),
        (("train/a.jpg", "train_masks/a_mask.png"), "train"),
        (("valid/a.jpg", "valid_labels/a.png"), "val"),
        (("train/a.jpg", "trainannot/a.png"), "train"),
        (("train/a.jpg", "train/a_mask.png"), "train"),
        (("a.jpg", "a_mask.png"), None),
    ],
)
def test_folders_of_other_habits_are_found(tmp_path: Path, files, split) -> None:
    found = pairs_of(write(tmp_path, *files), split)
    assert [len(found), found.problems] == [1, []]


def test_masks_in_the_folder_of_their_images_are_no_images(tmp_path: Path) -> None:
    write(tmp_path, "data/0.jpg", "data/0_mask.png", "data/1.jpg", "data/1_mask.png")
    found = find_pairs(tmp_path, None, own_layout("data", "data", "_mask"))
    assert found is not None
    assert (found.names, found.problems) == ([("0.jpg", "0_mask.png"), ("1.jpg", "1_mask.png")], [])
    write(tmp_path / "same", "data/0.jpg", "data/0.png", "data/1.jpg")
    found = find_pairs(tmp_path / "same", None, own_layout("data", "data", ""))
    assert found is not None
    assert found.names == [("0.jpg", "0.png")]
    assert [problem.what.split(" /")[0] for problem in found.problems] == ["has no mask"]


def test_lists_name_the_images_of_splits(tmp_path: Path) -> None:
    files = [f"JPEGImages/{i}.jpg" for i in range(4)] + [f"SegmentationClass/{i}.png" for i in range(3)]
    write(tmp_path, *files)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n/JPEGImages/2.jpg\n9\n")
    (lists / "val.txt").write_bytes("\ufeff1\r\n".encode())
    train, val = pairs_of(tmp_path), pairs_of(tmp_path, "val")
    assert [image for image, _ in train.names] == ["0.jpg", "2.jpg"]
    assert [str(problem) for problem in train.problems] == [f"{lists}/train.txt: 9: has no image with a mask"]
    assert (val.names, val.problems) == ([("1.jpg", "1.png")], [])


def test_cvat_s_colors_and_those_of_voc(tmp_path: Path) -> None:
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n")
    write(tmp_path, "JPEGImages/0.jpg", "SegmentationClass/0.png")
    voc = np.array([(0, 0, 0), (128, 0, 0), (224, 224, 192)], np.uint8)[NUMBERS]
    Image.fromarray(voc).save(tmp_path / "SegmentationClass/0.png")
    assert np.array_equal(SemanticData(tmp_path).found()["train"].numbers(0), np.array([0, 1, 255])[NUMBERS])
    (tmp_path / "labelmap.txt").write_text("cat:128,0,0::\nbackground:0,0,0::\ndog:224,224,192::\n")
    pairs = SemanticData(tmp_path).found()["train"]
    assert np.array_equal(pairs.numbers(0), np.array([1, 0, 2])[NUMBERS])
    assert SemanticData(tmp_path).rule(pairs)[1] == ("cat", "background", "dog")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("scans/0.jpg", "scans/0_seg.png", "scans/1.jpg", "scans/1_seg.png"), "--images scans --label-maps scans --m"),
        (("photos/0.jpg", "truth/0.png", "photos/1.jpg", "truth/1.png"), "--images photos --label-maps truth"),
        (("cat/0.jpg", "dog/0.jpg", "cat/1.jpg", "dog/1.jpg"), ""),
    ],
)
def test_other_folders_are_suggested(tmp_path: Path, capsys, files, expected: str) -> None:
    from focalnet.cli.main import main

    write(tmp_path, *files)
    assert suggest(tmp_path).startswith(expected)
    assert bool(expected) == bool(suggest(tmp_path))
    assert main(["check-data", str(tmp_path)]) == (2 if expected else 0)
    assert (expected or "2 cat, 2 dog") in capsys.readouterr().err


def test_folders_of_photos_are_classes_and_no_masks(tmp_path: Path) -> None:
    write(tmp_path, "cat/0.jpg", "cat/1.jpg")
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (tmp_path / "dog").mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(photo).save(tmp_path / "dog" / name)
    assert suggest(tmp_path) == ""


def test_every_layout_has_its_own_folders() -> None:
    assert len({(layout.images, layout.masks, layout.mask_suffix) for layout in LAYOUTS}) == len(LAYOUTS)
