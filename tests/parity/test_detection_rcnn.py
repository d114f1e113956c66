"""Mask R-CNN and Cascade Mask R-CNN against mmdet's, one test a stage of the computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from focalnet.models.rcnn import RCNN, CascadeRCNNConfig, MaskRCNNConfig
from focalnet.models.rcnn.config import RCNNConfig
from focalnet.models.rcnn.loss import losses as losses_of
from focalnet.models.rcnn.network import sample_rois
from focalnet.ops import assign, rois
from focalnet.samples import Batch, ObjectTarget
from tests.parity import openmmlab
from tests.parity.golden import Case, cases

PATTERN = "openmmlab/*mask_rcnn_*.json"
CONFIGS: dict[str, type[RCNNConfig]] = {"MaskRCNN": MaskRCNNConfig, "CascadeRCNN": CascadeRCNNConfig}


def build(case: Case) -> RCNN:
    official = case.facts["config"]
    config = CONFIGS[official["type"]].from_official(official)
    model = replace(config, size_divisor=openmmlab.size_divisor(case)).build().eval()
    model.load_state_dict(openmmlab.state(case.tensors))
    assert sum(t.numel() for t in model.state_dict().values()) == case.facts["num_params"]
    return model


@cases(PATTERN)
def test_feature_maps_and_proposals(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    with torch.no_grad():
        features = model.backbone(images)
        openmmlab.assert_feature_maps(case, expected, "backbone", features.values())
        openmmlab.assert_feature_maps(case, expected, "neck", model.neck(features).values())
        outputs = model(images, sizes)
    openmmlab.assert_feature_maps(case, expected, "rpn.cls", outputs.rpn.scores)
    openmmlab.assert_feature_maps(case, expected, "rpn.reg", outputs.rpn.deltas)
    for level, anchors in enumerate(outputs.rpn.anchors):
        first, last = (expected[f"anchors.{end}8_per_level"][level] for end in ("first", "last"))
        torch.testing.assert_close(anchors[: len(first)], first)
        torch.testing.assert_close(anchors[-len(last) :], last)
    for i, proposals in enumerate(outputs.proposals):
        openmmlab.assert_proposals(proposals, expected, f"rpn.proposals.{i}")


@cases(PATTERN)
@torch.no_grad()
def test_heads(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    pyramid, boxes, first = model(images, sizes).pyramid, expected["roi.rois"], expected["roi.bbox_feats_first4"]
    features = rois.pool(pyramid, model.roi_head.strides, boxes[: len(first)], first.shape[-1])
    torch.testing.assert_close(features, first, **openmmlab.FEATURE_MAPS)
    for stage in range(len(model.config.stages)):
        prefix = f"roi.s{stage}" if model.config.indexed else "roi"
        logits, deltas = model.roi_head.classify(pyramid, boxes, stage)
        values = {"cls_score": logits, "bbox_pred": deltas.flatten(1)}
        if model.config.masks:
            masks = expected[f"{prefix}.mask_logits_first4"]
            values["mask_logits_first4"] = model.roi_head.segment(pyramid, boxes[: len(masks)], stage)
        for name, value in values.items():
            torch.testing.assert_close(value, expected[f"{prefix}.{name}"], **openmmlab.FEATURE_MAPS)
        if stage == 0 and len(model.config.stages) > 1:
            refined = model.refine(boxes, deltas, logits[:, :-1].argmax(1), sizes, stage)
            torch.testing.assert_close(refined, expected["roi.refined.s1"], rtol=0, atol=openmmlab.BOXES)


@pytest.mark.parametrize("name", ["det_input", "det_rescaled"])
@cases(PATTERN)
@torch.no_grad()
def test_detections(case: Case, name: str) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case) if name == "det_rescaled" else sizes
    for i, detections in enumerate(model.predict(images, sizes, originals)):
        assert detections.size == originals[i]
        order = openmmlab.assert_detections(detections, expected, f"{name}.{i}")
        assert (detections.masks is not None) == model.config.masks
        if detections.masks is None:
            continue
        assert list(detections.masks.shape) == case.facts["mask_shapes"][f"{name}.{i}"]
        box_areas = (detections.boxes[:, 2:] - detections.boxes[:, :2]).prod(1)[order].clamp(min=1)
        areas = detections.masks[order].flatten(1).sum(1)
        assert ((areas - expected[f"{name}.{i}.mask_areas"]).abs() <= 2e-3 * box_areas + 1).all()
        if f"{name}.{i}.masks_first" in expected:
            first = openmmlab.unpack(case, f"{name}.{i}.masks_first", expected)
            different = (detections.masks[order][: len(first)] ^ first).flatten(1).sum(1)
            assert (different <= 2e-3 * box_areas[: len(first)] + 1).all()


@cases(PATTERN)
def test_losses_and_gradients(case: Case) -> None:
    model, facts = build(case), case.facts["train"]
    images, sizes = openmmlab.images(case)
    targets = openmmlab.targets(case)
    outputs = model.training_outputs(images, sizes, targets)
    losses = losses_of(model.config, outputs, targets)
    openmmlab.assert_losses(losses, facts, rtol=1e-3, total_rtol=1e-4)
    for stage in facts.get("sampling", []):
        sampled = outputs.stages[stage["stage"]]
        matched = sampled.matched[sampled.regions[:, 0] == stage["image"]]
        assert (int((matched >= 0).sum()), int((matched < 0).sum())) == (stage["num_pos"], stage["num_neg"])
    torch.stack(list(losses.values())).sum().backward()
    openmmlab.assert_gradient_norms(model, facts["grad_norms"])


@cases(PATTERN, holding="train_bn")
def test_losses_with_batch_statistics(case: Case) -> None:
    model, expected = build(case).train(), case.tensors
    images, sizes = openmmlab.images(case)
    targets = openmmlab.targets(case)
    losses = model.loss(Batch(images, sizes, targets, []))
    openmmlab.assert_losses(losses, case.facts["train_bn"], rtol=2e-3, total_rtol=2e-3)
    after = [key for key in expected if key.startswith("train_bn.after.")]
    assert bool(after) == any(key.endswith("running_mean") for key in model.state_dict())
    for key in after:
        value = model.state_dict()[key.removeprefix("train_bn.after.")]
        torch.testing.assert_close(value, expected[key], rtol=2e-3, atol=2e-4)


@cases(PATTERN)
def test_assignments(case: Case) -> None:
    model, expected, targets = build(case), case.tensors, openmmlab.targets(case)
    images, sizes = openmmlab.images(case)
    with torch.no_grad():
        outputs = model.training_outputs(images, sizes, targets)
    priors = torch.cat(outputs.rpn.anchors)
    for i, target in enumerate(targets):
        stored = expected[f"train.rpn.gt_inds.{i}"].long()
        inside = outputs.inside[i]
        assert torch.equal(inside, stored > -2)
        assert torch.equal(_max_iou(model.config.rpn.sampling, priors[inside], target), stored[inside])
        for stage, config in enumerate(model.config.stages):
            name = "train.proposals" if stage == 0 else f"train.rcnn.s{stage}.priors"
            candidates = expected[f"{name}.{i}.bboxes"] if stage == 0 else expected[f"{name}.{i}"]
            assigned = _max_iou(config.sampling, candidates, target)
            assert torch.equal(assigned, expected[f"train.rcnn.s{stage}.gt_inds.{i}"].long())
            sampled, matched, is_target = sample_rois([candidates], [target], config.sampling)
            assert int(is_target.sum()) == len(target.boxes)
            assert len(sampled) == len(candidates) + len(target.boxes)
            assert int((matched >= 0).sum()) == int((assigned > 0).sum()) + len(target.boxes)


@cases(PATTERN)
@torch.no_grad()
def test_training_proposals(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    rpn = model(images, sizes).rpn
    for i, proposals in enumerate(model.rpn_head.propose(rpn, sizes, training=True)):
        openmmlab.assert_proposals(proposals, expected, f"train.proposals.{i}")


def _max_iou(sampling: object, boxes: torch.Tensor, target: ObjectTarget) -> torch.Tensor:
    options = {name: getattr(sampling, name) for name in ("positive", "negative", "ignore")}
    options["low_quality"] = sampling.rescue
    return assign.max_iou_assign(boxes, target.boxes, target.ignored, **options)
