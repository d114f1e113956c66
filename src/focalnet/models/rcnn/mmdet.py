"""Translates mmdet configurations of Faster, Mask and Cascade R-CNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focalnet.errors import ConfigError
from focalnet.models import openmmlab
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.openmmlab import expect
from focalnet.models.rcnn.config import RPNConfig, SamplingConfig, StageConfig
from focalnet.models.rcnn.heads import BOX_GRID, MASK_GRID

_DETECTORS = {False: ("FasterRCNN", "MaskRCNN"), True: ("CascadeRCNN",)}


def translate(model: Mapping[str, Any], cascade: bool) -> dict[str, Any]:
    """Returns the keyword arguments of ``CascadeRCNNConfig`` or ``MaskRCNNConfig``."""
    model = openmmlab.whole(model, *_DETECTORS[cascade])
    backbone, neck = openmmlab.backbone(model), openmmlab.neck(model)
    train, test = model["train_cfg"], model["test_cfg"]
    roi = expect(model["roi_head"], "roi_head", "CascadeRoIHead" if cascade else "StandardRoIHead")
    heads = list(roi["bbox_head"]) if cascade else [roi["bbox_head"]]
    settings = list(train["rcnn"]) if cascade else [train["rcnn"]]
    weights = roi["stage_loss_weights"] if cascade else [1.0]
    if not len(heads) == len(settings) == len(weights):
        raise ConfigError(
            f"roi_head: {len(heads)} bbox_head, {len(settings)} train_cfg.rcnn and {len(weights)} stage_loss_weights "
            "must be as many"
        )
    levels = openmmlab.roi_extractor(roi, "bbox_roi_extractor", backbone, size=BOX_GRID)
    stages = tuple(_stage(*args) for args in zip(heads, settings, weights, strict=True))
    return {
        "backbone": backbone,
        "neck": neck,
        "num_classes": openmmlab.same([head["num_classes"] for head in heads], "num_classes"),
        "rpn": _rpn(model, openmmlab.anchor_scale(model["rpn_head"]["anchor_generator"], backbone, neck.levels)),
        "stages": stages,
        "roi_levels": levels,
        "score_threshold": test["rcnn"]["score_thr"],
        "nms_threshold": openmmlab.nms_threshold(test["rcnn"]),
        "max_per_image": test["rcnn"]["max_per_img"],
        **_masks(roi, cascade, backbone, levels, test["rcnn"]),
    }


def _rpn(model: Mapping[str, Any], anchor_scale: float) -> RPNConfig:
    head = expect(model["rpn_head"], "rpn_head", "RPNHead")
    train, test, proposals = model["train_cfg"]["rpn"], model["test_cfg"]["rpn"], model["train_cfg"]["rpn_proposal"]
    if openmmlab.stds(head["bbox_coder"]) != (1.0, 1.0, 1.0, 1.0):
        raise ConfigError("rpn_head: target_stds must be 1")
    openmmlab.unweighted(head["loss_cls"], "rpn_head.loss_cls", "CrossEntropyLoss")
    openmmlab.unweighted(head["loss_bbox"], "rpn_head.loss_bbox", "L1Loss", "SmoothL1Loss")
    return RPNConfig(
        anchor_scale=anchor_scale,
        anchor_ratios=tuple(head["anchor_generator"]["ratios"]),
        sampling=_sampling(train),
        inside_only=train["allowed_border"] == 0,
        smooth_l1_beta=_beta(head["loss_bbox"]),
        candidates=test["nms_pre"],
        candidates_in_training=proposals["nms_pre"],
        nms_threshold=openmmlab.nms_threshold(test),
        proposals=test["max_per_img"],
        proposals_in_training=proposals["max_per_img"],
    )


def _stage(head: Mapping[str, Any], settings: Mapping[str, Any], weight: float) -> StageConfig:
    expect(head, "bbox_head", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead")
    convs, fcs = {"Shared2FCBBoxHead": (0, 2), "Shared4Conv1FCBBoxHead": (4, 1)}.get(head["type"], (0, 0))
    openmmlab.unweighted(head["loss_cls"], "bbox_head.loss_cls", "CrossEntropyLoss")
    loss = expect(head["loss_bbox"], "bbox_head.loss_bbox", "L1Loss", "SmoothL1Loss", "GIoULoss")
    giou = loss["type"] == "GIoULoss"
    if giou != head.get("reg_decoded_bbox", False):
        raise ConfigError(
            "bbox_head: GIoULoss needs reg_decoded_bbox=True, and the other losses need reg_decoded_bbox=False"
        )
    return StageConfig(
        sampling=_sampling(settings),
        stds=openmmlab.stds(head["bbox_coder"]),
        convs=head.get("num_shared_convs", convs),
        conv_channels=head.get("conv_out_channels", 256),
        fcs=head.get("num_shared_fcs", fcs),
        fc_channels=head["fc_out_channels"],
        class_agnostic=head["reg_class_agnostic"],
        box_loss="giou" if giou else "smooth_l1",
        smooth_l1_beta=0.0 if giou else _beta(loss),
        box_loss_weight=loss["loss_weight"],
        loss_weight=weight,
    )


def _sampling(settings: Mapping[str, Any]) -> SamplingConfig:
    assigner = expect(settings["assigner"], "assigner", "MaxIoUAssigner")
    sampler = expect(settings["sampler"], "sampler", "RandomSampler")
    return SamplingConfig(
        positive=assigner["pos_iou_thr"],
        negative=assigner["neg_iou_thr"],
        rescue=assigner["min_pos_iou"] if assigner.get("match_low_quality", True) else None,
        ignore=openmmlab.threshold(assigner.get("ignore_iof_thr", -1)),
        samples=sampler["num"],
        positive_share=sampler["pos_fraction"],
    )


def _masks(
    roi: Mapping[str, Any], cascade: bool, backbone: FocalNetConfig, levels: int, test: Mapping[str, Any]
) -> dict[str, Any]:
    if roi.get("mask_head") is None:
        return {"masks": False}
    shared = roi.get("mask_roi_extractor") is None  # mmdet then pools boxes and masks alike, on the same grid
    if shared or openmmlab.roi_extractor(roi, "mask_roi_extractor", backbone, size=MASK_GRID) != levels:
        raise ConfigError(
            f"roi_head: mask_roi_extractor must pool a grid of {MASK_GRID} from the levels that boxes use"
        )
    if test.get("mask_thr_binary", 0.5) != 0.5:
        raise ConfigError(f"test_cfg.rcnn: mask_thr_binary={test['mask_thr_binary']} is not supported, only 0.5")
    heads = roi["mask_head"] if cascade and not isinstance(roi["mask_head"], Mapping) else [roi["mask_head"]]
    head = expect(openmmlab.same(heads, "mask_head"), "mask_head", "FCNMaskHead")
    openmmlab.unweighted(head["loss_mask"], "mask_head.loss_mask", "CrossEntropyLoss")
    return {"masks": True, "mask_convs": head["num_convs"], "mask_channels": head["conv_out_channels"]}


def _beta(loss: Mapping[str, Any]) -> float:
    return 0.0 if loss["type"] == "L1Loss" else float(loss["beta"])
