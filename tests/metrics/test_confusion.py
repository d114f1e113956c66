"""Hits, confusions, misses and inventions are counted where they belong."""

from __future__ import annotations

import pytest
import torch

from focalnet.metrics.confusion import DetectionConfusion, match
from focalnet.results import Detections
from focalnet.samples import ObjectTarget

pytest.importorskip("scipy")
NOWHERE = torch.zeros(0, 4)


def boxes(*lefts: float) -> torch.Tensor:
    return torch.tensor([[left, 0, left + 10, 10] for left in lefts], dtype=torch.float32).reshape(-1, 4)


def target(where: torch.Tensor, labels: list[int], ignored: torch.Tensor = NOWHERE) -> ObjectTarget:
    return ObjectTarget(boxes=where, labels=torch.tensor(labels, dtype=torch.int64), masks=None, ignored=ignored)


def counted(found: torch.Tensor, labels: list[int], scores: list[float], truth: ObjectTarget) -> list[list[int]]:
    confusion = DetectionConfusion(2)
    confusion.update(Detections(found, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)), truth)
    return confusion.matrix.tolist()


def test_hit_confusion_miss_and_invention():
    truth = target(boxes(0, 100, 200), [0, 1, 0])
    found = counted(boxes(1, 101, 300), [0, 0, 1], [0.9, 0.9, 0.9], truth)
    assert found == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_weak_detections_do_not_count():
    assert counted(boxes(0), [0], [0.4], target(boxes(0), [0])) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_what_lies_in_an_ignored_region_is_no_invention():
    crowd = torch.tensor([[0.0, 0, 100, 100]])
    found = counted(boxes(20, 200), [0, 0], [0.9, 0.9], target(NOWHERE, [], crowd))
    assert found == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_images_without_objects_or_detections():
    assert counted(NOWHERE, [], [], target(NOWHERE, [])) == [[0] * 3] * 3


def test_each_box_has_one_partner_and_the_pairs_overlap_most():
    pairs = match(boxes(0, 3), boxes(2, 5), 0.3)
    assert pairs.tolist() == [[0, 0], [1, 1]]
    assert match(boxes(0, 1), boxes(0.5), 0.5).shape == (1, 2)
    assert match(boxes(0), boxes(8), 0.5).shape == (0, 2)
