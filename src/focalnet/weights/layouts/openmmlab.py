"""Detectors and Mask2Former of mmdet (2.x and 3.x), UPerNet of mmseg (0.x and 1.x); their names are ours, too.

Other libraries have their own names for some networks (``models.base.ForeignNames``), which are translated on reading.

The configuration is inferred from names and shapes of tensors. Settings that do not follow from them (thresholds,
losses, how many boxes are sampled; for Mask2Former the norm groups, points per head, and which classes are things) have
their published values. A file is ``{"meta": {...}, "state_dict": {...}}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from colorsys import hsv_to_rgb
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from focalnet import registry
from focalnet.errors import CheckpointError, did_you_mean
from focalnet.models import backbone_shapes as shapes
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import ForeignNames, ModelConfig, ModelFamily, StateDictLayout
from focalnet.weights.layouts import averaged, places

NAME = "openmmlab"
CLASSES = "CLASSES"  # the key of the class names in ``meta``
BACKBONE = "backbone."

# Settings of the FocalNet of mmdet and mmseg; a network with a published name has the settings of that name instead.
_OFFICIAL = {"pad_to_stride": True, "stem_padding": 3, "post_norm": False, "normalize_modulator": False}


@dataclass(frozen=True)
class Unwrapped:
    """The tensors of a network.

    Args:
        tensors: under our names, without prefixes such as ``module.``.
        outside: the remaining keys of the file.
        category_ids: by class, as far as the layout implies them.
        names: those of the library that the file is for; None for OpenMMLab's.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    outside: list[str]
    category_ids: tuple[int | str, ...] = ()
    names: ForeignNames | None = None

    @property
    def layout(self) -> str:
        """The name of the layout."""
        return self.names.name if self.names else NAME


def unwrap(tensors: Mapping[str, Tensor]) -> Unwrapped | None:
    """The network in a file; None if no layout matches.

    Raises:
        CheckpointError: there are several networks, and none of them is a moving average; or a part is missing.
    """
    prefixes = dict.fromkeys(place.outer for place in places(tensors) if place.outer is not None)
    found: dict[str, Unwrapped] = {}
    for prefix in prefixes:
        inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        network = _read_names(inside, [key for key in tensors if not key.startswith(prefix)])
        if network is not None:
            found[prefix] = network
    wanted = [prefix for prefix in found if averaged(prefix)] or list(found)
    if len(wanted) > 1:
        raise CheckpointError(
            f"it holds several networks ({', '.join(wanted)}), and nothing says which is meant; save the tensors of "
            "one alone"
        )
    return found[wanted[0]] if wanted else None


def _read_names(inside: dict[str, Tensor], outside: list[str]) -> Unwrapped | None:
    for _, layout in _layouts():
        if layout.mark in inside:
            return Unwrapped(inside, outside)
        for names in layout.others:
            if names.mark in inside:
                try:
                    ours, category_ids = names.read(inside)
                except (KeyError, IndexError, ValueError) as error:
                    raise CheckpointError(f"a part of the network is missing or has another shape: {error}") from error
                return Unwrapped(ours, outside, category_ids, names)
    return None


def foreign_names(config: ModelConfig | FocalNetConfig, name: str) -> ForeignNames:
    """The names of another library for a network.

    Raises:
        CheckpointError: that library does not have it.
    """
    every = [(family, names) for family, layout in _layouts() for names in layout.others if names.name == name]
    for family, names in every:
        if isinstance(config, family.config):
            return names
    able = ", ".join(family.name for family, _ in every)
    raise CheckpointError(f"only {able} has the layout {name}")


def foreign_layouts() -> list[str]:
    """Names of the layouts of other libraries."""
    return [names.name for _, layout in _layouts() for names in layout.others]


def _layouts() -> list[tuple[ModelFamily, StateDictLayout]]:
    return [(family, family.layout) for family in registry.families() if family.layout is not None]


def backbone_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors under its own names."""
    return {key.removeprefix(BACKBONE): tensor for key, tensor in tensors.items() if key.startswith(BACKBONE)}


def infer(
    tensors: Mapping[str, Tensor],
    *,
    architecture: str | None = None,
    settings: Mapping[str, Any] | None = None,
    names: ForeignNames | None = None,
    content: Any = None,
) -> tuple[ModelConfig, str | None]:
    """The network that the names and shapes of unwrapped tensors describe, and its published name if it has one.

    Args:
        tensors: under OpenMMLab's names.
        architecture: the expected name; the shapes must agree with it.
        settings: fields of ``FocalNetConfig`` known from elsewhere.
        names: of which library the file is; None for OpenMMLab's.
        content: what the file holds beside the tensors.

    Raises:
        CheckpointError: a part is missing, or it is another architecture.
    """
    family, layout = next((family, layout) for family, layout in _layouts() if layout.mark in tensors)
    traced = shapes.trace(backbone_of(tensors))
    name = published_name(family, traced)
    if architecture not in (None, name):
        known = did_you_mean(str(architecture), registry.names())
        raise CheckpointError(f"it is not a {architecture}{known}; it looks like {name or f'another {family.name}'}")
    implied = asdict(FocalNetConfig.from_dict(family.variants[name].shape)) if name else {}
    implied |= {} if names is None else names.implied(traced)
    if name is None and names is None:
        implied = _OFFICIAL
    if "post_norm" not in {**implied, **(settings or {})}:
        raise CheckpointError(
            f"its backbone ({shapes.describe(traced)}) is not a published one, and nothing in it tells whether the "
            "norms come before or after modulation and MLP: say so with post_norm=False or True "
            "(focalnet convert: --pre-norm or --post-norm)"
        )
    layers = {int(match[1]) for key in tensors if (match := re.fullmatch(r"backbone\.norm(\d+)\.weight", key))}
    outputs = {"out_indices": tuple(sorted(layers))}
    backbone = FocalNetConfig.from_dict({**implied, **traced, **outputs, **(settings or {})})
    try:
        config = layout.infer(tensors, backbone)
        options = {} if names is None else names.options(content)
        return replace(config, **options) if options else config, name  # type: ignore[type-var]
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"a part of the network is missing or has another shape: {error}") from error


def published_name(family: ModelFamily, traced: Mapping[str, Any]) -> str | None:
    """The published network of the family whose backbone has exactly these shapes."""
    for name, variant in family.variants.items():
        config = FocalNetConfig.from_dict(variant.shape)
        if all(
            shapes.agree(field, getattr(config, field), traced[field]) for field in shapes.TRACED if field != "in_chans"
        ):
            return name
    return None


def describe(config: ModelConfig, names: Iterable[str]) -> dict[str, Any]:
    """The content besides ``state_dict`` that mmdet and mmseg need to read a file."""
    meta: dict[str, Any] = {CLASSES: tuple(names)}
    layout = registry.family_of(config).layout
    if layout is not None and layout.has_palette:  # hues by the golden ratio
        hues = (i * 0.618 % 1 for i in range(config.num_classes))
        meta["PALETTE"] = [[round(255 * c) for c in hsv_to_rgb(hue, 0.7, 0.9)] for hue in hues]
    return {"meta": meta}


def class_names(content: Any) -> tuple[str, ...]:
    """The class names in the ``meta`` of a file (2.x: ``CLASSES``; 3.x: ``dataset_meta``)."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    described = meta.get("dataset_meta")
    names = described.get("classes", described.get(CLASSES)) if isinstance(described, Mapping) else meta.get(CLASSES)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()
