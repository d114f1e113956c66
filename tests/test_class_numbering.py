"""Class names and category ids from annotation files to what ``focalnet predict`` writes, whatever the numbering.

Libraries of detectors assume one numbering, and shift or drop classes of any other. Here none needs an option.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from focalnet import weights, zoo
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.cli.results import Ids, Results
from focalnet.cli.train import fit, validate
from focalnet.data import ClassificationData, DetectionData
from focalnet.errors import ConfigError
from focalnet.models.dino import DINOConfig
from focalnet.models.dino.layouts import to_release
from focalnet.results import Detections
from focalnet.training import engine
from focalnet.training.tasks.detection import DetectionTask
from focalnet.weights.labels import category_ids, class_names
from tests.data.coco import content, write_images, write_json
from tests.models import small

pytest.importorskip("pycocotools", reason="detection needs the extra dense")

COCO = class_names("coco")
ANIMALS = ("ant", "bee", "cricket")


def named(names: tuple[str, ...], ids: Any, **more: str) -> list[dict[str, Any]]:
    return [{"id": number, "name": name, **more} for number, name in zip(ids, names, strict=True)]


#: Categories of a file, and those of them that are classes, as (id, name) in the order of the ids.
NUMBERINGS: dict[str, list[dict[str, Any]]] = {
    "coco_with_gaps": named(COCO, category_ids("coco")),
    "coco_from_1": named(COCO, range(1, 81)),
    "coco_from_0": named(COCO, range(80)),
    "from_0": named(ANIMALS, range(3)),
    "from_1": named(ANIMALS, range(1, 4)),
    "unsorted": named(ANIMALS, (7, 1, 4)),
    "large": named(ANIMALS, (10**9, 5, 2**40)),
    "text": named(ANIMALS, ("c", "a", "b")),
    "super_category_at_0": [
        {"id": 0, "name": "insects", "supercategory": "none"},
        *named(ANIMALS, range(1, 4), supercategory="insects"),
    ],
    "one_class_and_its_super_category": [
        {"id": 0, "name": "ant", "supercategory": "none"},
        *named(("ant",), (1,), supercategory="ant"),
    ],
}
numbering = pytest.mark.parametrize("categories", NUMBERINGS.values(), ids=NUMBERINGS.keys())


def write_numbered(root: Path, categories: list[dict[str, Any]], images: int = 4) -> Path:
    """The small data set of ``tests.data.coco``, its objects spread over the first, the last and a middle class."""
    dataset = content(images)
    classes = [entry for entry in categories if entry.get("supercategory") != "none"]
    used = [classes[0], classes[len(classes) // 2], classes[-1]]
    for i, one in enumerate(dataset["annotations"]):
        one["category_id"] = used[i % 3]["id"]
    dataset["categories"] = categories
    for part in ("train", "val"):
        write_json(root / f"annotations/instances_{part}.json", dataset)
        write_images(root / part, dataset)
    return root


def opened(root: Path) -> DetectionData:
    data = DetectionData(root, batch_size=2, num_workers=0, image_size=60, max_size=80, masks=False)
    data.setup("fit")
    return data


def truth(root: Path) -> tuple[dict[int, str], list[tuple[int, int, list[float]]]]:
    """The names of a file by category id, and its objects as (image, category, box)."""
    file = json.loads((root / "annotations/instances_val.json").read_text())
    objects = [(one["image_id"], one["category_id"], one["bbox"]) for one in file["annotations"]]
    return {one["id"]: one["name"] for one in file["categories"]}, objects


@pytest.mark.parametrize("method", ["dino", "atss"])
@numbering
def test_a_perfect_detector_gives_the_file_back(categories: list[dict[str, Any]], method: str, tmp_path: Path) -> None:
    root = write_numbered(tmp_path, categories)
    data = opened(root)
    task = DetectionTask(architecture=f"{method}_focalnet_tiny_srf", options=small.options_of(method))
    task.network = task.build(data.num_classes)
    classes = {entry["id"]: entry["name"] for entry in categories if entry.get("supercategory") != "none"}
    assert dict(zip(data.category_ids, data.class_names, strict=True)) == classes
    task.network.card = task.card(data, "mine")
    loaded = zoo.load(weights.save(task.network, tmp_path / "mine.safetensors"))

    for file in (None, root / "annotations/instances_val.json"):
        check_results(loaded, data, file, tmp_path / f"out{file is None}", root)


def check_results(loaded: Any, data: DetectionData, file: Path | None, out: Path, root: Path) -> None:
    """What is written of predictions that are all true, with and without the annotations' numbers of images."""
    samples = data.samples["val"]
    paths = [Path(samples.path(i)) for i in range(len(samples))]
    results = Results(out, "mine", Ids(loaded, file, paths))
    with results.kept():
        for i in range(len(samples)):
            sample = samples[i]
            boxes = sample.target.boxes
            found = Detections(boxes, torch.ones(len(boxes)), sample.target.labels, loaded.class_names, size=(60, 80))
            results.add(replace(found, image=Image.new("RGB", (80, 60)), path=sample.info.path), f"{i}")
        results.write()

    names, objects = truth(root)
    whole = json.loads((out / "predictions.json").read_text())
    coco = json.loads((out / "detections.json").read_text())
    number = {image.image_id: image.image_id if file else i for i, image in enumerate(samples.images, start=1)}
    expected = [(number[image], category, box) for image, category, box in objects]
    assert [(one["image_id"], one["category_id"], one["bbox"]) for one in coco] == expected
    assert [o["name"] for p in whole["predictions"] for o in p["objects"]] == [names[one[1]] for one in objects]
    listed = {one["id"]: one["name"] for one in whole["categories"]}
    assert listed == dict(zip(data.category_ids, data.class_names, strict=True))
    assert [whole["categories"][o["label"]]["id"] for p in whole["predictions"] for o in p["objects"]] == [
        one[1] for one in objects
    ]


