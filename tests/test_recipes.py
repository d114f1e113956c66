"""Every recipe: says what it is, is what the paper has, and runs (at toy size, on generated images).

The file has more than 450 lines because each recipe goes through all of these tests, with the same toy settings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from focalnet import registry, weights, zoo
from focalnet.cli.recipes import HOME, find_recipe, list_recipes, read_recipe
from focalnet.cli.train import fit
from focalnet.errors import ConfigError, UnknownName
from focalnet.models.variants import Variant
from focalnet.training import finishing
from focalnet.training.options import TASKS, Options
from focalnet.training.run_folder import write
from tests.data.coco import write_coco
from tests.data.panoptic import write_panoptic
from tests.data.semantic import write_semantic

RECIPES = list_recipes()
SIZES = ("tiny", "small", "base")
IMAGENET = {f"imagenet1k_{size}_{kind}" for size in SIZES for kind in ("srf", "lrf", "iso", "srf_overlap", "srf_deep")}
FINETUNED = {f"imagenet1k_{size}_22k_{pixels}" for size in ("base", "large") for pixels in (224, 384)}
PRETRAINED = {"imagenet22k_base", "imagenet22k_large"}
OURS = {"digits", "cifar10_nano", "tiny_imagenet_nano", "finetune", "multilabel"}
#: Stochastic depth of the paper (its appendix), where it is not 0.2.
DROP_PATH = {"small": 0.3, "base": 0.5} | {"small_iso": 0.2, "base_iso": 0.3}


def _coco() -> dict[str, tuple[float, float | None]]:
    """Box and mask AP of the paper's tables 6, 7, 20 and 21, by recipe."""
    once = {
        "srf": [(45.9, 41.3), (48.0, 42.7), (48.8, 43.3)],
        "lrf": [(46.1, 41.5), (48.3, 43.1), (49.0, 43.5)],
        "srf_deep": [(46.8, 41.9), (48.1, 43.1), (49.6, 44.0)],
        "lrf_deep": [(46.7, 41.9), (48.6, 43.3), (49.9, 44.2)],
    }
    thrice = {
        "srf": [(47.6, 42.6), (48.9, 43.6), (49.6, 44.1)],
        "lrf": [(48.0, 42.9), (49.3, 43.8), (49.8, 44.1)],
        "srf_deep": [(48.5, 43.3), (49.2, 43.8), (50.2, 44.3)],
    }
    found: dict[str, tuple[float, float | None]] = {
        f"coco_mask_rcnn_{size}_{kind}_{length}": ap
        for length, table in (("1x", once), ("3x", thrice))
        for kind, row in table.items()
        for size, ap in zip(SIZES, row, strict=True)
    }
    others = {"cascade_mask_rcnn": (51.5, 51.5), "sparse_rcnn": (49.6, 49.9), "atss": (49.2, 49.6)}
    for method, row in others.items():
        found |= {f"coco_{method}_tiny_{kind}_3x": (ap, None) for kind, ap in zip(("srf", "lrf"), row, strict=True)}
    return found


COCO = _coco()

#: Box AP of DINO on COCO (detrex, README of FocalNet-DINO, table 11 of the paper); epochs, and after which the
#: rate falls.
DINO = {
    "coco_dino_large_fl3_4scale_12ep": (57.5, 12, 11),
    "coco_dino_large_fl3_4scale_36ep": (58.3, 36, 33),
    "coco_dino_large_fl4_4scale_12ep": (58.0, 12, 11),
    "coco_dino_large_fl4_5scale_12ep": (58.5, 12, 11),
    "coco_dino_large_fl4_5scale_o365": (63.5, 12, 11),
    "coco_dino_huge_fl4_5scale_o365": (64.0, 12, 11),
}

#: Mean IoU of the paper's tables 8 and 22, at one scale, and at several and mirrored.
ADE20K = {
    f"ade20k_upernet_{size}_{kind}": figures
    for kind, row in {
        "srf": [(46.5, 47.2), (49.3, 50.1), (50.2, 51.1)],
        "lrf": [(46.8, 47.8), (49.1, 50.1), (50.5, 51.4)],
        "srf_deep": [(47.4, 48.5), (49.4, 50.3), (51.0, 51.9)],
    }.items()
    for size, figures in zip(SIZES, row, strict=True)
}
#: Where recipes of a task are, where that is not in a folder of its name.
FOLDERS = {"multilabel": "classification", "semantic": "segmentation", "panoptic": "segmentation"}


