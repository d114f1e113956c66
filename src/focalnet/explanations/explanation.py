"""What a FocalNet attends to in one image, and drawings of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from focalnet import files, visualize
from focalnet.errors import ConfigError
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

    def contrast(self, heat: HeatMap) -> tuple[float, float] | None:
        """The mean norm of the modulator inside and outside the object or segment that a heat map is of.

        Cells count as far as the object covers them. None for a whole image.
        """
        if heat.inside is None:
            return None
        left, top, right, bottom = heat.region
        x, y = heat.inside.shape[1] / (right - left), heat.inside.shape[0] / (bottom - top)
        region = [(self.region[0] - left) * x, (self.region[1] - top) * y]
        region += [(self.region[2] - left) * x, (self.region[3] - top) * y]
        canvas = torch.zeros(round(region[3]), round(region[2]))
        canvas[: heat.inside.shape[0], : heat.inside.shape[1]] = heat.inside.float()[: len(canvas), : canvas.shape[1]]
        shares = torch.nn.functional.adaptive_avg_pool2d(canvas[None, None], self.modulator.shape)[0, 0]
        modulator = torch.from_numpy(self.modulator)
        inside, outside = shares.sum(), (1 - shares).sum()
        if inside == 0 or outside == 0:
            return None
        return float((modulator * shares).sum() / inside), float((modulator * (1 - shares)).sum() / outside)


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

    @property
    def title(self) -> str:
        """The name of the image, and the best class."""
        name = Path(self.path).name if self.path else "explanation"
        if isinstance(self.prediction, Classification):
            return f"{name}:  {self.prediction.names[0]}, {self.prediction.scores[0]:.1%}"
        return name

    def sheet(self, *, dark: bool = False) -> Image:
        """One page: a row for each block; image, gates of each level, global gate, norm of the modulator.

        Args:
            dark: light text on a dark background.
        """
        rows = [
            visualize.SheetRow(f"{block.name}\n{height} x {width} map", block.named(), block.region)
            for block in self.blocks
            for height, width in [block.modulator.shape]
        ]
        note = "gates of each focal level (raw values) and L2 norm of the modulator; each map in its own range"
        return visualize.draw_sheet(self.image, rows, title=self.title, subtitle=note, dark=dark)

    def levels(self, *, dark: bool = False) -> Image:
        """One page as in the paper's figures: a row for each level, global gate and modulator; a column for each block.

        Args:
            dark: light text on a dark background.
        """
        titles = dict.fromkeys(
            title for block in sorted(self.blocks, key=lambda b: -len(b.gates)) for title in block.named()
        )
        rows = []
        for title in titles:
            having = [block for block in self.blocks if title in block.named()]
            rows.append(visualize.SheetRow(title, {b.name: b.named()[title] for b in having}, having[0].region))
        note = (
            "rows: gates of each focal level (raw values), norm of the modulator; columns: blocks, from first to last"
        )
        return visualize.draw_sheet(self.image, rows, title=self.title, subtitle=note, dark=dark)

    def heat_sheet(self, *, dark: bool = False) -> Image:
        """The heat map over the image at its resolution, with a color bar, what it is of, and inside against outside.

        A line surrounds the object or segment that it is of.

        Raises:
            ConfigError: there is none.
        """
        if self.heat is None:
            raise ConfigError("there is no heat map to draw: give explain() a target or a method")
        values = self.heat.values.numpy()
        drawn = visualize.draw_heatmap(self.image, values, self.heat.region)
        if self.heat.inside is not None and self.heat.target:
            x, y = drawn.width / self.image.width, drawn.height / self.image.height
            left, top, right, bottom = self.heat.region
            box = (left * x, top * y, right * x, bottom * y)
            drawn = visualize.draw_outline(drawn, self.heat.inside.numpy(), box)
        title = f"{self.heat.method}: {self.heat.target}" if self.heat.target else self.heat.method
        contrast = self.heat.contrast()
        note = "" if contrast is None else f"mean inside {contrast[0]:.2g}, outside {contrast[1]:.2g}"
        return visualize.with_color_bar(drawn, visualize.Scale.of(values), title, note, dark=dark)

    def depth_frames(self, *, dark: bool = False) -> list[Image]:
        """The modulator of each block, first to last, as frames of an animation; each says how deep it is."""
        frames = []
        for depth, block in enumerate(self.blocks, start=1):
            drawn = visualize.draw_heatmap(self.image, block.modulator, block.region)
            scale = visualize.Scale.of(block.modulator)
            title = f"{depth}/{len(self.blocks)}: modulator of {block.name}"
            frames.append(visualize.with_color_bar(drawn, scale, title, dark=dark))
        return frames

    def to_dict(self) -> dict[str, Any]:
        """What the drawings show, as plain values: every map with its region, the prediction and the heat map."""
        heat = None
        if self.heat is not None:
            heat = {
                "method": self.heat.method,
                "target": self.heat.target,
                "blocks": list(self.heat.blocks),
                "signed": self.heat.signed,
                "region": list(self.heat.region),
                "inside_outside": self.heat.contrast(),
                "values": self.heat.values.tolist(),
            }
        return {
            "path": self.path,
            "size": {"width": self.image.width, "height": self.image.height},
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
            "blocks": [
                {
                    "name": block.name,
                    "region": list(block.region),
                    "gates": block.gates.tolist(),
                    "modulator": block.modulator.tolist(),
                    "modulator_inside_outside": None if self.heat is None else block.contrast(self.heat),
                }
                for block in self.blocks
            ],
            "heat": heat,
        }

    def save(self, folder: str | Path, *, dark: bool = False) -> list[Path]:
        """Writes ``sheet.png`` and an overlay of each map, ``layers.3.blocks.1-level-1.png``, into a folder.

        With a heat map it also writes ``heat.png``, and ``explanation.json`` with all values.

        Args:
            folder: is created if missing.
            dark: light text on a dark background.

        Returns:
            the files, the sheet first.

        Raises:
            FocalNetError: the folder cannot be written.
        """
        folder = Path(folder)
        written = [visualize.save_image(self.sheet(dark=dark), folder / "sheet.png")]
        for block in self.blocks:
            for title, values in block.named().items():
                overlay = visualize.draw_heatmap(self.image, values, block.region)
                bar = visualize.with_color_bar(overlay, visualize.Scale.of(values), f"{block.name}, {title}", dark=dark)
                name = f"{block.name}-{title.replace(' ', '-')}.png"
                written.append(visualize.save_image(bar, folder / name))
        if self.heat is not None:
            written.append(visualize.save_image(self.heat_sheet(dark=dark), folder / "heat.png"))
            content = json.dumps(self.to_dict(), indent=1) + "\n"
            written.append(files.write(folder / "explanation.json", content.encode()))
        return written
