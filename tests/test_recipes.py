"""Every recipe: says what it is, is what the paper has, and runs (at toy size, on generated images)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from focalnet import weights, zoo
from focalnet.cli.recipes import HOME, find_recipe, list_recipes, read_recipe
from focalnet.cli.train import fit
from focalnet.errors import ConfigError, UnknownName
from focalnet.tasks import engine
from focalnet.tasks.folder import write
from focalnet.tasks.options import Options

RECIPES = list_recipes()
SIZES = ("tiny", "small", "base")
IMAGENET = {f"imagenet1k_{size}_{kind}" for size in SIZES for kind in ("srf", "lrf", "iso", "srf_overlap", "srf_deep")}
FINETUNED = {f"imagenet1k_{size}_22k_{pixels}" for size in ("base", "large") for pixels in (224, 384)}
PRETRAINED = {"imagenet22k_base", "imagenet22k_large"}
OURS = {"digits", "cifar10_nano", "tiny_imagenet_nano", "finetune"}
#: Stochastic depth of the paper (its appendix), where it is not 0.2.
DROP_PATH = {"small": 0.3, "base": 0.5} | {"small_iso": 0.2, "base_iso": 0.3}


def content(name: str) -> dict[str, Any]:
    return read_recipe(HOME / "classification" / f"{name}.yaml")


def test_there_is_one_for_every_row_of_the_paper_and_ours():
    assert {name.removeprefix("classification/") for name in RECIPES} == IMAGENET | FINETUNED | PRETRAINED | OURS
    assert len(RECIPES) == len(list(HOME.rglob("*.yaml")))


@pytest.mark.parametrize("name", RECIPES)
def test_its_head_says_command_hardware_expectation_and_source(name):
    text = find_recipe(name).read_text()
    for entry in ("Command:  focalnet fit " + name, "Hardware: ", "Expected: ", "Source:   "):
        assert re.search(rf"^# {entry}\S*", text, re.MULTILINE), entry
    assert "Not run here" in text or "ours" in text


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
    stages = len(zoo.create_model(recipe["model"]["architecture"], num_classes=2, embed_dim=1).config.depths)
    return small | {"model.options.depths": [1] * stages, "model.options.embed_dim": 8}


@pytest.mark.parametrize("name", RECIPES)
def test_it_runs(name, images, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "write_report", lambda folder, *_: write(folder.report, b"not drawn"))
    folder = fit(name, output=tmp_path / "run", **toy(name, images, pretrained))
    trained = zoo.load(folder / "model.safetensors")
    assert trained.num_classes == len(trained.card.class_names)
    assert (folder / "metrics.csv").read_text().count("\n") == 2


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
