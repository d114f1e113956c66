"""From the outputs of an exported network to results, whose arrays are NumPy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from focalnet.errors import CheckpointError, NonFiniteOutputs
from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, Result, Segment, SemanticMap
from focalnet.results.base import class_name
from focalnet.results.classification import THRESHOLD
from focalnet.runtime.header import Header

Arrays = Mapping[str, npt.NDArray[Any]]
Size = tuple[int, int]


def results(
    header: Header,
    outputs: Arrays,
    original_sizes: Sequence[Size],
    top_k: int = 5,
    threshold: float = THRESHOLD,
) -> list[Result]:
    """One result for each image, in pixels of the original image.

    Args:
        header: of the file.
        outputs: of its network, by name.
        original_sizes: height and width of each image.
        top_k: of a classifier: classes in each result.
        threshold: of a multi-label classifier: lowest score of a class.

    Raises:
        NonFiniteOutputs: scores or boxes are NaN or infinite.
    """
    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NonFiniteOutputs(
                f'the exported network computes NaN or infinite values ("{name}"), of which no result can be made: its '
                "weights are damaged or diverged; export other weights"
            )
    logits = outputs.get("logits")
    if logits is not None and logits.shape[1:] != (header.num_classes,):
        raise CheckpointError(
            f"the exported network computes {logits.shape[1]} logits, and its metadata are of {header.num_classes} "
            "classes: it was changed after the export; export it again"
        )
    of_image = [{name: values[i] for name, values in outputs.items()} for i in range(len(original_sizes))]
    pairs = zip(of_image, original_sizes, strict=True)
    if header.output == "classification":
        return [_classification(header, one["logits"], top_k) for one, _ in pairs]
    if header.output == "multilabel":
        return [_multi_label(header, one["logits"], threshold) for one, _ in pairs]
    if header.output in ("detection", "instance"):
        return [_detections(header, one, size) for one, size in pairs]
    if header.output == "semantic":
        return [SemanticMap(_cut(one["labels"], size).astype(np.int64), header.class_names) for one, size in pairs]
    return [_panoptic(header, one, size) for one, size in pairs]


def _classification(header: Header, logits: npt.NDArray[np.float32], top_k: int) -> Classification:
    shares = np.exp(logits - logits.max())
    scores = shares / shares.sum()
    best = np.argsort(-scores, kind="stable")[:top_k].tolist()
    names = tuple(class_name(header.class_names, label) for label in best)
    return Classification(tuple(best), tuple(scores[best].tolist()), names, logits=_foreign(logits))


def _multi_label(header: Header, logits: npt.NDArray[np.float32], threshold: float) -> MultiLabel:
    scores = 0.5 * (1 + np.tanh(0.5 * logits))  # the sigmoid, which cannot overflow so
    order = np.argsort(-scores, kind="stable")
    labels = order[scores[order] >= threshold].tolist()
    names = tuple(class_name(header.class_names, label) for label in labels)
    return MultiLabel(tuple(labels), tuple(scores[labels].tolist()), names, logits=_foreign(logits))


def _detections(header: Header, one: Arrays, size: Size) -> Detections:
    kept = one["labels"] >= 0
    boxes, masks = one["boxes"][kept], None
    if "box_masks" in one:
        masks = paste_masks(one["box_masks"][kept], boxes, size)
    elif "masks" in one:
        masks = one["masks"][kept, : size[0], : size[1]]
    box, score, label, mask = map(_foreign, (boxes, one["scores"][kept], one["labels"][kept], masks))
    return Detections(box, score, label, header.class_names, mask, size)


def _panoptic(header: Header, one: Arrays, size: Size) -> PanopticMap:
    ids = _cut(one["ids"], size).astype(np.int32)
    labels, scores = one["segment_labels"].tolist(), one["segment_scores"].tolist()
    areas = np.bincount(ids.ravel(), minlength=len(labels) + 1).tolist()
    things = int(header.thresholds["things"])
    segments = tuple(
        Segment(number, label, label < things, scores[number - 1], areas[number])
        for number, label in enumerate(labels, start=1)
        if label >= 0
    )
    return PanopticMap(_foreign(ids), segments, header.class_names)


def paste_masks(masks: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], size: Size) -> npt.NDArray[np.bool_]:
    """As ``ops.rois.paste_masks``: masks ``(N, m, m)`` over their boxes as ``(N, height, width)``."""
    pasted = np.zeros((len(masks), *size), bool)
    for out, mask, (left, top, right, bottom) in zip(pasted, masks, boxes, strict=True):
        rows = _weights(top, bottom, size[0], mask.shape[0])
        columns = _weights(left, right, size[1], mask.shape[1])
        np.greater_equal(rows @ mask @ columns.T, 0.5, out=out)
    return pasted


def _weights(low: np.float32, high: np.float32, pixels: int, cells: int) -> npt.NDArray[np.float32]:
    """Bilinear weights ``(pixels, cells)``, at pixel centers, of cells that divide ``low`` to ``high``."""
    if high <= low:  # an empty box has no pixel
        return np.zeros((pixels, cells), np.float32)
    position = (np.arange(pixels, dtype=np.float32) + np.float32(0.5) - low) / (high - low) * cells - np.float32(0.5)
    weights: npt.NDArray[np.float32] = np.clip(1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32)), 0, 1)
    return weights


def _cut(values: npt.NDArray[Any], size: Size) -> Any:
    return values[: size[0], : size[1]]


def _foreign(values: Any) -> Any:
    """An array in a field of a result that usually holds a tensor."""
    return values
