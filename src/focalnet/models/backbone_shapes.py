"""Infers the architecture of a FocalNet from the names and shapes in its state dict.

``post_norm``, ``normalize_modulator`` and ``stem_padding`` change neither names nor shapes in the official layout.
Their values come from the file's metadata, from the architecture that the caller names, or from the published
architecture with exactly these shapes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from focalnet.errors import CheckpointError, UnknownName, did_you_mean
from focalnet.models import ClassifierConfig
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.variants import VARIANTS

# Fields of FocalNetConfig that follow from a state dict; of layer_scale only whether it exists.
TRACED = (
    "in_chans",
    "embed_dim",
    "depths",
    "focal_levels",
    "focal_windows",
    "patch_size",
    "mlp_ratio",
    "overlapped",
    "patch_norm",
    "post_norm_in_modulation",
    "layer_scale",
)
_DEFAULT_LAYER_SCALE = 1e-4  # the official initial value; the trained values are in the weights


def infer(
    state_dict: Mapping[str, Tensor], *, architecture: str | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[ClassifierConfig, str | None]:
    """Infers a classifier's configuration from its tensors, and its published name or None.

    Args:
        state_dict: tensors under this library's names.
        architecture: name that the caller gives; its shapes must match.
        settings: fields of ``FocalNetConfig`` known from other sources; they override those of the named architecture.

    Raises:
        CheckpointError: the tensors are not a FocalNet's or not of the named architecture, or ``post_norm`` is unknown.
        UnknownName: there is no architecture of this name.
    """
    traced = trace(state_dict)
    if architecture is None:
        architecture = published_name(traced)
    else:
        check_is(architecture, traced)
    implied = dict(VARIANTS[architecture].shape) if architecture else {}
    known = {**implied, **traced, **(settings or {})}
    if traced["layer_scale"] is not None:
        known["layer_scale"] = (settings or {}).get("layer_scale") or _DEFAULT_LAYER_SCALE
    if architecture is None and "post_norm" not in known:
        raise CheckpointError(
            f"its architecture ({describe(traced)}) is not a published one, and its tensors do not tell whether the "
            f"norms come before or after modulation and MLP: pass post_norm=False or True "
            f"(focalnet convert: --pre-norm or --post-norm)"
        )
    config = FocalNetConfig.from_dict(known)
    check_described(config, traced)
    return ClassifierConfig(backbone=config, num_classes=classes_of(state_dict)), architecture


def classes_of(state_dict: Mapping[str, Tensor]) -> int:
    """Number of outputs of the head; 0 without a head."""
    return state_dict["head.weight"].shape[0] if "head.weight" in state_dict else 0


def trace(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of ``FocalNetConfig`` that follow from the state dict, see ``TRACED``.

    Raises:
        CheckpointError: a tensor of a FocalNet is missing or has an unexpected shape.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    matches = (re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.modulation\.f\.weight", key) for key in shapes)
    blocks = Counter(int(match[1]) for match in matches if match)
    if not blocks:
        raise CheckpointError("its blocks have no focal modulation: it is not a FocalNet")
    try:
        return _trace(shapes, depths=tuple(blocks[stage] for stage in range(len(blocks))))
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"a tensor of a FocalNet is missing or has an unexpected shape: {error}") from error


def _trace(shapes: Mapping[str, tuple[int, ...]], depths: tuple[int, ...]) -> dict[str, Any]:
    dim, in_chans, kernel, _ = shapes["patch_embed.proj.weight"]
    if len(depths) > 1:
        overlapped = shapes["layers.0.downsample.proj.weight"][2] == 3
    else:
        overlapped = kernel == 7  # the only overlapped stem; no published model has patches of 7 pixels
    firsts = [f"layers.{stage}.blocks.0.modulation.focal_layers" for stage in range(len(depths))]
    block = "layers.0.blocks.0"
    return {
        "in_chans": in_chans,
        "embed_dim": dim,
        "depths": depths,
        "focal_levels": tuple(sum(f"{first}.{level}.0.weight" in shapes for level in range(99)) for first in firsts),
        # Without focal levels the window is unused, and 3 is arbitrary.
        "focal_windows": tuple(shapes.get(f"{first}.0.0.weight", (0, 0, 3))[2] for first in firsts),
        "patch_size": (kernel + 1) // 2 if overlapped else kernel,
        "mlp_ratio": shapes[f"{block}.mlp.fc1.weight"][0] / dim,
        "overlapped": overlapped,
        "patch_norm": "patch_embed.norm.weight" in shapes,
        "post_norm_in_modulation": f"{block}.modulation.ln.weight" in shapes,
        "layer_scale": _DEFAULT_LAYER_SCALE if f"{block}.gamma_1" in shapes else None,
    }


def published_name(traced: Mapping[str, Any]) -> str | None:
    """The architecture of ``VARIANTS`` with exactly these shapes, apart from the input channels; None without one."""
    return next((name for name in VARIANTS if not _differences(name, traced)), None)


def describe(traced: Mapping[str, Any]) -> str:
    """Summary of the architecture, for messages."""
    names = ("embed_dim", "depths", "focal_levels", "focal_windows")
    return ", ".join(f"{name}={traced[name]}" for name in names)


def agree(name: str, described: Any, traced: Any) -> bool:
    """Whether two values of a field describe the same shapes."""
    if name == "layer_scale":
        return (described is None) == (traced is None)
    if name == "mlp_ratio":
        return abs(float(described) - float(traced)) < 1 / 8  # hidden widths are rounded down to whole channels
    return bool(described == traced)


def check_is(architecture: str, traced: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the shapes are not the architecture's, UnknownName if there is no such architecture."""
    if architecture not in VARIANTS:
        raise UnknownName(
            f'no architecture "{architecture}"{did_you_mean(architecture, VARIANTS)}; "focalnet models" lists all'
        )
    differences = _differences(architecture, traced)
    if differences:
        actual = published_name(traced)
        raise CheckpointError(
            f"it is not a {architecture}: it has {differences[0]}={traced[differences[0]]}"
            + (f"; it looks like {actual}" if actual else "")
        )


def check_described(config: FocalNetConfig, traced: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a file's metadata and the shapes of its tensors disagree.

    Called before the network is built, so that damaged metadata cannot request a million blocks.
    """
    for name in TRACED:
        no_window = name == "focal_windows" and 0 in traced["focal_levels"]
        if not no_window and not agree(name, getattr(config, name), traced[name]):
            raise CheckpointError(f"it is described with {name}={getattr(config, name)}, but has {name}={traced[name]}")


def _differences(architecture: str, traced: Mapping[str, Any]) -> list[str]:
    config = FocalNetConfig.from_dict(VARIANTS[architecture].shape)
    names = [name for name in TRACED if name != "in_chans"]
    return [name for name in names if not agree(name, getattr(config, name), traced[name])]
