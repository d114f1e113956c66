"""Reads the cases of ``golden/openmmlab``: their weights, images, targets and packed masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from focalnet.results import Detections
from focalnet.samples import ObjectTarget
from tests.parity.golden import Case

FEATURE_MAPS = {"rtol": 1e-4, "atol": 2e-4}
BOXES, SCORES = 2e-2, 5e-4  # pixels, probability


def state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a case, as a released file would hold it."""
    return {
        key.removeprefix("state."): value.float() if value.is_floating_point() else value
        for key, value in tensors.items()
        if key.startswith("state.")
    }


def images(case: Case) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """The batch, normalized and padded by the case's rule, and the images' sizes before padding."""
    rule, tensors = case.facts["input"], case.tensors
    mean, std = (torch.tensor(rule[name])[:, None, None] for name in ("mean", "std"))
    batch = torch.zeros(rule["shape"])
    sizes = [(height, width) for height, width in (meta["img_shape"] for meta in case.facts["img_metas"])]
    for i, (height, width) in enumerate(sizes):
        batch[i, :, :height, :width] = (tensors[f"img.{i}"].float() - mean) / std
    torch.testing.assert_close(float(batch.double().abs().sum()), rule["abs_sum"], rtol=1e-6, atol=0)
    return batch, sizes


def unpublished(config: Any, *names: str) -> dict[str, Any]:
    """Settings of a case that do not follow from its weights and differ from the published ones, the defaults."""
    values = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return {name: value for name, value in values.items() if value != getattr(type(config), name)}


def original_sizes(case: Case) -> list[tuple[int, int]]:
    return [(height, width) for height, width in (meta["ori_shape"] for meta in case.facts["img_metas"])]


def size_divisor(case: Case) -> int:
    """The number, a power of two, that both sides of every image were padded to a multiple of."""
    sides = [
        pair for meta in case.facts["img_metas"] for pair in zip(meta["img_shape"], meta["pad_shape"], strict=True)
    ]
    powers = [2**i for i in range(10)]
    return next(d for d in powers if all(-(-side // d) * d == padded for side, padded in sides))


def unpack(case: Case, name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Masks stored as packed bits, bool; there may be none."""
    number, *size = case.facts["stored"][name]["full_shape"]
    pixels = int(np.prod(size))
    bits = np.unpackbits(tensors[name].numpy().reshape(number, -(-pixels // 8)), axis=1)[:, :pixels]
    return torch.from_numpy(bits.reshape(number, *size).astype(bool))


def targets(case: Case) -> list[ObjectTarget]:
    tensors = case.tensors

    def target(i: int) -> ObjectTarget:
        name = f"gt.{i}.masks"
        return ObjectTarget(
            boxes=tensors[f"gt.{i}.bboxes"],
            labels=tensors[f"gt.{i}.labels"],
            masks=unpack(case, name, tensors) if name in tensors else None,
            ignored=torch.zeros(0, 4),
        )

    return [target(i) for i in range(len(case.facts["img_metas"]))]


def subsampled(case: Case, name: str, value: torch.Tensor) -> torch.Tensor:
    """The cells of a full feature map that the case stores."""
    stride = case.facts["stored"].get(name, {}).get("spatial_stride", 1)
    return value[..., ::stride, ::stride]


def assert_feature_maps(case: Case, expected: dict[str, torch.Tensor], name: str, values: Any) -> None:
    """Compares ``name.0``, ``name.1``, ... with feature maps, finest first."""
    values = list(values)
    assert f"{name}.{len(values)}" not in expected
    for i, value in enumerate(values):
        key = f"{name}.{i}"
        torch.testing.assert_close(
            subsampled(case, key, value), expected[key], **FEATURE_MAPS, msg=lambda m, k=key: f"{k}: {m}"
        )


def match(
    boxes: torch.Tensor, labels: torch.Tensor, expected_boxes: torch.Tensor, expected_labels: torch.Tensor
) -> torch.Tensor:
    """Matches boxes of the same label one to one by distance; returns the index of ours for each expected box."""
    from scipy.optimize import linear_sum_assignment

    assert sorted(labels.tolist()) == sorted(expected_labels.tolist())
    distance = (boxes[:, None] - expected_boxes).abs().amax(-1) + 1e6 * (labels[:, None] != expected_labels)
    ours, theirs = linear_sum_assignment(distance)
    return torch.as_tensor(ours[np.argsort(theirs)])


def assert_proposals(proposals: Any, expected: dict[str, torch.Tensor], name: str) -> None:
    """Compares two sets of proposals; a few with scores near the threshold may differ."""
    boxes, scores = expected[f"{name}.bboxes"], expected[f"{name}.scores"]
    assert len(proposals.boxes) == len(boxes)
    if not len(boxes):
        return
    distance = (proposals.boxes[:, None] - boxes).abs().amax(-1)
    distance[(proposals.scores[:, None] - scores).abs() > SCORES] = torch.inf
    assert int((distance.amin(0) > BOXES).sum()) <= 5
    assert int((distance.amin(1) > BOXES).sum()) <= 5


def assert_detections(detections: Detections, expected: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Compares detections as sets; returns the index of ours for each expected one."""
    boxes, scores, labels = (expected[f"{name}.{key}"] for key in ("bboxes", "scores", "labels"))
    order = match(detections.boxes, detections.labels, boxes, labels)
    torch.testing.assert_close(detections.boxes[order], boxes, rtol=0, atol=BOXES)
    torch.testing.assert_close(detections.scores[order], scores, rtol=0, atol=SCORES)
    assert (detections.scores.diff() <= 0).all()
    return order


def assert_losses(losses: dict[str, torch.Tensor], facts: dict[str, Any], rtol: float, total_rtol: float) -> None:
    """Compares every term (a list with one value for each level stands for its sum) and the total."""
    expected = {
        name: sum(value) if isinstance(value, list) else value
        for name, value in facts["losses"].items()
        if "loss" in name
    }
    ours = {name: float(value.detach()) for name, value in losses.items()}
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(ours[name] - value) <= rtol * max(abs(value), 1e-3), name
    assert abs(sum(ours.values()) - facts["total"]) <= total_rtol * facts["total"]


def assert_gradient_norms(model: torch.nn.Module, expected: dict[str, float]) -> None:
    parameters = dict(model.named_parameters())
    assert parameters.keys() == expected.keys()
    least = 1e-3 * max(expected.values())
    for name, value in expected.items():
        gradient = parameters[name].grad
        norm = 0.0 if gradient is None else float(gradient.norm())
        assert abs(norm - value) <= 1e-2 * max(value, least), name
