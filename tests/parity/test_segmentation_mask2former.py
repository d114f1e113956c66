"""Mask2Former against mmdet's, one test a stage of the computation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from focalnet.models.mask2former import Mask2Former, Mask2FormerConfig
from focalnet.models.mask2former.loss import losses as losses_of
from focalnet.models.mask2former.loss import match
from focalnet.models.mask2former.postprocess import class_scores
from focalnet.results import Detections, PanopticMap, SemanticMap
from focalnet.samples import Segments
from tests.parity import openmmlab
from tests.parity.golden import Case, cases

PATTERN = "openmmlab/mmdet_mask2former_*.json"


def build(case: Case, **options: Any) -> Mask2Former:
    config = dataclasses.replace(Mask2FormerConfig.from_official(case.facts["config"]), **options)
    model = config.build().eval()
    model.load_state_dict(openmmlab.state(case.tensors))
    assert sum(t.numel() for t in model.state_dict().values()) == case.facts["num_params"]
    return model


def segments(case: Case, things: int) -> list[Segments]:
    """Objects, then the stuff of the label map, as mmdet puts them together."""
    found = []
    for i, target in enumerate(openmmlab.targets(case)):
        labels_HW = case.tensors[f"gt.{i}.sem_seg"].long()
        stuff = [label for label in labels_HW.unique().tolist() if things <= label < 255]
        masks = [target.masks, *(labels_HW[None] == label for label in stuff)]
        labels = torch.cat([target.labels, torch.tensor(stuff, dtype=torch.long)])
        found.append(Segments(labels=labels, masks=torch.cat(masks)))
    return found


@cases(PATTERN)
@torch.no_grad()
def test_maps_and_every_layer(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, _ = openmmlab.images(case)
    maps = model.backbone(images)
    openmmlab.assert_maps(case, expected, "backbone", maps.values())
    memories, features = model.panoptic_head.pixel_decoder(list(maps.values()))
    openmmlab.assert_maps(case, expected, "pixel.memory", memories)
    torch.testing.assert_close(
        openmmlab.stored_part(case, "pixel.mask_features", features), expected["pixel.mask_features"], **openmmlab.MAPS
    )
    layers = model.training_outputs(images)
    openmmlab.assert_maps(case, expected, "dec.masks", [layer.masks for layer in layers])
    torch.testing.assert_close(torch.stack([layer.logits for layer in layers]), expected["dec.cls"], **openmmlab.MAPS)
    last = model(images)
    torch.testing.assert_close(last.logits, layers[-1].logits)
    torch.testing.assert_close(last.masks, layers[-1].masks)


@cases(PATTERN)
def test_losses_gradients_and_matches(case: Case) -> None:
    model, facts, expected = build(case), case.facts["train"], case.tensors
    images, _ = openmmlab.images(case)
    targets = segments(case, model.config.things)

    def stored() -> Iterator[torch.Tensor]:
        yield from (expected[f"train.rand.{i}"] for i in range(20))

    numbers = stored()

    def draw(*shape: int, device: torch.device) -> torch.Tensor:
        drawn = next(numbers)
        assert drawn.shape == shape
        return drawn.to(device)

    outputs = model.training_outputs(images)
    losses = losses_of(model.config, outputs, targets, draw)
    assert next(numbers, None) is None
    openmmlab.assert_losses(losses, facts, rtol=1e-3, total_rtol=1e-4)
    torch.stack(list(losses.values())).sum().backward()
    openmmlab.assert_gradient_norms(model, facts["grad_norms"])
    numbers = stored()
    for k, layer in enumerate(outputs):
        for i, target in enumerate(targets):
            assigned = match(layer.logits[i], layer.masks[i], target, model.config.train_points, draw)
            stuff = (
                len(case.tensors[f"gt.{i}.labels"]) + 1
            )  # mmdet numbers it in no order; the class loss tells it apart
            assert torch.equal(assigned.clamp(max=stuff), expected[f"train.gt_inds.{k}.{i}"].long().clamp(max=stuff))
        next(numbers), next(numbers)  # those of the loss


@pytest.mark.parametrize("name", ["pan_input", "pan_rescaled"])
@cases(PATTERN)
@torch.no_grad()
def test_panoptic(case: Case, name: str) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case) if name == "pan_rescaled" else sizes
    for i, found in enumerate(model.predict(images, sizes, originals)):
        assert isinstance(found, PanopticMap)
        theirs = expected[f"{name}.{i}"][0].long()
        ids = [number for number in theirs.unique().tolist() if number != model.config.num_classes]
        assert len(found.segments) == len(ids)
        assert [s.id for s in found.segments] == list(range(1, len(ids) + 1))
        wrong = 0
        for number in ids:  # class + 1000 * instance: ours is the segment of that class it shares most with
            mask = theirs == number
            ours = int(found.ids[mask].mode().values)
            segment = found.segments[ours - 1]
            assert (segment.label, segment.is_thing) == (number % 1000, number % 1000 < model.config.things)
            assert segment.area == int((found.ids == ours).sum())
            wrong += int(((found.ids == ours) != mask).sum())
        assert wrong <= 0.003 * theirs.numel()


def assert_objects(found: Detections, expected: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Compares objects as sets, paired by label and score: their boxes are much alike."""
    boxes, scores, labels = (expected[f"{name}.{part}"] for part in ("bboxes", "scores", "labels"))
    assert len(found) == len(labels)
    assert (found.scores.diff() <= 0).all()
    distance = (found.scores[:, None] - scores).abs() + (found.labels[:, None] != labels)
    order = distance.argmin(0)
    assert len(order.unique()) == len(order)
    assert torch.equal(found.labels[order], labels)
    torch.testing.assert_close(found.scores[order], scores, rtol=0, atol=openmmlab.SCORES)
    torch.testing.assert_close(found.boxes[order], boxes, rtol=0, atol=openmmlab.BOXES)
    return order


