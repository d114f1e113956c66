"""ATSS against mmdet's, one test a stage of the computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from focalnet.models.atss import ATSS, ATSSConfig
from focalnet.ops import assign
from focalnet.samples import Batch
from tests.parity import openmmlab
from tests.parity.golden import Case, cases

PATTERN = "openmmlab/atss_*.json"


def build(case: Case) -> ATSS:
    config = ATSSConfig.from_official(case.facts["config"])
    model = replace(config, size_divisor=openmmlab.size_divisor(case)).build().eval()
    model.load_state_dict(openmmlab.state(case.tensors))
    assert sum(t.numel() for t in model.state_dict().values()) == case.facts["num_params"]
    return model


@cases(PATTERN)
@torch.no_grad()
def test_feature_maps(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    features = model.backbone(images)
    openmmlab.assert_feature_maps(case, expected, "backbone", features.values())
    openmmlab.assert_feature_maps(case, expected, "neck", model.neck(features).values())
    outputs = model(images, sizes)
    openmmlab.assert_feature_maps(case, expected, "head.cls", outputs.scores)
    openmmlab.assert_feature_maps(case, expected, "head.reg", outputs.deltas)
    openmmlab.assert_feature_maps(case, expected, "head.centerness", outputs.centerness)
    for anchors, first in zip(outputs.anchors, expected["anchors.first4_per_level"], strict=True):
        torch.testing.assert_close(anchors[: len(first)], first)


@pytest.mark.parametrize("name", ["det_input", "det_rescaled"])
@cases(PATTERN)
@torch.no_grad()
def test_detections(case: Case, name: str) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    originals = openmmlab.original_sizes(case) if name == "det_rescaled" else sizes
    for i, detections in enumerate(model.predict(images, sizes, originals)):
        assert detections.masks is None
        openmmlab.assert_detections(detections, expected, f"{name}.{i}")


@cases(PATTERN)
def test_losses_and_gradients(case: Case) -> None:
    model, facts = build(case), case.facts["train"]
    images, sizes = openmmlab.images(case)
    targets = openmmlab.targets(case)
    losses = model.loss(Batch(images, sizes, targets, []))
    openmmlab.assert_losses(losses, facts, rtol=1e-3, total_rtol=1e-4)
    torch.stack(list(losses.values())).sum().backward()
    openmmlab.assert_gradient_norms(model, facts["grad_norms"])


@cases(PATTERN)
@torch.no_grad()
def test_assignments(case: Case) -> None:
    model, expected = build(case), case.tensors
    images, sizes = openmmlab.images(case)
    outputs = model(images, sizes)
    for i, target in enumerate(openmmlab.targets(case)):
        stored, inside = expected[f"train.gt_inds.{i}"].long(), outputs.inside[i]
        assert torch.equal(inside, stored > -2)
        levels = inside.split([len(level) for level in outputs.anchors])
        priors = [level[here] for level, here in zip(outputs.anchors, levels, strict=True)]
        assigned = assign.atss_assign(priors, target.boxes, target.ignored, candidates=model.config.nearest)
        assert torch.equal(assigned, stored[inside])
        assert int((assigned > 0).sum()) == case.facts["train"]["num_pos"][i]
