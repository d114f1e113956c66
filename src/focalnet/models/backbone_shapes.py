"""Which FocalNet a state dict belongs to: what its shapes tell, and what they cannot.

``post_norm`` and ``normalize_modulator`` leave no trace in the names of the official layout, nor does
``stem_padding``. They come from a description beside the file, from the architecture the caller names,
or from the published architecture that has exactly these shapes.
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

# Fields of FocalNetConfig that the shapes of a state dict decide; layer_scale only whether there is one.
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
_DEFAULT_LAYER_SCALE = 1e-4  # only an initial value, the official one: the trained one is in the weights


def infer(
    state_dict: Mapping[str, Tensor], *, architecture: str | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[ClassifierConfig, str | None]:
    """Returns the configuration of a classifier from its tensors, and its published name if it has one.

    Args:
        state_dict: tensors under our names.
        architecture: the name the caller gives; its shapes must agree.
        settings: fields of ``FocalNetConfig`` known from elsewhere; they win over what a name implies.

    Raises:
        CheckpointError: not a FocalNet, not the architecture named, or ``post_norm`` cannot be known.
        UnknownName: no such architecture.
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
            f"its shape ({describe(traced)}) is not a published one, and nothing in it tells whether the norms "
            f"come before or after modulation and MLP: say so with post_norm=False or True "
            f"(focalnet convert: --pre-norm or --post-norm)"
        )
    config = FocalNetConfig.from_dict(known)
    check_described(config, traced)
    return ClassifierConfig(backbone=config, num_classes=classes_of(state_dict)), architecture


def classes_of(state_dict: Mapping[str, Tensor]) -> int:
    """Outputs of the head; 0 where there is none."""
    return state_dict["head.weight"].shape[0] if "head.weight" in state_dict else 0


def trace(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of ``FocalNetConfig`` that the shapes decide.

    Raises:
        CheckpointError: a part of a FocalNet is not there.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    matches = (re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.modulation\.f\.weight", key) for key in shapes)
    blocks = Counter(int(match[1]) for match in matches if match)
    if not blocks:
        raise CheckpointError("its blocks have no focal modulation: it is not a FocalNet")
    try:
        return _trace(shapes, depths=tuple(blocks[stage] for stage in range(len(blocks))))
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"a part of a FocalNet is missing or has another shape: {error}") from error


def _trace(shapes: Mapping[str, tuple[int, ...]], depths: tuple[int, ...]) -> dict[str, Any]:
    dim, in_chans, kernel, _ = shapes["patch_embed.proj.weight"]
    if len(depths) > 1:
        overlapped = shapes["layers.0.downsample.proj.weight"][2] == 3
    else:
        overlapped = kernel == 7  # the only overlapped stem there is; a patch of 7 is not known to exist
    firsts = [f"layers.{stage}.blocks.0.modulation.focal_layers" for stage in range(len(depths))]
    block = "layers.0.blocks.0"
    return {
        "in_chans": in_chans,
        "embed_dim": dim,
        "depths": depths,
        "focal_levels": tuple(sum(f"{first}.{level}.0.weight" in shapes for level in range(99)) for first in firsts),
        # With no level there is no window; 3 is then as good as any.
        "focal_windows": tuple(shapes.get(f"{first}.0.0.weight", (0, 0, 3))[2] for first in firsts),
        "patch_size": (kernel + 1) // 2 if overlapped else kernel,
        "mlp_ratio": shapes[f"{block}.mlp.fc1.weight"][0] / dim,
        "overlapped": overlapped,
        "patch_norm": "patch_embed.norm.weight" in shapes,
        "post_norm_in_modulation": f"{block}.modulation.ln.weight" in shapes,
        "layer_scale": _DEFAULT_LAYER_SCALE if f"{block}.gamma_1" in shapes else None,
    }


def published_name(traced: Mapping[str, Any]) -> str | None:
    """The architecture of ``VARIANTS`` that has exactly these shapes, whatever its channels of input."""
    return next((name for name in VARIANTS if not _differences(name, traced)), None)


def describe(traced: Mapping[str, Any]) -> str:
    """The shape in a few words, for messages."""
    wanted = ("embed_dim", "depths", "focal_levels", "focal_windows")
    return ", ".join(f"{name}={traced[name]}" for name in wanted)


def agree(name: str, described: Any, traced: Any) -> bool:
    """Whether two values of a field mean the same shape."""
    if name == "layer_scale":
        return (described is None) == (traced is None)
    if name == "mlp_ratio":
        return abs(float(described) - float(traced)) < 1 / 8  # hidden widths are rounded down to whole channels
    return bool(described == traced)


def check_is(architecture: str, traced: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless the shapes are those of the architecture, UnknownName if there is none."""
    if architecture not in VARIANTS:
        raise UnknownName(
            f'no architecture "{architecture}"{did_you_mean(architecture, VARIANTS)}; "focalnet models" lists all'
        )
    differences = _differences(architecture, traced)
    if differences:
        looks = published_name(traced)
        raise CheckpointError(
            f"it is not a {architecture}: it has {differences[0]}={traced[differences[0]]}"
            + (f"; it looks like {looks}" if looks else "")
        )


def check_described(config: FocalNetConfig, traced: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a description and the shapes of the tensors beside it disagree.

    Done before building, so that a damaged description cannot ask for a million blocks.
    """
    for name in TRACED:
        no_window = name == "focal_windows" and 0 in traced["focal_levels"]
        if not no_window and not agree(name, getattr(config, name), traced[name]):
            raise CheckpointError(f"it is described with {name}={getattr(config, name)}, but has {name}={traced[name]}")


def _differences(architecture: str, traced: Mapping[str, Any]) -> list[str]:
    config = FocalNetConfig.from_dict(VARIANTS[architecture].shape)
    names = [name for name in TRACED if name != "in_chans"]
    return [name for name in names if not agree(name, getattr(config, name), traced[name])]