def test_training_and_prediction_on_the_command_line(tmp_path: Path) -> None:
    root = write_numbered(tmp_path, NUMBERINGS["super_category_at_0"])
    narrow = small.options_of("dino").items()
    options: dict[str, Any] = {
        f"model.options.{key}": list(value) if isinstance(value, tuple) else value for key, value in narrow
    }
    options |= {"model.architecture": "dino_focalnet_tiny_srf", "model.backbone_weights": None}
    toy = {"data.batch_size": 2, "data.num_workers": 0, "data.image_size": 48, "data.max_size": 64}
    toy |= {"trainer.max_epochs": 1, "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1}
    toy |= {"trainer.accelerator": "cpu", "data.augmentation.short_sides": [48], "data.root": str(root)}
    folder = fit("detection/dino_finetune", output=tmp_path / "run", **options, **toy)
    out, model = tmp_path / "out", str(folder / "model.safetensors")
    assert main(["predict", str(root / "val"), "--model", model, "--min-score", "0", "--out", str(out)]) == 0
    whole = json.loads((out / "predictions.json").read_text())
    coco = json.loads((out / "detections.json").read_text())
    assert whole["categories"] == [{"id": i, "name": name} for i, name in enumerate(ANIMALS, start=1)]
    predicted = [o["name"] for p in whole["predictions"] for o in p["objects"]]
    assert [ANIMALS[one["category_id"] - 1] for one in coco] == predicted
    assert len(predicted) == 4 * 12


def test_a_network_of_before_with_a_class_for_the_super_category_is_measured(tmp_path: Path) -> None:
    root = write_numbered(tmp_path, NUMBERINGS["super_category_at_0"])
    data = DetectionData(root, batch_size=2, num_workers=0, image_size=60, max_size=80, masks=False)
    data.class_order = ("insects", *ANIMALS)
    data.setup("validate")
    assert data.class_names == ("insects", *ANIMALS)


def test_a_network_is_measured_on_data_that_numbers_its_classes_differently(tmp_path: Path) -> None:
    root = write_numbered(tmp_path, NUMBERINGS["unsorted"])
    data = opened(root)
    assert (data.class_names, data.category_ids) == (("bee", "cricket", "ant"), (1, 4, 7))
    other = DetectionData(root, batch_size=2, num_workers=0, image_size=60, max_size=80, masks=False)
    other.class_order = ANIMALS
    other.setup("validate")
    assert (other.class_names, other.category_ids) == (ANIMALS, (7, 1, 4))
    for i in range(len(other.samples["val"])):
        ours, theirs = other.samples["val"][i].target.labels, data.samples["val"][i].target.labels
        assert [other.class_names[k] for k in ours] == [data.class_names[k] for k in theirs]

    network = small.config("atss").build()
    network.card = ModelCard(name="a", class_names=ANIMALS, preprocessing=Preprocessing(image_size=48, max_size=64))
    path = weights.save(network, tmp_path / "a.safetensors")
    options = {"data.root": str(root), "data.batch_size": 2, "data.num_workers": 0, "trainer.accelerator": "cpu"}
    assert validate("detection/coco_atss_tiny_srf_3x", path, **options)["images"] == 4


def measured(names: tuple[str, ...], known: tuple[str, ...], things: tuple[int, int] | None = None) -> None:
    """Checks data with classes of these names against a network that calls its classes so."""
    of_data, of_network = things or (0, 0)
    task = SimpleNamespace(name="panoptic" if things else "semantic", num_things=lambda data: of_data)
    config = SimpleNamespace(output=task.name, things=of_network)
    run = SimpleNamespace(task=task, data=SimpleNamespace(class_names=names))
    engine._check_numbering(run, SimpleNamespace(class_names=known, config=config))  # type: ignore[arg-type]


def test_weights_of_other_classes_are_refused_or_told(caplog: pytest.LogCaptureFixture) -> None:
    measured(ANIMALS, ANIMALS)
    measured(ANIMALS, ())
    measured(ANIMALS, ANIMALS, (2, 2))
    assert not caplog.records
    measured(ANIMALS, ("n01", "n02", "n03"))
    assert 'class 0 is "ant" in the data and "n01" in the weights: they are compared by number' in caplog.text
    with pytest.raises(ConfigError, match='"ant" is class 0 of the data and class 1 of the weights, so the metrics'):
        measured(ANIMALS, ("bee", "ant", "cricket"))
    with pytest.raises(ConfigError, match="the weights know 1 classes of things, the data has 2"):
        measured(ANIMALS, ANIMALS, (2, 1))


def test_images_of_class_folders_are_labeled_as_the_weights_number_their_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ANIMALS:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "a.png")
    data = ClassificationData(tmp_path, batch_size=1, num_workers=0, image_size=8)
    data.class_order = ("cricket", "ant", "bee")
    data.setup("validate")
    samples: Any = data.samples["val"]
    labels = {Path(samples.path(i)).parent.name: samples[i].target for i in range(3)}
    assert labels == {"cricket": 0, "ant": 1, "bee": 2}
    assert data.class_names == data.class_order


