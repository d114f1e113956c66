"""Annotation files as the tools of the field write them: read right, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from focalnet.cli.results import Ids
from focalnet.data import DetectionData
from focalnet.data.formats.coco import check_coco, is_coco, read_coco, read_listing
from focalnet.data.formats.problems import Problem, by_kind, decide, list_problems
from focalnet.errors import DataError
from tests.data.coco import HEIGHT, WIDTH, annotation, content, write_coco, write_json

pytest.importorskip("pycocotools", reason="detection needs the extra dense")


def read(tmp_path: Path, dataset: dict[str, Any], **options: Any) -> Any:
    return read_coco(write_json(tmp_path / "a.json", dataset), **options)


def objects(coco: Any) -> list[list[tuple[Any, int]]]:
    return [[(one["id"], one["iscrowd"]) for one in image.annotations] for image in coco.images]


# --- ids


@pytest.mark.parametrize(
    ("listed", "referred"),
    [(lambda i: f"2007_{i:06}", lambda i: f"2007_{i:06}"), (str, str), (str, int), (int, str), (float, int)],
)
def test_image_ids_may_be_text(tmp_path, listed, referred):
    dataset = content()
    for image in dataset["images"]:
        image["id"] = listed(image["id"])
    for one in dataset["annotations"]:
        one["image_id"] = referred(one["image_id"])
    coco = read(tmp_path, dataset)
    assert coco.problems == []
    kept = int if listed is float else listed
    assert [image.image_id for image in coco.images] == [kept(10 * i) for i in range(1, 7)]
    assert [one["image_id"] for one in coco.to_coco()["annotations"]] == [
        kept(10 * i) for i in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    ]


@pytest.mark.parametrize("ids", [(0, 1), (1, 0), (9, 90), ("9", "10"), ("a", "b"), (2, "10"), (2, "9" * 5000)])
def test_labels_follow_the_order_of_category_ids_of_any_kind(tmp_path, ids):
    dataset = content()
    numbers = dict(zip((3, 7), ids, strict=True))
    for one in dataset["categories"]:
        one["id"] = numbers[one["id"]]
    for one in dataset["annotations"]:
        one["category_id"] = numbers[one["category_id"]]
    coco = read(tmp_path, dataset)
    assert coco.problems == []
    assert dict(zip(coco.category_ids, coco.class_names, strict=True)) == {ids[0]: "ant", ids[1]: "bee"}
    assert coco.class_names == (("bee", "ant") if ids == (1, 0) else ("ant", "bee"))


def test_a_number_and_its_text_are_two_ids(tmp_path):
    dataset = content()
    dataset["categories"] = [{"id": "3", "name": "ant"}, {"id": 3, "name": "bee"}, {"id": 7, "name": "cat"}]
    coco = read(tmp_path, dataset)
    assert dict(zip(coco.category_ids, coco.class_names, strict=True)) == {3: "bee", "3": "ant", 7: "cat"}
    assert {one["category_id"] for image in coco.images for one in image.annotations} == {3, 7}


def test_ids_with_two_meanings_are_none(tmp_path):
    dataset = content()
    dataset["images"][1]["id"] = 10
    dataset["categories"].append({"id": 3, "name": "wasp"})
    coco = read(tmp_path, dataset)
    assert [image.image_id for image in coco.images] == [60]  # the others have an ant, of one kind or the other
    assert {problem.what for problem in coco.problems} >= {"its id 10 is given twice", "its id 3 is given twice"}


def test_two_categories_of_one_name_and_two_entries_of_one_file_are_refused(tmp_path):
    dataset = content()
    dataset["categories"][0]["name"] = "ant"
    (first, _) = read(tmp_path, dataset).problems
    assert (first.what, first.skippable) == (
        '2 categories have its name "ant"; rename them, or give them one id',
        False,
    )
    dataset = content()
    dataset["images"][1]["file_name"] = "01.png"
    coco = read(tmp_path, dataset)
    assert [image.image_id for image in coco.images] == [30, 40, 50, 60]
    assert {problem.what for problem in coco.problems} == {"2 images have this file_name; give a file one entry"}


# --- a refused object never becomes background


@pytest.mark.parametrize(
    ("changes", "masks", "expected"),
    [
        ({"iscrowd": 5}, False, [(1, 1), (2, 0)]),
        ({"area": -1}, False, [(1, 1), (2, 0)]),
        ({"segmentation": [[1, 2]]}, True, [(1, 1), (2, 0)]),
        ({"segmentation": []}, True, [(1, 1), (2, 0)]),
        ({"segmentation": [[1, 2]]}, False, [(1, 0), (2, 0)]),
        ({"bbox": None}, False, [(1, 1), (2, 0)]),  # the place is that of its outline
        ({"bbox": None, "segmentation": []}, False, None),
        ({"bbox": [5, 5, 0, 9], "segmentation": None}, False, None),
        ({"bbox": [500, 5, 9, 9], "segmentation": None}, False, None),
        ({"category_id": 99}, False, None),
    ],
)
def test_a_refused_object_is_an_ignored_region_or_its_image_is_left_out(tmp_path, changes, masks, expected):
    dataset = content(2)
    dataset["annotations"][0] |= changes
    coco = read(tmp_path, dataset, masks=masks)
    assert objects(coco) == ([] if expected is None else [expected]) + [[]]
    for image in coco.images:
        for one in image.annotations:
            assert one["bbox"][2] * one["bbox"][3] == one["area"] > 0
            assert bool(one.get("segmentation")) == masks


def test_an_object_of_no_image_cannot_be_skipped(tmp_path):
    dataset = content()
    dataset["annotations"][0]["image_id"] = None
    coco = read(tmp_path, dataset)
    with pytest.raises(DataError, match="cannot be skipped"):
        decide(coco, "skip")
    dataset["annotations"][0]["image_id"] = "01.png"
    with pytest.raises(DataError, match=r"it is text, and those of the file are numbers.*cannot be skipped"):
        decide(read(tmp_path, dataset), "skip")
    dataset["annotations"][0]["image_id"] = 99  # of an image that somebody has taken out
    decide(read(tmp_path, dataset), "skip")


@pytest.mark.parametrize("outline", [[1, 1, 5, 1, 5, 5, 1, 5], [[]], [[1, 2, 3, 4]], "x", [1, 2, 3, 4], {"size": 3}])
def test_nobody_looks_at_outlines_of_boxes(tmp_path, outline):
    dataset = content()
    dataset["annotations"][0] |= {"segmentation": outline, "bbox": [1.0, 1.0, 4.0, 4.0]}
    coco = read(tmp_path, dataset)
    assert coco.problems == []
    assert all("segmentation" not in one for one in coco.to_coco()["annotations"])
    (one, *_) = read(tmp_path, dataset, masks=True).images[0].annotations
    assert one["iscrowd"] == (len(outline) != 8)  # a flat list of corners is one polygon


def test_boxes_in_shares_of_the_sides_are_refused(tmp_path):
    dataset = content()
    for one in dataset["annotations"]:
        one["bbox"] = [0.1, 0.2, 0.5, 0.5]
    with pytest.raises(DataError, match="all of its boxes lie within one pixel"):
        decide(read(tmp_path, dataset), "skip")
    dataset["annotations"][0]["bbox"] = [1, 1, 5, 5]
    assert read(tmp_path, dataset).problems == []


def test_absent_values_count_as_absent_keys(tmp_path):
    dataset = content()
    dataset["annotations"][0] |= {"area": None, "iscrowd": None, "segmentation": None}
    coco = read(tmp_path, dataset)
    one = coco.images[0].annotations[0]
    assert (coco.problems, one["iscrowd"], one["area"]) == ([], 0, one["bbox"][2] * one["bbox"][3])


# --- Roboflow's project


def rooted(name: str = "insects") -> dict[str, Any]:
    dataset = content()
    for one in dataset["categories"]:
        one["supercategory"] = name
    dataset["categories"].append({"id": 0, "name": name, "supercategory": "none"})
    return dataset


@pytest.mark.parametrize("name", ["insects", "ant"])
def test_an_empty_root_category_is_left_out(tmp_path, name):
    coco = read(tmp_path, rooted(name))
    assert (coco.class_names, coco.problems) == (("ant", "bee"), [])
    assert f'category 0 ("{name}") is left out' in coco.remarks[0]
    if name == "insects":
        assert read(tmp_path, rooted(), keep_root=True).class_names == ("insects", "ant", "bee")


def test_a_root_category_with_objects_stays(tmp_path):
    dataset = rooted()
    dataset["annotations"][0]["category_id"] = 0
    assert read(tmp_path, dataset).class_names == ("insects", "ant", "bee")
    dataset = content()
    dataset["categories"].append({"id": 0, "name": "wasp", "supercategory": "none"})  # a class without objects
    assert read(tmp_path, dataset).class_names == ("wasp", "ant", "bee")


# --- files


def check(root: Path, **options: Any) -> Any:
    return check_coco(root, root / "annotations/instances_train.json", **{"masks": False, **options})


def changed(root: Path, change: Any) -> Path:
    path = root / "annotations/instances_train.json"
    dataset = json.loads(path.read_text())
    for image in dataset["images"]:
        change(image)
    path.write_text(json.dumps(dataset))
    return root


@pytest.mark.parametrize("sizes", [{}, {"height": None, "width": None}, {"height": 0, "width": 0}, {"height": HEIGHT}])
def test_sizes_that_are_not_given_are_those_of_the_files(tmp_path, sizes):
    def change(image: dict[str, Any]) -> None:
        del image["height"], image["width"]
        image.update(sizes)

    checked = check(changed(write_coco(tmp_path), change))
    assert checked.problems == []
    assert {(image.height, image.width) for image in checked.coco.images} == {(HEIGHT, WIDTH)}
    assert checked.coco.remarks == ["6 images have no size in it; the sizes of the files are used"]


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: f"train\\{name}",
        lambda name: f"C:\\data\\train\\{name}",
        lambda name: f"/home/me/set/photos/{name}",
        lambda name: name.upper(),
        lambda name: f"../../{name}",
        lambda name: f"/data/local-files/?d=set/{name}",
    ],
)
def test_names_of_other_machines_mean_the_files(tmp_path, spell):
    checked = check(changed(write_coco(tmp_path), lambda image: image.update(file_name=spell(image["file_name"]))))
    assert checked.problems == []
    assert [image.file_name for image in checked.coco.images] == [f"{i:02}.png" for i in range(1, 7)]
    (remark,) = checked.coco.remarks
    assert remark.startswith("6 of 6 file names are spelled differently from the files")


def test_two_spellings_of_one_file_are_refused(tmp_path):
    """Each would be trained on without the objects of the other."""
    root = write_coco(tmp_path, images=3)
    dataset = content(3)
    dataset["images"].append({**dataset["images"][0], "id": 99, "file_name": "./01.png"})
    checked = check_coco(root, write_json(root / "annotations/instances_train.json", dataset), masks=False)
    assert [problem.entry for problem in checked.problems] == ["image 10 (01.png)", "image 99 (./01.png)"]
    assert "2 images have the file" in checked.problems[0].what
    assert len(checked.coco.images) == 2


def test_boxes_that_are_not_given_are_those_around_polygons(tmp_path):
    dataset = content()
    boxes = [one.pop("bbox") for one in dataset["annotations"]]
    path = write_json(tmp_path / "a.json", dataset)
    assert is_coco(path, "instances")
    coco = read_coco(path)
    assert [one["bbox"] for image in coco.images for one in image.annotations] == boxes
    assert coco.remarks == ["10 objects have no box in it; the boxes around their polygons are used"]
    del dataset["annotations"][0]["segmentation"]
    assert "its bbox None is not four numbers" in read(tmp_path, dataset).problems[0].what


def test_validating_on_images_of_training_is_said(tmp_path, caplog):
    root = write_coco(tmp_path)
    data = DetectionData(root, val_annotations="annotations/instances_train.json", batch_size=1, num_workers=0)
    data.setup("fit")
    assert "6 of its 6 images are those of training, too" in caplog.text


def test_an_address_in_place_of_a_name(tmp_path):
    def change(image: dict[str, Any]) -> None:
        image["coco_url"] = f"http://images.cocodataset.org/train/{image.pop('file_name')}"

    checked = check(changed(write_coco(tmp_path), change))
    assert (checked.problems, len(checked.coco.images)) == ([], 6)


def test_images_of_another_split_are_not_taken(tmp_path):
    root = write_coco(tmp_path)
    for path in (root / "train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of its images"):
        check(root)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_sizes_before_exif_turns_an_image_are_named(tmp_path, orientation):
    root = write_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(root / "train/02.png") as image:
        image.copy().save(root / "train/02.png", exif=exif)
    checked = check(root)
    if orientation == 6:
        (problem,) = checked.problems
        assert "rotation by its Exif orientation" in problem.what
        assert [image.image_id for image in checked.coco.images] == [10, 30, 40, 50, 60]
    else:
        assert checked.problems == []
        assert ["1 images are turned" in remark for remark in checked.coco.remarks] == [True] * (orientation == 3)


def test_listing_needs_no_sizes(tmp_path):
    dataset = content()
    for image in dataset["images"]:
        del image["height"], image["width"]
    listing = read_listing(write_json(tmp_path / "a.json", dataset))
    assert (listing.class_names, listing.category_ids, len(listing.images)) == (("ant", "bee"), (3, 7), 6)
    with pytest.raises(DataError, match="its height and width are not in it"):
        read_coco(tmp_path / "a.json")


# --- what is wrong is a line each, and never too long


def test_problems_of_a_kind_are_counted():
    problems = [Problem("a.json", f"annotation {i}", f"its box [{i}, 0, 0, 0] has no size") for i in range(100)]
    problems.append(Problem("a.json", "image 3", "has no file_name"))
    lines = list(by_kind(problems, most=3))
    assert lines[2:4] == [
        "a.json: annotation 2: its box [2, 0, 0, 0] has no size",
        "a.json: and 97 more like the last: its box [99, 0, 0, 0] has no size",
    ]
    assert len(lines) == 5
    long = [Problem("a.json", f"annotation {i}", "x" * 200) for i in range(5)]
    assert list(list_problems(long))[1:] == ["and 4 more"]


def test_odd_references_are_shortened(tmp_path):
    dataset = content()
    dataset["annotations"] = [annotation(1, 10, "y" * 9999, [1, 1, 5, 5])]
    assert len(read(tmp_path, dataset).problems[0].what) < 200


# --- what predictions are written with


class Network:
    """What ``Ids`` asks of one."""

    class config:
        output, num_classes = "detection", 2

    class_names = ("ant", "bee")
    card = None


def ids_of(tmp_path: Path, names: dict[Any, str], files: list[str]) -> dict[str, Any]:
    dataset = rooted()
    dataset["annotations"] = []
    dataset["images"] = [{"id": number, "file_name": name} for number, name in names.items()]
    ids = Ids(Network, write_json(tmp_path / "a.json", dataset), [Path(file) for file in files])  # type: ignore[arg-type]
    assert ids.category_ids == (3, 7)
    return {file: ids.image(Path(file), 1) for file in files}


def test_predictions_have_the_ids_of_whole_paths_before_those_of_names(tmp_path):
    names = {1: "cam1/0001.jpg", "two": "cam2/0001.jpg", 3: "/other/disk/7.jpg", 4: "0%201.jpg"}
    files = ["x/cam2/0001.jpg", "x/cam1/0001.jpg", "x/7.jpg", "x/0 1.jpg"]
    assert list(ids_of(tmp_path, names, files).values()) == ["two", 1, 3, 4]
    assert ids_of(tmp_path, {5: "train/7.jpg"}, ["x/7.jpg"]) == {"x/7.jpg": 5}


@pytest.mark.parametrize(
    ("names", "files", "expected"),
    [
        ({1: "7.jpg"}, ["a/7.jpg", "b/7.jpg"], r"7\.jpg: it may mean 2 files"),
        ({1: "a/7.jpg", 2: "b/7.jpg"}, ["c/7.jpg"], r"has no image c/7\.jpg"),
        ({1: "8.jpg"}, ["c/7.jpg"], r"has no image c/7\.jpg"),
    ],
)
def test_predictions_of_images_that_are_not_named_for_certain_are_refused(tmp_path, names, files, expected):
    with pytest.raises(DataError, match=expected):
        ids_of(tmp_path, names, files)
