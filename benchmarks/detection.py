"""Compares Mask R-CNN with FocalNet-T on the CPU with torchvision's on timm's FocalNet-T, interleaved in one run.

    python benchmarks/detection.py [inference] [inference_bfloat16] [training] [--rounds 5] [--out results.json]

Both have the same network: FocalNet-T LRF with kernels from 9, a pyramid of 256 channels, 1000 proposals, 80 classes.
Images have 800 x 1216 pixels. Since weights are random, thresholds are set so that the detectors have the work of a
crowded image: 1000 candidates remain in both, of which 100 become objects with full-size masks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

import studies
import timm
import torch
from studies import Call, Engines
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import focalnet
from focalnet.models.rcnn import network as rcnn
from focalnet.samples import Batch, ObjectTarget

CLASSES, CANDIDATES, OBJECTS = 80, 1000, 12
SIZE = (800, 1216)
OURS, THEIRS = "focalnet", "torchvision, timm's FocalNet-T"


class Backbone(nn.Module):
    """timm's FocalNet-T with torchvision's pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("focalnet_tiny_lrf", features_only=True, focal_windows=(9, 9, 9, 9))
        self.out_channels = 256
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 256, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(OrderedDict((str(i), x) for i, x in enumerate(self.body(images))))
        return maps


def inference() -> Engines:
    """One image to 100 objects with masks."""
    image = torch.randn(3, *SIZE)
    return {
        OURS: lambda: _detect(_ours(), image),
        "focalnet, optimized": lambda: _detect(_optimized(_ours()), image),
        THEIRS: lambda: _their_detect(_theirs(), image),
    }


def inference_bfloat16() -> Engines:
    """The same under bfloat16 autocast."""
    return {name: lambda build=build: _autocast(build()) for name, build in inference().items()}


def training() -> Engines:
    """Forward, losses, backward of one image with a dozen objects, under bfloat16 autocast."""
    image, masks = torch.randn(3, *SIZE), torch.zeros(OBJECTS, *SIZE, dtype=torch.uint8)
    corners = torch.rand(OBJECTS, 2) * torch.tensor([900.0, 500.0])
    boxes = torch.cat([corners, corners + 40 + 260 * torch.rand(OBJECTS, 2)], 1)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.randint(CLASSES, (OBJECTS,))
    ours = ObjectTarget(boxes=boxes, labels=labels, masks=masks.bool(), ignored=torch.zeros(0, 4))
    return {
        OURS: lambda: _autocast(_step(_ours(), image, ours)),
        THEIRS: lambda: _autocast(
            _their_step(_theirs(), image, {"boxes": boxes, "labels": labels + 1, "masks": masks})
        ),
    }


STUDIES = {f.__name__: f for f in (inference, inference_bfloat16, training)}


def _ours() -> nn.Module:
    return focalnet.create_model("mask_rcnn_focalnet_tiny_lrf", num_classes=CLASSES)


def _optimized(model: nn.Module) -> nn.Module:
    focalnet.optimize(model)
    return model


def _theirs() -> nn.Module:
    return MaskRCNN(Backbone(), num_classes=CLASSES + 1, min_size=SIZE[0], max_size=1333)


def _detect(model: Any, image: Tensor) -> Call:
    batch = image[None].contiguous(memory_format=torch.channels_last)
    model.eval()
    with torch.inference_mode():
        scores = model(batch, [SIZE]).scores[:, :-1]
    threshold = float(scores.flatten().topk(CANDIDATES + 1).values[-1])
    model.config = dataclasses.replace(model.config, score_threshold=threshold)

    def detect() -> None:
        with torch.inference_mode():
            (found,) = model.predict(batch, [SIZE], [SIZE])
            assert len(found.boxes) == 100, "not the work that was meant"

    return detect


def _their_detect(model: Any, image: Tensor) -> Call:
    model.eval()
    said: list[Tensor] = []
    hook = model.roi_heads.box_predictor.register_forward_hook(lambda *args: said.append(args[-1][0]))
    with torch.inference_mode():
        model([image])
    hook.remove()
    scores = said[0].softmax(1)[:, 1:]
    model.roi_heads.score_thresh = float(scores.flatten().topk(CANDIDATES + 1).values[-1])

    def detect() -> None:
        with torch.inference_mode():
            (found,) = model([image])
            assert len(found["boxes"]) == 100, "not the work that was meant"

    return detect


def _autocast(call: Call) -> Call:
    def under() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            call()

    return under


def _step(model: Any, image: Tensor, target: ObjectTarget) -> Call:
    batch = image[None].contiguous(memory_format=torch.channels_last)
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        losses = model.loss(Batch(batch, [SIZE], [target], []))
        torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()

    return step


def _their_step(model: nn.Module, image: Tensor, target: dict[str, Tensor]) -> Call:
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        torch.stack(list(model([image], [target]).values())).sum().backward()

    return step


def parts(rounds: int) -> dict[str, float]:
    """Seconds of each part of our inference, medians over the rounds."""
    model: Any = _ours()
    detect = _detect(model, torch.randn(3, *SIZE))
    places = {
        "backbone": (model.backbone, "forward"),
        "pyramid": (model.neck, "forward"),
        "proposal head": (model.rpn_head, "forward"),
        "proposals: best anchors, boxes, NMS": (model.rpn_head, "propose"),
        "box head: RoIAlign, two layers": (model.roi_head, "classify"),
        "objects: classes, boxes, NMS": (model, "_pick"),
        "mask head: RoIAlign, convolutions": (model, "_masks"),
        "masks into the image": (rcnn.rois, "paste"),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    detect()
    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            stack.enter_context(_timed(owner, attribute, seconds[name]))
        for _ in range(rounds):
            detect()
    return {name: statistics.median(times) for name, times in seconds.items()}


@contextlib.contextmanager
def _timed(owner: Any, attribute: str, seconds: list[float]) -> Iterator[None]:
    """Writes down how long each call of a function takes."""
    function = getattr(owner, attribute)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = function(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return out

    setattr(owner, attribute, timed)
    yield
    setattr(owner, attribute, function)


if __name__ == "__main__":
    studies.run(STUDIES, __doc__, "mask_rcnn_cpu", ("torch", "torchvision", "timm"), parts=parts)