def task_of(name: str) -> str:
    return str(read_recipe(find_recipe(name)).get("task", "classification"))


def is_mask2former(name: str) -> bool:
    return str(read_recipe(find_recipe(name))["model"].get("architecture", "")).startswith("mask2former_")


def content(name: str) -> dict[str, Any]:
    return read_recipe(HOME / "classification" / f"{name}.yaml")


def test_there_is_one_for_every_row_of_the_paper_and_ours():
    folders = {FOLDERS.get(name, name) for name in TASKS}
    of_task = {name: {r.partition("/")[2] for r in RECIPES if r.startswith(f"{name}/")} for name in folders}
    assert of_task["classification"] == IMAGENET | FINETUNED | PRETRAINED | OURS
    ours = {
        "bccd_nano",
        "nuclei_nano",
        "finetune",
        "dino_bccd_nano",
        "dino_nuclei_nano",
        "finetune_dino",
        "dino_finetune",
    }
    pretraining = {"objects365_dino_large_fl4_5scale", "objects365_dino_huge_fl4_5scale"}
    assert of_task["detection"] == set(COCO) | set(DINO) | pretraining | ours
    semantic = {r.partition("/")[2] for r in RECIPES if task_of(r) == "semantic"}
    assert semantic >= set(ADE20K) | {"camvid_nano", "finetune"}
    assert len(RECIPES) == len(list(HOME.rglob("*.yaml"))) == sum(map(len, of_task.values()))


@pytest.mark.parametrize("name", RECIPES)
def test_its_head_says_command_hardware_expectation_and_source(name):
    text = find_recipe(name).read_text()
    for entry in ("Command:  focalnet fit " + name, "Hardware: ", "Expected: ", "Source:   "):
        assert re.search(rf"^# {entry}\S*", text, re.MULTILINE), entry
    assert "Not run here" in text or "ours" in text
    folder = "segmentation" if is_mask2former(name) else FOLDERS.get(task_of(name), task_of(name))
    assert folder == name.partition("/")[0]


@pytest.mark.parametrize("name", sorted(IMAGENET))
def test_imagenet1k_is_trained_as_in_the_paper(name):
    recipe = Options({**content(name), "data": {**content(name)["data"], "root": "."}}).values
    size, _, kind = name.removeprefix("imagenet1k_").partition("_")
    assert recipe.model.architecture == f"focalnet_{size}_{kind}"
    assert recipe.model.options["drop_path_rate"] == DROP_PATH.get(f"{size}_{kind}", DROP_PATH.get(size, 0.2))
    assert (recipe.data.batch_size, recipe.trainer.max_epochs, recipe.trainer.gradient_clip_val) == (1024, 300, 5.0)
    optimizer, schedule, mix = recipe.model.optimizer, recipe.model.schedule, recipe.model.mix
    assert (optimizer.lr, optimizer.reference_batch, optimizer.weight_decay) == (1e-3, 1024, 0.05)
    assert (schedule.kind, schedule.warmup_epochs, schedule.warmup_lr, schedule.min_lr) == ("cosine", 20, 1e-6, 1e-5)
    assert (mix.mixup, mix.cutmix, mix.probability, mix.switch_probability) == (0.8, 0.8, 1.0, 0.5)
    assert recipe.model.label_smoothing == 0.1
    augmentation = recipe.data.augmentation
    assert (augmentation.policy, augmentation.color_jitter) == ("rand-m9-mstd0.5-inc1", 0.4)
    assert (augmentation.erase_prob, augmentation.erase_mode) == (0.25, "pixel")


def test_imagenet22k_and_finetuning_differ_from_it_as_in_the_paper():
    pretraining = content("imagenet22k_large")
    assert (pretraining["data"]["batch_size"], pretraining["trainer"]["max_epochs"]) == (4096, 90)
    assert pretraining["model"]["schedule"]["warmup_epochs"] == 5
    assert pretraining["model"]["options"] == {"drop_path_rate": 0.2, "layer_scale": 1e-4, "embed_dim": 192}
    finetuning = content("imagenet1k_large_22k_384")
    assert finetuning["data"]["image_size"] == 384
    assert finetuning["trainer"]["max_epochs"] == 30
    assert finetuning["model"]["options"] == {"drop_path_rate": 0.3}
    assert finetuning["model"]["optimizer"]["lr"] == 3e-5
    assert finetuning["model"]["optimizer"]["weight_decay"] == 1e-8
    assert finetuning["model"]["schedule"]["min_lr"] == 5e-6
    assert finetuning["model"]["mix"]["mixup"] == finetuning["model"]["mix"]["cutmix"] == 0


