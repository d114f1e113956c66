"""Heat maps of an answer: where in the image it comes from, by several methods, without a choice of layers.

Every method gives one value for each pixel of the network's input. ``METHODS`` describes them, and ``attribute``
computes one. The file has more than 450 lines because all methods are in it, each with its formula.

Symbols in the docstrings: S is the score of the target, A ``(C, h, w)`` what the network reads of a block, m
``(C, h, w)`` its modulator, g ``(L + 1, h, w)`` its gates, z its context, p a position, c a channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalnet.card import Preprocessing
from focalnet.errors import ConfigError, did_you_mean
from focalnet.explanations.features import FeatureTrace, features_module, lacks_modulation, trace_features
from focalnet.explanations.preparing import Box, Prepared, evaluating, forward, prepare, stride_of
from focalnet.explanations.recording import Trace, block_names, chosen, of_this_thread, root, stage_of, trace
from focalnet.explanations.targets import Target, resolve
from focalnet.inference.sources import Source
from focalnet.models.base import check_finite
from focalnet.results import Result
from focalnet.samples import Size

Score: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Scores ``(n,)`` of versions ``(n, C, H, W)`` of images, given which image of the batch each is a version of."""

DEFAULT_METHOD = "context_cam"
CELLS = 14  # cells of a feature map across a target: ImageNet's 224 pixels at stride 16
STEPS = 50  # of integrated gradients
AT_ONCE = 64  # versions of an image in one forward pass, at most
PIXELS = 2**19  # of all these versions: their derivatives are held


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Where in an image an answer comes from.

    Args:
        values: ``(H, W)``, float32, at the resolution of the network's input without padding, not normalized.
        signed: whether negative values speak against the target; otherwise all values are at least 0.
        method: a name in ``METHODS``.
        target: name of what is explained; empty for methods that need no target.
        blocks: the blocks that it is made of; empty for methods that need none.
        region: left, top, right, bottom of the part of the original image that it covers, in pixels.
        inside: bool ``(H, W)``, the pixels of the target; None if it is the whole image.
    """

    values: Tensor = field(repr=False)
    signed: bool
    method: str
    target: str
    blocks: tuple[str, ...]
    region: Box
    inside: Tensor | None = field(default=None, repr=False)

    def contrast(self) -> tuple[float, float] | None:
        """The mean absolute value inside and outside the target; None if it is the whole image."""
        if self.inside is None or not self.inside.any() or self.inside.all():
            return None
        size = self.values.abs()
        return float(size[self.inside].mean()), float(size[~self.inside].mean())


@dataclass(frozen=True, eq=False)
class Request:
    """What a method computes a map of.

    Args:
        model: in evaluation mode, not compiled.
        pixels: ``(B, C, H, W)``.
        size: height and width of the images before padding.
        score: of the targets.
        blocks: names of the blocks to look at.
        seed: of random numbers.
    """

    model: nn.Module
    pixels: Tensor
    size: Size
    score: Score
    blocks: tuple[str, ...]
    seed: int = 0

    def own_scores(self, pixels: Tensor) -> Tensor:
        """Scores ``(B,)`` of one version of each image."""
        return self.score(pixels, torch.arange(len(pixels), device=pixels.device))


class Method(NamedTuple):
    """A method: one line about it, how to compute ``(B, H, W)``, and what it needs."""

    description: str
    compute: Callable[[Request], Tensor]
    signed: bool = False
    needs_target: bool = True
    needs_blocks: bool = True
    needs_modulation: bool = False


def attribute(
    model: nn.Module,
    image: Source | Prepared,
    target: Target | int | str | None = None,
    method: str = DEFAULT_METHOD,
    *,
    blocks: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    result: Result | None = None,
    seed: int = 0,
) -> HeatMap:
    """Computes a heat map of an answer.

    Args:
        model: a network of this library, of any task; a FocalNet classifier of timm or transformers; or another
            classifier of timm, for the methods that need no modulator.
        image: one image, in any form that ``Predictor`` takes; its normalized pixels ``(1, C, H, W)``; or what
            ``prepare`` gives of it.
        target: the index or name of a class; a ``BoxTarget``, ``MaskTarget`` or ``PixelsTarget`` (see ``targets_of``);
            default: the best class, the best object or the largest segment that the network predicts.
        method: a key of ``METHODS``.
        blocks: names of blocks to look at; default: see ``default_blocks``.
        preprocessing: of the image, for a model that does not state its own.
        result: what the network predicts of the image, if it is known already.
        seed: of the method ``"random"``.

    Raises:
        ConfigError: no such method, block or class, or the network has no such target, or no modulator for the method.
        ImageError: the image cannot be read.
        FrozenError: a model frozen by ``focalnet.optimize``; the message says how to thaw it.
        NonFiniteOutputs: the network computes NaN or infinite values.
    """
    chosen_method = method_named(method)
    with torch.inference_mode(False), evaluating(model) as network:
        check_method(network, method)
        prepared = image if isinstance(image, Prepared) else prepare(network, image, preprocessing)
        wanted = target
        if chosen_method.needs_target or target is not None:
            wanted = resolve(network, prepared, target, result)
        found = wanted if isinstance(wanted, Target) else None
        if blocks is not None and lacks_modulation(network):
            raise ConfigError(f"blocks: a {type(network).__name__} has no FocalNet blocks; leave blocks out")
        names = default_blocks(network, method, prepared, found) if blocks is None else chosen(root(network), blocks)

        def score(pixels: Tensor, _index: Tensor) -> Tensor:
            assert found is not None
            return found.scores(network, pixels, prepared)

        request = Request(network, prepared.pixels.clone(), prepared.size, score, tuple(names), seed)
        values = saliency(request, method)[0]
    height, width = prepared.size
    return HeatMap(
        values=values[:height, :width].contiguous(),
        signed=chosen_method.signed,
        method=method,
        target=found.name or f"class {found.label}" if found is not None and chosen_method.needs_target else "",
        blocks=tuple(names) if chosen_method.needs_blocks else (),
        region=prepared.region,
        inside=None if found is None else found.inside(prepared),
    )


def saliency(request: Request, method: str) -> Tensor:
    """The maps of a batch, ``(B, H, W)``, float32, on the CPU; ``attribute`` for one image says more."""
    values = method_named(method).compute(request).detach().float().cpu()
    check_finite(values)
    return values


def method_named(name: str) -> Method:
    """The method of a name; raises ConfigError if there is none."""
    if name not in _METHODS:
        raise ConfigError(f'method: "{name}" is unknown{did_you_mean(name, _METHODS)}; there are {", ".join(_METHODS)}')
    return _METHODS[name]


def methods_of(model: nn.Module) -> list[str]:
    """The methods that a network has: without focal modulation, those that need no modulator."""
    lacking = lacks_modulation(model)
    return [name for name, method in _METHODS.items() if not (lacking and method.needs_modulation)]


def check_method(model: nn.Module, name: str) -> None:
    """Raises ConfigError if there is no method of this name, or the network lacks what it needs."""
    method_named(name)
    if name not in (known := methods_of(model)):
        raise ConfigError(
            f'method: "{name}" needs focal modulation, and a {type(model).__name__} has none; for it there are '
            f"{', '.join(known)}"
        )


def default_blocks(model: nn.Module, method: str, prepared: Prepared, target: Target | None) -> list[str]:
    """The blocks that a method looks at if none are given.

    For an answer about the whole image it is the last block of the last stage, where the features are closest to the
    answer. For an object or segment it is the last block of the coarsest stage that has at least 14 cells across it
    (the square root of its area), as an ImageNet classifier's third stage has across the image; the finest if none has.
    The methods in ``SUMMED`` add several blocks, since their values are parts of the same score. ``context_cam`` adds
    all blocks; the others add the last ones of the last two stages for the whole image, otherwise those of that stage
    and all later ones. These choices were best on training images of CIFAR-10; see docs/explain.md. The control methods
    need no block. Of a network without focal modulation it is the module whose output the head reads.
    """
    if not method_named(method).needs_blocks:
        return []
    if lacks_modulation(model):
        return [features_module(model, prepared.pixels)]
    if method == "context_cam":
        return block_names(model)
    last = {stage_of(name): name for name in block_names(model)}
    ordered = list(last.values())
    area = None if target is None else target.area(prepared)
    index = len(ordered) - 1
    if area is not None:
        fine = [i for i, name in enumerate(ordered) if CELLS * stride_of(model, name) <= math.sqrt(area)]
        index = max(fine, default=0)
    if method not in SUMMED:
        return [ordered[index]]
    return ordered[max(index - 1, 0) :] if area is None else ordered[index:]


# ---- the modulator and the gates ----


def _modulator(request: Request) -> Tensor:
    """The L2 norm of the modulator over channels, ``|m(p)|``, as in the paper's figures; the same for all targets."""
    with torch.no_grad(), trace(request.model, request.blocks) as traces:
        _run(request)
    return _summed(request, traces, {name: t.modulator.float().norm(dim=1) for name, t in traces.items()})


