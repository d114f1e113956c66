"""The same objects as every tool writes them mean the same.

Long because every annotation format has a writer here, and all are read by the same tests.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from focalnet.data.formats.coco import check_coco
from focalnet.data.formats.object_set import ObjectSet
from focalnet.data.formats.outlines import to_bitmaps
from focalnet.data.formats.sets import find_set, find_single, find_split
from focalnet.errors import DataError
from tests.data.voc import OBJECT

SIZES = {"a": (64, 96), "b": (40, 50)}  # height, width
TRIANGLE = [(50, 5), (70, 5), (60, 25)]


def images(folder: Path, names: str = "ab", suffix: str = ".jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", SIZES[name][::-1]).save(folder / f"{name}{suffix}")
    return folder


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def dump(path: Path, content: Any) -> Path:
    return text(path, json.dumps(content))


YOLO_LABELS = {
    "a": "0 0.260416666667 0.3125 0.3125 0.3125\n1 " + " ".join(f"{x / 96:.9f} {y / 64:.9f}" for x, y in TRIANGLE),
    "b": "0 0.1 0.125 0.2 0.25\n",
}


def yolo(root: Path) -> Path:
    images(root / "images/train")
    for name, label in YOLO_LABELS.items():
        text(root / f"labels/train/{name}.txt", label)
    text(
        root / "data.yaml",
        "path: /content/set\ntrain: images/train\nval: images/train\nnames: {0: cat, 1: dog}\nnc: 2\n",
    )
    return root


def yolo_of_roboflow(root: Path) -> Path:
    for name in "ab":
        images(root / "train/images", name)
        text(root / f"train/labels/{name}.txt", YOLO_LABELS[name])
    images(root / "valid/images", "b")
    text(root / "valid/labels/b.txt", YOLO_LABELS["b"])
    text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
    return root


def yolo_of_label_studio(root: Path) -> Path:
    images(root / "images")
    for name, label in YOLO_LABELS.items():
        text(root / f"labels/{name}.txt", label)
    text(root / "classes.txt", "cat\ndog\n")
    dump(root / "notes.json", {"categories": []})
    return root


def darknet(root: Path) -> Path:
    images(root / "obj_train_data")
    for name, label in YOLO_LABELS.items():
        text(root / f"obj_train_data/{name}.txt", label)
    text(root / "obj.names", "cat\ndog\n")
    text(root / "train.txt", "data/obj_train_data/a.jpg\n")
    return root


def voc_beside(root: Path) -> Path:
    images(root)
    objects = {
        "a": OBJECT.format(name="cat", box=(11, 11, 40, 30), difficult=0)
        + OBJECT.format(name="dog", box=(51, 6, 70, 25), difficult=0),
        "b": OBJECT.format(name="cat", box=(1, 1, 10, 10), difficult=0),
    }
    for name, one in objects.items():
        text(root / f"{name}.xml", f"<annotation><filename>{name}</filename>{one}</annotation>")
    return root


def labelme(root: Path) -> Path:
    images(root / "images")
    shapes = {
        "a": [
            {"label": "cat", "points": [[40, 30], [10, 10]], "shape_type": "rectangle", "group_id": None},
            {"label": "dog", "points": TRIANGLE, "shape_type": "polygon", "group_id": None},
        ],
        "b": [{"label": "cat", "points": [[0, 0], [10, 0], [10, 10], [0, 10]], "shape_type": "rectangle"}],
    }
    for name, some in shapes.items():
        height, width = SIZES[name]
        content = {"shapes": some, "imagePath": f"..\\images\\{name}.jpg", "imageHeight": height, "imageWidth": width}
        dump(root / f"json/{name}.json", content)
    return root


def via(root: Path) -> Path:
    images(root)
    xs, ys = zip(*TRIANGLE, strict=True)
    rect = {"name": "rect", "x": 10, "y": 10, "width": 30, "height": 20}
    corner = {"name": "rect", "x": 0, "y": 0, "width": 10, "height": 10}
    outline = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    ticked = {"cat": True, "dog": False}
    regions = {
        "a": [
            {"shape_attributes": rect, "region_attributes": {"kind": "cat"}},
            {"shape_attributes": outline, "region_attributes": {"kind": "dog"}},
        ],
        "b": {"0": {"shape_attributes": corner, "region_attributes": {"kind": ticked}}},
    }
    entries = {f"{n}.jpg123": {"filename": f"{n}.jpg", "size": 123, "regions": r} for n, r in regions.items()}
    dump(root / "via.json", {"_via_settings": {}, "_via_img_metadata": entries})
    return root


def via_table(root: Path) -> Path:
    entries = json.loads((via(root) / "via.json").read_text())["_via_img_metadata"].values()
    (root / "via.json").unlink()
    rows: list[list[Any]] = [[*"#filename file_size file_attributes region_count region_id".split(), *VIA_COLUMNS]]
    for entry in entries:
        regions = entry["regions"] if isinstance(entry["regions"], list) else list(entry["regions"].values())
        for number, region in enumerate(regions):
            texts = [json.dumps(region[column]) for column in ("shape_attributes", "region_attributes")]
            rows.append([entry["filename"], 123, "{}", len(regions), number, *texts])
    with (root / "via_region_data.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


VIA_COLUMNS = ("region_shape_attributes", "region_attributes")


def percent(name: str, box: tuple[float, float, float, float]) -> dict[str, float]:
    height, width = SIZES[name]
    return {
        "x": 100 * box[0] / width, "y": 100 * box[1] / height,
        "width": 100 * box[2] / width, "height": 100 * box[3] / height, "rotation": 0,
    }  # fmt: skip


def label_studio(root: Path) -> Path:
    images(root / "images")
    points = [[100 * x / 96, 100 * y / 64] for x, y in TRIANGLE]
    results = {
        "a": [
            {"type": "rectanglelabels", "value": percent("a", (10, 10, 30, 20)) | {"rectanglelabels": ["cat"]}},
            {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["dog"]}},
            {"type": "choices", "value": {"choices": ["sunny"]}},
        ],
        "b": [{"type": "rectanglelabels", "value": percent("b", (0, 0, 10, 10)) | {"rectanglelabels": ["cat"]}}],
    }
    tasks = [
        {"id": i, "data": {"image": f"/data/upload/1/0a1b2c3d-{name}.jpg"}, "annotations": [{"result": result}]}
        for i, (name, result) in enumerate(results.items())
    ]
    tasks.append({"id": 9, "data": {"image": "/data/upload/1/c.jpg"}, "annotations": []})
    dump(root / "export.json", tasks)
    return root


def label_studio_short(root: Path) -> Path:
    images(root)
    points = [[100 * x / 96, 100 * y / 64] for x, y in TRIANGLE]
    original = {"original_width": 96, "original_height": 64}
    tasks = [
        {
            "image": "/data/local-files/?d=set/a.jpg", "annotation_id": 1,
            "label": [percent("a", (10, 10, 30, 20)) | {"rectanglelabels": ["cat"]} | original],
            "outline": [{"points": points, "polygonlabels": ["dog"], **original}],
        },
        {"image": "/data/local-files/?d=set/b.jpg", "annotation_id": 2, "label": [
            percent("b", (0, 0, 10, 10)) | {"rectanglelabels": ["cat"], "original_width": 50, "original_height": 40}
        ]},
    ]  # fmt: skip
    dump(root / "min.json", tasks)
    return root


def cvat(root: Path) -> Path:
    images(root / "images")
    points = ";".join(f"{x},{y}" for x, y in TRIANGLE)
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("cat", "dog"))
    text(
        root / "annotations.xml",
        f"""<?xml version="1.0"?><annotations><version>1.1</version>
      <meta><job><labels>{labels}</labels></job></meta>
      <image id="0" name="a.jpg" width="96" height="64"><box label="cat" xtl="10" ytl="10" xbr="40" ybr="30"/>
      <polygon label="dog" points="{points}"/></image>
      <image id="1" name="b.jpg" width="50" height="40">
      <mask label="cat" rle="0,100" left="0" top="0" width="10" height="10"/></image></annotations>""",
    )
    return root


def open_images(root: Path) -> Path:
    images(root / "train")
    rows = [("a", "/m/1", 10 / 96, 40 / 96, 10 / 64, 30 / 64), ("a", "/m/2", 50 / 96, 70 / 96, 5 / 64, 25 / 64)]
    rows += [("b", "/m/1", 0, 0.2, 0, 0.25), ("gone", "/m/1", 0, 1, 0, 1)]
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    body = "".join(f"{i},x,{c},1,{x1},{x2},{y1},{y2},0\n" for i, c, x1, x2, y1, y2 in rows)
    text(root / "train-annotations-bbox.csv", head + body)
    text(root / "class-descriptions-boxable.csv", "/m/1,cat\n/m/2,dog\n")
    return root


WRITERS: list[tuple[Callable[[Path], Path], str, bool]] = [
    (yolo, "YOLO", True),
    (yolo_of_roboflow, "YOLO", True),
    (yolo_of_label_studio, "YOLO", True),
    (darknet, "YOLO", True),
    (voc_beside, "Pascal VOC", False),
    (labelme, "labelme", True),
    (via, "VGG Image Annotator", True),
    (via_table, "VGG Image Annotator", True),
    (label_studio, "Label Studio", True),
    (label_studio_short, "Label Studio", True),
    (cvat, "CVAT", True),
    (open_images, "Open Images", False),
]


def found(path: Path) -> ObjectSet:
    result = find_set(path)
    assert result is not None
    return result


def means(coco: Any) -> list[tuple[str, list[tuple[str, tuple[float, ...]]]]]:
    names = dict(zip(coco.category_ids, coco.class_names, strict=True))
    return [
        (
            Path(image.file_name).stem,
            [(names[one["category_id"]], tuple(round(v, 2) for v in one["bbox"])) for one in image.annotations],
        )
        for image in coco.images
    ]


@pytest.mark.parametrize(("write", "format", "outlines"), WRITERS, ids=lambda value: getattr(value, "__name__", None))
def test_every_format_means_the_same(tmp_path, write, format, outlines):
    root = write(tmp_path / "set")
    objects = found(root)
    assert objects.format == format
    split = objects.name_of("train")
    checked = check_coco(root, root, masks=False, images="", written=objects.content(split))
    assert checked.problems == []
    assert means(checked.coco) == [
        ("a", [("cat", (10, 10, 30, 20)), ("dog", (50, 5, 20, 20))]),
        ("b", [("cat", (0, 0, 10, 10))]),
    ]
    assert [(image.height, image.width) for image in checked.coco.images] == list(SIZES.values())
    target = objects.convert(tmp_path / "out.json", split=split)
    again = check_coco(root, target, masks=False)
    assert means(again.coco) == means(checked.coco)
    content = json.loads(target.read_text())
    outlined = {one["category_id"]: one.get("segmentation") for one in content["annotations"] if one["image_id"] == 1}
    assert bool(outlined[2]) == outlines
    if outlines:
        assert np.allclose(np.array(outlined[2]).reshape(-1, 2), TRIANGLE, atol=1e-3)
        assert content["annotations"][1]["area"] == pytest.approx(200, abs=0.1)


def refuses(objects: ObjectSet, expected: str) -> None:
    (what,) = objects.content(objects.name_of("train")).refused.values()
    assert expected in what


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 0.2", "is not numbers"),
        ("0 a b c d", "is not numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "has 5 numbers behind its class"),
        ("7 0.5 0.5 0.2 0.2", "has class 7, and there are 2: 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.2", "has class 0.5"),
        ("0 48 32 10 10", "has a coordinate of 48"),
    ],
)
def test_lines_that_are_no_labels_are_named(tmp_path, line, expected):
    root = yolo(tmp_path)
    text(root / "labels/train/a.txt", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    refuses(found(root), f"a.txt: line 2 {expected}")
    with pytest.raises(DataError, match="line 2"):
        found(root).convert(tmp_path / "out.json", split="train")
    assert not (tmp_path / "out.json").exists()


def test_images_without_labels_are_counted_and_keypoints_are_passed_over(tmp_path):
    root = yolo(tmp_path)
    (root / "labels/train/b.txt").unlink()
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "kpt_shape: [1, 3]\n")
    text(root / "labels/train/a.txt", "0 0.5 0.5 0.5 0.5 0.1 0.1 2\n")
    written = found(root).content("train")
    assert written.refused == {}
    assert written.remarks == ["1 of 2 images have no text file: they count as images without objects"]
    assert [one["bbox"] for one in written.content["annotations"]] == [[24, 16, 48, 32]]
    (root / "labels/train/a.txt").unlink()
    text(root / "labels/a.txt", "0 0.5 0.5 0.5 0.5")
    with pytest.raises(DataError, match="none of its 2 images has a text file"):
        found(root).content("train")


PERSON = "0 0.5 0.4 0.1 0.6 0.48 0.15 0.52 0.15 0 0 0.47 0.6\n"  # a box and four keypoints, one of them not labeled


@pytest.mark.parametrize("flags", [(1, 1), (2, 2, 0), (2, 1, 0, 2)])
def test_keypoints_of_three_numbers_are_not_polygons(tmp_path, flags):
    root = yolo(tmp_path)
    points = " ".join(f"0.5{i} 0.3{i} {flag}" for i, flag in enumerate(flags))
    for name in "ab":
        text(root / f"labels/train/{name}.txt", f"0 0.5 0.4 0.1 0.6 {points}\n")
    with pytest.raises(DataError, match=rf"{len(flags)} keypoints each.*write kpt_shape: \[{len(flags)}, 3\]"):
        found(root).content("train")
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + f"kpt_shape: [{len(flags)}, 3]\n")
    assert len(found(root).content("train").content["annotations"]) == 2


def test_a_closed_outline_along_the_edges_is_a_polygon(tmp_path):
    root = yolo(tmp_path)
    for name in "ab":
        text(root / f"labels/train/{name}.txt", "0 0 0 1 0 1 1 0 1 0 0\n")
    assert all(one["segmentation"] for one in found(root).content("train").content["annotations"])


@pytest.mark.parametrize("count", [1, 3, "two"])
def test_a_number_of_classes_that_is_not_that_of_the_names_is_refused(tmp_path, count):
    root = yolo(tmp_path)
    described = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(described.replace("nc: 2", f"nc: {count}"))
    with pytest.raises(DataError, match=rf"data.yaml: nc is '?{count}'?, and names has 2"):
        found(root).content("train")
    (root / "data.yaml").write_text(described)
    assert found(root).class_list()


def test_keypoints_that_nothing_declares_are_not_polygons(tmp_path):
    root = yolo(tmp_path)
    for name in "ab":
        text(root / f"labels/train/{name}.txt", PERSON)
    with pytest.raises(DataError, match=r"boxes with 4 keypoints each, not polygons.*write kpt_shape: \[4, 2\]"):
        found(root).content("train")
    described = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(described + "kpt_shape: [4, 3]\n")
    with pytest.raises(DataError, match=r"line 1 has 12 numbers behind its class: by kpt_shape \[4, 3\] it has 16"):
        found(root).convert(tmp_path / "out.json", split="train")
    (root / "data.yaml").write_text(described + "kpt_shape: [4, 2]\n")
    boxes = [one["bbox"] for one in found(root).content("train").content["annotations"]]
    assert boxes[0] == pytest.approx([43.2, 6.4, 9.6, 38.4])
    assert len(boxes) == 2


@pytest.mark.parametrize(
    "polygons",
    [
        ["0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4"],
        ["0.6 0.6 0.62 0.6 0.62 0.62 0.6 0.62", "0.7 0.7 0.7 0.74 0.78 0.74 0.78 0.7"],  # small ones of as many corners
        ["0.5 0.02 0.98 0.5 0.5 0.98 0.02 0.5"],
        ["0.5 0.4 0.1 0.6 0.48 0.15 0.52 0.15", "0.5 0.4 0.1 0.6 0.48 0.15 0.52 0.15 0.47 0.6"],  # of several lengths
    ],
)
def test_polygons_are_not_keypoints(tmp_path, polygons):
    root = yolo(tmp_path)
    text(root / "labels/train/a.txt", "".join(f"0 {polygon}\n" for polygon in polygons))
    text(root / "labels/train/b.txt", "")
    assert len(found(root).content("train").content["annotations"]) == len(polygons)


def test_numbered_classes_need_names(tmp_path):
    root = yolo_of_label_studio(tmp_path)
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"list the names in classes\.txt"):
        found(root).content(None)
    root = yolo(tmp_path / "gaps")
    (root / "data.yaml").write_text("train: images/train\nnames: {0: cat, 2: dog}\n")
    with pytest.raises(DataError, match="without gaps"):
        found(root).content("train")


def png(bitmap: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(bitmap.astype(np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def labelme_with(tmp_path: Path, *shapes: dict[str, Any]) -> ObjectSet:
    images(tmp_path, "a")
    content = {"shapes": list(shapes), "imagePath": "a.jpg", "imageHeight": 64, "imageWidth": 96}
    dump(tmp_path / "a.json", content)
    return found(tmp_path)


def test_shapes_of_a_group_are_one_object_and_masks_and_circles_are_objects(tmp_path):
    parts = [{"label": "cat", "points": [[x, 0], [x + 5, 0], [x, 5]], "group_id": 1} for x in (0, 20)]
    circle = {"label": "dog", "points": [[50, 30], [50, 40]], "shape_type": "circle"}
    bitmap = np.array([[1, 0, 1], [1, 1, 1]])
    mask = {"label": "dog", "points": [[4, 8], [6, 9]], "shape_type": "mask", "mask": png(bitmap)}
    cat, round_dog, dog = labelme_with(tmp_path, *parts, circle, mask).content(None).content["annotations"]
    assert (cat["bbox"], len(cat["segmentation"]), cat["area"]) == ([0, 0, 25, 5], 2, 25)
    assert round_dog["area"] == pytest.approx(np.pi * 100, rel=0.01)
    assert (dog["bbox"], dog["area"]) == ([4, 8, 3, 2], 5)
    assert sum(dog["segmentation"]["counts"]) == 64 * 96


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"label": "cat", "points": [[1, 1]], "shape_type": "point"}, "is a point of 1 points, which is not an object"),
        ({"label": "cat", "points": [[1, 1], [2, 2]]}, "is a polygon of 2 points"),
        ({"label": "cat", "points": [[1, "x"]]}, "has points that are not pairs of numbers"),
        ({"points": []}, "has no label"),
        ({"label": "cat", "points": [[4, 8], [6, 9]], "shape_type": "mask", "mask": "x"}, "has a mask that cannot"),
    ],
)
def test_shapes_that_are_no_objects_are_named(tmp_path, shape, expected):
    good = {"label": "cat", "points": [[1, 1], [5, 1], [5, 5]]}
    refuses(labelme_with(tmp_path, good, shape), f"shape 2 {expected}")


def test_turned_boxes_are_polygons(tmp_path):
    root = cvat(tmp_path / "cvat")
    path = root / "annotations.xml"
    path.write_text(path.read_text().replace('ybr="30"/>', 'ybr="30" rotation="90"/>'))
    (one, *_) = found(root).content(None).content["annotations"]
    assert one["bbox"] == [15, 5, 20, 30]  # about its center (25, 20)
    root = label_studio(tmp_path / "studio")
    tasks = json.loads((root / "export.json").read_text())
    tasks[0]["annotations"][0]["result"][0]["value"]["rotation"] = 90
    dump(root / "export.json", tasks)
    (one, *_) = found(root).content(None).content["annotations"]
    assert one["bbox"] == [-10, 10, 20, 30]  # clockwise about its corner (10, 10)


def test_what_label_studio_leaves_open_is_not_guessed(tmp_path):
    root = label_studio(tmp_path)
    assert found(root).content(None).remarks == ["1 of 3 tasks are not annotated, and left out"]
    tasks = json.loads((root / "export.json").read_text())
    tasks[0]["annotations"].append({"result": []})
    dump(root / "export.json", tasks)
    refuses(found(root), "2 annotations that differ: mark one as ground truth")
    tasks[0]["annotations"][1]["ground_truth"] = True
    dump(root / "export.json", tasks)
    assert found(root).content(None).refused == {}
    tasks[0]["annotations"] = [{"result": [{"value": {"brushlabels": ["cat"], "rle": [1]}}]}]
    dump(root / "export.json", tasks)
    refuses(found(root), "brushlabels")
    (root / "images/a.jpg").unlink()
    refuses(found(root), "is not below")


#: What label-studio-converter 0.0.59 encodes of ``BRUSHED``.
BRUSH = [
    0, 0, 0, 192, 57, 27, 254, 39, 0, 194, 127, 246, 192, 48, 159, 253, 176, 12, 39, 255, 124, 2, 63, 252, 94, 0
]  # fmt: skip
BRUSHED = np.zeros((6, 8), bool)
BRUSHED[1:4, 2:7] = True
BRUSHED[4, 3] = True


def test_masks_of_label_studios_brush(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.png")
    value = {"format": "rle", "rle": BRUSH, "brushlabels": ["cat"]}
    box = {"value": {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["cat"]}}

    def written(**changes):
        region = {"type": "brushlabels", "original_width": 8, "original_height": 6, "value": {**value, **changes}}
        regions = {"a": [region], "b": [box]}
        dump(
            tmp_path / "export.json",
            [{"data": {"image": f"{n}.png"}, "annotations": [{"result": result}]} for n, result in regions.items()],
        )
        return found(tmp_path)

    one, _ = written().content(None).content["annotations"]
    assert one["bbox"] == [2, 1, 5, 4]
    assert one["area"] == BRUSHED.sum()
    assert to_bitmaps([one["segmentation"]], 6, 8)[0].tolist() == BRUSHED.tolist()
    for code, reason in (
        ([], "ends too early"),
        (BRUSH[:-6], "ends too early"),
        ([0, 0, 1, *BRUSH[3:]], "has 448 values, an image of 6 x 8 pixels has four each"),
        ([*BRUSH[:4], 249, *BRUSH[5:]], "values of 32 bits"),
        ([300], "is not a list of bytes"),
        ("text", "is not a list of bytes"),
    ):
        refuses(written(rle=code), reason)


def test_attributes_of_regions_must_say_the_class(tmp_path):
    root = via(tmp_path)
    content = json.loads((root / "via.json").read_text())
    region = content["_via_img_metadata"]["a.jpg123"]["regions"][0]
    region["region_attributes"]["quality"] = "good"
    dump(root / "via.json", content)
    with pytest.raises(DataError, match='have the attributes kind, quality; call the one with the class "class"'):
        found(root).content(None)
    region["region_attributes"] = {}
    dump(root / "via.json", content)
    refuses(found(root), "a.jpg: region 1 has no kind")


def test_tables_of_via_that_cannot_be_read_are_named(tmp_path):
    root = via_table(tmp_path / "table")
    path = root / "via_region_data.csv"
    path.write_text(path.read_text() + "c.jpg,123,{},0,0,{},{}\n")
    images = [*found(root).content(None).content["images"]]
    assert [image["file_name"] for image in images] == ["a.jpg", "b.jpg", "c.jpg"]  # the last has no region
    path.write_text(path.read_text() + 'd.jpg,123,{},1,0,"{""name"": ",{}\n')
    with pytest.raises(DataError, match=r"via_region_data\.csv: line 6 cannot be read"):
        found(root)
    path.write_text("# Exported using VGG Image Annotator (http://...)\n# CSV_HEADER = metadata_id,file_list\n")
    with pytest.raises(DataError, match="version 3"):
        found(root)


def test_the_folders_and_files_of_yolo_may_have_any_case(tmp_path):
    root = yolo_of_label_studio(tmp_path)
    (root / "labels").rename(root / "Labels")
    (root / "images").rename(root / "Images")
    (root / "Labels/a.txt").rename(root / "Labels/A.TXT")
    assert len(found(root).content(None).content["annotations"]) == 3
    images(root / "Images", "a", suffix=".png")  # now A.TXT may be for a.jpg or a.png
    with_labels = {entry["image_id"] for entry in found(root).content(None).content["annotations"]}
    assert len(with_labels) == 1


def test_remarks_are_of_the_split_that_is_read(tmp_path):
    root = yolo_of_roboflow(tmp_path)
    (root / "train/labels/b.txt").unlink()
    objects = found(root)
    assert [len(objects.content(split).remarks) for split in ("train", "val", "train")] == [1, 0, 1]


def test_tracks_and_files_of_no_format_are_refused(tmp_path):
    root = cvat(tmp_path / "cvat")
    text(root / "annotations.xml", '<annotations><version>1.1</version><track id="0" label="cat"/></annotations>')
    with pytest.raises(DataError, match="tracks of a video"):
        found(root).content(None)
    images(tmp_path / "plain")
    text(tmp_path / "plain/readme.txt", "0 0.5 0.5 0.5 0.5")
    dump(tmp_path / "plain/other.json", {"a": 1})
    text(tmp_path / "plain/other.xml", "<x/>")
    text(tmp_path / "plain/other.csv", "a,b\n")
    assert find_set(tmp_path / "plain") is None
    assert find_set(tmp_path / "absent") is None


# --- which annotations a split has


def test_splits_are_found_in_any_format_and_cocos_files_come_first(tmp_path):
    root = yolo(tmp_path)
    train, val = find_split(root, "train"), find_split(root, "val")
    assert train is not None
    assert val is not None
    assert (train.split, val.split, train.whole) == ("train", "val", False)
    assert find_split(root, "test") is None
    single = {"images": [], "annotations": [], "categories": []}
    dump(root / "annotations/instances_default.json", single)
    for split in ("train", "val", "test"):
        whole = find_split(root, split)  # type: ignore[arg-type]
        assert whole is not None
        assert (whole.path.name, whole.whole) == ("instances_default.json", True)
    dump(root / "annotations/person_keypoints_default.json", single)
    assert find_single(root) == root / "annotations/instances_default.json"
    (root / "annotations/person_keypoints_default.json").unlink()
    dump(root / "instances_other.json", single)
    with pytest.raises(DataError, match=r"several annotation files.*instances_other\.json.*data\.train_annotations"):
        find_single(root)
    dump(root / "annotations/instances_train.json", single)
    train = find_split(root, "train")
    assert train is not None
    assert (train.path.name, train.whole) == ("instances_train.json", False)
    assert find_split(root, "val") is None
    chosen = find_split(root, "val", "data.yaml")
    assert chosen is not None
    assert (chosen.set is not None, chosen.split) == (True, "val")
