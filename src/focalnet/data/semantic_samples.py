"""Pictures with label maps, read, varied and collated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from focalnet.card import Preprocessing
from focalnet.data.datasets.label_maps import LabelRule, Pairs
from focalnet.data.preprocess import fitted_size, normalize, preprocess
from focalnet.data.samples import Samples
from focalnet.data.semantic_transforms import SemanticAugmentation, SemanticView, view
from focalnet.errors import ImageError
from focalnet.samples import ImageInfo, LabelMapTarget, Sample, pad_to


class SemanticDataset(Samples[Sample[LabelMapTarget], SemanticView]):
    """The pictures of a part with the class of each pixel.

    Args:
        pairs: pictures and masks.
        rule: what the numbers in the masks mean.
        class_names: by label.
        preprocessing: short side, longest side and normalisation; ``max_size`` must be given.
        augmentation: how training pictures are varied; None for evaluation.
        ratios: the sizes at which pictures are seen in evaluation, as factors of those of ``preprocessing``.
        seed: of the augmentation.
        on_error: as for ``Samples``.
    """

    def __init__(
        self,
        pairs: Pairs,
        rule: LabelRule,
        class_names: tuple[str, ...],
        preprocessing: Preprocessing,
        *,
        augmentation: SemanticAugmentation | None = None,
        ratios: Sequence[float] = (1.0,),
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(len(pairs), seed=seed, training=augmentation is not None, on_error=on_error)
        self.pairs, self.rule, self.preprocessing, self.augmentation = pairs, rule, preprocessing, augmentation
        self.ratios, self._class_names = ratios, class_names

    @property
    def name(self) -> str:
        return self.pairs.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def path(self, index: int) -> str:
        return self.pairs.pictures.path(self.pairs.names[index][0])

    def read(self, index: int) -> SemanticView:
        labels = torch.from_numpy(self.pairs.labels(index, self.rule, len(self._class_names)).astype("uint8"))
        picture = self.pairs.picture(index)
        check_sizes(self.pairs, index, (picture.height, picture.width), (labels.shape[0], labels.shape[1]))
        return view(picture, labels)

    def prepare(self, read: SemanticView, index: int) -> Sample[LabelMapTarget]:
        short, longest = self.preprocessing.image_size, self.preprocessing.max_size
        assert longest is not None
        info = ImageInfo(self.path(index), read.size)
        if self.augmentation is None:
            sizes = [fitted_size(read.size, int(short * ratio), int(longest * ratio)) for ratio in self.ratios]
            image, *views = (preprocess(read.image, self.preprocessing, size) for size in sizes)
            return Sample(image, LabelMapTarget(read.labels.as_subclass(Tensor).long()), info, views)
        varied, crop = self.augmentation(read, short, longest), self.augmentation.crop
        image = pad_to(normalize(varied.image, self.preprocessing), crop)
        return Sample(image, LabelMapTarget(varied.labels.as_subclass(Tensor).long()).padded(crop), info)


def check_sizes(pairs: Pairs, index: int, picture: tuple[int, int], mask: tuple[int, int]) -> None:
    """Raises ``ImageError`` unless a picture and its mask have as many rows and columns."""
    if picture != mask:
        place = pairs.masks.path(pairs.names[index][1])
        raise ImageError(
            f"{place}: has {mask[1]} x {mask[0]} pixels, its picture {pairs.pictures.path(pairs.names[index][0])} "
            f"has {picture[1]} x {picture[0]}"
        )