def _gates(request: Request) -> Tensor:
    """The L2 norm of the gates over levels, ``|g(p)|``; the same for all targets."""
    with torch.no_grad(), trace(request.model, request.blocks) as traces:
        _run(request)
    return _summed(request, traces, {name: t.split(t.projected)[2].float().norm(dim=1) for name, t in traces.items()})


def _modulator_cam(request: Request) -> Tensor:
    """The share of the score that passes through the modulator at each position: ``sum_c m dS/dm``.

    To first order it is what S loses if the modulator is set to zero there, while the scale of each layer norm stays.
    With derivatives through that scale, too, the shares of all branches at a position add up to zero, since a layer
    norm does not see the length of its input; then an object that the residual branch tells from the rest has negative
    shares in the modulation. Signed.
    """
    with _constant_scales(request.model):
        traces, gradients = _gradients(request, lambda t: t.modulator)
    return _summed(request, traces, {n: (t.modulator * gradients[n]).float().sum(1) for n, t in traces.items()})


def _gates_cam(request: Request) -> Tensor:
    """The share of the score that the gates let through at each position: ``sum_l g_l dS/dg_l``.

    Since the aggregated context is ``sum_l g_l z_l`` and the modulator is linear in it, this is ``modulator_cam``
    without the part of the bias of the projection ``h``. Signed.
    """
    with _constant_scales(request.model):
        traces, gradients = _gradients(request, lambda t: t.projected)
    maps = {}
    for name, t in traces.items():
        gates, by_gates = t.split(t.projected)[2], t.split(gradients[name])[2]
        maps[name] = (gates * by_gates).float().sum(1)
    return _summed(request, traces, maps)