@pytest.mark.parametrize("name", ["ins_input", "ins_rescaled"])
@cases(PATTERN)
@torch.no_grad()
def test_instances(case: Case, name: str) -> None:
    model, expected = build(case, segments="instance"), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case) if name == "ins_rescaled" else sizes
    for i, found in enumerate(model.predict(images, sizes, originals)):
        assert isinstance(found, Detections)
        assert found.masks is not None
        order = assert_objects(found, expected, f"{name}.{i}")
        areas = found.masks[order].sum((1, 2))
        torch.testing.assert_close(areas, expected[f"{name}.{i}.mask_areas"].long(), rtol=0.002, atol=1)
        if name == "ins_rescaled":
            first = openmmlab.unpack(case, f"{name}.{i}.masks_first", expected)
            assert ((found.masks[order][: len(first)] != first).sum((1, 2)) <= 0.002 * areas[: len(first)] + 1).all()


@cases(PATTERN)
@torch.no_grad()
def test_semantic(case: Case) -> None:
    """The case scores masks of the original size; ours, as the original code, scores those the network saw.

    The formula is therefore compared on masks resized as in the case; the labels differ where masks of random weights
    are thinner than a pixel.
    """
    model, expected = build(case, segments="semantic"), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case)
    outputs = model(images)
    for i, found in enumerate(model.postprocess(outputs, sizes, originals)):
        assert isinstance(found, SemanticMap)
        (height, width), name = sizes[i], f"sem_rescaled.{i}"
        masks = F.interpolate(outputs.masks[i][None], outputs.size, mode="bilinear")[:, :, :height, :width]
        masks = F.interpolate(masks, originals[i], mode="bilinear")
        scores = class_scores(outputs.logits[i][None], masks)
        torch.testing.assert_close(openmmlab.stored_part(case, name, scores), expected[name], **openmmlab.MAPS)
        assert (scores[0].argmax(0) == expected[f"{name}.pred"]).float().mean() >= 0.999
        assert (found.labels == expected[f"{name}.pred"]).float().mean() >= 0.98
