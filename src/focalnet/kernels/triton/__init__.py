"""The GPU kernels, written in Triton; imported on use, for Triton may be absent.

``kernels.py`` forward, ``gradients.py`` backward, ``tiling.py`` how the work is cut, ``op.py`` the operation,
``proof.py`` whether it may be used.
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
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # the oldest GPU that Triton supports, as a compute capability


class Unusable(InputError):
    """Kernels that should run on this GPU and do not: worth a warning where they are not asked for by name."""


def load(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str:
    """Registers the operation, once the kernels have proved themselves on this device in this dtype; see ``proof``.

    Returns:
        What runs the kernels on this device, for people.

    Raises:
        InputError: they cannot run on this device; the message says why. ``Unusable`` where that is a fault.
    """
    try:
        version: str = importlib.import_module("triton").__version__
    except ImportError as error:
        raise InputError(f"the GPU kernels need the package triton, which does not load: {error}") from error
    except Exception as error:  # an installation may be broken in any way
        raise Unusable(f"the package triton does not load: {proof.brief(error)}") from error
    found = _loaded(device, dtype, version)
    if isinstance(found, InputError):
        raise type(found)(str(found))
    return found


@functools.cache
def _loaded(device: torch.device, dtype: torch.dtype, version: str) -> str | InputError:
    """See ``load``; asked for once."""
    try:
        return _proved(device, dtype, version)
    except InputError as error:
        return error
    except Exception as error:  # compilers, drivers and caches raise whatever they like
        return Unusable(f"the GPU kernels do not load: {proof.brief(error)}")


def _proved(device: torch.device, dtype: torch.dtype, version: str) -> str:
    op = importlib.import_module("focalnet.kernels.triton.op")
    if op.INTERPRETED:
        return f"Triton {version}, interpreted (TRITON_INTERPRET)"
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError("triton runs on CUDA GPUs (on the CPU only to test, with TRITON_INTERPRET=1)")
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < OLDEST:
        raise InputError("triton needs compute capability {}.{}, this GPU has {}.{}".format(*OLDEST, *capability))
    name = torch.cuda.get_device_name(device)
    try:
        wrong = proof.verdict(device, dtype, version)
    except InputError as error:
        raise Unusable(str(error)) from error
    if wrong is not None:
        raise Unusable(f"the GPU kernels are wrong on {name}: {wrong}")
    return f"Triton {version} on {name}"


def why_not(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> str | None:
    """The reason why these tensors cannot go through the GPU kernels, or None."""
    if any(tensor.device != context.device for tensor in (gates, *weights)):
        return "context, gates and kernels are on different devices"
    if context.dtype not in DTYPES or gates.dtype != context.dtype:
        return f"triton takes float32, bfloat16 or float16, got context {context.dtype} and gates {gates.dtype}"
    if any(weight.dtype not in DTYPES for weight in weights):
        return f"triton takes kernels of float32, bfloat16 or float16, got {[w.dtype for w in weights]}"
    if context.numel() == 0:
        return "triton has nothing to do for an empty map"
    if len(weights) > MAX_LEVELS or any(w.shape[-1] % 2 == 0 or w.shape[-1] > KERNELS[-1] for w in weights):
        return f"triton has kernels of 1 to 15 and at most {MAX_LEVELS} levels"
    _, H, W, C = context.shape
    if H * W * max(context.stride(2), gates.stride(2), C) >= 2**31:
        return "triton addresses one image with 32 bits, this map is larger"
    return None


def focal_context(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """See ``ops.focal_context``; after ``load``, for tensors that nothing in ``why_not`` is against.

    What does not compile or start falls back to the reference, with a warning, and is not tried again; it is an error
    where these kernels were asked for by name.
    """
    if not weights:  # a mean and a product: nothing to fuse
        return reference.focal_context(context, gates, weights)
    if torch.compiler.is_compiling() or backend.current() == "triton":
        return run(context, gates, weights)
    try:
        return run(context, gates, weights)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers, drivers and caches raise whatever they like
        proof.deny(context.device, context.dtype, [weight.shape[-1] for weight in weights], error)
        return reference.focal_context(context, gates, weights)


def run(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The kernels, and whatever error they end with."""
    sizes = [weight.shape[-1] for weight in weights]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (context, gates, *weights))
    out: torch.Tensor
    out, *_ = torch.ops.focalnet.focal_context_triton(context, gates, pack(weights), sizes, keep)
    return out


def pack(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """All kernels, (C, 1, k, k), as one (taps, C), float32: neighbouring channels side by side."""
    return torch.cat([weight.flatten(1).t() for weight in weights]).float()