def _context_cam(request: Request) -> Tensor:
    """The share of the score that comes from the context at each position: ``sum_c z dS/dz``, z before the kernels.

    While ``modulator_cam`` shows where context is used, this shows where it is gathered from: the derivative goes back
    through the gates and the depthwise kernels of all levels to the positions that they look at. Signed.
    """
    with _constant_scales(request.model):
        traces, gradients = _gradients(request, lambda t: t.projected)
    maps = {}
    for name, t in traces.items():
        context, by_context = t.split(t.projected)[1], t.split(gradients[name])[1]
        maps[name] = (context * by_context).float().sum(1)
    return _summed(request, traces, maps)


# ---- methods that exist for every network ----


def _grad_cam(request: Request) -> Tensor:
    """``relu(sum_c A_c mean_p(dS/dA_c))``: Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391)."""
    return _cam(request, lambda a, g: (a * g.mean((2, 3), keepdim=True)).sum(1).relu())


def _hires_cam(request: Request) -> Tensor:
    """``relu(sum_c A_c dS/dA_c)``: HiResCAM (Draelos and Carin, 2020, arXiv 2011.08891)."""
    return _cam(request, lambda a, g: (a * g).sum(1).relu())


def _layer_cam(request: Request) -> Tensor:
    """``relu(sum_c A_c relu(dS/dA_c))``: LayerCAM (Jiang et al., IEEE TIP 2021)."""
    return _cam(request, lambda a, g: (a * g.relu()).sum(1).relu())


def _score_cam(request: Request) -> Tensor:
    """``relu(sum_c w_c A_c)``, w the softmax over channels of the score of the image masked by channel c.

    Score-CAM (Wang et al., CVPR-W 2020, arXiv 1910.01279) as pytorch-grad-cam computes it: channels are resized to the
    input and scaled to 0...1 to mask it.
    """
    with torch.no_grad(), _traced(request) as traces:
        _run(request)
    size = (request.pixels.shape[2], request.pixels.shape[3])
    maps = {}
    for name, t in traces.items():
        features = _features(t).detach()
        weights = []
        for image, channels in enumerate(features):
            scores = []
            for some in torch.split(channels, _at_once(request)):
                masks = F.interpolate(some[None], size, mode="bilinear", align_corners=True)[0]
                low, high = masks.flatten(1).aminmax(dim=1)
                masks = (masks - low[:, None, None]) / (high - low + 1e-8)[:, None, None]
                with torch.no_grad():
                    versions = request.pixels[image] * masks[:, None]
                    scores.append(request.score(versions, torch.full((len(some),), image)))
            weights.append(torch.cat(scores).float().softmax(0))
        maps[name] = (features.float() * torch.stack(weights)[:, :, None, None]).sum(1).relu()
    return _summed(request, traces, maps)


