"""The building blocks of detectors against mmdet's, one test for each.

A case has several settings of a block; their names tell what ``notes`` do not: ``mask14_s0`` is a grid of 14 x 14 cells
with a sampling ratio of 0, ``l1_avg5`` a sum over 5.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss, nms, sigmoid_focal_loss

from focalnet.models.set_prediction import matching_cost
from focalnet.ops import anchors, assign, boxes, rois
from tests.parity.golden import Case, cases
from tests.parity.openmmlab import BOXES, unpack

PATTERN = "openmmlab/ops_*.json"
NOTHING = torch.zeros(0, 4)
IOU_THRESHOLD, SCORE_THRESHOLD, LIMIT = 0.5, 0.05, 100  # of every NMS of a case


def settings(case: Case, block: str) -> dict[str, Any]:
    """What the case notes of each setting of a block, by the setting's name."""
    noted = {k.removeprefix(f"{block}."): v for k, v in case.facts["notes"].items() if k.startswith(f"{block}.")}
    assert noted
    return noted


@cases(PATTERN)
def test_anchors(case: Case) -> None:
    expected = case.tensors
    for name, note in settings(case, "anchors").items():
        config = note["config"]
        scale = config["octave_base_scale"] if "octave_base_scale" in config else config["scales"][0]
        for level, (stride, size) in enumerate(zip(config["strides"], note["feature_sizes"], strict=True)):
            base = anchors.base_anchors(stride, scale, config["ratios"])
            torch.testing.assert_close(base, expected[f"anchors.{name}.base"][level])
            torch.testing.assert_close(
                anchors.grid_anchors(base, stride, tuple(size)), expected[f"anchors.{name}.{level}"]
            )
            valid = anchors.inside_image(tuple(size), stride, tuple(note["pad_shape_for_valid"]), len(base))
            assert torch.equal(valid, expected[f"anchors.{name}.valid.{level}"].bool())


@cases(PATTERN)
def test_coder(case: Case) -> None:
    tensors = case.tensors
    for name, note in settings(case, "coder").items():
        t = {key.removeprefix(f"coder.{name}."): value for key, value in tensors.items()}
        size = tuple(note["max_shape_hw"])
        torch.testing.assert_close(boxes.encode(t["rois"], t["gt"], note["stds"]), t["encoded"], rtol=1e-4, atol=1e-4)
        decoded = boxes.decode(t["rois"], t["deltas"], note["stds"])
        torch.testing.assert_close(decoded, t["decoded_noclip"], rtol=1e-5, atol=BOXES)
        expected = t["decoded"] if note["clip_border"] else boxes.clip(t["decoded_noclip"], size)
        torch.testing.assert_close(boxes.clip(decoded, size), expected, rtol=0, atol=BOXES)


@cases(PATTERN)
def test_roi_features(case: Case) -> None:
    t = case.tensors
    strides = [round(1 / scale) for scale in case.facts["notes"]["roi"]["spatial_scales"]]
    features = [t[f"roi.feat.{i}"].float().requires_grad_() for i in range(len(strides))]
    assert torch.equal(rois.levels(t["roi.rois"][:, 1:], strides[0], len(strides)), t["roi.levels"].long())
    names = [key.removeprefix("roi.out.") for key in t if key.startswith("roi.out.")]
    assert "box7_s0" in names
    for name in names:
        size, samples = map(int, re.findall(r"\d+", name))
        pooled = rois.pool(features, strides, t["roi.rois"], size, samples=samples)
        step = re.search(r"\d+", case.facts["stored"].get(f"roi.out.{name}", {}).get("slice", "[::1]"))
        assert step is not None
        torch.testing.assert_close(pooled[:: int(step[0])], t[f"roi.out.{name}"], rtol=1e-4, atol=2e-4)
        if name == "box7_s0":
            (pooled * torch.arange(pooled.numel()).cos().view_as(pooled)).sum().backward()
    gradients = [key for key in t if key.startswith("roi.grad_feat.")]
    assert gradients
    for key in gradients:
        gradient = features[int(key.rpartition(".")[2])].grad
        assert gradient is not None
        torch.testing.assert_close(gradient, t[key], rtol=1e-3, atol=1e-3)


@cases(PATTERN)
def test_nms(case: Case) -> None:
    t = case.tensors
    assert torch.equal(nms(t["nms.boxes"], t["nms.scores"], IOU_THRESHOLD), t["nms.single.keep"])
    kept = batched_nms(t["nms.boxes"], t["nms.scores"], t["nms.idxs"], IOU_THRESHOLD)
    assert torch.equal(kept, t["nms.batched.keep"])


