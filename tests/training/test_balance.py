"""Class weights, balanced sampling, smoothing by class, a teacher, frozen names: right by hand, refused in one line."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from focalnet.card import Preprocessing
from focalnet.cli.train import fit
from focalnet.data import loader
from focalnet.data.augment import Augmentation
from focalnet.data.loader import EpochBatches, balanced_order
from focalnet.errors import ConfigError
from focalnet.training import ClassificationTask
from focalnet.training.tasks.base import freeze_by_name
from focalnet.training.tasks.classification import DistillationConfig, distillation_loss, weighted_cross_entropy
from tests.training.toy import TOY, weights_of

DIGITS = "classification/digits"
ONCE = {**TOY, "trainer.max_epochs": 1}


def test_class_weights_are_those_of_the_formula():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])  # probabilities 1/4, 3/4 and 1/2, 1/2
    weights = torch.tensor([1.0, 4.0])
    hard = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = (1 * math.log(4) + 4 * math.log(2)) / 5
    assert weighted_cross_entropy(logits, hard, weights).item() == pytest.approx(expected)
    reference = nn.functional.cross_entropy(logits, torch.tensor([0, 1]), weight=weights)
    torch.testing.assert_close(weighted_cross_entropy(logits, hard, weights), reference)
    mixed = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    expected = (0.5 * math.log(4) + 2 * math.log(4 / 3) + 4 * math.log(2)) / 6.5
    assert weighted_cross_entropy(logits, mixed, weights).item() == pytest.approx(expected)


@pytest.mark.parametrize(("given", "expected"), [("balanced", [2.0, 2 / 3]), ([3.0, 1.0], [3.0, 1.0]), (None, None)])
def test_balanced_weights_are_the_inverse_of_the_counts(given, expected):
    task = ClassificationTask(architecture="focalnet_nano", class_weights=given)
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(class_counts=lambda: torch.tensor([2, 6])))
    weights = task._class_weights()
    assert weights is None if expected is None else weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("counts", "message"), [(None, "WebDataset"), (torch.tensor([3, 0]), "every class")])
def test_balanced_weights_need_images_of_every_class(counts, message):
    task = ClassificationTask(architecture="focalnet_nano", class_weights="balanced")
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(class_counts=lambda: counts))
    with pytest.raises(ConfigError, match=message):
        task._class_weights()


def test_smoothing_by_class():
    task = ClassificationTask(architecture="focalnet_nano", label_smoothing=[0.0, 0.4])
    task.network = SimpleNamespace(config=SimpleNamespace(num_classes=2))
    smoothed = task._smoothed(torch.tensor([0, 1]))
    torch.testing.assert_close(smoothed, torch.tensor([[1.0, 0.0], [0.2, 0.8]]))
    equal = ClassificationTask(architecture="focalnet_nano", label_smoothing=[0.4, 0.4])
    one = ClassificationTask(architecture="focalnet_nano", label_smoothing=0.4)
    equal.network = one.network = task.network
    mixed = torch.tensor([[0.25, 0.75]])
    torch.testing.assert_close(equal._smoothed(mixed), one._smoothed(mixed))


@pytest.mark.parametrize("seed", range(3))
def test_every_class_is_drawn_equally_often(seed):
    labels = np.array([0] * 90 + [1] * 9 + [2] * 2)
    order = balanced_order(labels, np.random.default_rng(seed))
    assert len(order) == 101
    assert sorted(np.bincount(labels[order])) == [33, 34, 34]
    for label in (1, 2):  # each image of a small class as often as another
        counts = np.bincount(order, minlength=101)[labels == label]
        assert counts.max() - counts.min() <= 1
    assert np.bincount(order)[:90].max() == 1
    batches = EpochBatches(101, 10, seed=seed, training=True, labels=labels)
    first, again = list(batches), list(batches)
    assert first == again
    batches.set_epoch(1)
    assert list(batches) != first


@pytest.mark.parametrize("processes", [2, 5])
def test_processes_share_one_balanced_order(monkeypatch, processes):
    labels = np.repeat([0, 1, 2], [90, 8, 3])

    def batches(rank: int, of: int, skip: int = 0) -> list[list[tuple[int, int]]]:
        monkeypatch.setattr(loader, "world", lambda: (rank, of))
        sampler = EpochBatches(101, 10, seed=3, training=True, labels=labels)
        sampler.set_epoch(4)
        sampler.skip = skip
        return [*sampler]

    alone = batches(0, 1)
    shares = [batches(rank, processes) for rank in range(processes)]
    together = [sorted(key for part in parts for key in part) for parts in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in alone]
    assert [batches(rank, processes, skip=7) for rank in range(processes)] == [share[7:] for share in shares]


def test_with_several_classes_each_is_drawn_equally_often_and_so_are_images_of_none():
    several = np.zeros((100, 3), bool)
    several[:80, 0], several[75:85, 1], several[98:, 2] = True, True, True  # 13 images of no class
    order = balanced_order(several, np.random.default_rng(0))
    assert len(order) == 100
    drawn = several[order]
    assert (~drawn.any(1)).sum() == 25
    assert drawn[:, 2].sum() == 25
    assert 50 <= drawn[:, :2].sum() <= 75  # each 25 times, and more where an image has both
    single = np.arange(12) % 3
    one_hot = np.eye(3, dtype=bool)[single]
    orders = [balanced_order(labels, np.random.default_rng(1)).tolist() for labels in (single, one_hot)]
    assert orders[0] == orders[1]


def test_distillation_is_hintons():
    logits, teacher = torch.tensor([[0.0, 2 * math.log(3.0)]]), torch.tensor([[0.0, 0.0]])
    expected = 4 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))  # T = 2: 1/4, 3/4 against 1/2, 1/2
    assert distillation_loss(logits, teacher, 2.0).item() == pytest.approx(expected)
    assert distillation_loss(logits, logits, 2.0).item() == pytest.approx(0.0, abs=1e-7)


def test_a_timm_model_teaches(tmp_path):
    teacher = timm.create_model("test_resnet", num_classes=10)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    taught = {"teacher": "test_resnet", "weights": str(tmp_path / "teacher.pth"), "share": 0.7}
    plain = fit(DIGITS, output=tmp_path / "plain", **ONCE)
    run = fit(DIGITS, output=tmp_path / "run", **ONCE, **{"model.distillation": taught, "data.image_size": 32})
    assert weights_of(run).keys() == weights_of(plain).keys()
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith(("network.", "average.")) for name in state)
    with pytest.raises(ConfigError, match=r"distillation.teacher=nothing cannot be loaded"):
        DistillationConfig(teacher="nothing").build(10)


def test_frozen_names_keep_their_weights(tmp_path):
    frozen = {
        "model.freeze": ["layers.0.*", "head.bias"],
        "model.class_weights": "balanced",
        "data.sampling": "balanced",
    }
    run = fit(DIGITS, output=tmp_path / "run", **ONCE, **frozen)
    start = fit(
        DIGITS, output=tmp_path / "start", **{**ONCE, "model.optimizer.lr": 1e-12, "model.schedule.warmup_lr": 0}
    )
    one, other = weights_of(run), weights_of(start)
    same = {name for name in one if torch.allclose(one[name], other[name], atol=1e-7)}
    assert same == {name for name in one if name.startswith("layers.0.") or name == "head.bias"}


def test_frozen_batch_norms_keep_their_statistics():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    freeze_by_name(network, ["1.*"])
    network(torch.randn(8, 2))
    assert network[1].running_mean.tolist() == [0.0, 0.0]
    assert network[0].weight.requires_grad
    with pytest.raises(ConfigError, match=r'no parameter is named "0.weigth"; did you mean "0.weight"'):
        freeze_by_name(network, ["0.weigth"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.class_weights": [1.0, 2.0]}, "class_weights has 2 values, the data has 10 classes"),
        ({"model.class_weights": [-1.0] * 10}, "not be negative"),
        ({"model.label_smoothing": [0.1]}, "label_smoothing has 1 values"),
        ({"model.label_smoothing": [1.0] * 10}, "label_smoothing"),
        ({"model.distillation": {"teacher": "x", "share": 0.0}}, "share"),
        ({"model.freeze": ["nothing.*"]}, "nothing"),
        ({"data.sampling": "random"}, "sampling"),
        ({"data.augmentation.rotation": 200}, "rotation"),
        ({"data.augmentation.flip_vertical": 2}, "flip_vertical"),
    ],
)
def test_what_does_not_apply_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(DIGITS, output=tmp_path / "run", **ONCE, **options)
    assert not (tmp_path / "run").exists()


def test_rotation_and_upside_down_flips():
    still = {"crop": "center", "flip": 0.0, "policy": None, "color_jitter": 0.0, "erase_prob": 0.0}
    small = Preprocessing(image_size=4, crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    image = Image.fromarray(pixels)
    plain = Augmentation(**still).build(small)(image)
    flipped = Augmentation(**still, flip_vertical=1.0).build(small)(image)
    assert torch.equal(flipped, plain.flip(1))
    turned = Augmentation(**still, rotation=90).build(small)
    torch.manual_seed(0)
    assert any(not torch.equal(turned(image), plain) for _ in range(3))


def test_accumulated_batches_are_said(tmp_path, caplog):
    with caplog.at_level("INFO", "focalnet"):
        fit(DIGITS, output=tmp_path / "run", **ONCE, **{"trainer.accumulate_grad_batches": 3})
    assert "an update sees 96 images: 3 batches of 32" in caplog.text
