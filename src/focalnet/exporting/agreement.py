"""Compares an exported file with the network it was made from, by the results that a user gets from both.

Two results of a network can be right and differ: where scores are equal but for rounding, their order decides which
queries or boxes survive. So the network itself also predicts with an input changed by a millionth and by PyTorch's own
operations; objects that then change by more than the tolerance are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import ExportError
from focalnet.inference.exported import ExportedNetwork
from focalnet.kernels import backend
from focalnet.models import Model
from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, SemanticMap
from focalnet.samples import Size

LOGITS, BOXES, SCORES, PIXELS = 1e-4, 0.05, 1e-4, 1e-4  # absolute; pixels of boxes; absolute; share of pixels
BATCHES = (1, 3)
_CHANGE = 1e-6  # of the input, which has a standard deviation of about 1
_SCALE = 1.25  # from the network's input to the original image


@dataclass
class _Comparison:
    """What was compared so far.

    Args:
        largest: the largest difference of each quantity.
        problems: what disagrees.
        masks: of each pair of objects, the share of pixels in which their masks differ.
    """

    largest: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    masks: list[float] = field(default_factory=list)

    def note(self, name: str, difference: float, most: float, size: Size) -> None:
        """Notes a difference of results for an image of this size."""
        self.largest[name] = max(self.largest.get(name, 0.0), difference)
        if not difference <= most:
            self.problems.append(f"{name} differ by {difference:.2g} at {size[0]} x {size[1]} pixels")


def check_agreement(model: Model[Any, Any], exported: ExportedNetwork, path: Path) -> dict[str, float]:
    """The largest difference of each quantity between a network and its file, at four sizes and two batch sizes.

    Args:
        model: in evaluation mode.
        exported: the file.
        path: what messages call it.

    Raises:
        ExportError: they disagree.
    """
    comparison = _Comparison()
    for number, size in enumerate(sizes(exported.header.least_side, model.config.size_divisor)):
        for batch in BATCHES:
            images, image_sizes = example(batch, model.backbone.shape.in_chans, size, seed=number)
            originals = [(int(height * _SCALE), int(width * _SCALE)) for height, width in image_sizes]
            with torch.no_grad():
                expected = model.predict(images, image_sizes, originals)
                changed = images + _CHANGE * torch.randn(images.shape, generator=torch.Generator().manual_seed(number))
                with backend.use("eager"):
                    again = model.predict(changed, image_sizes, originals)
                actual = exported.predict(images, image_sizes, originals)
            for results in zip(expected, again, actual, strict=True):
                _compare(comparison, size, *results, most=exported.config.max_per_image)
    if comparison.masks:
        mean = sum(comparison.masks) / len(comparison.masks)
        comparison.note("masks (mean share of pixels)", mean, PIXELS, size)
    if comparison.problems:
        raise ExportError(
            f"{path}: not written, because it disagrees with PyTorch: {comparison.problems[0]}"
            + (f", and {len(comparison.problems) - 1} more" if len(comparison.problems) > 1 else "")
        )
    return comparison.largest


def sizes(least: int, divisor: int) -> list[Size]:
    """Heights and widths to compare at: multiples of the divisor, none smaller than the least side."""
    near = ((0, 70), (35, 0), (97, 33), (64, 130))  # pixels beyond the least
    return [tuple(-(-(max(least, 64) + more) // divisor) * divisor for more in pair) for pair in near]  # type: ignore[misc]


def example(batch: int, channels: int, size: Size, seed: int) -> tuple[Tensor, list[Size]]:
    """Images with coarse and fine structure, and their sizes before padding; the second of several shows little.

    It does not show nothing at all: in a constant image, many objects have the same score but for rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 5, 5, generator=generator)
    fine = torch.randn(batch, channels, *size, generator=generator)
    images = F.interpolate(coarse, size, mode="bicubic") + 0.3 * fine
    image_sizes = [(size[0] - 3 * i, size[1] - 7 * i) for i in range(batch)]
    for i, (image, (height, width)) in enumerate(zip(images, image_sizes, strict=True)):
        image[:, height:] = 0
        image[:, :, width:] = 0
        if i == 1:
            image.mul_(0.05)
    return images, image_sizes


def _compare(comparison: _Comparison, size: Size, expected: Any, again: Any, actual: Any, most: int) -> None:
    if isinstance(expected, Classification | MultiLabel):
        difference = (expected.logits - actual.logits).abs().max()
        comparison.note("logits", float(difference), LOGITS, size)
    elif isinstance(expected, Detections):
        _compare_objects(comparison, size, expected, again, actual, most)
    elif isinstance(expected, SemanticMap):
        unsure = expected.labels != again.labels
        different = (expected.labels != actual.labels) & ~unsure
        comparison.note("labels (share of pixels)", float(different.float().mean()), PIXELS, size)
    else:
        unsure = _classes(expected) != _classes(again)
        different = (_classes(expected) != _classes(actual)) & ~unsure
        comparison.note("segments (share of pixels)", float(different.float().mean()), PIXELS, size)
        if len(expected.segments) == len(again.segments) != len(actual.segments):
            comparison.note("numbers of segments", abs(len(expected.segments) - len(actual.segments)), 0, size)


def _classes(panoptic: PanopticMap) -> Tensor:
    """The class of each pixel, ``(H, W)``, -1 for none."""
    labels = [-1, *(segment.label for segment in sorted(panoptic.segments, key=lambda segment: segment.id))]
    return torch.tensor(labels)[panoptic.ids.long()]


def _compare_objects(
    comparison: _Comparison, size: Size, expected: Detections, again: Detections, actual: Detections, most: int
) -> None:
    """Every object of the network that a changed input does not change must be among those of the file."""
    stable = [bool(partners) for partners in _partners(expected, again)]
    last = float(expected.scores[-1]) if len(expected) == most else 0.0  # where the file may have another one
    missing = 0
    for i, partners in enumerate(_partners(expected, actual)):
        if not partners:
            missing += stable[i] and float(expected.scores[i]) > last + SCORES
            continue
        differences = []
        for j in partners:
            masks = 0.0
            if expected.masks is not None and actual.masks is not None:
                masks = float((expected.masks[i] != actual.masks[j]).float().mean())
            box = float((expected.boxes[i] - actual.boxes[j]).abs().max())
            differences.append((masks, box, float((expected.scores[i] - actual.scores[j]).abs())))
        masks, box, score = min(differences)
        comparison.note("boxes (px)", box, BOXES, size)
        comparison.note("scores", score, SCORES, size)
        if expected.masks is not None:
            comparison.masks.append(masks)
    if missing:
        comparison.problems.append(
            f"{missing} of {len(expected)} objects differ by more than {BOXES} px or {SCORES} at {size[0]} x {size[1]}"
        )
    if len(actual) - len(expected) > stable.count(False):
        comparison.problems.append(f"{len(actual)} objects instead of {len(expected)} at {size[0]} x {size[1]}")


def _partners(first: Detections, second: Detections) -> list[list[int]]:
    """For each object of the first, the objects of the second that equal it within the tolerances."""
    same = (first.boxes[:, None] - second.boxes[None]).abs().amax(-1) <= BOXES
    same &= (first.scores[:, None] - second.scores[None]).abs() <= SCORES
    same &= first.labels[:, None] == second.labels[None]
    return [row.nonzero().flatten().tolist() for row in same]
