"""Class names of the published label sets, and the ImageNet-1K part of an ImageNet-22K head.

The ImageNet-22K models of the official release have 21,842 outputs: the first 1000 are the ImageNet-1K
classes in their order, then the other classes of ImageNet-22K (``labelmap_22k_reorder.txt`` of
microsoft/FocalNet). ImageNet-22K has no class n04399382, the teddy bear, which is number 850 of
ImageNet-1K. Output 850 exists to keep the order, but no training image had this label: it is named
``UNUSED`` here, and its predictions are meaningless.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import yaml

from focalnet.errors import CheckpointError

if TYPE_CHECKING:
    from focalnet.models import Classifier

UNUSED = "(unused)"
UNUSED_INDEX = 850
IMAGENET22K_CLASSES = 21842

NUMBERED = {"coco": 80, "objects365": 365}  # label sets whose classes have numbers, and how many classes

_NO_CLASS = ("__background__", "N/A")  # what stands for a number that COCO gives to no class
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"


def _coco_by_id() -> list[str]:
    """COCO's list with its gaps."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights  # carries it

    names: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return names


@cache
def class_names(label_set: str) -> tuple[str, ...]:
    """The names of a label set by class index: WordNet lemmas for ``imagenet1k`` and ``imagenet22k``.

    Args:
        label_set: ``"imagenet1k"`` (1000), ``"imagenet22k"`` (21,842), ``"cifar10"`` (10), ``"coco"`` (80),
            ``"ade20k"`` (150) or ``"objects365"`` (365, which are called by their numbers: no library here carries
            their names).
    """
    if label_set == "objects365":
        return tuple(f"Objects365 class {number}" for number in category_ids(label_set))
    if label_set == "cifar10":
        return tuple(_CIFAR10.split())
    if label_set == "ade20k":  # none of our dependencies has this list
        content = files("focalnet.weights").joinpath("label_sets.yaml").read_text(encoding="utf-8")
        return tuple(yaml.safe_load(content)[label_set])
    if label_set == "coco":
        return tuple(name for name in _coco_by_id() if name not in _NO_CLASS)
    from timm.data.imagenet_info import ImageNetInfo  # imported here because importing timm takes a second

    subset = {"imagenet1k": "imagenet-1k", "imagenet22k": "imagenet-22k-ms"}[label_set]
    names: list[str] = list(ImageNetInfo(subset).label_descriptions())
    if label_set == "imagenet22k":
        names[UNUSED_INDEX] = UNUSED  # timm names it teddy bear, but the networks were not trained on this class
    return tuple(names)


@cache
def category_ids(label_set: str) -> tuple[int, ...]:
    """The numbers that the annotation files of a label set give its classes, by class index.

    Args:
        label_set: COCO's are 1 to 90, with gaps; Objects365's 1 to 365. Others have none.
    """
    if label_set == "coco":
        return tuple(number for number, name in enumerate(_coco_by_id()) if name not in _NO_CLASS)
    return tuple(range(1, 366)) if label_set == "objects365" else ()


def ids_of(names: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the classes of a label set that are called so; none if there is no such set."""
    for label_set, count in NUMBERED.items():
        if len(names) == count and names == class_names(label_set):  # reading COCO's names takes two seconds
            return category_ids(label_set)
    return ()


def cut_to_imagenet1k(model: Classifier) -> Classifier:
    """Reduces a classifier of 21,842 outputs to 1000: the first rows of its head; other weights are shared.

    This is how the official code evaluates ImageNet-22K models on ImageNet-1K without finetuning.
    Class 850 (teddy bear) keeps its untrained row, so that indices stay those of ImageNet-1K; its
    images are misclassified.

    Raises:
        CheckpointError: the model does not have an ImageNet-22K head.
    """
    if model.num_classes != IMAGENET22K_CLASSES:
        raise CheckpointError(
            f"only a head with {IMAGENET22K_CLASSES} ImageNet-22K classes can be cut to ImageNet-1K; "
            f"this one has {model.num_classes}"
        )
    from focalnet.ops.modes import on_meta  # the other functions need only names, and not torch

    with on_meta():
        cut = dataclasses.replace(model.config, num_classes=1000).build()
    weights = model.state_dict()
    weights |= {key: weights[key][:1000].clone() for key in ("head.weight", "head.bias")}
    cut.load_state_dict(weights, assign=True)
    if model.card is not None:
        cut.card = dataclasses.replace(model.card, class_names=model.card.class_names[:1000])
    return cut.train(model.training)