@pytest.mark.parametrize(
    ("outputs", "ids", "last"),
    [(91, category_ids("coco"), "toothbrush"), (366, tuple(range(1, 366)), "Objects365 class 365"), (4, range(4), "")],
)
def test_outputs_of_the_release_are_category_ids(outputs: int, ids: Any, last: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = small.config("dino", num_classes=outputs, spare_labels=1)
    assert isinstance(config, DINOConfig)
    tensors = config.build().state_dict()
    torch.save({"model": to_release(tensors, config)}, tmp_path / "release.pth")
    checkpoint = weights.read(tmp_path / "release.pth", post_norm=False)
    assert checkpoint.card.category_ids == tuple(ids)
    assert checkpoint.num_classes == len(ids)
    head = "bbox_head.cls_branches.0.weight"
    assert torch.equal(checkpoint.state_dict[head], tensors[head][list(ids)])
    assert (checkpoint.card.class_names or ("",))[-1] == last
    assert Ids(zoo.load(tmp_path / "release.pth", post_norm=False), None).category_ids == tuple(ids)
    # Back in that layout, every class is again at the place of its number.
    back = weights.read(weights.export(checkpoint, tmp_path / "b.pth", "focalnet_dino"), post_norm=False)
    theirs = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    assert theirs["class_embed.0.bias"].shape == (outputs,)
    assert theirs["label_enc.weight"].shape[0] == outputs + 1
    assert back.card.category_ids == tuple(ids)
    assert all(torch.equal(back.state_dict[key], tensor) for key, tensor in checkpoint.state_dict.items())


def test_cards_with_other_numbers_than_classes_are_refused() -> None:
    for ids in ((1, 1), (1.0, 2), [1, 2]):
        with pytest.raises(ConfigError, match="category_ids must be a tuple of different ids"):
            ModelCard(name="a", class_names=("x", "y"), category_ids=ids)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there are 3 category_ids for 2 class_names"):
        ModelCard(name="a", class_names=("x", "y"), category_ids=(1, 2, 3))
