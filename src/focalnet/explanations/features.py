"""The feature map that the head of a timm classifier reads, for networks without focal modulation.

CAMs need no modulator, so they can be compared with those of other networks. No layer has to be named: timm's
classifiers compute ``forward_head(forward_features(images))``, and the module whose output ``forward_features`` returns
is found in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from focalnet.errors import ConfigError
from focalnet.explanations.recording import eager, has_modulation, of_this_thread, uncompiled


@dataclass(eq=False)
class FeatureTrace:
    """What a module computed in the last forward pass, as the graph of derivatives holds it.

    Args:
        channels: dimension of the channels.
        read: the feature map.
    """

    channels: int
    read: Tensor

    def features(self, output: Tensor) -> Tensor:
        """``read``, or a derivative by it, as ``(B, C, h, w)``."""
        return output.movedim(self.channels, 1)


def lacks_modulation(model: nn.Module) -> bool:
    """Whether a model is a classifier of timm without focal modulation."""
    model = uncompiled(model)
    parts = (getattr(model, name, None) for name in ("forward_features", "forward_head"))
    return all(map(callable, parts)) and not has_modulation(model)


def features_module(model: nn.Module, pixels: Tensor) -> str:
    """The name of the module whose output the head reads.

    Args:
        model: for which ``lacks_modulation``.
        pixels: ``(B, C, H, W)``.

    Raises:
        ConfigError: the head does not read the output of a module, or reads no feature map.
    """
    outputs: list[tuple[str, Any]] = []

    def keep(name: str) -> Any:
        return of_this_thread(lambda _module, _inputs, output: outputs.append((name, output)))

    network: Any = uncompiled(model)
    kind = type(network).__name__
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(eager(network))
        for name, module in network.named_modules():
            stack.callback(module.register_forward_hook(keep(name)).remove)
        features = network.forward_features(pixels[:1])
    names = [name for name, output in outputs if output is features]
    if not names or not isinstance(features, Tensor):
        raise ConfigError(
            f"a {kind} changes its features after its last module, so that no CAM can be computed: take the method "
            "integrated_gradients"
        )
    stride = last_stride(network)
    if features.ndim == 4:
        sides = features.shape[1:3] if _channels(network) == -1 else features.shape[2:]
        if all(abs(side * stride - pixel) < stride for side, pixel in zip(sides, pixels.shape[2:], strict=True)):
            return names[-1]
    raise ConfigError(
        f"the head of a {kind} reads features {tuple(features.shape)}, which are not a feature map of stride {stride}, "
        "so that no CAM can be computed: take the method integrated_gradients"
    )


def last_stride(model: nn.Module) -> int:
    """Pixels of the input for each cell of the last feature map, from timm's ``feature_info``.

    Raises:
        ConfigError: the model does not say it.
    """
    stages: Any = getattr(uncompiled(model), "feature_info", None)
    if not stages or "reduction" not in stages[-1]:
        raise ConfigError(f"the stride of a {type(model).__name__} is unknown: it has no feature_info as timm's models")
    return int(stages[-1]["reduction"])


@contextmanager
def trace_features(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, FeatureTrace]]:
    """Traces of modules by name while the body of the ``with`` statement runs the model.

    Args:
        model: for which ``lacks_modulation``.
        names: as ``features_module`` gives.
    """
    network = uncompiled(model)
    traces: dict[str, FeatureTrace] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            traces[name] = FeatureTrace(_channels(network), output)

        return of_this_thread(hook)

    with ExitStack() as stack:
        stack.enter_context(eager(network))
        for name in names:
            stack.callback(network.get_submodule(name).register_forward_hook(keep(name)).remove)
        yield traces


def _channels(model: nn.Module) -> int:
    """The dimension of the channels in feature maps, by timm's ``output_fmt``."""
    return -1 if str(getattr(model, "output_fmt", "NCHW")) in ("NHWC", "Format.NHWC") else 1