def test_the_papers_large_model_has_its_parameters():
    model = content("imagenet22k_large")["model"]
    large = zoo.create_model(model["architecture"], num_classes=1000, **model["options"])
    assert sum(p.numel() for p in large.parameters()) / 1e6 == pytest.approx(197.1, abs=0.3)


@pytest.mark.parametrize(("name", "ap"), COCO.items())
def test_coco_is_trained_as_in_the_paper(name, ap):
    text = (HOME / "detection" / f"{name}.yaml").read_text()
    box, mask = ap
    assert f"Expected: box AP {box}{f', mask AP {mask}' if mask else ''}. Not run here" in text
    raw = read_recipe(HOME / "detection" / f"{name}.yaml")
    recipe = Options({**raw, "data": {**raw["data"], "root": "."}}).values
    method, size, kind, length = re.fullmatch(r"coco_(\w+)_(tiny|small|base)_(\w+)_([13]x)", name).groups()
    assert recipe.model.architecture == f"{method}_focalnet_{size}_{kind}"
    assert f"focalnet_{size}_{kind.removesuffix('_deep')}" in recipe.model.backbone_weights or "deep" in kind
    short = length == "1x"
    assert recipe.trainer.max_epochs == (12 if short else 36)
    schedule, optimizer = recipe.model.schedule, recipe.model.optimizer
    assert (schedule.kind, schedule.steps) == ("step", (9, 11) if short else (27, 33))
    assert int(schedule.warmup_epochs * (117_266 // 16)) == 500  # images with objects, in batches of 16
    assert (optimizer.lr, optimizer.weight_decay, optimizer.reference_batch) == (1e-4, 0.05, 16)
    assert (
        recipe.model.options["drop_path_rate"]
        == dict(zip(SIZES, (0.1, 0.2, 0.3) if short else (0.3, 0.5, 0.5), strict=True))[size]
    )
    assert (recipe.data.batch_size, recipe.data.image_size, recipe.data.max_size) == (16, 800, 1333)
    assert recipe.data.augmentation.short_sides == tuple(range(480, 801, 32))
    assert recipe.data.masks == ("mask" in method)
    assert recipe.trainer.gradient_clip_val is None


@pytest.mark.parametrize("name", [*DINO, "objects365_dino_large_fl4_5scale", "objects365_dino_huge_fl4_5scale"])
def test_dino_is_trained_as_published(name):
    ap, epochs, step = DINO.get(name, (None, 26, 24))
    text = (HOME / "detection" / f"{name}.yaml").read_text()
    assert (f"Expected: box AP {ap}" if ap else "Expected: no figure was published") in text
    raw = read_recipe(HOME / "detection" / f"{name}.yaml")
    recipe = Options({**raw, "data": {**raw["data"], "root": "."}}).values
    size, kind, scales = re.search(r"dino_(\w+?)_(fl\d)_(\d)scale", name).groups()
    options = recipe.model.options
    assert options["scales"] == int(scales)
    assert (recipe.trainer.max_epochs, recipe.model.schedule.steps) == (epochs, (step,))
    finetuned = name.endswith("_o365")
    if finetuned:
        assert recipe.model.architecture is recipe.model.backbone_weights is None
        assert f"{size}_{kind}" in recipe.model.weights
        shape = {}
    else:
        assert recipe.model.architecture == f"dino_focalnet_{size}_{kind}"
        assert recipe.model.backbone_weights == f"focalnet_{size}_{kind}.ms_in22k"
        shape = {"architecture": recipe.model.architecture}
    optimizer = recipe.model.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.backbone_scale) == (6e-5 if finetuned else 1e-4, 1e-4, 0.1)
    assert (recipe.data.image_size, recipe.data.max_size) == ((1200, 2000) if finetuned else (800, 1333))
    assert max(recipe.data.augmentation.short_sides) == recipe.data.image_size
    assert (recipe.trainer.gradient_clip_val, recipe.model.grad_checkpointing) == (0.1, True)
    # Those of detrex differ from FocalNet-DINO in positions, noise, heads and the normalization of the modulator.
    with torch.device("meta"):
        config = zoo.create_model(shape.get("architecture", "dino_focalnet_large_fl4"), **options).config
    detrex = bool(ap) and not finetuned
    assert (config.position_offset, config.label_noise, config.shared_box_head) == (
        (-0.5, 0.2, False) if detrex else (0.0, 0.5, True)
    )
    assert config.backbone.normalize_modulator == (kind == "fl4" and size == "large" and not detrex)


@pytest.mark.parametrize(("name", "miou"), ADE20K.items())
def test_ade20k_is_trained_as_in_the_paper(name, miou):
    text = (HOME / "segmentation" / f"{name}.yaml").read_text()
    assert f"Expected: mIoU {miou[0]}, with several scales and flip {miou[1]}. Not run here" in text
    raw = read_recipe(HOME / "segmentation" / f"{name}.yaml")
    recipe = Options({**raw, "data": {**raw["data"], "root": "."}}).values
    kind = name.removeprefix("ade20k_upernet_")
    assert recipe.model.architecture == f"upernet_focalnet_{kind}"
    assert kind in recipe.model.backbone_weights
    assert recipe.model.options == {"drop_path_rate": 0.3}
    optimizer, schedule, data = recipe.model.optimizer, recipe.model.schedule, recipe.data
    assert (optimizer.lr, optimizer.weight_decay, optimizer.reference_batch) == (6e-5, 0.01, 16)
    assert (schedule.kind, schedule.power, schedule.min_lr, schedule.warmup_lr) == ("poly", 1.0, 0.0, 6e-11)
    updates = 20_210 // 16
    assert int(schedule.warmup_epochs * updates) == 1500
    assert 0 <= recipe.trainer.max_epochs * updates - 160_000 < updates
    assert (data.batch_size, data.val_batch_size, data.image_size, data.max_size) == (16, None, 512, 2048)
    assert data.reduce_zero_label
    augmentation = data.augmentation
    assert (augmentation.scale, augmentation.crop) == ((0.5, 2.0), (512, 512))
    assert (augmentation.max_class_share, augmentation.flip, augmentation.photometric) == (0.75, 0.5, True)
    assert recipe.trainer.sync_batchnorm


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_semantic(tmp_path_factory.mktemp("masks"), images=4)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), images=5)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    rows = [f"train/{name}/{i}.png,{name}{'|even' * (i % 2 == 0)}" for name in ("ant", "bee") for i in range(4)]
    (root / "train.csv").write_text("\n".join(["image,labels", *rows]))
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = zoo.create_model("focalnet_tiny_lrf", num_classes=5, embed_dim=8, depths=(1, 1, 1, 1))
    return weights.save(model, tmp_path_factory.mktemp("weights") / "pretrained.safetensors")


