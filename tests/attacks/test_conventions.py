"""Files of other conventions, which are valid and mean something else: they are read right, told of, or refused."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from focalnet.card import Preprocessing
from focalnet.cli.main import main
from focalnet.cli.recipes import merge, nested
from focalnet.cli.train import parse_overrides
from focalnet.data import images as decoding
from focalnet.data.formats.coco import check_coco, read_coco
from focalnet.data.formats.label_maps import LabelRule, check_masks
from focalnet.data.formats.masks import read_numbers
from focalnet.data.formats.pairs import LAYOUTS, find_pairs
from focalnet.data.formats.voc import VocSet
from focalnet.data.formats.yolo import YoloSet
from focalnet.data.readers.classes import other_class_names, other_numbering
from focalnet.data.readers.folder import Folder
from focalnet.data.readers.label_table import read_label_table
from focalnet.data.readers.tar import Tar
from focalnet.errors import ConfigError, DataError, ImageError
from focalnet.inference.predictor import pick_device
from focalnet.reading import parse_yaml, read_text
from focalnet.training.options import Options
from tests.data.coco import content, write_json
from tests.data.conftest import add, jpeg
from tests.data.voc import write_voc

Change = Callable[[dict[str, Any]], object]
ORIENTATION = 0x0112


def corners(one: dict[str, Any]) -> None:
    left, top, width, height = one["bbox"]
    one["bbox"] = [left, top, left + width, top + height]


def centers(one: dict[str, Any]) -> None:
    left, top, width, height = one["bbox"]
    one["bbox"] = [left + width, top + height, width, height]


def of_all(change: Change, images: int = 6) -> dict[str, Any]:
    dataset = content(images)
    for one in dataset["annotations"]:
        change(one)
    return dataset


def without_outline(change: Change) -> Change:
    return lambda one: (change(one), one.pop("segmentation"))


@pytest.mark.parametrize("change", [corners, without_outline(corners)], ids=["outlines", "boxes"])
def test_boxes_as_corners_are_named_and_cannot_be_skipped(change: Change, tmp_path: Path) -> None:
    read = read_coco(write_json(tmp_path / "a.json", of_all(change)))
    hopeless = [problem.what for problem in read.problems if not problem.skippable]
    assert len(hopeless) == 1
    assert "seem to be corners" in hopeless[0]


def test_boxes_that_are_right_are_not_suspected(tmp_path: Path) -> None:
    for masks in (False, True):
        read = read_coco(write_json(tmp_path / "a.json", content()), masks=masks)
        assert (read.problems, read.remarks) == ([], [])


OUTLINES: dict[str, tuple[Any, str]] = {
    "elsewhere": ([[v + 1000 for v in (1, 1, 9, 1, 9, 9)]], "lies outside its box"),
    "in_shares": ([[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]], "lies outside its box"),
    "runs_without_a_pixel": ({"size": [60, 80], "counts": [4800]}, "has no pixel"),
    "compressed_runs_without_a_pixel": ({"size": [60, 80], "counts": "Pf4"}, "has no pixel"),
}


@pytest.mark.parametrize(("outline", "what"), OUTLINES.values(), ids=OUTLINES.keys())
def test_outlines_that_are_not_in_their_box_are_refused(outline: Any, what: str, tmp_path: Path) -> None:
    dataset = of_all(lambda one: one.update(segmentation=outline, bbox=[40, 30, 20, 20]), images=2)
    read = read_coco(write_json(tmp_path / "a.json", dataset), masks=True)
    assert [problem.what.endswith(what) for problem in read.problems] == [True, True]
    assert all(one["iscrowd"] for image in read.images for one in image.annotations)


def test_what_is_odd_in_a_file_is_said(tmp_path: Path) -> None:
    dataset = of_all(centers)
    dataset["annotations"] = [one for one in dataset["annotations"] if one["bbox"][0] < 50 and one["bbox"][1] < 40]
    dataset["annotations"] += [{**one, "id": one["id"] + 100} for one in dataset["annotations"]]
    dataset["categories"][0]["name"], dataset["categories"][1]["name"] = "Bee ", "bee"
    remarks = read_coco(write_json(tmp_path / "a.json", dataset)).remarks
    spelling, boxes, again = remarks
    assert spelling == '"Bee " and "bee" are two classes, though they differ only in case or spaces'
    assert "do not fit their polygons" in boxes
    count = len(dataset["annotations"]) // 2
    assert again.startswith(f"{count} objects are listed again with the same class and box, e.g. in image ")


def test_an_area_of_0_is_none(tmp_path: Path) -> None:
    read = read_coco(write_json(tmp_path / "a.json", of_all(lambda one: one.update(area=0))))
    areas = [(one["area"], one["bbox"][2] * one["bbox"][3]) for image in read.images for one in image.annotations]
    assert all(given == box for given, box in areas)


def picture(path: Path, orientation: int = 1, size: tuple[int, int] = (40, 20)) -> Path:
    """White in the upper left corner only, as it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_a_turned_image_is_known_before_it_is_decoded(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    path = picture(tmp_path / f"a.{suffix}", orientation)
    image = decoding.read(path)
    assert decoding.decode(path, None, decoding.upright_size) == (image.height, image.width)
    assert (image.width < image.height) == (orientation in (6, 8))
    corner = {1: (0, 0), 3: (-1, -1), 6: (0, -1), 8: (-1, 0)}[orientation]
    assert np.asarray(image)[corner].min() > 200
    if suffix in ("png", "tif"):
        assert read_numbers(path, "a")[corner] == 255


def test_16_bit_tiff_in_which_0_is_white(tmp_path: Path) -> None:
    values = np.array([[0, 65535]], np.uint16)
    for photometric, expected in ((0, [255, 0]), (1, [0, 255])):
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: photometric})
        assert np.asarray(decoding.read(tmp_path / "a.tif"))[0, :, 0].tolist() == expected


