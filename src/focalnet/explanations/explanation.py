"""What a FocalNet attends to in one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from focalnet import visualize
from focalnet.explanations.attribution import HeatMap
from focalnet.results import Classification, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class BlockMaps:
    """The maps of one block.

    Args:
        name: of the block, e.g. ``"layers.3.blocks.1"``.
        gates: ``(L + 1, h, w)``, raw values: one map for each focal level, the global one last.
        modulator: ``(h, w)``, the L2 norm over channels of the modulator.
        region: left, top, right, bottom of the region that the maps cover, in pixels of the original image.
    """

    name: str
    gates: NDArray[np.float32]
    modulator: NDArray[np.float32]
    region: tuple[float, float, float, float]

    def named(self) -> dict[str, NDArray[np.float32]]:
        """The maps by title: ``"level 1"``, ..., ``"global"``, ``"modulator"``."""
        levels = {f"level {i}": gate for i, gate in enumerate(self.gates[:-1], start=1)}
        return {**levels, "global": self.gates[-1], "modulator": self.modulator}


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network attends to in one image.

    Args:
        image: the original image.
        blocks: the maps of each chosen block, in network order.
        path: the file that the image was read from, if any.
        prediction: what the network predicts; None for a backbone.
        heat: where an answer comes from, if a target or method was given.
    """

    image: Image = field(repr=False)
    blocks: tuple[BlockMaps, ...]
    path: str | None = None
    prediction: Result | None = None
    heat: HeatMap | None = None

    def sheet(self) -> Image:
        """One page: a row for each block; image, gates of each level, global gate, norm of the modulator."""
        rows = [
            visualize.SheetRow(f"{block.name}\n{height} x {width} map", block.named(), block.region)
            for block in self.blocks
            for height, width in [block.modulator.shape]
        ]
        title = Path(self.path).name if self.path else "explanation"
        if isinstance(self.prediction, Classification):
            title += f":  {self.prediction.names[0]}, {self.prediction.scores[0]:.1%}"
        note = "gates of each focal level (raw values) and L2 norm of the modulator; each map in its own range"
        return visualize.draw_sheet(self.image, rows, title=title, subtitle=note)

    def save(self, folder: str | Path) -> list[Path]:
        """Writes ``sheet.png`` and an overlay of each map, ``layers.3.blocks.1-level-1.png``, into a folder.

        Returns:
            the files, the sheet first.

        Raises:
            FocalNetError: the folder cannot be written.
        """
        folder = Path(folder)
        files = [visualize.save_image(self.sheet(), folder / "sheet.png")]
        for block in self.blocks:
            for title, values in block.named().items():
                overlay = visualize.draw_heatmap(self.image, values, block.region)
                name = f"{block.name}-{title.replace(' ', '-')}.png"
                files.append(visualize.save_image(overlay, folder / name))
        return files