def toy(name: str, images: Path, pretrained: Path) -> dict[str, Any]:
    """Options that make a recipe small: its network has one thin block a stage, its data eight images."""
    recipe = read_recipe(find_recipe(name))
    small: dict[str, Any] = {
        "data.batch_size": 4,
        "data.num_workers": 0,
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
    }
    if recipe["data"].get("format") != "digits":
        small |= {"data.root": str(images), "data.image_size": 32}
    if recipe["model"].get("weights"):
        return small | {"model.weights": str(pretrained)}
    stages = len(zoo.create_model(recipe["model"]["architecture"], num_classes=2, embed_dim=1).config.backbone.depths)
    return small | {"model.options.depths": [1] * stages, "model.options.embed_dim": 8}


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("classification/")])
def test_it_runs(name, images, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(finishing, "write_report", lambda folder, *_: write(folder.report, b"not drawn"))
    folder = fit(name, output=tmp_path / "run", **toy(name, images, pretrained))
    trained = zoo.load(folder / "model.safetensors")
    assert trained.num_classes == len(trained.card.class_names)
    assert (folder / "metrics.csv").read_text().count("\n") == 2


def variant_of(name: str) -> Variant:
    return registry.family_of(name).variants[name]


def toy_detector(name: str, coco: Path, folder: Path) -> dict[str, Any]:
    """Options that make a detection recipe small: thin and shallow, heads of a few channels, four small images."""
    model = read_recipe(find_recipe(name))["model"]
    if model.get("weights"):  # of a whole detector
        return toy_finetuning(model, coco, folder)
    variant, method = variant_of(model["architecture"]), registry.family_of(model["architecture"]).name
    depths = [1] * len(variant.shape["depths"])
    classifier = zoo.create_model(variant.backbone, num_classes=5, embed_dim=8, depths=depths)
    small: dict[str, Any] = {
        "model.backbone_weights": str(weights.save(classifier, folder / "classifier.safetensors")),
        "model.options.depths": depths,
        "model.options.embed_dim": 8,
        "data.root": str(coco),
        "data.batch_size": 2,
        "data.num_workers": 0,
        "data.image_size": 48,
        "data.max_size": 96,
        "data.augmentation.short_sides": [48],
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.sync_batchnorm": False,
    }
    if method != "dino":  # which has no pyramid
        small["model.options.neck"] = {"channels": 32, **({"extra": "conv"} if method == "atss" else {})}
    return small | {f"model.options.{key}": value for key, value in TOY_HEADS[method].items()}


def toy_finetuning(model: dict[str, Any], coco: Path, folder: Path) -> dict[str, Any]:
    """As ``toy_detector``, of a recipe that goes on from a DINO, here one for three classes."""
    shape = {"embed_dim": 8, "depths": (1, 1, 1, 1), **TOY_HEADS["dino"], **model["options"]}
    start = zoo.create_model("dino_focalnet_large_fl4", num_classes=3, **shape)
    like = toy_detector("detection/finetune_dino", coco, folder)
    small = {name: value for name, value in like.items() if not name.startswith("model.")}
    short = {"data.augmentation.crop_short_sides": [48], "data.augmentation.crop_sides": [30, 48]}
    return small | short | {"model.weights": str(weights.save(start, folder / "start.safetensors"))}


#: As few channels as each method allows.
TOY_HEADS: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"stages": [{"fc_channels": 16}], "mask_channels": 8, "mask_convs": 1},
    "cascade_mask_rcnn": {"stages": [{"fc_channels": 16, "convs": 1, "conv_channels": 8}] * 3, "mask_channels": 8},
    "atss": {"channels": 32, "convs": 1},
    "dino": {"channels": 32, "heads": 4, "num_queries": 10, "encoder_layers": 1, "decoder_layers": 2},
    "sparse_rcnn": {"neck": {"channels": 32, "levels": 4}, "proposals": 10, "stages": 2},
}


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("detection/")])
def test_a_detector_runs(name, coco, tmp_path, monkeypatch):
    pytest.importorskip("pycocotools", reason="detection needs the extra dense")
    monkeypatch.setattr(finishing, "write_report", lambda folder, *_: write(folder.report, b"not drawn"))
    folder = fit(name, output=tmp_path / "run", **toy_detector(name, coco, tmp_path))
    trained = zoo.load(folder / "model.safetensors")
    assert trained.card.class_names == ("ant", "bee")
    assert trained.card.preprocessing.max_size == 96
    assert "box_ap" in (folder / "metrics.csv").read_text()


