"""One table per foreign layout, used in both directions; our own layout is that of the official release."""

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

# Prefixes that DDP, torch.compile, Lightning and UniCL's image tower add to every name.
_WRAPPERS = r"(?:(?:module|_orig_mod|model|visual)\.)*"


def detect(keys: Iterable[str]) -> Layout:
    """The layout of a state dict, by its keys.

    Raises:
        CheckpointError: the keys match no layout.
    """
    keys = list(keys)
    for layout in LAYOUTS.values():
        if any(_marked(layout, key) for key in keys):
            return layout
    if any(re.match(r"(?:module\.)?backbone\..*patch_embed\.proj\.weight", key) for key in keys):
        raise CheckpointError("it holds a detector or segmenter that this version cannot load")
    some = ", ".join(f'"{key}"' for key in keys[:3]) or "nothing"
    raise CheckpointError(
        f"its keys ({some}, ...) are not those of a FocalNet of the official release, timm or transformers"
    )


def unwrap(state_dict: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """Removes the prefixes of wrappers; also returns the keys that do not have the prefix."""
    match = next(filter(None, (_marked(layout, key) for key in state_dict)))
    prefix = match["wrappers"]
    # The head of a transformers model is outside the base model, whose name is then also a prefix.
    inside = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    if layout is HUGGINGFACE and HUGGINGFACE.mark not in inside:
        inside = {f"focalnet.{key}": tensor for key, tensor in inside.items()}  # a bare FocalNetModel
    return inside, [key for key in state_dict if not key.startswith(prefix)]


def check(layout: Layout, config: FocalNetConfig) -> None:
    """Raises ConfigError for a configuration that the library of this layout does not support."""
    if layout.name in _CHECKS:
        _CHECKS[layout.name](config)


def _marked(layout: Layout, key: str) -> re.Match[str] | None:
    mark = re.escape(layout.mark)
    if layout is HUGGINGFACE:
        mark = mark.replace(r"focalnet\.", r"(?:focalnet\.)?", 1)
    return re.fullmatch(rf"(?P<wrappers>{_WRAPPERS}){mark}", key)
