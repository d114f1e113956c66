"""Measures of heat maps: are they faithful to the network, in the right place, simple, and sane?

Shapes: B images, C channels, H and W height and width. Maps are ``(B, H, W)``, float; larger values are more relevant.
Every measure returns one value for each image, ``(B,)`` float64, so that intervals can be bootstrapped. Each is
batched: versions of several images go through the network together. Where a measure orders pixels, equal values are in
random order, with a fixed seed: in reading order, a flat map would remove the image from top to bottom.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalnet.explanations.imputation import impute

Probability: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Probabilities ``(n,)`` of the answers that are explained, for versions ``(n, C, H, W)`` of images, given which image
of the batch each is a version of."""
Explain: TypeAlias = "Callable[[Tensor], Tensor]"
"""Maps ``(B, H, W)`` of a batch of images ``(B, C, H, W)``."""

AT_ONCE = 64  # versions of small images in one pass through the network: larger batches leave the processor's cache
PIXELS = 2**22  # of all versions in one pass, at most
SHARES = tuple(percent / 100 for percent in range(10, 100, 10))  # of the pixels, that ROAD removes
NOISE = 0.01  # standard deviation that ROAD adds to imputed values

# ---- faithfulness: does the answer change where the map says? ----


def deletion(
    probability: Probability, images: Tensor, maps: Tensor, *, step: int | None = None, patch: int = 1
) -> Tensor:
    """The area under the probability while pixels are deleted, most relevant first; lower is better.

    RISE (Petsiuk et al., BMVC 2018, arXiv 1806.07421): ``step`` pixels at a time become 0 in normalized space; the
    probabilities, from that of the whole image to that of none, are integrated by the trapezoidal rule over n - 1.

    Args:
        probability: of the answers.
        images: ``(B, C, H, W)``, normalized.
        maps: ``(B, H, W)``.
        step: pixels at a time; default: W, as 224 for 224 pixels in the original.
        patch: side of squares that are deleted as a whole, by their mean relevance; pixels in the original. Where
            deletion of single pixels is won by noise, squares of the stage's stride measure more.
    """
    return area(_curve(probability, images, torch.zeros_like(images), maps, step, patch))


def insertion(
    probability: Probability, images: Tensor, maps: Tensor, *, step: int | None = None, patch: int = 1
) -> Tensor:
    """The area under the probability while pixels are inserted into a blurred image; higher is better.

    RISE, as in ``deletion``: the image is blurred by a Gaussian of 11 x 11 pixels with a standard deviation of 5, and
    its pixels come back, most relevant first.

    Args: see ``deletion``.
    """
    return area(_curve(probability, blurred(images), images, maps, step, patch))


def area(curves: Tensor) -> Tensor:
    """The area under curves ``(B, n)`` over 0 to 1 by the trapezoidal rule."""
    return torch.trapezoid(curves, dim=1) / (curves.shape[1] - 1)


