"""Pictures of results: nouns, maps over their picture, sheets of them. Imported when used: matplotlib is slow."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "SheetRow": "sheets",
    "draw_classification": "classification",
    "draw_confusion": "evaluation",
    "draw_detections": "detections",
    "draw_heatmap": "heatmaps",
    "draw_kernels": "sheets",
    "draw_panoptic": "panoptic",
    "draw_precision_recall": "evaluation",
    "draw_semantic": "semantic",
    "draw_sheet": "sheets",
    "save_image": "files",
    "unique_names": "files",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from focalnet.visualize.classification import draw_classification as draw_classification
    from focalnet.visualize.detections import draw_detections as draw_detections
    from focalnet.visualize.evaluation import draw_confusion as draw_confusion
    from focalnet.visualize.evaluation import draw_precision_recall as draw_precision_recall
    from focalnet.visualize.files import save_image as save_image
    from focalnet.visualize.files import unique_names as unique_names
    from focalnet.visualize.heatmaps import draw_heatmap as draw_heatmap
    from focalnet.visualize.panoptic import draw_panoptic as draw_panoptic
    from focalnet.visualize.semantic import draw_semantic as draw_semantic
    from focalnet.visualize.sheets import SheetRow as SheetRow
    from focalnet.visualize.sheets import draw_kernels as draw_kernels
    from focalnet.visualize.sheets import draw_sheet as draw_sheet


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f'module "focalnet.visualize" has no attribute "{name}"')
    return getattr(importlib.import_module(f"focalnet.visualize.{_WHERE[name]}"), name)
