"""Mask2Former against mmdet's, one test a stage of the computation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from focalnet.models.mask2former import Mask2Former, Mask2FormerConfig
from focalnet.models.mask2former.loss import losses as losses_of
from focalnet.models.mask2former.loss import match
from focalnet.models.mask2former.postprocess import class_scores
from focalnet.results import Detections, PanopticMap, SemanticMap
from focalnet.samples import IGNORED, Segments
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
    """Objects, then the stuff of the label map if there is one, as mmdet puts them together."""
    joined = []
    for i, target in enumerate(openmmlab.targets(case)):
        labels_HW = case.tensors.get(f"gt.{i}.sem_seg", torch.full((1, 1), IGNORED)).long()
        stuff = [label for label in labels_HW.unique().tolist() if things <= label < IGNORED]
        masks = [target.masks, *(labels_HW[None] == label for label in stuff)]
        labels = torch.cat([target.labels, torch.tensor(stuff, dtype=torch.long)])
        joined.append(Segments(labels=labels, masks=torch.cat(masks)))
    return joined


@cases(PATTERN)
@torch.no_grad()
def test_feature_maps_and_every_layer(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, _ = openmmlab.images(case)
    features = list(model.backbone(images).values())
    openmmlab.assert_feature_maps(case, expected, "backbone", features)
    memories, mask_features = model.panoptic_head.pixel_decoder(features)
    openmmlab.assert_feature_maps(case, expected, "pixel.memory", memories)
    torch.testing.assert_close(
        openmmlab.subsampled(case, "pixel.mask_features", mask_features),
        expected["pixel.mask_features"],
        **openmmlab.FEATURE_MAPS,
    )
    layers = model.training_outputs(images)
    openmmlab.assert_feature_maps(case, expected, "dec.masks", [layer.masks for layer in layers])
    torch.testing.assert_close(
        torch.stack([layer.logits for layer in layers]), expected["dec.cls"], **openmmlab.FEATURE_MAPS
    )
    last = model(images)
    torch.testing.assert_close(last.logits, layers[-1].logits)
    torch.testing.assert_close(last.masks, layers[-1].masks)


@pytest.mark.usefixtures("each_backend")
@cases(PATTERN)
def test_losses_gradients_and_matches(case: Case) -> None:
    model, facts, expected = build(case), case.facts["train"], case.tensors
    images, _ = openmmlab.images(case)
    targets = segments(case, model.config.things)

    stored = [expected[f"train.rand.{i}"] for i in range(sum(key.startswith("train.rand.") for key in expected))]
    numbers = iter(stored)

    def draw(*shape: int, device: torch.device) -> torch.Tensor:
        if 0 in shape:  # mmdet does not ask for them
            return torch.zeros(shape, device=device)
        random = next(numbers)
        assert random.shape == shape
        return random.to(device)

    outputs = model.training_outputs(images)
    losses = losses_of(model.config, outputs, targets, draw)
    assert next(numbers, None) is None
    openmmlab.assert_losses(losses, facts, rtol=1e-3, total_rtol=1e-4)
    torch.stack(list(losses.values())).sum().backward()
    openmmlab.assert_gradient_norms(model, facts["grad_norms"])
    of_a_layer = len(stored) // len(outputs)  # one for the matching of each image, then those of the loss
    for k, layer in enumerate(outputs):
        numbers = iter(stored[k * of_a_layer :])
        for i, target in enumerate(targets):
            assigned = match(layer.logits[i], layer.masks[i], target, model.config.train_points, draw)
            stuff = len(expected[f"gt.{i}.labels"]) + 1  # mmdet numbers it in no order; the class loss tells it apart
            assert torch.equal(assigned.clamp(max=stuff), expected[f"train.gt_inds.{k}.{i}"].long().clamp(max=stuff))


@pytest.mark.parametrize("name", ["pan_input", "pan_rescaled"])
@cases(PATTERN, holding="pan_input.0")
@torch.no_grad()
def test_panoptic(case: Case, name: str) -> None:
    model, expected = build(case, segments="panoptic"), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case) if name == "pan_rescaled" else sizes
    for i, panoptic_map in enumerate(model.predict(images, sizes, originals)):
        assert isinstance(panoptic_map, PanopticMap)
        theirs = expected[f"{name}.{i}"][0].long()
        ids = [number for number in theirs.unique().tolist() if number != model.config.num_classes]
        assert len(panoptic_map.segments) == len(ids)
        assert [s.id for s in panoptic_map.segments] == list(range(1, len(ids) + 1))
        wrong = 0
        for number in ids:  # class + 1000 * instance: ours is the segment of that class it shares most with
            mask = theirs == number
            ours = int(panoptic_map.ids[mask].mode().values)
            segment = panoptic_map.segments[ours - 1]
            assert (segment.label, segment.is_thing) == (number % 1000, number % 1000 < model.config.things)
            assert segment.area == int((panoptic_map.ids == ours).sum())
            wrong += int(((panoptic_map.ids == ours) != mask).sum())
        assert wrong <= 0.003 * theirs.numel()


def assert_objects(detections: Detections, expected: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Compares objects as sets, paired by label and score: their boxes are much alike."""
    boxes, scores, labels = (expected[f"{name}.{key}"] for key in ("bboxes", "scores", "labels"))
    assert len(detections) == len(labels)
    assert (detections.scores.diff() <= 0).all()
    distance = (detections.scores[:, None] - scores).abs() + (detections.labels[:, None] != labels)
    order = distance.argmin(0) if len(labels) else labels
    assert len(order.unique()) == len(order)
    assert torch.equal(detections.labels[order], labels)
    torch.testing.assert_close(detections.scores[order], scores, rtol=0, atol=openmmlab.SCORES)
    torch.testing.assert_close(detections.boxes[order], boxes, rtol=0, atol=openmmlab.BOXES)
    return order