@pytest.mark.parametrize("name", ["thr05", "factor", "shared_box"])
@cases(PATTERN)
def test_multi_class_nms(case: Case, name: str) -> None:
    t = case.tensors
    scores = t["mcnms.scores"][:, :-1]
    per_class = t["mcnms.boxes_per_class"].view(len(scores), -1, 4)
    if name == "shared_box":
        per_class = per_class[:, :1].expand(-1, scores.shape[1], -1)
    box, label = (scores > SCORE_THRESHOLD).nonzero(as_tuple=True)
    score = scores[box, label]
    if name == "factor":
        score = score * t["mcnms.factor.score_factors"][box]
    ours = boxes.best_per_class(per_class[box, label], score, label, iou_threshold=IOU_THRESHOLD, limit=LIMIT)
    expected = t[f"mcnms.{name}.dets"]
    torch.testing.assert_close(ours[0], expected[:, :4], rtol=0, atol=BOXES)
    torch.testing.assert_close(ours[1], expected[:, 4])
    assert torch.equal(ours[2], t[f"mcnms.{name}.labels"])


@cases(PATTERN)
def test_masks_into_the_image_and_back(case: Case) -> None:
    t, note = case.tensors, case.facts["notes"]["paste"]
    size = (note["img_h"], note["img_w"])
    first = len(t["paste.soft_first3"])
    soft = rois.paste_masks_soft(t["paste.masks"][:first], t["paste.boxes"][:first], size)
    torch.testing.assert_close(soft, t["paste.soft_first3"], rtol=1e-4, atol=1e-5)
    assert torch.equal(rois.paste_masks(t["paste.masks"], t["paste.boxes"], size), unpack(case, "paste.binary", t))
    masks, expected = (unpack(case, f"mask_target.{name}", t) for name in ("gt", "out"))
    targets = rois.mask_targets(masks, t["mask_target.gt_inds"], t["mask_target.pos"], expected.shape[-1])
    assert torch.equal(targets.bool(), expected)


@cases(PATTERN)
def test_max_iou_assigner(case: Case) -> None:
    t = case.tensors
    notes = {name: note for name, note in settings(case, "assign").items() if "pos_iou_thr" in note}
    assert notes
    for name, note in notes.items():
        assigned = assign.max_iou_assign(
            t["assign.priors"],
            t["assign.gt"],
            NOTHING,
            positive=note["pos_iou_thr"],
            negative=note["neg_iou_thr"],
            low_quality=note["min_pos_iou"] if note["match_low_quality"] else None,
        )
        assert torch.equal(assigned, t[f"assign.{name}.gt_inds"].long()), name


@cases(PATTERN)
def test_atss_assigner(case: Case) -> None:
    t, note = case.tensors, case.facts["notes"]["assign.atss"]
    levels = t["assign.atss.priors"].split(note["num_level_priors"])
    assigned = assign.atss_assign(levels, t["assign.gt"], NOTHING, candidates=note["topk"])
    assert torch.equal(assigned, t["assign.atss.gt_inds"].long())


@cases(PATTERN)
def test_hungarian_matching(case: Case) -> None:
    t = case.tensors
    cost = matching_cost(
        t["hungarian.logits"],
        t["hungarian.boxes"],
        t["assign.gt"],
        t["assign.labels"],
        case.facts["notes"]["hungarian"]["img_shape_hw"],
    )
    torch.testing.assert_close(cost, t["hungarian.xyxy.cost"], rtol=1e-4, atol=1e-4)
    assert torch.equal(assign.hungarian_match(cost), t["hungarian.xyxy.gt_inds"].long())


@cases(PATTERN)
def test_losses(case: Case) -> None:
    t, values = case.tensors, case.facts["loss_values"]
    ours, theirs, weight = t["hungarian.boxes"], t["loss.boxes2"], t["loss.weights"]
    torch.testing.assert_close(box_iou(ours, t["assign.gt"]), t["loss.iou_matrix"], rtol=1e-4, atol=1e-5)
    giou = generalized_box_iou_loss(ours, theirs)
    torch.testing.assert_close(1 - giou, t["loss.giou"], rtol=1e-4, atol=1e-5)
    classes = t["hungarian.logits"].shape[1]  # the label after the last class is background
    one_hot = F.one_hot(t["loss.labels"], classes + 1)[:, :classes].float()
    focal = sigmoid_focal_loss(t["hungarian.logits"], one_hot, 0.25, 2.0) * weight[:, None]
    difference = (t["loss.reg_pred"], t["loss.reg_target"])
    channel = t["loss.mask_pred"][torch.arange(len(t["loss.mask_labels"])), t["loss.mask_labels"]]
    entropy = F.cross_entropy(t["loss.logits6"], t["loss.labels"], reduction="none")
    computed = {
        "focal_weighted": focal.sum(),
        "giou_w2_weighted": 2 * (giou * weight).sum(),
        "giou_mean": giou.mean(),
        "l1": F.l1_loss(*difference, reduction="sum"),
        "smooth_l1_beta1_9": F.smooth_l1_loss(*difference, beta=1 / 9, reduction="sum"),
        "smooth_l1_beta1": F.smooth_l1_loss(*difference, reduction="sum"),
        "ce_weighted": (entropy * weight).sum(),
        "mask_bce": F.binary_cross_entropy_with_logits(channel, unpack(case, "loss.mask_target", t).float()),
    }
    for name, value in values.items():
        term, _, factor = name.partition("_avg")
        assert float(computed[term]) / int(factor or 1) == pytest.approx(value, rel=1e-3), name
