"""One table per foreign layout, used in both directions; our own layout is that of the official release."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from focalnet.errors import CheckpointError
from focalnet.models.backbone import FocalNetConfig
from focalnet.weights.layouts import huggingface, timm
from focalnet.weights.layouts.huggingface import HUGGINGFACE
from focalnet.weights.layouts.microsoft import MICROSOFT
from focalnet.weights.layouts.table import Hints, Layout
from focalnet.weights.layouts.timm import TIMM

__all__ = ["LAYOUTS", "Hints", "Layout", "Place", "averaged", "check", "detect", "places", "unwrap"]

LAYOUTS = {layout.name: layout for layout in (MICROSOFT, TIMM, HUGGINGFACE)}

_CHECKS: dict[str, Callable[[FocalNetConfig], None]] = {"timm": timm.check, "huggingface": huggingface.check}

_BACKBONE = re.compile(r"(?P<outer>(?:.*\.)?)backbone\.(?:\w+\.)?")  # of a detector or segmenter


#: Parts of names that torch.compile, FSDP and activation checkpointing put before what they wrap, at any depth.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without names of wrappers; ``layers_0``, as timm's ``features_only`` calls it, becomes ``layers.0``.

    Raises:
        CheckpointError: they are not a network's own tensors, but what a wrapper computes them from.
    """
    for part, way_out in (
        ("lora_A", "save the model that peft's merge_and_unload() returns"),
        ("parametrizations", "save it after torch.nn.utils.parametrize.remove_parametrizations"),
        ("weight_g", "save it after torch.nn.utils.remove_weight_norm"),
    ):
        if any(part in key.split(".") for key in tensors if isinstance(key, str)):
            raise CheckpointError(f"it has tensors called {part}, of which the weights are computed: {way_out}")
    found = {_plain_name(key): tensor for key, tensor in tensors.items()}
    return found if len(found) == len(tensors) else dict(tensors)


def _plain_name(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    plain = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    return re.sub(r"(^|\.)layers_(\d+)\.", r"\1layers.\2.", plain)


class Place(NamedTuple):
    """Where a FocalNet is in a state dict.

    Args:
        prefix: what is before its names, e.g. ``"module."``.
        layout: whose names they are.
    """

    prefix: str
    layout: Layout

    @property
    def outer(self) -> str | None:
        """What is before the names of the detector or segmenter of which this is the backbone, if it may be one."""
        match = _BACKBONE.fullmatch(self.prefix)
        return match["outer"] if match and self.layout is MICROSOFT else None


def places(keys: Iterable[Any]) -> list[Place]:
    """Where FocalNets are in a state dict, by the key that marks each layout and whatever is before it.

    Other networks have such keys, too; they count only where no place has focal modulation.
    """
    found, keys = [], list(keys)
    for key in keys:
        for layout in LAYOUTS.values() if isinstance(key, str) else ():
            # The head of a transformers model is beside the base model, whose name is then also a prefix.
            marks = [layout.mark, layout.mark.removeprefix("focalnet.")] if layout is HUGGINGFACE else [layout.mark]
            mark = next((mark for mark in marks if key == mark or key.endswith(f".{mark}")), None)
            if mark is not None:
                found.append(Place(key.removesuffix(mark), layout))
                break
    modulated = [key for key in keys if isinstance(key, str) and ".modulation." in key]
    focal = [place for place in found if any(key.startswith(place.prefix) for key in modulated)]
    return focal or found


def detect(keys: Iterable[str]) -> Place:
    """Where the FocalNet of a state dict is; of several, the one that is a moving average.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    keys = list(keys)
    found = places(keys)
    if not found:
        some = ", ".join(f'"{key}"' for key in keys[:3]) or "nothing"
        raise CheckpointError(
            f"its keys ({some}, ...) are not those of a FocalNet of the official release, timm or transformers"
        )
    averages = [place for place in found if averaged(place.prefix)]
    wanted = averages or found
    if len(wanted) > 1:
        prefixes = [place.prefix for place in wanted]
        raise CheckpointError(
            f"it holds several FocalNets ({', '.join(prefixes)}), and nothing says which is meant; save the tensors of "
            "one alone"
        )
    place = wanted[0]
    bare = place.outer is not None and f"{place.prefix}norm.weight" not in keys
    if bare and not all(key.startswith(place.prefix) for key in keys):
        raise CheckpointError("it holds a detector or segmenter that this version cannot load")
    return place


def unwrap(state_dict: Mapping[str, Tensor], place: Place) -> tuple[dict[str, Tensor], list[str]]:
    """Takes off what is before the names; returns the keys of everything else apart."""
    prefix, layout = place
    inside = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    if layout is HUGGINGFACE and HUGGINGFACE.mark not in inside:
        inside = {f"focalnet.{key}": tensor for key, tensor in inside.items()}  # a bare FocalNetModel
    return inside, [key for key in state_dict if not key.startswith(prefix)]


def averaged(name: str) -> bool:
    """Whether the name of a state dict, or a prefix of names, says that the weights are a moving average."""
    return any(part in ("ema", "average", "averaged", "swa") for part in re.split(r"[._]", name.lower()))


def check(layout: Layout, config: FocalNetConfig) -> None:
    """Raises ConfigError for a configuration that the library of this layout does not support."""
    if layout.name in _CHECKS:
        _CHECKS[layout.name](config)