def test_a_link_to_a_folder_that_it_is_in_is_not_followed(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        picture(tmp_path / f"set/{name}/a.png")
        picture(tmp_path / f"elsewhere/{name}/b.png")
        (tmp_path / f"set/{name}/more").symlink_to(tmp_path / f"set/{name}")
    (tmp_path / "set/ant/up").symlink_to("../..")
    (tmp_path / "set/cat").symlink_to(tmp_path / "elsewhere/bee")
    found = [path.relative_to(tmp_path / "set").as_posix() for path in decoding.find(tmp_path / "set")]
    assert found == ["ant/a.png", "bee/a.png", "cat/b.png"]
    source = Folder(tmp_path / "set")
    assert (source.class_names, source.labels.tolist()) == (("ant", "bee", "cat"), [0, 1, 2])


def test_two_folders_that_link_to_each_other(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        picture(tmp_path / f"{name}/{name}.png")
        (tmp_path / f"{name}/other").symlink_to(tmp_path / other)
    names = [path.relative_to(tmp_path).as_posix() for path in decoding.find(tmp_path)]
    assert names == ["a/a.png", "a/other/b.png", "b/b.png", "b/other/a.png"]


def yolo(root: Path, names: str = "names: [ant, bee]", orientation: int = 1) -> Path:
    picture(root / "images/train/a.jpg", orientation)
    (root / "labels/train").mkdir(parents=True, exist_ok=True)
    (root / "labels/train/a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text(f"train: images/train\n{names}\n")
    return root


def test_labels_behind_links_are_found(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    (root / "labels/train").rename(tmp_path / "texts")
    (root / "labels/train").symlink_to(tmp_path / "texts")
    (image,) = YoloSet.find(root).content("train").content["annotations"]  # type: ignore[union-attr]
    assert image["bbox"] == [10, 5, 20, 10]

    write_voc(tmp_path / "voc", "a", ("ant", (1, 1, 8, 9), 0))
    (tmp_path / "voc/Annotations").rename(tmp_path / "xml")
    (tmp_path / "voc/Annotations").symlink_to(tmp_path / "xml")
    assert [one.file_name for one in VocSet(tmp_path / "voc").images(None)] == ["JPEGImages/a.jpg"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [yes, no]", ("yes", "no")),
        ("names: {0: on, 1: off}", ("on", "off")),
        ("names: [1:30, 007]", ("1:30", "007")),
        ("names: [2020-01-01, 1_0]", ("2020-01-01", "1_0")),
        ("names: [3, 12]", ("3", "12")),
    ],
)
def test_names_of_classes_are_what_is_written(names: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    found = YoloSet.find(yolo(tmp_path, names))
    assert found is not None
    assert found.class_list() == expected


@pytest.mark.parametrize("names", ["names: [true, false]", "names: [1.10, a]", "names: [null, a]", "names: [[a], b]"])
def test_names_that_yaml_does_not_keep_are_refused(names: str, tmp_path: Path) -> None:
    found = YoloSet.find(yolo(tmp_path, names))
    assert found is not None
    with pytest.raises(DataError, match=r"is not text; write it in quotes"):
        found.class_list()


@pytest.mark.parametrize("text", ["a: 1\na: 2", "x: {b: 1, c: 2, b: 3}", "- {1: a, 1: b}"])
def test_a_key_that_is_given_twice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"has \".\" twice in one place \(line \d\): keep one"):
        parse_yaml(text)


def test_values_of_yaml() -> None:
    text = "a: [1, -2, 0x10, 1.5, 1e-3, .inf, true, False, null, ~, , 'no']\nb: &b {x: 1}\nc: {<<: *b, x: 2}\nd:"
    expected = [1, -2, 16, 1.5, 0.001, float("inf"), True, False, None, None, None, "no"]
    assert parse_yaml(text.replace(", ,", ", null,")) == {"a": expected, "b": {"x": 1}, "c": {"x": 2}, "d": None}


def test_utf_16_without_its_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("ant\nbee\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="save it as UTF-8"):
        read_text(tmp_path / "classes.txt")


@pytest.mark.parametrize("orientation", [3, 6])
def test_labels_in_shares_of_turned_images_are_told(orientation: int, tmp_path: Path) -> None:
    found = YoloSet.find(yolo(tmp_path, orientation=orientation))
    assert found is not None
    checked = check_coco(tmp_path, tmp_path / "data.yaml", masks=False, images="", written=found.content("train"))
    assert [remark for remark in checked.coco.remarks if "turned by their Exif orientation" in remark]


@pytest.mark.parametrize(("orientation", "size", "told"), [(3, (40, 20), 1), (6, (40, 40), 1), (1, (40, 20), 0)])
def test_masks_of_turned_images_are_told(orientation: int, size: tuple[int, int], told: int, tmp_path: Path) -> None:
    picture(tmp_path / "images/train/a.jpg", orientation, size)
    (tmp_path / "masks/train").mkdir(parents=True)
    Image.new("L", size).save(tmp_path / "masks/train/a.png")
    pairs = find_pairs(tmp_path, "train", LAYOUTS)
    assert pairs is not None
    checked = check_masks(pairs, LabelRule(), 2)
    assert not checked.problems
    assert len(checked.pairs.remarks) == told


@pytest.mark.parametrize(("difficult", "crowd"), [("0", False), ("1", True), ("true", True), ("False", False)])
def test_difficult_of_voc(difficult: str, crowd: bool, tmp_path: Path) -> None:
    write_voc(tmp_path, "a", ("ant", (1, 1, 8, 9), difficult))
    assert [shape.crowd for shape in VocSet(tmp_path).images(None)[0].shapes] == [crowd]


def test_voc_that_is_not_what_it_should_be(tmp_path: Path) -> None:
    write_voc(tmp_path / "a", "a", ("ant", (1, 1, 8, 9), "2"))
    with pytest.raises(DataError, match="object 1: difficult is '2', not 0 or 1"):
        VocSet(tmp_path / "a").images(None)
    write_voc(tmp_path / "b", "b", ("ant", (0.1, 0.2, 0.8, 0.9), "0"))
    with pytest.raises(DataError, match="in fractions of the image size"):
        VocSet(tmp_path / "b").images(None)


NUMBERINGS = [
    (("ant", "bee"), ("ant", "bee"), False, False),
    (("ant", "bee"), ("bee", "ant"), True, True),
    (("Polar bear", "bee"), ("polar_bear", "BEE"), False, False),
    (("ant", "bee", "cat"), ("bee", "cat", "dog"), True, True),
    (("ant", "bee"), ("n01", "n02"), False, True),
    (("0", "1", "10", "2"), ("0", "1", "2", "10"), True, False),
    (("class 0", "class 1"), ("ant", "bee"), False, False),
    (("crane", "crane", "bee"), ("crane", "crane", "bee"), False, False),
]


@pytest.mark.parametrize(("known", "names", "differs", "renamed"), NUMBERINGS)
def test_classes_of_weights_and_data(known: Any, names: Any, differs: bool, renamed: bool) -> None:
    assert (other_numbering(known, names) is not None) == differs
    assert (other_class_names(known, names) is not None) == renamed


def test_classes_of_folders_are_numbered_as_those_of_the_weights(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        picture(tmp_path / name / "a.png")
    source = Folder(tmp_path)
    for unlike in (("bee", "ant"), ("bee", "ant", "dog"), ("ant", "ant", "bee")):
        source.number_as(unlike)
        assert source.labels.tolist() == [0, 1, 2]
    source.number_as(("cat", "ant", "bee"))
    assert (source.class_names, source.labels.tolist()) == (("cat", "ant", "bee"), [1, 2, 0])


def test_a_path_that_is_packed_again_replaces_the_one_before(tmp_path: Path) -> None:
    members = [(f"{name}/a.jpg", jpeg(seed)) for seed, name in enumerate(("ant", "bee", "ant"))]
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, packed in members:
            add(archive, name, packed)
    source = Tar(tmp_path / "set.tar")
    assert [source.content(i) for i in range(len(source))] == [members[2][1], members[1][1]]


def test_one_image_in_two_spellings_is_in_two_rows(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("image,label\na/b.jpg,ant\n./a//b.jpg,bee\n")
    with pytest.raises(DataError, match="lines 2 and 3; each image needs one row"):
        read_label_table(tmp_path / "train.csv")


def test_images_of_other_kinds_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"0000ftypheic" * 9)
    assert decoding.find(tmp_path) == [tmp_path / "a.png"]
    assert "1 files are not read, e.g. b.HEIC; save them as PNG" in caplog.text
    with pytest.raises(ImageError, match=r"images of this kind \(.heic\) are not read; save it as PNG"):
        decoding.read(tmp_path / "b.HEIC")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), ".nan", "-.inf"])
@pytest.mark.parametrize("option", ["model.optimizer.weight_decay", "trainer.gradient_clip_val", "model.mix.mixup"])
def test_options_that_are_no_finite_numbers_are_refused(option: str, value: Any) -> None:
    recipe = {"data": {"root": "x"}, "model": {"architecture": "focalnet_nano"}, "trainer": {"max_epochs": 1}}
    with pytest.raises(ConfigError, match=rf"option {option} cannot be -?(nan|inf): expected a finite number"):
        Options(merge(recipe, nested({option: value})))


def test_null_is_no_value_for_every_option() -> None:
    assert parse_overrides(["--data.class_map", "null", "--a=null", "--b", "0"]) == {
        "data.class_map": None,
        "a": None,
        "b": "0",
    }


@pytest.mark.parametrize(("mean", "std"), [((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)), ((0.5,), (127.5,))])
def test_means_of_values_up_to_255_are_refused(mean: Any, std: Any) -> None:
    with pytest.raises(ConfigError, match="images have values from 0 to 1: divide them by 255"):
        Preprocessing(mean=mean, std=std)


def test_options_that_a_classifier_ignores_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(picture(tmp_path / "a.png")), "--flip", "--tile", "64"]) == 0
    assert "warning: --tile, --flip: for detectors and segmenters, without effect" in capsys.readouterr().err


def test_a_processor_with_a_number_is_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("cpu:0").type == "cpu"
    with pytest.raises(ConfigError, match='no device "cpu:3" here'):
        pick_device("cpu:3")


def test_json_of_two_conventions_is_one_file(tmp_path: Path) -> None:
    """Ids as text, floats and numbers, compressed and uncompressed runs beside polygons: all of one object each."""
    dataset = content(3)
    first, second, third, fourth = dataset["annotations"]
    first["category_id"], second["category_id"] = "3", 7.0
    third["image_id"] = str(third["image_id"])
    fourth["segmentation"] = {"size": [60, 80], "counts": [60 * 45, 60 * 10, 60 * 25]}
    fourth["bbox"] = [45, 0, 10, 60]
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(dataset).replace(" ", "\r\n").encode())
    read = read_coco(path, masks=True)
    assert not read.problems
    assert [len(image.annotations) for image in read.images] == [2, 2, 0]