def toy_segmenter(name: str, masks: Path, folder: Path) -> dict[str, Any]:
    """Options that make a recipe of UPerNet small: thin and shallow, a head of a few channels, four small images."""
    variant = variant_of(read_recipe(find_recipe(name))["model"]["architecture"])
    depths = [1] * len(variant.shape["depths"])
    classifier = zoo.create_model(variant.backbone, num_classes=5, embed_dim=8, depths=depths)
    return {
        "model.backbone_weights": str(weights.save(classifier, folder / "classifier.safetensors")),
        "model.options.depths": depths,
        "model.options.embed_dim": 8,
        "model.options.channels": 16,
        "model.options.auxiliary_channels": 8,
        "data.root": str(masks),
        "data.class_names": ["red", "green", "blue"],
        "data.reduce_zero_label": False,
        "data.ignore_index": 255,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "data.image_size": 48,
        "data.max_size": 64,
        "data.augmentation.crop": [48, 48],
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.sync_batchnorm": False,
    }


@pytest.mark.parametrize("name", [n for n in RECIPES if task_of(n) == "semantic" and not is_mask2former(n)])
def test_a_semantic_segmenter_runs(name, masks, tmp_path, monkeypatch):
    monkeypatch.setattr(finishing, "write_report", lambda folder, *_: write(folder.report, b"not drawn"))
    folder = fit(name, output=tmp_path / "run", **toy_segmenter(name, masks, tmp_path))
    trained = zoo.load(folder / "model.safetensors")
    assert trained.card.class_names == ("red", "green", "blue")
    assert trained.card.preprocessing.max_size == 64
    assert "miou" in (folder / "metrics.csv").read_text()


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_panoptic(tmp_path_factory.mktemp("segments"), images=4)


