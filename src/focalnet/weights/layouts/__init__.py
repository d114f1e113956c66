"""One table per foreign format, read in both directions; our own layout is the official release's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from focalnet.errors import CheckpointError
from focalnet.models.backbone import FocalNetConfig
from focalnet.weights.layouts import huggingface, timm
from focalnet.weights.layouts.huggingface import HUGGINGFACE
from focalnet.weights.layouts.microsoft import MICROSOFT
from focalnet.weights.layouts.table import Hints, Layout
from focalnet.weights.layouts.timm import TIMM

__all__ = ["LAYOUTS", "Hints", "Layout", "check", "detect", "unwrap"]

LAYOUTS = {layout.name: layout for layout in (MICROSOFT, TIMM, HUGGINGFACE)}

_CHECKS: dict[str, Callable[[FocalNetConfig], None]] = {"timm": timm.check, "huggingface": huggingface.check}

# What training scripts put in front of every name: DDP, torch.compile, Lightning, and UniCL's image tower.
_WRAPPERS = r"(?:(?:module|_orig_mod|model|visual)\.)*"


def detect(keys: Iterable[str]) -> Layout:
    """Which layout a state dict has, by its keys.

    Raises:
        CheckpointError: none of them.
    """
    keys = list(keys)
    for layout in LAYOUTS.values():
        if any(_marked(layout, key) for key in keys):
            return layout
    if any(re.match(r"(?:module\.)?backbone\..*patch_embed\.proj\.weight", key) for key in keys):
        raise CheckpointError(
            "it holds another kind of detector or segmenter (a backbone and more), which this version does not load"
        )
    some = ", ".join(f'"{key}"' for key in keys[:3]) or "nothing"
    raise CheckpointError(
        f"its keys ({some}, ...) are not those of a FocalNet of the official release, timm or transformers"
    )


def unwrap(state_dict: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """Takes off what wrappers put in front of the names; returns the rest of the keys apart."""
    match = next(filter(None, (_marked(layout, key) for key in state_dict)))
    prefix = match["wrappers"]
    # The head of a transformers model stands beside the base model, whose name is then also a prefix.
    inside = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    if layout is HUGGINGFACE and HUGGINGFACE.mark not in inside:
        inside = {f"focalnet.{key}": tensor for key, tensor in inside.items()}  # a bare FocalNetModel
    return inside, [key for key in state_dict if not key.startswith(prefix)]


def check(layout: Layout, config: FocalNetConfig) -> None:
    """Raises ConfigError for a shape that the library of this layout has no model for."""
    if layout.name in _CHECKS:
        _CHECKS[layout.name](config)


def _marked(layout: Layout, key: str) -> re.Match[str] | None:
    mark = re.escape(layout.mark)
    if layout is HUGGINGFACE:
        mark = mark.replace(r"focalnet\.", r"(?:focalnet\.)?", 1)
    return re.fullmatch(rf"(?P<wrappers>{_WRAPPERS}){mark}", key)
