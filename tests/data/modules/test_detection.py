"""Batches of pictures with objects: where they are found, how they are varied, and that it is repeatable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focalnet.data import DetectionAugmentation, DetectionData
from focalnet.data.augment import with_objects
from focalnet.data.loader import collate
from focalnet.data.preprocess import fitted_size
from focalnet.errors import ConfigError, DataError, ImageError
from tests.data.coco import HEIGHT, WIDTH, annotation, content, write_coco, write_images, write_json
from tests.data.conftest import write_tar

pytest.importorskip("pycocotools", reason="detection needs the extra dense")
SMALL = DetectionAugmentation(short_sides=(40, 48, 56), crop_short_sides=(50, 60), crop_sides=(30, 50))


def data(root: Path, **options) -> DetectionData:
    defaults = {"image_size": 48, "max_size": 96, "batch_size": 2, "num_workers": 0, "augmentation": SMALL}
    module = DetectionData(root, **{**defaults, **options})
    module.setup("fit")
    return module


def test_a_batch(tmp_path):
    module = data(write_coco(tmp_path))
    assert (module.class_names, module.num_classes) == (("ant", "bee"), 2)
    batch = next(iter(module.train_dataloader()))
    images, target = batch.images, batch.targets[0]
    assert images.dtype == torch.float32
    assert all(side % 32 == 0 for side in images.shape[-2:])
    assert target.masks.shape == (len(target.boxes), *images.shape[-2:])
    assert target.labels.dtype == torch.int64
    for image, (height, width) in zip(images, batch.sizes, strict=True):
        assert not image[:, height:].any()  # zeros after normalising
        assert not image[:, :, width:].any()
        assert image[:, :height, :width].abs().min() > 0
    assert batch.original_sizes == [(HEIGHT, WIDTH)] * 2


def test_evaluation_resizes_only(tmp_path):
    batch = next(iter(data(write_coco(tmp_path)).val_dataloader()))
    assert batch.sizes[0] == (48, 64)
    assert [info.image_id for info in batch.infos] == [10, 20]
    first = content()["annotations"][0]["bbox"]
    left, top, width, height = (0.8 * value for value in first)
    torch.testing.assert_close(batch.targets[0].boxes[0], torch.tensor([left, top, left + width, top + height]))


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [  # 480 x 640 by hand; the others are sizes of COCO images under mmdet's rule int(x * scale + 0.5)
        ((480, 640), 800, 1333, (800, 1067)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((640, 427), 800, 1333, (1199, 800)),
        ((300, 640), 800, 1333, (625, 1333)),
        ((1, 5000), 800, 1333, (1, 1333)),
    ],
)
def test_sizes_are_rounded_as_in_mmdet(size, short, longest, expected):
    assert fitted_size(size, short, longest) == expected


def test_the_resize_is_bilinear_without_antialiasing():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    given_view = with_objects(picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, torch.zeros(0, 4))
    small = given_view.resized(20, 100).image
    expected = torch.nn.functional.interpolate(
        given_view.image.as_subclass(torch.Tensor)[None].float(), size=(20, 30), mode="bilinear", align_corners=False
    )
    assert (small[None].float() - expected).abs().max() <= 1


def grown(mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(mask[None].float(), 7, stride=1, padding=3)[0] > 0


@given(
    seed=st.integers(0, 2**31),
    flip=st.sampled_from([0.0, 1.0]),
    vertical=st.sampled_from([0.0, 1.0]),
    crop=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=60)
def test_boxes_and_masks_stay_on_their_objects(seed, flip, vertical, crop):
    draw = np.random.default_rng(seed)
    pixels, masks, boxes = np.zeros((HEIGHT, WIDTH, 3), np.uint8), torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool), []
    for i, left in enumerate((0, 40)):
        width, height = draw.integers(16, 38, 2)
        top = draw.integers(0, HEIGHT - height)
        pixels[top : top + height, left : left + width, i] = 255
        masks[i, top : top + height, left : left + width] = True
        boxes.append([left, top, left + width, top + height])
    given_view = with_objects(
        Image.fromarray(pixels), torch.tensor(boxes).float(), torch.arange(2), masks, torch.tensor([[0.0, 0, 5, 5]])
    )
    torch.manual_seed(seed)
    augmentation = DetectionAugmentation(
        flip=flip,
        flip_vertical=vertical,
        crop_prob=crop,
        short_sides=(60, 75),
        crop_short_sides=(60, 90),
        crop_sides=(40, 60),
    )
    varied = augmentation(given_view, 200)
    target = varied.target()
    assert target.masks.shape == (len(target.boxes), *varied.size)
    for box, label, mask in zip(target.boxes, target.labels, target.masks, strict=True):
        bright = varied.image[label] > 127
        # Masks are resized by nearest neighbour, pictures are not: after two resizes edges are 3 pixels apart at most.
        sliver = (box[2:] - box[:2]).min() < 1  # nearest neighbour may leave nothing of it
        assert sliver or not (bright & ~grown(mask)).any()
        assert not (mask & ~grown(bright)).any()
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            outline = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (outline - box).abs().max() <= 2.0
    whole = torch.tensor([varied.size[1], varied.size[0]] * 2)
    assert bool(((target.boxes >= 0) & (target.boxes <= whole)).all())
    assert len(target.ignored) <= 1


def test_a_sample_is_a_function_of_seed_epoch_and_index(tmp_path):
    samples = data(write_coco(tmp_path)).samples["train"]
    torch.manual_seed(1)
    first = samples[(3, 2)]
    torch.rand(7)
    again = samples[(3, 2)]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.target.boxes, again.target.boxes)
    others = [samples[(epoch, 2)] for epoch in range(4, 8)]
    assert any(other.image.shape != first.image.shape or not torch.equal(other.image, first.image) for other in others)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_workers(tmp_path, workers):
    module = data(write_coco(tmp_path), num_workers=workers)
    batches = list(module.train_dataloader())
    expected = list(data(tmp_path).train_dataloader())
    assert [batch.paths for batch in batches] == [batch.paths for batch in expected]
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, expected, strict=True))


def test_crowds_are_ignored_regions_and_empty_images_are_kept_or_left_out(tmp_path):
    dataset = content()
    dataset["annotations"][0]["iscrowd"] = 1
    dataset["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    write_json(tmp_path / "annotations/instances_train.json", dataset)
    write_json(tmp_path / "annotations/instances_val.json", dataset)
    write_images(tmp_path / "images", dataset)
    module = data(tmp_path)
    target = module.samples["val"][0].target
    assert target.labels.tolist() == [1]
    assert target.ignored.shape == (1, 4)
    empty = module.samples["train"][5].target
    assert (empty.boxes.shape, empty.masks.shape[0], empty.ignored.shape) == ((0, 4), 0, (0, 4))
    assert collate([module.samples["train"][5]], divisor=32, training=True).targets[0].labels.shape == (0,)
    assert len(data(tmp_path, with_empty=False).samples["train"]) == 5


def test_boxes_alone(tmp_path, caplog):
    dataset = content()
    for one in dataset["annotations"]:
        del one["segmentation"]
    for part in ("train", "val"):
        write_json(tmp_path / f"{part}/_annotations.coco.json", dataset)
        write_images(tmp_path / part, dataset)
    module = data(tmp_path)
    assert not module.masks
    assert "has boxes only" in caplog.text
    assert next(iter(module.train_dataloader())).targets[0].masks is None
    caplog.clear()
    assert data(tmp_path, masks=False).samples["train"][0].target.masks is None
    assert "has boxes only" not in caplog.text
    dataset["annotations"][0] |= {"segmentation": [[1, 1, 5, 1, 5, 5]]}
    write_json(tmp_path / "train/_annotations.coco.json", dataset)
    with pytest.raises(DataError, match=r"has no segmentation.*masks false"):
        data(tmp_path)


# --- where things are


def test_lvis(tmp_path):
    for split in ("train", "val"):
        dataset = content()
        for image in dataset["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image['file_name']}"
        write_images(tmp_path / f"{split}2017", dataset)
        for image in dataset["images"]:
            del image["file_name"]
        write_json(tmp_path / f"annotations/lvis_v1_{split}.json", dataset)
    module = data(tmp_path)
    assert [samples.path(0).split("/")[-2] for samples in module.samples.values()] == ["train2017", "val2017"]


@pytest.mark.parametrize("folder", ["train", "images/train", "images", ".", "data"])
def test_pictures_are_found_in_the_usual_places(folder, tmp_path):
    write_json(tmp_path / "annotations/instances_train.json", content())
    write_json(tmp_path / "annotations/instances_val.json", content())
    write_images(tmp_path / folder, content())
    if folder.endswith("train"):
        write_images(tmp_path / folder.replace("train", "val"), content())
    assert len(data(tmp_path).samples["train"]) == 6


def test_pictures_are_read_from_a_tar_file(tmp_path):
    root = write_coco(tmp_path / "set")
    members = {f"images/{p.parent.name}/{p.name}": p.read_bytes() for p in sorted(root.glob("*/*.png"))}
    members |= {f"masks/{name}": b"" for name in ("train/01.png", "val/01.png")}
    expected = data(root).samples["val"][0].image
    for part in ("train", "val"):
        shutil.rmtree(root / part)
    write_tar(root / "pictures.tar", members)
    for options in ({}, {"images": "pictures.tar"}):
        sample = data(root, **options).samples["val"][0]
        assert torch.equal(sample.image, expected)
        assert sample.info.path.endswith("pictures.tar/images/val/01.png")


def test_names_with_years_and_wanted_ones(tmp_path):
    root = write_coco(tmp_path)
    (root / "annotations/instances_train.json").rename(root / "annotations/instances_train2017.json")
    (root / "train").rename(root / "train2017")
    assert len(data(root).samples["train"]) == 6
    (root / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(DataError, match="several annotation files for train"):
        data(root)
    assert len(data(root, train_annotations="annotations/instances_train2017.json").samples["train"]) == 6


# --- what is wrong is told before training starts


def test_missing_pictures_are_named(tmp_path):
    root = write_coco(tmp_path)
    (root / "train/02.png").unlink()
    with pytest.raises(DataError, match=r"image 20 \(02.png\): no such file") as error:
        data(root)
    assert "check-data" in str(error.value)
    assert len(data(root, on_error="skip").samples["train"]) == 5
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match=r"none of its images .*data.images"):
        data(root)


def test_problems_stop_or_are_left_out(tmp_path, caplog):
    root = write_coco(tmp_path)
    dataset = content()
    dataset["annotations"] += [annotation(90 + i, 10, 3, [500, 0, 4, 4]) for i in range(5)]
    write_json(root / "annotations/instances_train.json", dataset)
    with pytest.raises(DataError, match=r"annotation 90: .*and 2 more"):
        data(root)
    assert len(data(root, on_error="skip").samples["train"].images[0].annotations) == 2
    assert "annotation 90" in caplog.text


def test_broken_pictures_and_wrong_sizes_are_named_before_training_or_left_out(tmp_path):
    root = write_coco(tmp_path)
    (root / "train/01.png").write_bytes(b"no picture")
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(root / "train/02.png")
    expected = r"01\.png: is not an image.*02\.png: has 80 x 61 pixels, its annotations .image 20. are for 80 x 60"
    with pytest.raises(DataError, match=expected):
        data(root)
    assert data(root, on_error="skip").samples["train"].path(0).endswith("03.png")


def test_truncated_pictures_are_named_or_replaced(tmp_path):
    root = write_coco(tmp_path)
    for name in ("01.png", "02.png"):
        whole = (root / "train" / name).read_bytes()
        (root / "train" / name).write_bytes(whole[: len(whole) // 2])
    samples = data(root).samples["train"]
    for index, expected in ((0, "01.png"), (1, "02.png")):
        with pytest.raises(ImageError, match=expected):
            samples[index]
    skipping = data(root, on_error="skip").samples["train"]
    assert skipping[0].info.path.endswith("03.png")
    assert "2 broken images" in skipping.broken()


def test_parts_must_have_the_same_categories(tmp_path):
    root = write_coco(tmp_path)
    other = json.loads((root / "annotations/instances_val.json").read_text())
    other["categories"][0]["name"] = "wasp"
    write_json(root / "annotations/instances_val.json", other)
    with pytest.raises(DataError, match="categories differ"):
        data(root)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"image_size": 0}, {"max_size": 10}, {"batch_size": 100}, {"val_annotations": "none.json"}],
)
def test_impossible_options_are_refused(options, tmp_path):
    with pytest.raises((ConfigError, DataError)):
        data(write_coco(tmp_path), **options)


@pytest.mark.parametrize(
    "options", [{"flip": 2}, {"short_sides": ()}, {"crop_sides": (5, 3)}, {"crop_prob": -1}, {"color_jitter": 2}]
)
def test_impossible_augmentations_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        DetectionAugmentation(**options)


@pytest.mark.parametrize(("name", "masks", "train", "val"), [("bccd", False, 185, 87), ("nuclei", True, 260, 60)])
def test_real_data_sets_have_no_problems(name, masks, train, val, shared):
    module = data(shared / "data" / name, masks=masks)
    assert (len(module.samples["train"]), len(module.samples["val"])) == (train, val)
    assert all(not samples.coco.problems for samples in module.samples.values())
    assert (module.samples["train"][0].target.masks is not None) == masks


# --- without a validation split


def paths(module: DetectionData, split: str) -> list[str]:
    samples = module.samples[split]
    return [Path(samples.path(index)).name for index in range(len(samples))]


def write_single(root: Path, name: str = "result.json") -> Path:
    write_json(root / name, content(10))
    write_images(root / "images", content(10))
    return root


@pytest.mark.parametrize("name", ["result.json", "annotations/instances_default.json", "train/_annotations.coco.json"])
def test_one_file_is_enough_and_some_of_its_images_are_held_out(tmp_path, caplog, name):
    module = data(write_single(tmp_path, name))
    assert [len(module.samples[split]) for split in ("train", "val")] == [8, 2]
    assert caplog.text.count("20 % of its images are held out") == 1
    module.setup("test")
    assert paths(module, "test") == paths(module, "val")  # never images of training
    assert not set(paths(module, "train")) & set(paths(module, "val"))
    other = data(tmp_path, holdout=0.4, seed=5)
    assert [len(other.samples[split]) for split in ("train", "val")] == [6, 4]
    assert set(paths(module, "val")) < set(paths(other, "val"))


def test_a_set_without_splits_is_evaluated_whole(tmp_path, caplog):
    module = data(write_single(tmp_path), holdout=None)
    held = paths(module, "val")
    caplog.clear()
    whole = DetectionData(tmp_path, batch_size=2, num_workers=0)
    whole.setup("validate")
    assert len(whole.samples["val"]) == 10
    assert "those of training, too; data.holdout 0.2" in caplog.text
    part = DetectionData(tmp_path, batch_size=2, num_workers=0, holdout=0.2)
    part.setup("validate")
    assert paths(part, "val") == held


def test_where_there_is_a_test_split_nothing_is_held_out_unasked(tmp_path):
    root = write_coco(tmp_path)
    (root / "annotations/instances_val.json").rename(root / "annotations/instances_test.json")
    with pytest.raises(DataError, match=r"no annotation file for val.*data\.holdout 0\.2"):
        data(root)
    module = data(root, holdout=0.5)
    assert [len(module.samples[split]) for split in ("train", "val")] == [3, 3]
    with pytest.raises(ConfigError, match=r"data\.holdout=1"):
        data(root, holdout=1.0)


def test_a_file_that_is_named_serves_for_training_only(tmp_path, caplog):
    root = write_single(tmp_path, "annotations/mine.json")
    module = data(root, train_annotations="annotations/mine.json")
    assert [len(module.samples[split]) for split in ("train", "val")] == [8, 2]
    assert "held out" in caplog.text


def test_a_root_category_with_objects_in_any_split_stays_in_all(tmp_path):
    root = write_coco(tmp_path)
    for split, used in (("train", True), ("val", False)):
        dataset = content()
        for one in dataset["categories"]:
            one["supercategory"] = "insect"
        dataset["categories"].append({"id": 0, "name": "insect", "supercategory": "none"})
        if used:
            dataset["annotations"][0]["category_id"] = 0
        write_json(root / f"annotations/instances_{split}.json", dataset)
    assert data(root).class_names == ("insect", "ant", "bee")
    module = DetectionData(root, batch_size=2, num_workers=0)
    module.setup("validate")
    assert module.class_names == ("insect", "ant", "bee")


def test_other_formats_are_read_as_they_are(tmp_path):
    from tests.data.formats.test_sets import yolo_of_roboflow

    root = yolo_of_roboflow(tmp_path)
    module = data(root, batch_size=1, masks=False)
    assert (module.class_names, paths(module, "train"), paths(module, "val")) == (
        ("cat", "dog"),
        ["a.jpg", "b.jpg"],
        ["b.jpg"],
    )
    with pytest.raises(DataError, match=r"a\.jpg.*has no segmentation.*masks false"):
        data(root, batch_size=1)