#: What makes the data of a task small, and the figure that must be measured.
TOY_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "semantic": (
        {
            "data.class_names": ["red", "green", "blue"],
            "data.reduce_zero_label": False,
            "data.ignore_index": 255,
            "data.augmentation.crop": [64, 64],
        },
        "miou",
    ),
    "panoptic": ({"data.augmentation.crop": 64}, "pq"),
    "detection": ({"data.augmentation.short_sides": [48], "data.augmentation.crop_sides": [30, 48]}, "mask_ap"),
}


def toy_mask2former(name: str, folder: Path) -> dict[str, Any]:
    """Options that make a recipe of Mask2Former small: thin and shallow, few queries and points, small images."""
    model = read_recipe(find_recipe(name))["model"]
    variant = variant_of(model["architecture"])
    depths = [1] * len(variant.shape["depths"])
    kept = {k: model["options"][k] for k in ("focal_levels",) if k in model["options"]}
    classifier = zoo.create_model(variant.backbone, num_classes=5, embed_dim=8, depths=depths, **kept)
    few = {"embed_dim": 8, "depths": depths, "channels": 16, "heads": 2, "norm_groups": 4, "num_queries": 6}
    few |= {"encoder_layers": 1, "encoder_hidden": 16, "decoder_layers": 1, "decoder_hidden": 16, "train_points": 32}
    small = {
        "model.backbone_weights": str(weights.save(classifier, folder / "classifier.safetensors")),
        "data.batch_size": 2,
        "data.num_workers": 0,
        "data.image_size": 48,
        "data.max_size": 64,
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
    }
    return small | {f"model.options.{key}": value for key, value in few.items()}


@pytest.mark.parametrize("name", [name for name in RECIPES if is_mask2former(name)])
def test_a_mask2former_runs(name, masks, segments, coco, tmp_path, monkeypatch):
    for module in ("pycocotools", "scipy"):
        pytest.importorskip(module, reason="masks and matching need the extra dense")
    monkeypatch.setattr(finishing, "write_report", lambda folder, *_: write(folder.report, b"not drawn"))
    options, figure = TOY_DATA[task_of(name)]
    root = {"semantic": masks, "panoptic": segments, "detection": coco}[task_of(name)]
    options = {**toy_mask2former(name, tmp_path), **options, "data.root": str(root)}
    folder = fit(name, output=tmp_path / "run", **options)
    assert zoo.load(folder / "model.safetensors").card.preprocessing.max_size == 64
    assert figure in (folder / "metrics.csv").read_text()


def test_an_own_recipe_may_build_on_another(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {architecture: a, options: {x: 1}}\ntrainer: {max_epochs: 3}\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\nmodel: {options: {y: 2}}\n")
    assert read_recipe(find_recipe(str(tmp_path / "own.yaml"))) == {
        "model": {"architecture": "a", "options": {"x": 1, "y": 2}},
        "trainer": {"max_epochs": 3},
    }


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("classification/digit", 'did you mean "classification/digits"'),
        ("digits", 'did you mean "classification/digits"'),
        ("nothing/like/it", "There are: classification/cifar10_nano"),
        ("nowhere.yaml", "no recipe file nowhere.yaml"),
    ],
)
def test_unknown_recipes_name_the_nearest(name, hint):
    with pytest.raises(UnknownName, match=re.escape(hint)):
        find_recipe(name)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "\xff", "base: own.yaml", "base: none.yaml"])
def test_files_that_are_no_recipe_are_refused(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"(own|none)\.yaml"):
        read_recipe(path)
