"""Whether the boxes and names of an annotation file are what they should be, as far as they tell.

Files of other conventions are valid COCO files, too: with boxes as corners or in fractions of the image size, with
every object listed twice, with one class in two spellings. Trained on, they give wrong numbers without any error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from focalnet.data.formats.image_entries import Annotated, Annotation, Id
from focalnet.data.formats.outlines import around

_COMPARED = 1000  # objects whose box is compared with their polygons
_FIT = 0.5  # IoU from which on they fit
_FEW = 4  # boxes that do not tell how all are meant
_SHARE_OVER = 0.25  # of boxes that reach over the edge, from which on they may be corners

CORNERS = "its boxes seem to be corners (left, top, right, bottom): they must be left, top, width, height"
SHARES = "all of its boxes lie within one pixel: boxes must be in pixels, not in fractions of the image size"


class BoxesSeen:
    """The boxes of a file, seen one after another as they are written, of objects that are not crowds."""

    def __init__(self) -> None:
        self.count = self.as_corners = self.over = 0
        self.compared = self.misfits = self.corners_fit = 0

    def add(self, entry: Annotation, image: Annotated, *, over: bool) -> None:
        """Looks at an object.

        Args:
            entry: with a box.
            image: that it is in.
            over: whether the box, as left, top, width and height, reaches over the edge.
        """
        if entry.get("iscrowd"):
            return
        x, y, third, fourth = entry["bbox"]
        self.count += 1
        self.over += over
        self.as_corners += x < third <= image.width + 1 and y < fourth <= image.height + 1
        outline = around(entry.get("segmentation")) if self.compared < _COMPARED else None
        if outline is None:
            return
        self.compared += 1
        if _iou(entry["bbox"], outline) < _FIT:
            self.misfits += 1
            self.corners_fit += _iou([x, y, third - x, fourth - y], outline) >= _FIT

    def are_corners(self) -> bool:
        """Whether all boxes make sense as corners, and many do not as left, top, width and height."""
        if self.compared:
            return 2 * self.corners_fit > self.compared
        return self.count >= _FEW and self.as_corners == self.count and self.over >= _SHARE_OVER * self.count

    def remark(self) -> str | None:
        """What is odd about the boxes, if most do not fit their polygons."""
        if 2 * self.misfits <= self.compared:
            return None
        return f"the boxes of {self.misfits} of {self.compared} objects do not fit their polygons: are they meant so?"


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    """IoU of two boxes as left, top, width, height; 0 for a box without size."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = one, other
    width, height = min(x1 + w1, x2 + w2) - max(x1, x2), min(y1 + h1, y2 + h2) - max(y1, y2)
    inter = max(width, 0.0) * max(height, 0.0)
    union = max(w1, 0.0) * max(h1, 0.0) + max(w2, 0.0) * max(h2, 0.0) - inter
    return inter / union if union > 0 else 0.0


def are_shares(images: Sequence[Annotated]) -> bool:
    """Whether boxes seem to be in fractions of the image size instead of pixels."""
    boxes = [one["bbox"] for image in images for one in image.annotations if image.height > 1 or image.width > 1]
    return bool(boxes) and max(max(box) for box in boxes) <= 1


def repeated(images: Sequence[Annotated]) -> str | None:
    """How many objects are there more than once, in the same image and of the same class, box and outline."""
    count, example = 0, ""
    for image in images:
        known: dict[tuple[object, ...], list[object]] = {}
        for one in image.annotations:
            same = known.setdefault((one["category_id"], *one["bbox"], one["iscrowd"]), [])
            if one.get("segmentation") in same:
                count, example = count + 1, example or str(image)
            same.append(one.get("segmentation"))
    if not count:
        return None
    return f"{count} objects are listed again with the same class and box, e.g. in {example}; each of them counts"


def alike(categories: Mapping[Id, str]) -> str | None:
    """Which two classes have the same name but for case and spaces."""
    spelled: dict[str, str] = {}
    for name in categories.values():
        other = spelled.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            return f'"{other}" and "{name}" are two classes, though they differ only in case or spaces'
    return None
