"""Draws arrays: boxes, masks, label maps, charts, heatmaps and sheets. Results draw themselves with this package.

The names below are imported when first used, because importing matplotlib is slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from focalnet import lazy

_WHERE = {
    "Area": "label_maps",
    "Scale": "heatmaps",
    "SheetRow": "sheets",
    "draw_boxes": "boxes",
    "draw_confusion": "charts",
    "draw_grid": "sheets",
    "draw_heatmap": "heatmaps",
    "draw_kernels": "sheets",
    "draw_label_map": "label_maps",
    "draw_outline": "heatmaps",
    "draw_precision_recall": "charts",
    "draw_profiles": "sheets",
    "draw_range_test": "charts",
    "draw_ranking": "ranking",
    "draw_sheet": "sheets",
    "save_animation": "heatmaps",
    "save_image": "files",
    "unique_names": "files",
    "with_color_bar": "heatmaps",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from focalnet.visualize.boxes import draw_boxes as draw_boxes
    from focalnet.visualize.charts import draw_confusion as draw_confusion
    from focalnet.visualize.charts import draw_precision_recall as draw_precision_recall
    from focalnet.visualize.charts import draw_range_test as draw_range_test
    from focalnet.visualize.files import save_image as save_image
    from focalnet.visualize.files import unique_names as unique_names
    from focalnet.visualize.heatmaps import Scale as Scale
    from focalnet.visualize.heatmaps import draw_heatmap as draw_heatmap
    from focalnet.visualize.heatmaps import draw_outline as draw_outline
    from focalnet.visualize.heatmaps import save_animation as save_animation
    from focalnet.visualize.heatmaps import with_color_bar as with_color_bar
    from focalnet.visualize.label_maps import Area as Area
    from focalnet.visualize.label_maps import draw_label_map as draw_label_map
    from focalnet.visualize.ranking import draw_ranking as draw_ranking
    from focalnet.visualize.sheets import SheetRow as SheetRow
    from focalnet.visualize.sheets import draw_grid as draw_grid
    from focalnet.visualize.sheets import draw_kernels as draw_kernels
    from focalnet.visualize.sheets import draw_profiles as draw_profiles
    from focalnet.visualize.sheets import draw_sheet as draw_sheet

__getattr__ = lazy.attributes(__name__, _WHERE)