def blurred(images: Tensor) -> Tensor:
    """Images blurred as RISE's code does: its kernel is a Gaussian folded into 11 x 11 pixels, around are zeros."""
    side, deviation = 11, 5.0
    radius = int(4 * deviation + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / deviation) ** 2)
    weights /= weights.sum()
    kernel = torch.zeros(side, dtype=torch.float64)
    for cell in range(side):
        for offset, weight in zip(range(-radius, radius + 1), weights.tolist(), strict=True):
            place = (cell + offset) % (2 * side)  # mirrored at the borders
            kernel[cell] += weight * (min(place, 2 * side - 1 - place) == side // 2)
    channels = images.shape[1]
    weight = torch.outer(kernel, kernel).to(images).expand(channels, 1, side, side)
    return F.conv2d(images, weight, padding=side // 2, groups=channels)


class Confidence(NamedTuple):
    """Three measures of the same two probabilities, ``(B,)`` each; see the functions of these names."""

    average_drop: Tensor
    increase: Tensor
    average_gain: Tensor


def confidence(probability: Probability, images: Tensor, maps: Tensor) -> Confidence:
    """How the probability p of an image changes to o when the image is multiplied with its map, scaled to 0 to 1."""
    index = torch.arange(len(images))
    product = images * unit(maps).to(images)[:, None]
    p, o = _probabilities(probability, images, index), _probabilities(probability, product, index)
    return Confidence(
        average_drop=(p - o).clamp(min=0) / p.clamp(min=1e-12),
        increase=(o > p).double(),
        average_gain=(o - p).clamp(min=0) / (1 - p).clamp(min=1e-12),
    )


def average_drop(probability: Probability, images: Tensor, maps: Tensor) -> Tensor:
    """``max(0, p - o) / p``; lower is better.

    p is the probability of the image, o that of the image times its map, scaled to 0 to 1 (``unit``). Grad-CAM++
    (Chattopadhyay et al., WACV 2018, arXiv 1710.11063); pytorch-grad-cam's ``DropInConfidence`` does not divide by p.
    """
    return confidence(probability, images, maps).average_drop


def increase(probability: Probability, images: Tensor, maps: Tensor) -> Tensor:
    """1 where o > p, otherwise 0 (Grad-CAM++; see ``average_drop``); higher is better."""
    return confidence(probability, images, maps).increase


def average_gain(probability: Probability, images: Tensor, maps: Tensor) -> Tensor:
    """``max(0, o - p) / (1 - p)`` (Opti-CAM, Zhang et al., CVIU 2024, arXiv 2301.07002); higher is better."""
    return confidence(probability, images, maps).average_gain


def unit(maps: Tensor) -> Tensor:
    """Maps scaled to 0 to 1 each: negative values, which speak against the answer, become 0; a flat map is 0."""
    low, high = maps.clamp(min=0).flatten(1).aminmax(dim=1)
    scaled = (maps.clamp(min=0) - low[:, None, None]) / (high - low).clamp(min=1e-30)[:, None, None]
    return scaled.clamp(max=1)


def road(
    probability: Probability,
    images: Tensor,
    maps: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = NOISE,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """ROAD: the mean probability with the most, and with the least relevant pixels replaced by their surroundings.

    Rong et al., ICML 2022, arXiv 2202.00449. With the most relevant pixels removed first (MoRF) lower is better, with
    the least (LeRF) higher; pytorch-grad-cam's ``ROADCombined`` is half of their difference, of probabilities.

    Args:
        probability: of the answers.
        images: ``(B, C, H, W)``, normalized.
        maps: ``(B, H, W)``.
        shares: of the pixels that are removed, of which the mean is taken.
        noise: standard deviation of the noise on imputed values.
        seed: of the noise.

    Returns:
        MoRF and LeRF, ``(B,)`` each.
    """
    order = ranks(maps)  # 0: the most relevant
    pixels = order.shape[1]
    counts = [removed(share, pixels) for share in shares]
    generator = torch.Generator().manual_seed(seed)
    means = []
    for rank in (order, pixels - 1 - order):
        curves = torch.empty(len(images), len(counts), dtype=torch.float64)
        for chunk in torch.split(torch.arange(len(images)), max(_at_once(images) // len(counts), 1)):
            gone = torch.stack([rank[chunk] < count for count in counts], 1).reshape(-1, *maps.shape[1:])
            index = chunk.repeat_interleave(len(counts))
            values = impute(images[index], gone.to(images.device))
            added = noise * torch.randn(values.shape, generator=generator).to(values)
            values = torch.where(gone[:, None].to(images.device), values + added, values)
            curves[chunk] = _probabilities(probability, values, index).view(len(chunk), -1)
        means.append(curves.mean(1))
    return means[0], means[1]


def removed(share: float, pixels: int) -> int:
    """How many of so many pixels are at or above the percentile ``100 (1 - share)``, as pytorch-grad-cam removes."""
    return pixels - math.ceil(round((1 - share) * (pixels - 1), 9))


def _curve(
    probability: Probability, start: Tensor, finish: Tensor, maps: Tensor, step: int | None, patch: int
) -> Tensor:
    """Probabilities ``(B, n)`` while pixels of ``start`` are replaced by those of ``finish``, most relevant first."""
    batch, _, height, width = start.shape
    order = ranks(_of_patches(maps, patch)).view(batch, *_grid(height, width, patch))
    if patch > 1:
        order = order.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :height, :width]
    cells = int(order.max()) + 1
    step = step or (width if patch == 1 else 1)
    counts = torch.arange(0, -(-cells // step) + 1) * step
    replaced = order.to(start.device)
    curves = torch.empty(batch, len(counts), dtype=torch.float64)
    versions = torch.cartesian_prod(torch.arange(batch), torch.arange(len(counts)))
    for chunk in torch.split(versions, _at_once(start)):
        image, at = chunk.unbind(1)
        new = replaced[image] < counts[at].to(start.device)[:, None, None]
        mixed = torch.where(new[:, None], finish[image], start[image])
        curves[image, at] = probability(mixed, image).detach().double().cpu()
    return curves


def _probabilities(probability: Probability, versions: Tensor, index: Tensor) -> Tensor:
    chunks = zip(torch.split(versions, _at_once(versions)), torch.split(index, _at_once(versions)), strict=True)
    return torch.cat([probability(some, which).detach().double().cpu() for some, which in chunks])


def _at_once(images: Tensor) -> int:
    """Versions of images that go through the network together."""
    return max(min(AT_ONCE, PIXELS // (images.shape[-1] * images.shape[-2])), 1)


def _grid(height: int, width: int, patch: int) -> tuple[int, int]:
    return -(-height // patch), -(-width // patch)


def _of_patches(maps: Tensor, patch: int) -> Tensor:
    if patch == 1:
        return maps
    return F.avg_pool2d(maps[:, None].double(), patch, ceil_mode=True)[:, 0]


def ranks(maps: Tensor) -> Tensor:
    """The rank of each pixel ``(B, H W)``, int64: 0 for the most relevant. Equal values are in a fixed random order."""
    flat = maps.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    return torch.empty_like(order).scatter_(1, order, torch.arange(flat.shape[1]).expand_as(order))


# ---- localization: does the map lie on the object? ----


def pointing_game(maps: Tensor, inside: Tensor) -> Tensor:
    """1 where the maximum of the map lies inside, otherwise 0 (Zhang et al., IJCV 2018, arXiv 1608.00507).

    Of several equal maxima one inside is enough, as in Quantus.

    Args:
        maps: ``(B, H, W)``.
        inside: bool ``(B, H, W)``, pixels of the object.
    """
    maxima = maps == maps.flatten(1).max(1).values[:, None, None]
    return (maxima & inside).flatten(1).any(1).double()


def energy_inside(maps: Tensor, inside: Tensor) -> Tensor:
    """The share of the positive relevance that lies inside; 0 for a map without any.

    The energy-based pointing game of Score-CAM (Wang et al., 2020), and Quantus' relevance mass accuracy. Its
    expectation for noise is the share of the pixels that lie inside.

    Args: see ``pointing_game``.
    """
    positive = maps.double().clamp(min=0).flatten(1)
    return (positive * inside.flatten(1)).sum(1) / positive.sum(1).clamp(min=1e-300)


def contrast(maps: Tensor, inside: Tensor) -> Tensor:
    """``(i - o) / (i + o)`` of the mean absolute values inside, i, and outside, o: 1 if all is inside, -1 if nothing.

    0 for a flat map, for noise, and where nothing lies outside. Unlike ``energy_inside`` it does not depend on the size
    of the object, and a map without a better sign (the norm of the modulator) can be compared with a signed one.

    Args: see ``pointing_game``.
    """
    size, within = maps.double().abs().flatten(1), inside.flatten(1).to(maps.device)
    covered, left = within.sum(1), (~within).sum(1)
    i, o = (size * within).sum(1) / covered.clamp(min=1), (size * ~within).sum(1) / left.clamp(min=1)
    told = (covered > 0) & (left > 0)
    return torch.where(told, (i - o) / (i + o).clamp(min=1e-300), torch.zeros_like(i))


# ---- complexity: is the map simple? ----


def gini(maps: Tensor) -> Tensor:
    """The Gini index of absolute values: 0 for a flat map, near 1 where few pixels hold everything.

    Chalasani et al., ICML 2020, arXiv 1810.06583; Quantus' sparseness, which adds 1e-7 to each value.
    """
    values = maps.double().abs().flatten(1).sort(1).values + 1e-7
    pixels = values.shape[1]
    place = 2 * torch.arange(1, pixels + 1, dtype=torch.float64, device=values.device) - pixels - 1
    return (place * values).sum(1) / (pixels * values.sum(1))


def entropy(maps: Tensor) -> Tensor:
    """The entropy in nats of absolute values as shares of their sum: lower is simpler.

    Bhatt et al., IJCAI 2020, arXiv 2005.00631; Quantus' complexity, which adds 1e-12 within the logarithm.
    """
    share = maps.double().abs().flatten(1)
    share = share / share.sum(1, keepdim=True).clamp(min=1e-300)
    return -(share * (share + 1e-12).log()).sum(1)


# ---- sanity: does the map depend on the network, on the answer, and not on noise? ----


def cascading_randomization(
    model: nn.Module, explain: Callable[[nn.Module, Tensor], Tensor], images: Tensor, *, groups: int = 0, seed: int = 0
) -> dict[str, Tensor]:
    """Rank correlation of the maps with those of a network whose layers lose their weights, from the last to the first.

    Model parameter randomization test (MPRT; Adebayo et al., NeurIPS 2018, arXiv 1810.03292): each layer in turn gets
    new random weights, and keeps them while earlier ones follow. A map that stays the same does not depend on what the
    network has learned: lower is better.

    Args:
        model: its weights stay; a copy is randomized.
        explain: maps ``(B, H, W)`` by a model, of images.
        images: ``(B, C, H, W)``.
        groups: randomize layers in about so many groups of successive ones, which is faster; 0 for one by one.
        seed: of the weights.

    Returns:
        Spearman correlations ``(B,)`` by the name of the layer that was randomized last.
    """
    original = explain(model, images)
    randomized = copy.deepcopy(model)
    layers = [(name, layer) for name, layer in randomized.named_modules() if hasattr(layer, "reset_parameters")][::-1]
    size = -(-len(layers) // groups) if groups else 1
    correlations = {}
    with torch.random.fork_rng(devices=[]):
        for start in range(0, len(layers), size):
            for _, layer in layers[start : start + size]:
                torch.manual_seed(seed + 1)  # before each, as Quantus does
                layer.reset_parameters()
            correlations[layers[min(start + size, len(layers)) - 1][0]] = spearman(
                original, explain(randomized, images)
            )
    return correlations


def random_logit(maps: Tensor, of_others: Tensor) -> Tensor:
    """Rank correlation ``(B,)`` of the maps with those of another, randomly chosen class; lower is better.

    Sixt et al., ICML 2020, arXiv 1912.09818: a map that is the same for every class does not explain one.

    Args:
        maps: ``(B, H, W)``, of the answers.
        of_others: ``(B, H, W)``, of other classes.
    """
    return spearman(maps, of_others)


def max_sensitivity(
    explain: Explain, images: Tensor, *, radius: float = 0.02, samples: int = 10, seed: int = 0
) -> Tensor:
    """The largest relative change of a map when the image is shifted by noise; lower is better.

    ``max_d |E(x + d) - E(x)| / |E(x)|`` over ``samples`` of uniform noise d within ``radius`` in normalized space, with
    the Frobenius norm (Yeh et al., NeurIPS 2019, arXiv 1901.09392), as captum's ``sensitivity_max``.
    """
    original = explain(images).double().flatten(1)
    generator = torch.Generator().manual_seed(seed)
    largest = torch.zeros(len(images), dtype=torch.float64)
    for _ in range(samples):
        shift = radius * (2 * torch.rand(images.shape, generator=generator) - 1)
        change = explain(images + shift.to(images)).double().flatten(1) - original
        largest = torch.maximum(largest, change.norm(dim=1).cpu())
    size: Tensor = original.norm(dim=1).cpu()
    return largest / size.clamp(min=1e-300)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation ``(B,)`` of maps; equal values have their mean rank. 0 where a map is flat."""
    x, y = _mean_ranks(a), _mean_ranks(b)
    scale = x.norm(dim=1) * y.norm(dim=1)
    return torch.where(scale > 0, (x * y).sum(1) / scale.clamp(min=1e-300), torch.zeros_like(scale))


def _mean_ranks(maps: Tensor) -> Tensor:
    """Ranks ``(B, H W)`` around their mean."""
    ranked = torch.empty(len(maps), maps[0].numel(), dtype=torch.float64)
    for row, values in zip(ranked, maps.double().flatten(1).cpu(), strict=True):
        _, group, counts = values.unique(return_inverse=True, return_counts=True)
        row.copy_((counts.cumsum(0) - counts / 2)[group])
    return ranked - ranked.mean(1, keepdim=True)


# ---- intervals ----


def bootstrap(values: Tensor, *, level: float = 0.95, samples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The mean of values ``(n,)``, and the bounds of its bootstrap interval (percentiles of resampled means)."""
    values = values.double()
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (samples, len(values)), generator=generator)
    means = values[drawn].mean(1)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return float(values.mean()), low, high
