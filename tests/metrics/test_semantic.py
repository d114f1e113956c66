"""Mean IoU and accuracies of pixels, against counting by hand and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.errors import ConfigError, InputError
from focalnet.metrics.semantic import SemanticMetric, evaluate
from focalnet.results import SemanticMap
from focalnet.samples import IGNORED


def measured(found: list[list[int]], true: list[list[int]], num_classes: int):
    metric = SemanticMetric(num_classes)
    metric.update([SemanticMap(torch.tensor([row])) for row in found], [torch.tensor([row]) for row in true])
    return metric.compute()


def test_known_values():
    # Class 0: 2 of 3 right, one pixel too many; class 1: 1 of 2; class 2 is neither there nor found.
    result = measured([[0, 0, 1, 1, 0, 9]], [[0, 0, 0, 1, 1, IGNORED]], 3)
    assert result.iou[:2].tolist() == pytest.approx([100 * 2 / 4, 100 * 1 / 3])
    assert math.isnan(result.iou[2])
    assert result.miou == pytest.approx((50 + 100 / 3) / 2)
    assert result.accuracy == pytest.approx(60.0)
    assert result.mean_accuracy == pytest.approx((200 / 3 + 50) / 2)


def test_a_class_that_is_found_but_not_there_lowers_the_mean():
    result = measured([[0, 0, 2, 2]], [[0, 0, 0, 0]], 3)
    assert result.iou[[0, 2]].tolist() == [50.0, 0.0]
    assert result.miou == 25.0
    assert result.mean_accuracy == 50.0


def test_pixels_without_an_answer_are_wrong():
    result = measured([[0, IGNORED, IGNORED, 1]], [[0, 0, 1, 1]], 2)
    assert result.iou.tolist() == [50.0, 50.0]
    assert result.accuracy == 50.0
    assert result.matrix[:, 2].tolist() == [1, 1]


def test_nothing_labeled_is_no_number():
    result = measured([[0, 1]], [[IGNORED, IGNORED]], 2)
    assert all(math.isnan(value) for value in result.summary().values())


@given(
    seed=st.integers(0, 2**31),
    num_classes=st.integers(1, 6),
    images=st.integers(1, 3),
    used=st.integers(1, 6),
)
def test_it_is_what_counting_gives(seed, num_classes, images, used):
    draw = np.random.default_rng(seed)
    choices = [*range(min(used, num_classes)), IGNORED]
    true = draw.choice(choices, (images, 12))
    found = draw.integers(0, num_classes, (images, 12))
    result = measured(found.tolist(), true.tolist(), num_classes)
    pixels = [(t, f) for t, f in zip(true.ravel().tolist(), found.ravel().tolist(), strict=True) if t != IGNORED]
    ious, accuracies = [], []
    for label in range(num_classes):
        both = sum(t == label == f for t, f in pixels)
        either = sum(label in (t, f) for t, f in pixels)
        there = sum(t == label for t, _ in pixels)
        assert result.iou[label] == pytest.approx(100 * both / either if either else math.nan, nan_ok=True)
        ious += [100 * both / either] if either else []
        accuracies += [100 * both / there] if there else []
    expected = {
        "miou": np.mean(ious) if ious else math.nan,
        "pixel_accuracy": 100 * sum(t == f for t, f in pixels) / len(pixels) if pixels else math.nan,
        "mean_accuracy": np.mean(accuracies) if accuracies else math.nan,
    }
    assert result.summary() == pytest.approx(expected, nan_ok=True)


@given(st.permutations(range(6)), st.integers(1, 5))
@settings(max_examples=20)
def test_order_and_processes_do_not_matter(order, cut):
    draw = torch.Generator().manual_seed(0)
    true = [torch.randint(0, 4, (3, 5), generator=draw) for _ in range(6)]
    found = [SemanticMap(torch.randint(0, 4, (3, 5), generator=draw)) for _ in range(6)]
    whole, first, second = SemanticMetric(4), SemanticMetric(4), SemanticMetric(4)
    whole.update(found, true)
    for metric, part in ((first, order[:cut]), (second, order[cut:])):
        metric.update([found[i] for i in part], [true[i] for i in part])
    both = evaluate((first.matrix + second.matrix).numpy())
    assert both.summary() == whole.compute().summary()


@pytest.mark.parametrize("label", [-1, 3, 254])
def test_targets_of_no_class_are_refused(label):
    with pytest.raises(InputError, match=f"a target has the label {label}"):
        SemanticMetric(3).count(torch.tensor([[0, 1]]), torch.tensor([[0, label]]))


def test_predictions_below_0_are_refused_and_not_another_class():
    with pytest.raises(InputError, match="a prediction has the label -1"):
        SemanticMetric(3).count(torch.tensor([[0, -1]]), torch.tensor([[0, 1]]))


def test_255_can_only_be_one_thing():
    SemanticMetric(255)
    with pytest.raises(ConfigError, match="num_classes=256"):
        SemanticMetric(256)
