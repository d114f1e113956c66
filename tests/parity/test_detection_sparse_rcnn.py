"""Sparse R-CNN against mmdet's, one test a stage of the computation."""

from __future__ import annotations

import pytest
import torch

from focalnet.models.set_prediction import match
from focalnet.models.sparse_rcnn import SparseRCNN, SparseRCNNConfig
from focalnet.models.sparse_rcnn.loss import losses as losses_of
from focalnet.models.sparse_rcnn.network import GRID, SAMPLES
from focalnet.ops import rois
from tests.parity import openmmlab
from tests.parity.golden import Case, cases

PATTERN = "openmmlab/sparse_rcnn_*.json"


def build(case: Case) -> SparseRCNN:
    model = SparseRCNNConfig.from_official(case.facts["config"]).build().eval()
    model.load_state_dict(openmmlab.state(case.tensors))
    assert sum(t.numel() for t in model.state_dict().values()) == case.facts["num_params"]
    return model


@cases(PATTERN)
@torch.no_grad()
def test_feature_maps_proposals_and_stages(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    features = model.backbone(images)
    openmmlab.assert_feature_maps(case, expected, "backbone", features.values())
    pyramid = list(model.neck(features).values())
    openmmlab.assert_feature_maps(case, expected, "neck", pyramid)
    proposals, _ = model.rpn_head(torch.tensor(sizes))
    torch.testing.assert_close(proposals, expected["rpn.proposals"], rtol=0, atol=openmmlab.BOXES)
    first = expected["roi.s0.feats_first4"]
    boxes = rois.boxes_to_rois(list(expected["rpn.proposals"]))[: len(first)]
    pooled = rois.pool(pyramid, model.strides, boxes, GRID, SAMPLES)
    torch.testing.assert_close(pooled, first, **openmmlab.FEATURE_MAPS)
    for i, stage in enumerate(model(images, sizes).stages):
        torch.testing.assert_close(stage.logits, expected[f"roi.s{i}.cls_score"], **openmmlab.FEATURE_MAPS)
        torch.testing.assert_close(stage.objects, expected[f"roi.s{i}.object_feats"], **openmmlab.FEATURE_MAPS)
        torch.testing.assert_close(stage.boxes, expected[f"roi.s{i}.bboxes"], rtol=0, atol=openmmlab.BOXES)


@pytest.mark.parametrize("name", ["det_input", "det_rescaled"])
@cases(PATTERN)
@torch.no_grad()
def test_detections(case: Case, name: str) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case) if name == "det_rescaled" else sizes
    for i, detections in enumerate(model.predict(images, sizes, originals)):
        openmmlab.assert_detections(detections, expected, f"{name}.{i}")


@cases(PATTERN)
def test_losses_gradients_and_matches(case: Case) -> None:
    model, facts, expected = build(case), case.facts["train"], case.tensors
    images, sizes = openmmlab.images(case)
    targets = openmmlab.targets(case)
    outputs = model(images, sizes)
    losses = losses_of(model.config, outputs, targets)
    openmmlab.assert_losses(losses, facts, rtol=1e-3, total_rtol=1e-4)
    torch.stack(list(losses.values())).sum().backward()
    openmmlab.assert_gradient_norms(model, facts["grad_norms"])
    for k, stage in enumerate(outputs.stages):
        for i, target in enumerate(targets):
            assigned = match(stage.logits[i].detach(), stage.boxes[i].detach(), target, sizes[i])
            assert torch.equal(assigned, expected[f"train.s{k}.gt_inds.{i}"].long())
