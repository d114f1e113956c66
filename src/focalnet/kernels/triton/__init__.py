"""The GPU kernels, written in Triton, which is imported on use because it may not be installed.

``kernels.py`` has the forward kernels of the focal context, ``gradients.py`` the backward kernels, ``tiling.py`` the
tile sizes, and ``op.py`` the operation. ``rank_one.py`` has the global level as a rank-1 term, one of the ``forms``
that are to be decided on a GPU. ``deformable_kernels.py`` and ``deformable.py`` have deformable attention, which is
experimental because it has never run on a GPU. ``proof.py`` is the self-test and the fallback.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence

import torch

from focalnet.errors import InputError
from focalnet.kernels import backend, reference
from focalnet.kernels.triton import proof

MAX_LEVELS = 16
KERNELS = range(1, 16, 2)
MAX_SCALES, MAX_HEAD_CHANNELS = 8, 256  # of deformable attention
FOCAL_CONTEXT, RANK_ONE, DEFORMABLE = "focal context", "rank-1 global level", "deformable attention"
_MODULES = {
    FOCAL_CONTEXT: "focalnet.kernels.triton.op",
    RANK_ONE: "focalnet.kernels.triton.rank_one",
    DEFORMABLE: "focalnet.kernels.triton.deformable",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # the oldest GPU that Triton supports, as a compute capability


class Unusable(InputError):
    """Raised if kernels that should run on this GPU do not; a warning if they were not requested by name."""


def load(device: torch.device, dtype: torch.dtype = torch.bfloat16, operation: str = FOCAL_CONTEXT) -> str:
    """Registers an operation after its kernels have passed their self-test on this device and dtype; see ``proof``.

    Args:
        device: device of the tensors.
        dtype: dtype of the feature maps.
        operation: ``FOCAL_CONTEXT``, ``RANK_ONE`` or ``DEFORMABLE``.

    Returns:
        A description of Triton and the device, for users.

    Raises:
        InputError: they cannot run on this device; the message says why. ``Unusable`` if they should.
    """
    try:
        version: str = importlib.import_module("triton").__version__
    except ImportError as error:
        raise InputError(f"the GPU kernels need the package triton, which does not load: {error}") from error
    except Exception as error:  # an installation may be broken in any way
        raise Unusable(f"the package triton does not load: {proof.brief(error)}") from error
    result = _loaded(device, dtype, version, operation)
    if isinstance(result, InputError):
        raise type(result)(str(result))
    return result


@functools.cache
def _loaded(device: torch.device, dtype: torch.dtype, version: str, operation: str) -> str | InputError:
    """See ``load``; computed once."""
    try:
        return _tested(device, dtype, version, operation)
    except InputError as error:
        return error
    except Exception as error:  # compilers, drivers and caches may raise any exception
        return Unusable(f"the GPU kernels do not load: {proof.brief(error)}")


def _tested(device: torch.device, dtype: torch.dtype, version: str, operation: str) -> str:
    op = importlib.import_module("focalnet.kernels.triton.op")
    importlib.import_module(_MODULES[operation])
    if op.INTERPRETED:
        return f"Triton {version}, interpreted (TRITON_INTERPRET)"
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError("triton runs on CUDA GPUs (on the CPU only for tests, with TRITON_INTERPRET=1)")
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < OLDEST:
        raise InputError("triton needs compute capability {}.{}, this GPU has {}.{}".format(*OLDEST, *capability))
    name = torch.cuda.get_device_name(device)
    try:
        disagreement = proof.verdict(device, dtype, version, operation)
    except InputError as error:
        raise Unusable(str(error)) from error
    if disagreement is not None:
        raise Unusable(f"the GPU kernels are wrong on {name}: {disagreement}")
    return f"Triton {version} on {name}"


def why_not(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> str | None:
    """The reason why the GPU kernels do not support these tensors, or None."""
    if any(tensor.device != context.device for tensor in (gates, *weights)):
        return "context, gates and kernels are on different devices"
    if context.dtype not in DTYPES or gates.dtype != context.dtype:
        return f"triton takes float32, bfloat16 or float16, got context {context.dtype} and gates {gates.dtype}"
    if any(weight.dtype not in DTYPES for weight in weights):
        return f"triton takes kernels in float32, bfloat16 or float16, got {[w.dtype for w in weights]}"
    if context.numel() == 0:
        return "triton does not support an empty feature map"
    if len(weights) > MAX_LEVELS or any(w.shape[-1] % 2 == 0 or w.shape[-1] > KERNELS[-1] for w in weights):
        return f"triton supports odd kernel sizes from 1 to 15 and at most {MAX_LEVELS} levels"
    _, H, W, C = context.shape
    if H * W * max(context.stride(2), gates.stride(2), C) >= 2**31:
        return "triton addresses one image with 32 bits, and this feature map is larger"
    return None


def focal_context(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """See ``reference.focal_context``; call after ``load``, for tensors that ``why_not`` accepts.

    Kernels that do not compile or start are replaced by the reference, with a warning, and are not tried again. If they
    were requested by name, the error is raised.
    """
    if not weights:  # a mean and a product: nothing to fuse
        return reference.focal_context(context, gates, weights)
    return levels(context, gates, weights)[0]


def levels(
    context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation for at least one level.

    Returns:
        The aggregated context, without the global level if ``gates`` has L channels; and the sum of the last level over
        the plane (B, C), float32, which is differentiable only without the global level.
    """
    sizes = [weight.shape[-1] for weight in weights]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (context, gates, *weights))
    by_name = backend.current() == "triton"
    out: torch.Tensor
    totals: torch.Tensor
    out, _, totals = torch.ops.focalnet.focal_context_triton(context, gates, pack(weights), sizes, keep, by_name)
    return out, totals


