"""Images are padded to multiples of the network's own ``size_divisor`` wherever it sees them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image

from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import ConfigError
from focalnet.inference import Predictor, Views
from focalnet.inference.tta import slide
from focalnet.training.failures import explained
from focalnet.training.tasks.semantic import SlideConfig
from tests.models.small import config, mask2former, upernet
from tests.training.families import DENSE, data_for, step, task_for, trainer, write_data

DIVISORS = (64, 48, 16, 1)
CROPPED = ("upernet", "mask2former", "mask2former_panoptic")
NETWORKS = {"mask_rcnn": lambda **o: config("mask_rcnn", **o), "upernet": upernet, "mask2former": mask2former}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


class _Watch(pl.Callback):
    """Heights and widths that the backbone sees, and the batches of training."""

    def __init__(self) -> None:
        self.sizes: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self.batches: list[Any] = []

    def setup_hook(self, network: Any) -> None:
        network.backbone.register_forward_pre_hook(
            lambda module, inputs: self.sizes[network.training].append(tuple(inputs[0].shape[-2:]))
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.setup_hook(pl_module.network)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


def up(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


@pytest.mark.parametrize("divisor", DIVISORS)
@pytest.mark.parametrize("family", DENSE)
def test_training_and_validation_pad_to_the_networks_divisor(family, divisor, root, tmp_path):
    watch = _Watch()
    task = task_for(family, {"size_divisor": divisor})
    step(task, data_for(family, root), tmp_path, limit_val_batches=1, callbacks=[watch])
    trained = (40, 40) if family in CROPPED else (60, 80)
    measured = (48, 64) if family in ("upernet", "mask2former") else (60, 80)
    assert watch.sizes == {True: [up(trained, divisor)], False: [up(measured, divisor)]}
    (batch,) = watch.batches  # what it is trained on has the images' size
    if family == "mask2former_panoptic":
        truths = [truth.ids for truth in batch.targets]
    else:
        truths = [target.labels if family in CROPPED else target.masks for target in batch.targets]
    assert {tuple(truth.shape[-2:]) for truth in truths} == {up(trained, divisor)}


@pytest.mark.parametrize("family", ["upernet", "mask2former"])
def test_every_view_of_validation_is_padded(family, root, tmp_path):
    watch = _Watch()
    task = task_for(family, {"size_divisor": 32}, flip=True)
    step(task, data_for(family, root, ratios=(1.0, 0.8)), tmp_path, limit_val_batches=1, callbacks=[watch])
    assert watch.sizes[False] == [up((48, 64), 32)] * 2 + [up((38, 51), 32)] * 2


@pytest.mark.parametrize("family", ["mask_rcnn", "upernet", "mask2former_panoptic"])
def test_a_given_network_is_measured_with_its_own_divisor(family, root, tmp_path):
    watch = _Watch()
    task = task_for(family)  # whose own network would have another
    task.network = task_for(family, {"size_divisor": 48}).build(4 if family == "mask2former_panoptic" else 2)
    watch.setup_hook(task.network.eval())
    with explained():
        trainer(tmp_path, limit_val_batches=1).validate(task, data_for(family, root), verbose=False)
    assert watch.sizes[False] == [up((48, 64) if family == "upernet" else (60, 80), 48)]


@pytest.mark.parametrize("divisor", DIVISORS)
@pytest.mark.parametrize("views", [Views(), Views(flip=True, short_sides=(48, 70)), Views(tile=40)])
@pytest.mark.parametrize("method", NETWORKS)
def test_prediction_pads_to_the_networks_divisor(method, views, divisor):
    options = {"segments": "semantic"} if method == "mask2former" else {}
    network = NETWORKS[method](size_divisor=divisor, **options).build().eval()
    preprocessing = Preprocessing(image_size=50, max_size=200)
    network.card = ModelCard(name="test", class_names=("ant", "bee", "cat"), preprocessing=preprocessing)
    watch = _Watch()
    watch.setup_hook(network)
    Predictor(network, "cpu", views=views, batch_size=1)(Image.new("RGB", (90, 60)))
    short_sides = views.short_sides or (50,)
    if views.tile:
        assert len(watch.sizes[False]) > 1
        assert set(watch.sizes[False]) == {up((50, 50), divisor)}
    else:
        expected = [up((side, round(side * 1.5)), divisor) for side in short_sides for _ in range(1 + views.flip)]
        assert watch.sizes[False] == expected


def test_a_sliding_window_that_would_need_padding_is_refused(root, tmp_path):
    task = task_for("mask2former", slide=SlideConfig(crop=40, stride=20))
    with pytest.raises(ConfigError, match=r"model\.slide: crop=40 must be a multiple .* size_divisor=32: take 32"):
        step(task, data_for("mask2former", root), tmp_path)
    network = upernet(size_divisor=16).build().eval()
    with pytest.raises(ConfigError, match=r"^crop=24 must be a multiple .* size_divisor=16: take 32"):
        slide(network, torch.randn(1, 3, 64, 64), (32, 24), (16, 16))
    assert slide(network, torch.randn(1, 3, 64, 64), (32, 48), (16, 16)).shape == (1, 3, 64, 64)
