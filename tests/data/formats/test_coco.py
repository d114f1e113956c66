"""Annotation files: what they may say, what is wrong with them by name, and that nothing else comes out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.data.formats.coco import read_coco, to_bitmaps
from focalnet.errors import DataError
from tests.attacks.fuzz import mutated
from tests.data.coco import HEIGHT, WIDTH, annotation, content, write_json

masks_api = pytest.importorskip("pycocotools.mask", reason="detection needs the extra dense")


def problems(tmp_path: Path, **changes: Any) -> list[str]:
    """What is wrong with an annotation file after ``changes`` to its first annotation."""
    dataset = content()
    dataset["annotations"][0] |= changes
    return [str(p) for p in read_coco(write_json(tmp_path / "a.json", dataset), masks=True).problems]


def test_labels_count_from_0_in_the_order_of_the_ids(tmp_path):
    coco = read_coco(write_json(tmp_path / "a.json", content()), masks=True)
    assert (coco.class_names, coco.category_ids) == (("ant", "bee"), (3, 7))
    assert coco.label_of() == {3: 0, 7: 1}
    assert [len(image.annotations) for image in coco.images] == [2, 2, 2, 2, 2, 0]
    assert coco.problems == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bbox": [10, 10, 0, 5]}, "has no size"),
        ({"bbox": [10, 10, 5, -1]}, "has no size"),
        ({"bbox": [90, 10, 5, 5]}, "lies outside the image of 80 x 60"),
        ({"bbox": [70, 10, 20, 5]}, "reaches outside the image of 80 x 60"),
        ({"bbox": [1, 2, 3]}, "is not four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "is not four numbers"),
        ({"bbox": None}, "is not four numbers"),
        ({"category_id": 99}, "its category_id 99 is not among"),
        ({"category_id": None}, "its category_id None is not among"),
        ({"image_id": 99}, "its image_id 99 is not among"),
        ({"iscrowd": 2}, "iscrowd"),
        ({"area": -1}, "area"),
        ({"segmentation": []}, "has no segmentation"),
        ({"segmentation": [[1, 2, 3, 4]]}, "not a list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "not a list of polygons"),
        ({"segmentation": {"size": [1, 1], "counts": [1]}}, "neither polygons nor a run-length code of 60 x 80"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}, "do not add up"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "\x01"}}, "do not add up"),
    ],
)
def test_what_is_wrong_with_an_annotation_is_named(changes, expected, tmp_path):
    (found,) = problems(tmp_path, **changes)
    assert expected in found
    assert found.startswith(f"{tmp_path / 'a.json'}: ")
    assert "annotation" in found
    assert "\n" not in found


def test_the_image_and_the_annotation_are_named(tmp_path):
    (found,) = problems(tmp_path, bbox=[90.0, 10, 5, 5])
    assert "image 10 (01.png), annotation 1: its box [90, 10, 5, 5]" in found


def test_what_reaches_over_the_edge_is_kept_and_the_rest_is_a_crowd_region(tmp_path):
    dataset = content()
    first, second, *_ = dataset["annotations"]
    place = second["bbox"]
    first["bbox"], second["bbox"] = [70, 10, 20, 5], [0, 0, 0, 0]
    kept = read_coco(write_json(tmp_path / "a.json", dataset)).images[0].annotations
    assert [(one["id"], one["iscrowd"]) for one in kept] == [(1, 0), (2, 1)]
    assert kept[1]["bbox"] == place  # of its outline
    first["bbox"] = [70, 10, 10.9, 5]  # rounding
    assert len(read_coco(write_json(tmp_path / "a.json", dataset)).problems) == 1


@pytest.mark.parametrize(
    "ids",
    [
        range(10),
        [None] * 10,
        [3] * 10,
        range(-5, 5),
        [f"{i}-a\n" for i in range(10)],
        [[1]] * 10,
        [2.5] * 10,
        [True] * 10,
    ],
)
def test_ids_of_annotations_say_nothing_about_their_objects(ids, tmp_path):
    dataset = content()
    expected = read_coco(write_json(tmp_path / "a.json", dataset), masks=True)
    for number, one in zip(ids, dataset["annotations"], strict=True):
        one["id"] = number
        if number is None:
            del one["id"]
    coco = read_coco(write_json(tmp_path / "a.json", dataset), masks=True)
    assert coco.problems == []

    def objects(file):
        return [[{**one, "id": 0} for one in image.annotations] for image in file.images]

    assert objects(coco) == objects(expected)
    dataset["annotations"][0]["bbox"] = [1, 2, 3]
    (found,) = read_coco(write_json(tmp_path / "a.json", dataset), masks=True).problems
    assert "annotation" in found.entry
    assert "\n" not in str(found)


def test_an_object_that_is_listed_twice_is_named(tmp_path):
    dataset = content()
    dataset["annotations"].append(dict(dataset["annotations"][0]))
    coco = read_coco(write_json(tmp_path / "a.json", dataset))
    assert [p.what for p in coco.problems] == ["its id 1 is given twice, for the same object"]
    assert [len(image.annotations) for image in coco.images] == [2, 2, 2, 2, 2, 0]


def test_boxes_alone_need_no_segmentation(tmp_path):
    dataset = content()
    for one in dataset["annotations"]:
        del one["segmentation"], one["area"], one["iscrowd"]
    coco = read_coco(write_json(tmp_path / "a.json", dataset))
    assert coco.problems == []
    first = coco.to_coco()["annotations"][0]
    assert (first["iscrowd"], first["area"]) == (0, first["bbox"][2] * first["bbox"][3])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected images, annotations and categories"),
        ('{"images": [], "annotations": {}}', 'no list "annotations"'),
        ('{"images": [], "annotations": [], "categories": []}', "no usable image"),
        ("\xff{}", "cannot be read"),
    ],
)
def test_files_that_are_no_annotations_are_refused(text, expected, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=expected) as error:
        read_coco(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        read_coco(tmp_path / "absent.json")


# --- outlines


def test_polygons_and_run_lengths_give_the_same_mask():
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[10:30, 20:50] = 1
    polygon = annotation(1, 1, 1, [20, 10, 30, 20])["segmentation"]
    compressed = masks_api.encode(np.asfortranarray(expected))
    compressed["counts"] = compressed["counts"].decode()
    flat = expected.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, flat.size]).tolist()}
    two_pieces = [
        annotation(1, 1, 1, [20, 10, 15, 20])["segmentation"][0],
        annotation(1, 1, 1, [35, 10, 15, 20])["segmentation"][0],
    ]
    found = to_bitmaps([polygon, compressed, runs, two_pieces], HEIGHT, WIDTH)
    assert (found.dtype, found.shape) == (torch.bool, (4, HEIGHT, WIDTH))
    for mask in found:
        assert torch.equal(mask, torch.from_numpy(expected).bool())
    assert to_bitmaps([], HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)


@given(st.lists(st.booleans(), min_size=12, max_size=60))
@settings(max_examples=100)
def test_every_compressed_code_is_accepted_and_no_truncated_one(tmp_path_factory, bits):
    rows = len(bits) // 4
    mask = np.array(bits[: rows * 4], np.uint8).reshape(rows, 4)
    code = masks_api.encode(np.asfortranarray(mask))["counts"].decode()
    dataset = content()
    dataset["images"][0] |= {"height": rows, "width": 4}
    dataset["annotations"] = [annotation(1, 10, 3, [0, 0, 4, rows], segmentation={"size": [rows, 4], "counts": code})]
    path = tmp_path_factory.getbasetemp() / "code.json"
    found = [problem.what for problem in read_coco(write_json(path, dataset), masks=True).problems]
    assert found == ([] if mask.any() else ["its segmentation has no pixel"])
    assert torch.equal(
        to_bitmaps([dataset["annotations"][0]["segmentation"]], rows, 4)[0], torch.from_numpy(mask).bool()
    )
    dataset["annotations"][0]["segmentation"]["counts"] = code[:-1]
    assert len(read_coco(write_json(path, dataset), masks=True).problems) == 1


# --- whatever is in the file, it is read or refused by name


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_mutated_annotations_are_read_or_refused_by_name(tmp_path_factory, seed):
    draw = random.Random(seed)
    dataset = json.loads(json.dumps(content()))
    dataset["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 5, 5]}
    dataset = mutated(dataset, draw)
    path = write_json(tmp_path_factory.getbasetemp() / "mutated.json", dataset)
    masks = draw.random() < 0.5
    try:
        coco = read_coco(path, masks=masks)
    except DataError as error:
        refused = str(error)
        coco = None
    if coco is None:
        assert str(path) in refused
        return
    for image in coco.images:
        if image.height * image.width < 10**6:
            outlines = [a["segmentation"] for a in image.annotations if a.get("segmentation")]
            assert to_bitmaps(outlines, image.height, image.width).shape[0] == len(outlines)
    json.dumps(coco.to_coco())


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_damaged_bytes_are_refused_by_name(tmp_path_factory, noise):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    whole = json.dumps(content(2)).encode()
    cut = len(noise) % len(whole)
    path.write_bytes(whole[:cut] + noise)
    with pytest.raises(DataError, match=r"damaged\.json"):
        read_coco(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marked_files_and_references_as_text_are_read(encoding, tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": [{"id": 0, "image_id": "7", "category_id": "3", "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": 3, "name": "box"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content), encoding=encoding)
    read = read_coco(path)
    assert not read.problems
    assert [(a["image_id"], a["category_id"]) for a in read.images[0].annotations] == [(7, 3)]


def test_stray_parts_of_an_outline_are_dropped_singly(tmp_path):
    good = [1, 1, 6, 1, 6, 6, 1, 6]
    entry = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": [good, [2, 2]]}
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": [entry],
        "categories": [{"id": 3, "name": "box"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    read = read_coco(path, masks=True)
    assert read.images[0].annotations[0]["segmentation"] == [good]
    assert [(p.what, p.fatal) for p in read.problems] == [("1 of its polygons left out: too few points", False)]