def rank_one_product(query: torch.Tensor, modulator: torch.Tensor, gate: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``query * (modulator + gate * v)``, see ``rank_one.product``; call ``load`` before."""
    by_name = backend.current() == "triton"
    out: torch.Tensor = torch.ops.focalnet.rank_one_product_triton(query, modulator, gate, v, by_name)
    return out


def why_not_deformable(
    values: torch.Tensor, shapes: Sequence[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> str | None:
    """The reason why deformable attention of these tensors cannot go through the GPU kernels, or None."""
    if any(tensor.dtype not in DTYPES for tensor in (values, locations, weights)):
        kinds = [str(tensor.dtype) for tensor in (values, locations, weights)]
        return f"triton takes float32, bfloat16 or float16, got {kinds}"
    if values.numel() == 0 or weights.numel() == 0:
        return "triton needs at least one cell and one query"
    if len(shapes) > MAX_SCALES or values.shape[3] > MAX_HEAD_CHANNELS:
        return f"triton has at most {MAX_SCALES} levels and {MAX_HEAD_CHANNELS} channels of a head"
    # The kernels index queries and cells with 32 bits (a program's last index may lie beyond), addresses with 64.
    batch, queries, heads = weights.shape[:3]
    if max(batch * queries * heads, values.shape[1]) >= 2**30:
        return "triton indexes cells, and queries times heads, with 32 bits, this input has more"
    return None


def deformable_attention(
    values: torch.Tensor, sizes: list[int], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """See ``kernels.deformable``; call ``load`` before, and only for tensors that ``why_not_deformable`` accepts.

    Kernels that do not compile or start fall back to the reference, as in ``focal_context``.
    """
    by_name = backend.current() == "triton"
    out: torch.Tensor = torch.ops.focalnet.deformable_attention_triton(values, sizes, locations, weights, by_name)
    return out


def pack(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Packs all kernels (C, 1, k, k) into one tensor (sum of k * k, C), float32, contiguous in the channels."""
    return torch.cat([weight.flatten(1).t() for weight in weights]).float()
