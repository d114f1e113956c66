"""Panoptic annotations: what they may say, what is wrong with them by name, and the batches they become."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focalnet.cli.main import main
from focalnet.data import PanopticAugmentation, PanopticData
from focalnet.data.augment import with_labels
from focalnet.data.formats.coco_panoptic import check_panoptic, is_panoptic, read_panoptic
from focalnet.errors import ConfigError, DataError, FocalNetError, ImageError
from focalnet.samples import PanopticTarget
from tests.attacks.fuzz import mutate
from tests.data.coco import HEIGHT, WIDTH, write_json
from tests.data.conftest import write_tar
from tests.data.panoptic import CATEGORIES, VOID_ROWS, panoptic_content, write_map, write_panoptic

SMALL = PanopticAugmentation(crop=50, scale=(0.5, 2.0))


def data(root: Path, **options: Any) -> PanopticData:
    defaults = {"image_size": 48, "max_size": 96, "batch_size": 2, "num_workers": 0, "augmentation": SMALL}
    module = PanopticData(root, **{**defaults, **options})
    module.setup("fit")
    return module


def read(tmp_path: Path, dataset: Any) -> Any:
    return read_panoptic(write_json(tmp_path / "a.json", dataset))


# --- annotation files


def test_labels_are_things_first_then_stuff(tmp_path):
    annotated = read(tmp_path, panoptic_content()[0])
    assert annotated.class_names == ("ant", "bee", "grass", "sky")
    assert (annotated.category_ids, annotated.num_things) == ((3, 7, 2, 9), 2)
    assert annotated.label_of() == {3: 0, 7: 1, 2: 2, 9: 3}
    assert [len(image.annotations) for image in annotated.images] == [4, 4, 4, 4, 4, 2]
    assert annotated.problems == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": 300}, "segment 300: its id 300 is given twice"),
        ({"id": 0}, "segment 0: its id is not between 1 and 16777215"),
        ({"id": 2**24}, "its id is not between"),
        ({"id": "1"}, 'segment number 1: has no "id"'),
        ({"category_id": 99}, "segment 70000: its category_id 99 is not among"),
        ({"category_id": None}, "its category_id None is not among"),
        ({"iscrowd": 3}, "its iscrowd 3 is not 0 or 1"),
        ({"area": -3}, "its area -3 is not a number of pixels"),
    ],
)
def test_what_is_wrong_with_a_segment_is_named_and_its_image_left_out(changes, expected, tmp_path):
    dataset, _ = panoptic_content()
    dataset["annotations"][0]["segments_info"][0] |= changes
    annotated = read(tmp_path, dataset)
    (found,) = map(str, annotated.problems)
    assert found.startswith(f"{tmp_path / 'a.json'}: image 10 (01.png), ")
    assert expected in found
    assert [image.image_id for image in annotated.images] == [20, 30, 40, 50, 60]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_id": 99}, "its image_id 99 is not among"),
        ({"image_id": 20}, "image 20 (02.png): has more than one entry"),
        ({"file_name": None}, "image 10 (01.png): its entry in annotations has no file_name"),
        ({"segments_info": {}}, 'has no list "segments_info"'),
    ],
)
def test_what_is_wrong_with_an_entry_is_named(changes, expected, tmp_path):
    dataset, _ = panoptic_content()
    dataset["annotations"][0] |= changes
    annotated = read(tmp_path, dataset)
    assert any(expected in str(problem) for problem in annotated.problems)
    if "image_id" in changes:
        assert any("image 10 (01.png): has no entry" in str(problem) for problem in annotated.problems)
    assert 10 not in [image.image_id for image in annotated.images]
    assert 10 not in annotated.maps


def renamed(root: Path, split: str, stem: str, name_of: Any, image_id: Any) -> dict[str, Any]:
    """A split whose annotations are called and refer as another tool has it."""
    path = root / f"annotations/panoptic_{split}.json"
    dataset = json.loads(path.read_text())
    path.unlink()
    target = root / stem
    target.parent.mkdir(parents=True, exist_ok=True)
    (root / f"annotations/panoptic_{split}").rename(target.with_suffix(""))
    ids = {image["id"]: image_id(image["id"]) for image in dataset["images"]}
    for image in dataset["images"]:
        image |= {"id": ids[image["id"]], "file_name": name_of(image["file_name"])}
    for entry in dataset["annotations"]:
        entry["image_id"] = ids[entry["image_id"]]
    write_json(target, dataset)
    return dataset


def test_ade20k_and_cityscapes(tmp_path):
    root = write_panoptic(tmp_path / "ade20k")
    for split, folder in (("train", "training"), ("val", "validation")):
        renamed(root, split, f"ade20k_panoptic_{split}.json", str, lambda i: f"ADE_{i}")
        (root / "images").mkdir(exist_ok=True)
        (root / split).rename(root / "images" / folder)
    module = data(root)
    assert module.samples["val"].annotated.images[0].image_id == "ADE_10"
    assert module.samples["val"][0].info.path.endswith("images/validation/01.png")
    root = write_panoptic(tmp_path / "cityscapes")
    for split in ("train", "val"):
        renamed(
            root,
            split,
            f"gtFine/cityscapes_panoptic_{split}.json",
            lambda name: f"aachen_{Path(name).stem}_gtFine_leftImg8bit.png",
            lambda i: f"aachen_{i}",
        )
        folder = root / f"leftImg8bit/{split}/aachen"
        folder.mkdir(parents=True)
        for path in (root / split).iterdir():
            path.rename(folder / f"aachen_{path.stem}_leftImg8bit.png")
    module = data(root)
    assert module.samples["train"][0].info.path.endswith("train/aachen/aachen_01_leftImg8bit.png")
    assert module.samples["val"][1].info.image_id == "aachen_20"


def test_ids_may_be_text_and_sizes_those_of_the_files(tmp_path):
    root = write_panoptic(tmp_path)
    for split in ("train", "val"):
        path = root / f"annotations/panoptic_{split}.json"
        dataset = json.loads(path.read_text())
        for image in dataset["images"]:
            image |= {"id": str(image["id"]), "height": 0}
        write_json(path, dataset)
    module = data(root)
    first = module.samples["train"].annotated.images[0]
    assert (first.image_id, first.height, first.width) == ("10", HEIGHT, WIDTH)


def test_one_panoptic_file_is_enough(tmp_path):
    root = write_panoptic(tmp_path, 10)
    (root / "annotations/panoptic_val.json").unlink()
    module = data(root)
    assert [len(module.samples[split]) for split in ("train", "val")] == [8, 2]
    assert [len(data(root, holdout=0.5).samples[split]) for split in ("train", "val")] == [5, 5]


def test_categories_must_say_what_is_a_thing(tmp_path):
    dataset, _ = panoptic_content()
    dataset["categories"] = [{**CATEGORIES[0], "isthing": None}, *CATEGORIES[1:]]
    assert "category 7: its isthing None is not 0 or 1" in str(read(tmp_path, dataset).problems[0])
    dataset["categories"] = []
    with pytest.raises(DataError, match="no usable image"):
        read(tmp_path, dataset)


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_mutated_annotations_are_read_or_refused_by_name(tmp_path_factory, seed):
    draw = random.Random(seed)
    dataset = json.loads(json.dumps(panoptic_content(3)[0]))
    for _ in range(draw.randint(1, 4)):
        dataset = mutate(dataset, draw)
    path = write_json(tmp_path_factory.getbasetemp() / "mutated.json", dataset)
    try:
        annotated = read_panoptic(path)
    except DataError as error:
        refused = str(error)
        annotated = None
    if annotated is None:
        assert str(path) in refused
        return
    assert is_panoptic(path)
    label_of = annotated.label_of()
    assert len(label_of) == len(annotated.class_names) >= annotated.num_things
    for image in annotated.images:
        assert all(segment["category_id"] in label_of for segment in image.annotations)


# --- PNG files


def problems(root: Path, **options: Any) -> list[str]:
    return [str(p) for p in check_panoptic(root, root / "annotations/panoptic_train.json", **options).problems]


def test_what_is_wrong_with_the_files_is_named(tmp_path):
    root = write_panoptic(tmp_path)
    assert problems(root, decode=True) == []
    maps, ids = root / "annotations/panoptic_train", panoptic_content()[1]
    (maps / "01.png").unlink()
    Image.new("P", (WIDTH, HEIGHT)).save(maps / "02.png")
    write_map(maps / "03.png", ids["03.png"][:-1])
    write_map(maps / "04.png", np.where(ids["04.png"] == 0, 12345, ids["04.png"]))
    (maps / "05.png").write_bytes((maps / "05.png").read_bytes()[:60])
    (root / "train/06.png").unlink()
    found = problems(root)
    for line, expected in zip(
        found,
        [
            rf"image 10 (01.png): no such file {maps / '01.png'}",
            "02.png: is a PNG of mode P, not a PNG in RGB",
            "03.png: has 80 x 59 pixels, its image 30 80 x 60",
            "04.png: has pixels of segment 12345, which is not in its image's segments_info",
            "05.png: ",
            "no such file " + str(root / "train/06.png"),
        ],
        strict=True,
    ):
        assert expected in line
        assert "\n" not in line
    write_map(maps / "01.png", np.where(ids["01.png"] == 300, 0, ids["01.png"]))
    assert "01.png: has no pixel of segment 300" in problems(root)[0]
    with pytest.raises(DataError, match=r"has no pixel of segment 300.*check-data"):
        data(root)
    with pytest.raises(DataError, match="0 images do not fill"):
        data(root, on_error="skip")


def test_areas_that_do_not_add_up_are_told_and_kept(tmp_path):
    root = write_panoptic(tmp_path)
    dataset, _ = panoptic_content()
    segment = dataset["annotations"][0]["segments_info"][0]
    right = segment["area"]
    segment["area"] = 5
    write_json(root / "annotations/panoptic_train.json", dataset)
    assert problems(root) == [
        f"{root / 'annotations/panoptic_train.json'}: image 10 (01.png): segment 70000 has {right} pixels, "
        "its area is given as 5"
    ]
    assert problems(root, open_maps=False) == []
    assert len(data(root, on_error="skip").samples["train"]) == 6


def test_unchecked_maps_are_told_when_they_are_read(tmp_path):
    root = write_panoptic(tmp_path)
    write_map(root / "annotations/panoptic_train/01.png", np.full((HEIGHT, WIDTH), 8))
    Image.new("RGB", (3, 3)).save(root / "train/02.png")
    with pytest.raises(ImageError, match=r'01.png: has pixels of segment 8.*on_error "skip"'):
        data(root, check=False).samples["train"][0]
    samples = data(root, check=False, on_error="skip").samples["train"]
    assert samples[0].info.path.endswith("03.png")
    assert "2 broken images" in samples.broken()


@given(st.binary(max_size=400), st.integers(0, 400))
@settings(max_examples=60)
def test_damaged_maps_are_refused_by_name(tmp_path_factory, noise, place):
    root = tmp_path_factory.getbasetemp() / "damaged"
    if not root.exists():
        write_panoptic(root, 3)
    whole = (root / "annotations/panoptic_val/01.png").read_bytes()
    damaged = root / "annotations/panoptic_train/01.png"
    damaged.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    try:
        data(root)
    except FocalNetError as error:
        refused = str(error)
        assert "01.png" in refused


def test_files_are_found_in_the_usual_places_and_in_tar_files(tmp_path):
    root = write_panoptic(tmp_path / "set")
    expected = data(root).samples["val"][0]
    (root / "annotations/panoptic_val").rename(root / "panoptic_val")
    (root / "val").rename(root / "pictures")
    (root / "train").rename(root / "pictures/train")
    with pytest.raises(DataError, match=r"none of its images .*data.images"):
        data(root)
    found = data(root, images="pictures", train_annotations="annotations/panoptic_val.json").samples["val"][0]
    assert torch.equal(found.image, expected.image)
    shutil.rmtree(root / "annotations/panoptic_train")
    with pytest.raises(DataError, match=r"none of its PNG files .*data.maps"):
        data(root, images="pictures")
    for part in ("train", "val"):
        members = {f"panoptic_{part}/{p.name}": p.read_bytes() for p in (root / "panoptic_val").glob("*.png")}
        members |= {f"{part}/{p.name}": p.read_bytes() for p in (root / "pictures").glob("*.png")}
        write_tar(root / f"{part}.tar", members)
    shutil.rmtree(root / "panoptic_val")
    shutil.rmtree(root / "pictures")
    assert torch.equal(data(root).samples["val"][0].target.ids, expected.target.ids)


def test_parts_must_have_the_same_categories(tmp_path):
    root = write_panoptic(tmp_path)
    dataset, _ = panoptic_content()
    dataset["categories"] = [{**one, "isthing": 1} for one in CATEGORIES]
    write_json(root / "annotations/panoptic_val.json", dataset)
    with pytest.raises(DataError, match="categories differ"):
        data(root)


# --- batches


def test_stuff_of_one_kind_is_not_trained_on_but_things_of_one_are(tmp_path, capsys):
    root = write_panoptic(tmp_path)
    for part in ("train", "val"):
        file = root / f"annotations/panoptic_{part}.json"
        dataset = json.loads(file.read_text())
        for entry in dataset["annotations"]:
            for segment in entry["segments_info"]:
                segment["category_id"] = 2
        write_json(file, dataset)
    with pytest.raises(DataError, match=r'panoptic_train\.json: every segment is of one category, "grass"'):
        data(root)
    assert main(["check-data", str(root)]) == 2
    assert sum('one category, "grass"' in line for line in capsys.readouterr().out.splitlines()) == 1
    for part in ("train", "val"):
        file = root / f"annotations/panoptic_{part}.json"
        write_json(file, json.loads(file.read_text().replace('"category_id": 2', '"category_id": 3')))
    assert data(root).num_things == 2


def test_a_batch(tmp_path):
    module = data(write_panoptic(tmp_path))
    assert (module.class_names, module.num_classes, module.num_things) == (("ant", "bee", "grass", "sky"), 4, 2)
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (2, 3, 64, 64)  # 50 pixels, and then a multiple of 32
    assert not batch.images[:, :, 50:].any()
    for truth in batch.targets:
        assert (truth.ids.shape, truth.ids.dtype) == ((64, 64), torch.int32)
        assert not truth.ids[50:].any()
        segments = truth.segments()
        assert segments.masks.shape == (len(segments.labels), 64, 64)
        assert segments.masks.flatten(1).any(1).all()
        assert (segments.masks.sum(0) == (truth.ids > 0)).all()


def test_evaluation_resizes_the_picture_and_not_the_truth(tmp_path):
    batch = next(iter(data(write_panoptic(tmp_path)).val_dataloader()))
    assert (batch.sizes[0], batch.original_sizes[0], [info.image_id for info in batch.infos]) == (
        (48, 64),
        (HEIGHT, WIDTH),
        [10, 20],
    )
    truth, ids = batch.targets[0], panoptic_content()[1]["01.png"]
    assert truth.labels.tolist() == [3, 2, 0, 1]
    assert not truth.crowds.any()
    for number, segment in enumerate((70_000, 300, 1, 2), start=1):
        assert np.array_equal(truth.ids == number, ids == segment)
    assert not truth.ids[-VOID_ROWS:].any()


def test_crowds_and_what_is_cut_off_are_not_trained_on():
    ids = torch.tensor([[1, 1, 3], [0, 1, 3]], dtype=torch.int32)
    truth = PanopticTarget(ids=ids, labels=torch.tensor([5, 6, 7]), crowds=torch.tensor([False, False, True]))
    segments = truth.segments()
    assert segments.labels.tolist() == [5]
    assert torch.equal(segments.masks, (ids == 1)[None])
    nothing = PanopticTarget(ids=ids * 0, labels=torch.zeros(0).long(), crowds=torch.zeros(0).bool())
    assert nothing.segments().masks.shape == (0, 2, 3)


@given(seed=st.integers(0, 2**31), flip=st.sampled_from([0.0, 1.0]), vertical=st.sampled_from([0.0, 1.0]))
@settings(max_examples=30)
def test_segments_stay_on_their_pixels(seed, flip, vertical):
    torch.manual_seed(seed)
    ids = torch.zeros(40, 60, dtype=torch.int32)
    ids[10:30, 5:25], ids[5:35, 35:] = 300, 70_000  # more than a byte holds
    picture = Image.fromarray(np.stack([255 * (ids == i) for i in (300, 70_000, 0)], -1).astype(np.uint8))
    augmentation = PanopticAugmentation(crop=64, scale=(0.4, 2.0), flip=flip, flip_vertical=vertical)
    varied = augmentation(with_labels(picture, ids))
    assert varied.image.shape[1:] == varied.labels.shape
    assert max(varied.labels.shape) <= 64
    assert set(varied.labels.unique().tolist()) <= {0, 300, 70_000}
    surely = varied.image > 250
    for channel, number in enumerate((300, 70_000, 0)):
        assert (varied.labels[surely[channel]] == number).all()


def test_a_picture_is_resized_to_fit_a_square_of_random_size_and_cut_out():
    whole = with_labels(Image.new("RGB", (200, 100)), torch.ones(100, 200, dtype=torch.int32))
    assert PanopticAugmentation(crop=64, scale=(0.5, 0.5))(whole).size == (16, 32)
    assert PanopticAugmentation(crop=64, scale=(2.0, 2.0))(whole).size == (64, 64)


def test_a_sample_is_a_function_of_seed_epoch_and_index(tmp_path):
    samples = data(write_panoptic(tmp_path)).samples["train"]
    first = samples[(3, 2)]
    torch.rand(7)
    again = samples[(3, 2)]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.target.ids, again.target.ids)
    assert any(not torch.equal(samples[(epoch, 2)].image, first.image) for epoch in range(4, 8))


@pytest.mark.parametrize("options", [{"crop": 0}, {"scale": (2.0, 1.0)}, {"flip": 2.0}, {"flip_vertical": -1.0}])
def test_impossible_augmentations_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PanopticAugmentation(**options)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_size": 3}, {"batch_size": 9}, {"val_annotations": "no"}])
def test_impossible_options_are_refused(options, tmp_path):
    with pytest.raises((ConfigError, DataError)):
        data(write_panoptic(tmp_path), **options)


# --- COCO's own sample, and the command


def test_the_sample_of_coco(shared):
    name = "panoptic_examples.json"
    root = shared / "data/coco_panoptic_sample"
    module = data(root, images="input_images", train_annotations=name, val_annotations=name)
    assert (module.num_classes, module.num_things) == (133, 80)
    assert (module.class_names[0], module.class_names[79:81]) == ("person", ("toothbrush", "banner"))
    assert problems_of(root / name) == []
    truths = [sample.target for sample in module.samples["val"]]
    assert [len(truth.labels) for truth in truths] == [18, 32]
    assert [int(truth.crowds.sum()) for truth in truths] == [1, 2]


def problems_of(file: Path) -> list[str]:
    return [str(p) for p in check_panoptic(file.parent, file, images="input_images", decode=True).problems]


def test_check_data_knows_panoptic_sets(tmp_path, capsys):
    root = write_panoptic(tmp_path)
    assert main(["check-data", str(root), "--decode"]) == 0
    assert "6 images; 5 ant, 5 bee, 6 grass, 6 sky" in capsys.readouterr().err
    (root / "annotations/panoptic_val/03.png").unlink()
    assert main(["check-data", str(root / "annotations/panoptic_val.json")]) == 2
    assert "03.png" in capsys.readouterr().out