def _integrated_gradients(request: Request) -> Tensor:
    """``sum_c x_c int_0^1 dS(a x)/dx_c da`` in 50 Gauss-Legendre steps.

    Integrated gradients (Sundararajan et al., ICML 2017, arXiv 1703.01365). The baseline is
    0 in normalized space: the mean color of the training images. Signed.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(STEPS)
    total = torch.zeros_like(request.pixels)
    chunk = max(_at_once(request) // len(request.pixels), 1)
    for start in range(0, STEPS, chunk):
        share = torch.tensor((nodes[start : start + chunk] + 1) / 2).to(request.pixels)
        weight = torch.tensor(node_weights[start : start + chunk] / 2).to(request.pixels)
        scaled = (share[:, None, None, None, None] * request.pixels).requires_grad_()
        index = torch.arange(len(request.pixels), device=request.pixels.device).repeat(len(share))
        with torch.enable_grad():
            score = request.score(scaled.flatten(0, 1), index)
        (gradient,) = torch.autograd.grad(score.sum(), scaled)
        total += (weight[:, None, None, None, None] * gradient).sum(0)
    return (total * request.pixels).sum(1)


# ---- controls, which know nothing of the network ----


def _random(request: Request) -> Tensor:
    """Independent uniform noise."""
    batch, _, height, width = request.pixels.shape
    images = [
        torch.rand((height, width), generator=torch.Generator().manual_seed(request.seed + i)) for i in range(batch)
    ]
    return torch.stack(images)


def _center(request: Request) -> Tensor:
    """A Gaussian around the center, with a standard deviation of a quarter of the sides."""
    batch, _, height, width = request.pixels.shape
    y, x = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (height, width))
    return torch.exp(-2 * (y[:, None] ** 2 + x[None] ** 2)).expand(batch, -1, -1).clone()


def _edges(request: Request) -> Tensor:
    """The strength of edges: the norm of Sobel's derivatives of the mean over channels."""
    gray = F.pad(request.pixels.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = gray.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    derivatives = F.conv2d(gray, torch.stack([sobel, sobel.T])[:, None])
    strength: Tensor = torch.linalg.vector_norm(derivatives, dim=1)
    return strength


_METHODS: dict[str, Method] = {
    "context_cam": Method(
        "share of the score by where its context is gathered (gradient times context)",
        _context_cam,
        signed=True,
        needs_modulation=True,
    ),
    "modulator_cam": Method(
        "share of the score that passes through the modulator (gradient times modulator)",
        _modulator_cam,
        signed=True,
        needs_modulation=True,
    ),
    "gates_cam": Method(
        "share of the score that the gates let through (gradient times gates)",
        _gates_cam,
        signed=True,
        needs_modulation=True,
    ),
    "modulator": Method(
        "norm of the modulator, the same for every target", _modulator, needs_target=False, needs_modulation=True
    ),
    "gates": Method(
        "norm of the gates over levels, the same for every target", _gates, needs_target=False, needs_modulation=True
    ),
    "grad_cam": Method("Grad-CAM: features weighted by their mean gradients", _grad_cam),
    "hires_cam": Method("HiResCAM: features times gradients", _hires_cam),
    "layer_cam": Method("LayerCAM: features times positive gradients", _layer_cam),
    "score_cam": Method("Score-CAM: features weighted by the score of the image that they mask (slow)", _score_cam),
    "integrated_gradients": Method(
        "integrated gradients of the pixels, from the mean color",
        _integrated_gradients,
        signed=True,
        needs_blocks=False,
    ),
    "random": Method("control: noise", _random, needs_target=False, needs_blocks=False),
    "center": Method("control: a Gaussian around the center", _center, needs_target=False, needs_blocks=False),
    "edges": Method("control: strength of edges in the image", _edges, needs_target=False, needs_blocks=False),
}
METHODS: Mapping[str, str] = MappingProxyType({name: method.description for name, method in _METHODS.items()})
"""Every method, and one line about it."""
CONTROLS = ("random", "center", "edges")
"""Methods that know nothing of the network; a measure that one of them wins measures nothing."""
SUMMED = ("context_cam", "modulator_cam", "gates_cam")
"""Methods whose values are parts of the score, so that those of several blocks are added."""


def _at_once(request: Request) -> int:
    height, width = request.pixels.shape[2:]
    return max(min(AT_ONCE, PIXELS // (height * width)), 1)


def _run(request: Request) -> None:
    forward(request.model, request.pixels, request.size)


def _traced(request: Request) -> AbstractContextManager[dict[str, Any]]:
    """Traces of the blocks that a method looks at; those of networks without focal modulation have features alone."""
    return (trace_features if lacks_modulation(request.model) else trace)(request.model, request.blocks)


def _gradients(request: Request, part: Callable[[Any], Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The traces of a pass, and the derivatives of the scores by a part of each; zeros without an influence."""
    pixels = request.pixels.detach().requires_grad_()  # so that blocks with frozen weights have derivatives, too
    with torch.enable_grad(), _traced(request) as traces:
        scores = request.own_scores(pixels)
    parts = {name: part(t) for name, t in traces.items()}
    if not scores.requires_grad:  # no detection matches the target
        return traces, {name: torch.zeros_like(tensor) for name, tensor in parts.items()}
    found = torch.autograd.grad(scores.float().sum(), list(parts.values()), allow_unused=True)
    zeros = (torch.zeros_like(tensor) for tensor in parts.values())
    return traces, {
        name: zero if gradient is None else gradient for name, gradient, zero in zip(parts, found, zeros, strict=True)
    }


@contextmanager
def _constant_scales(model: nn.Module) -> Iterator[None]:
    """Takes the scale of each layer norm as a constant for derivatives; values stay the same.

    As the LN rule of Ali et al., ICML 2022, arXiv 2202.07304, for layer-wise relevance propagation in transformers.
    """
    from timm.layers import LayerNorm2d  # whose import takes long

    def hook(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(norm, nn.LayerNorm)
        dims = (1,) if isinstance(norm, LayerNorm2d) else tuple(range(-len(norm.normalized_shape), 0))
        x = inputs[0]
        with torch.no_grad():
            scale = (x.float().var(dims, unbiased=False, keepdim=True) + norm.eps).rsqrt().to(x)
        change = x - x.detach()  # zero, with the derivative of x
        change = (change - change.mean(dims, keepdim=True)) * scale
        if norm.weight is not None:
            change = change * (norm.weight[:, None, None] if isinstance(norm, LayerNorm2d) else norm.weight)
        return output.detach() + change

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                stack.callback(module.register_forward_hook(of_this_thread(hook)).remove)
        yield


def _features(t: Trace | FeatureTrace) -> Tensor:
    """What the network reads of a block's output, ``(B, C, h, w)``."""
    assert t.read is not None
    return t.features(t.read)


def _cam(request: Request, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    traces, gradients = _gradients(request, lambda t: t.read)
    maps = {
        name: combine(_features(t).detach().float(), t.features(gradients[name]).float()) for name, t in traces.items()
    }
    return _summed(request, traces, maps)


def _summed(request: Request, traces: Mapping[str, Any], maps: Mapping[str, Tensor]) -> Tensor:
    """The maps ``(B, h, w)`` of several blocks at the size of the input, added."""
    size = (request.pixels.shape[2], request.pixels.shape[3])
    large = [_upsampled(maps[name].detach()[:, None], stride_of(request.model, name), size)[:, 0] for name in traces]
    return torch.stack(large).sum(0)


def _upsampled(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Maps ``(B, C, h, w)`` bilinearly at the size of the input, cell by cell where it was seen.

    A network drops the remainder of an input that is no multiple of the stride, or pads it: the maps then end earlier,
    and the last values continue, or later, and are cut.
    """
    height, width = maps.shape[2] * stride, maps.shape[3] * stride
    large = F.interpolate(maps.float(), (height, width), mode="bilinear", align_corners=False)
    missing = max(size[1] - width, 0), max(size[0] - height, 0)
    if any(missing):
        large = F.pad(large, (0, missing[0], 0, missing[1]), mode="replicate")
    return large[..., : size[0], : size[1]]