@pytest.mark.parametrize("name", ["ins_input", "ins_rescaled"])
@cases(PATTERN, holding="ins_input.0.labels")
@torch.no_grad()
def test_instances(case: Case, name: str) -> None:
    model, expected = build(case, segments="instance"), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case) if name == "ins_rescaled" else sizes
    for i, detections in enumerate(model.predict(images, sizes, originals)):
        assert isinstance(detections, Detections)
        assert detections.masks is not None
        order = assert_objects(detections, expected, f"{name}.{i}")
        masks = detections.masks[order]
        areas = masks.sum((1, 2))
        torch.testing.assert_close(areas, expected[f"{name}.{i}.mask_areas"].long(), rtol=0.002, atol=1)
        if f"{name}.{i}.masks_first" in expected:
            first = openmmlab.unpack(case, f"{name}.{i}.masks_first", expected)
            assert ((masks[: len(first)] != first).sum((1, 2)) <= 0.002 * areas[: len(first)] + 1).all()


@cases(PATTERN, holding="sem_rescaled.0.pred")
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
    for i, semantic_map in enumerate(model.postprocess(outputs, sizes, originals)):
        assert isinstance(semantic_map, SemanticMap)
        (height, width), name = sizes[i], f"sem_rescaled.{i}"
        masks = F.interpolate(outputs.masks[i][None], outputs.size, mode="bilinear")[:, :, :height, :width]
        masks = F.interpolate(masks, originals[i], mode="bilinear")
        scores = class_scores(outputs.logits[i][None], masks)
        torch.testing.assert_close(openmmlab.subsampled(case, name, scores), expected[name], **openmmlab.FEATURE_MAPS)
        assert (scores[0].argmax(0) == expected[f"{name}.pred"]).float().mean() >= 0.999
        assert (semantic_map.labels == expected[f"{name}.pred"]).float().mean() >= 0.98
