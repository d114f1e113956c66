"""The building blocks of detectors against mmdet's, one test a block."""

from __future__ import annotations

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


@cases(PATTERN)
def test_anchors(case: Case) -> None:
    expected = case.tensors
    for name in ("rpn", "atss"):
        note = case.facts["notes"][f"anchors.{name}"]
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


@pytest.mark.parametrize("name", ["rpn", "box", "casc3", "sparse"])
@cases(PATTERN)
def test_coder(case: Case, name: str) -> None:
    t = {key.removeprefix(f"coder.{name}."): value for key, value in case.tensors.items()}
    note = case.facts["notes"][f"coder.{name}"]
    size = tuple(note["max_shape_hw"])
    torch.testing.assert_close(boxes.encode(t["rois"], t["gt"], note["stds"]), t["encoded"], rtol=1e-4, atol=1e-4)
    decoded = boxes.decode(t["rois"], t["deltas"], note["stds"])
    torch.testing.assert_close(decoded, t["decoded_noclip"], rtol=1e-5, atol=BOXES)
    expected = t["decoded"] if note["clip_border"] else boxes.clip(t["decoded_noclip"], size)
    torch.testing.assert_close(boxes.clip(decoded, size), expected, rtol=0, atol=BOXES)


@cases(PATTERN)
def test_roi_features(case: Case) -> None:
    t = case.tensors
    maps = [t[f"roi.feat.{i}"].float().requires_grad_() for i in range(4)]
    strides = [round(1 / scale) for scale in case.facts["notes"]["roi"]["spatial_scales"]]
    assert torch.equal(rois.levels(t["roi.rois"][:, 1:], strides[0], 4), t["roi.levels"].long())
    pooled = rois.pool(maps, strides, t["roi.rois"], 7)
    torch.testing.assert_close(pooled, t["roi.out.box7_s0"], rtol=1e-4, atol=2e-4)
    (pooled * torch.arange(pooled.numel()).cos().view_as(pooled)).sum().backward()
    for i in (2, 3):
        assert maps[i].grad is not None
        torch.testing.assert_close(maps[i].grad, t[f"roi.grad_feat.{i}"], rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        mask = rois.pool(maps, strides, t["roi.rois"], 14)[::3]
        sparse = rois.pool(maps, strides, t["roi.rois"], 7, samples=2)
    torch.testing.assert_close(mask, t["roi.out.mask14_s0"], rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(sparse, t["roi.out.sparse7_s2"], rtol=1e-4, atol=2e-4)


@cases(PATTERN)
def test_nms(case: Case) -> None:
    t = case.tensors
    assert torch.equal(nms(t["nms.boxes"], t["nms.scores"], 0.5), t["nms.single.keep"])
    assert torch.equal(batched_nms(t["nms.boxes"], t["nms.scores"], t["nms.idxs"], 0.5), t["nms.batched.keep"])


@pytest.mark.parametrize("name", ["thr05", "factor", "shared_box"])
@cases(PATTERN)
def test_multi_class_nms(case: Case, name: str) -> None:
    t = case.tensors
    scores = t["mcnms.scores"][:, :-1]
    per_class = t["mcnms.boxes_per_class"].view(len(scores), -1, 4)
    if name == "shared_box":
        per_class = per_class[:, :1].expand(-1, scores.shape[1], -1)
    box, label = (scores > 0.05).nonzero(as_tuple=True)
    score = scores[box, label]
    if name == "factor":
        score = score * t["mcnms.factor.score_factors"][box]
    ours = boxes.best_per_class(per_class[box, label], score, label, iou_threshold=0.5, limit=100)
    expected = t[f"mcnms.{name}.dets"]
    torch.testing.assert_close(ours[0], expected[:, :4], rtol=0, atol=BOXES)
    torch.testing.assert_close(ours[1], expected[:, 4])
    assert torch.equal(ours[2], t[f"mcnms.{name}.labels"])


@cases(PATTERN)
def test_masks_into_the_image_and_back(case: Case) -> None:
    t, note = case.tensors, case.facts["notes"]["paste"]
    size = (note["img_h"], note["img_w"])
    soft = rois.paste_soft(t["paste.masks"][:3], t["paste.boxes"][:3], size)
    torch.testing.assert_close(soft, t["paste.soft_first3"], rtol=1e-4, atol=1e-5)
    assert torch.equal(rois.paste(t["paste.masks"], t["paste.boxes"], size), unpack(case, "paste.binary", t))
    masks = unpack(case, "mask_target.gt", t)
    target = rois.mask_targets(masks, t["mask_target.gt_inds"], t["mask_target.pos"], 28)
    assert torch.equal(target.bool(), unpack(case, "mask_target.out", t))


@pytest.mark.parametrize("name", ["rpn", "rcnn", "casc2"])
@cases(PATTERN)
def test_assignment_by_overlap(case: Case, name: str) -> None:
    t, note = case.tensors, case.facts["notes"][f"assign.{name}"]
    assigned = assign.by_overlap(
        t["assign.priors"],
        t["assign.gt"],
        NOTHING,
        positive=note["pos_iou_thr"],
        negative=note["neg_iou_thr"],
        rescue=note["min_pos_iou"] if note["match_low_quality"] else None,
    )
    assert torch.equal(assigned, t[f"assign.{name}.gt_inds"].long())


@cases(PATTERN)
def test_assignment_by_statistics(case: Case) -> None:
    t, note = case.tensors, case.facts["notes"]["assign.atss"]
    levels = t["assign.atss.priors"].split(note["num_level_priors"])
    assigned = assign.by_statistics(levels, t["assign.gt"], NOTHING, candidates=note["topk"])
    assert torch.equal(assigned, t["assign.atss.gt_inds"].long())


@cases(PATTERN)
def test_one_to_one_assignment(case: Case) -> None:
    t = case.tensors
    cost = matching_cost(
        t["hungarian.logits"],
        t["hungarian.boxes"],
        t["assign.gt"],
        t["assign.labels"],
        case.facts["notes"]["hungarian"]["img_shape_hw"],
    )
    torch.testing.assert_close(cost, t["hungarian.xyxy.cost"], rtol=1e-4, atol=1e-4)
    assert torch.equal(assign.one_to_one(cost), t["hungarian.xyxy.gt_inds"].long())


@cases(PATTERN)
def test_losses(case: Case) -> None:
    t, values = case.tensors, case.facts["loss_values"]
    ours, theirs, weight = t["hungarian.boxes"], t["loss.boxes2"], t["loss.weights"]
    torch.testing.assert_close(box_iou(ours, t["assign.gt"]), t["loss.iou_matrix"], rtol=1e-4, atol=1e-5)
    giou = generalized_box_iou_loss(ours, theirs)
    torch.testing.assert_close(1 - giou, t["loss.giou"], rtol=1e-4, atol=1e-5)
    one_hot = F.one_hot(t["loss.labels"], 6)[:, :5].float()
    focal = sigmoid_focal_loss(t["hungarian.logits"], one_hot, 0.25, 2.0) * weight[:, None]
    difference = (t["loss.reg_pred"], t["loss.reg_target"])
    channel = t["loss.mask_pred"][torch.arange(6), t["loss.mask_labels"]]
    computed = {
        "focal_weighted_avg7": focal.sum() / 7,
        "giou_w2_weighted_avg3": 2 * (giou * weight).sum() / 3,
        "giou_mean": giou.mean(),
        "l1_avg5": F.l1_loss(*difference, reduction="sum") / 5,
        "smooth_l1_beta1_9_avg5": F.smooth_l1_loss(*difference, beta=1 / 9, reduction="sum") / 5,
        "smooth_l1_beta1_avg5": F.smooth_l1_loss(*difference, reduction="sum") / 5,
        "ce_weighted_avg9": (F.cross_entropy(t["loss.logits6"], t["loss.labels"], reduction="none") * weight).sum() / 9,
        "mask_bce": F.binary_cross_entropy_with_logits(channel, unpack(case, "loss.mask_target", t).float()),
    }
    for name, value in values.items():
        assert float(computed[name]) == pytest.approx(value, rel=1e-3), name
