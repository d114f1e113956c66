"""The CPU kernels: C++ without PyTorch headers, loaded as a plain shared library.

Three families: the focal context, row-wise operations (layer norm, GELU, gradients of biases), and deformable
attention.

``pip install`` builds the library if there is a C++ compiler (``setup.py``). If there is no library, or it is damaged,
older than this package or computes wrong results, ``load`` raises an error and everything runs on PyTorch's operations.
The library uses PyTorch's OpenMP threads, ``torch.get_num_threads()`` of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from focalnet.errors import InputError
from focalnet.kernels.cpu import arguments, library_file, proof
from focalnet.kernels.cpu.arguments import DTYPES, Steps
from focalnet.kernels.cpu.jobs import MAX_LEVELS, MAX_SCALES, DeformableJob, FocalContextJob, RowsJob
from focalnet.ops import modes

KERNELS = range(1, 16, 2)
_ABI = 4  # FOCALNET_ABI of dispatch.cpp
ROWS_OF_A_PART = 32  # FOCALNET_ROWS_OF_A_PART of rows.h
_MAX_THREADS = 1024
# RowsKernel of rows.h
_COLUMN_SUM, _GELU, _GELU_BACKWARD, _NORM_FORWARD, _NORM_BACKWARD = range(5)
_QUANTIZE, _QUANTIZE_GELU, _QUANTIZE_NORM, _QUANTIZE_PRODUCT = range(5, 9)


class Library:
    """The loaded library, in one of its variants.

    Every method checks its tensors before it calls a kernel, and raises ``InputError`` for unsupported ones.

    Args:
        path: the shared library.
        variant: name of an instruction set; by default the best one of this processor.

    Raises:
        InputError: the library belongs to another version of this package, or does not load.
    """

    def __init__(self, path: Path, variant: str | None = None) -> None:
        library_file.check(path)
        try:
            self._library = ctypes.CDLL(str(path))
            self._check_version(path)
            self._library.focalnet_variant_name.restype = ctypes.c_char_p
            self.variants = {
                self._library.focalnet_variant_name(i).decode(): i
                for i in range(self._library.focalnet_variants())
                if self._library.focalnet_variant_supported(i)
            }
        except (OSError, AttributeError) as error:
            raise InputError(f"the CPU kernels do not load: {error}") from error
        self.variant = variant or next(iter(self.variants))
        self._index = self.variants[self.variant]
        self._lanes = self._library.focalnet_variant_lanes(self._index)

    def _check_version(self, path: Path) -> None:
        library = self._library
        jobs = {"focal_context": FocalContextJob, "rows": RowsJob, "deformable": DeformableJob}
        sizes = [getattr(library, f"focalnet_{name}_job_size")() for name in jobs]
        if (library.focalnet_abi(), *sizes) != (_ABI, *map(ctypes.sizeof, jobs.values())):
            raise InputError(f"the CPU kernels in {path} are of another version of focalnet: install focalnet again")

    def forward(self, context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """See ``reference.focal_context``; context and gates have the same dtype, one of ``DTYPES``."""
        context, gates, kernels = _context(context, gates, weights)
        out = context.new_empty(context.shape)
        self._run("focal_context", _job(context, gates, kernels, out), context.dtype == torch.bfloat16, False)
        return out

    def backward(
        self, grad: torch.Tensor, context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Gradients of context, gates and weights, in their dtypes; the order of summation is fixed."""
        context, gates, kernels = _context(context, gates, weights)
        grad = arguments.values("the gradient", grad, like=context)
        batch, height, width, channels = context.shape
        grad_context = context.new_empty(context.shape)
        blocks = -(-channels // self._lanes)
        gate_parts = _floats(blocks, batch, height, width, gates.shape[3])
        weight_parts = [_floats(batch, *kernel.shape) for kernel in kernels]
        job = _job(context, gates, kernels, grad_context)
        job.grad, job.grad_gates = grad.data_ptr(), gate_parts.data_ptr()
        job.grad_weights[: len(kernels)] = [part.data_ptr() for part in weight_parts]
        self._run("focal_context", job, context.dtype == torch.bfloat16, True)
        grad_weights = [p.sum(0).to(w.dtype).view(w.shape) for p, w in zip(weight_parts, weights, strict=True)]
        return grad_context, gate_parts.sum(0).to(gates.dtype), grad_weights

    def layer_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Layer norm over the last axis of ``x``, which has one of ``DTYPES``.

        Args:
            x: ``(..., C)``.
            weight: ``(C,)``, floating.
            bias: ``(C,)``, floating.
            eps: added to the variance.

        Returns:
            The normalized values; and, for ``layer_norm_backward``, mean and 1 / standard deviation of each row,
            ``(rows, 2)``.
        """
        x = _with_columns(x)
        columns = x.shape[-1:]
        weight, bias = arguments.floats("weight", weight, columns), arguments.floats("bias", bias, columns)
        out, moments = x.new_empty(x.shape), _floats(_rows(x), 2)
        self._rows(_NORM_FORWARD, x, out=out, weight=weight, bias=bias, moments=moments, eps=eps)
        return out, moments

    def layer_norm_backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        moments: torch.Tensor,
        residual_grad: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of x; those of weight and bias, ``(2, C)``, in float32; the order of summation is fixed.

        Args:
            grad: gradient of the output, like ``x``.
            x: input of the forward pass.
            weight: ``(C,)``.
            moments: from ``layer_norm``.
            residual_grad: gradient of x through the residual branch, like ``x``; it is added.
        """
        x = _with_columns(x)
        grad, weight = arguments.values("the gradient", grad, like=x), arguments.floats("weight", weight, x.shape[-1:])
        moments = arguments.floats("moments", moments, torch.Size((_rows(x), 2)))
        residual_grad = (
            None if residual_grad is None else arguments.values("the residual gradient", residual_grad, like=x)
        )
        out, sums = x.new_empty(x.shape), _parts(x, 2)
        self._rows(
            _NORM_BACKWARD,
            x,
            grad=grad,
            residual_grad=residual_grad,
            out=out,
            weight=weight,
            moments=moments,
            sums=sums,
        )
        return out, sums.sum(0)

    def gelu_(self, x: torch.Tensor) -> torch.Tensor:
        """Exact GELU, in place on ``x``, which is contiguous and has one of ``DTYPES``."""
        if _with_columns(x) is not x:
            raise InputError(
                f"x of shape {tuple(x.shape)} and strides {x.stride()} must be contiguous: it is overwritten"
            )
        self._rows(_GELU, x, out=x)
        return x

    def gelu_backward(
        self, grad: torch.Tensor, x: torch.Tensor, *, recompute: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradient of GELU's input, its sum over all rows in float32, and the recomputed output of GELU.

        Args:
            grad: gradient of the output, like ``x``.
            x: ``(..., C)``, of one of ``DTYPES``.
            recompute: whether to recompute the output; otherwise it is empty.
        """
        x = _with_columns(x)
        grad = arguments.values("the gradient", grad, like=x)
        out, output, sums = x.new_empty(x.shape), x.new_empty(x.shape if recompute else 0), _parts(x, 1)
        self._rows(_GELU_BACKWARD, x, grad=grad, out=out, gelu_out=output if recompute else None, sums=sums)
        return out, sums.sum(0)[0], output

    def column_sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of ``x``, which has one of ``DTYPES``, over all axes but the last, in float32."""
        x = _with_columns(x)
        sums = _parts(x, 1)
        self._rows(_COLUMN_SUM, x, sums=sums)
        return sums.sum(0)[0]

    def quantize(self, x: torch.Tensor, steps: Steps) -> torch.Tensor:
        """``x``, which has one of ``DTYPES``, as uint8 levels; see ``Steps``."""
        return self._quantized(_QUANTIZE, _with_columns(x), steps)

    def quantize_gelu(self, x: torch.Tensor, steps: Steps) -> torch.Tensor:
        """The exact GELU of ``x``, which has one of ``DTYPES``, as uint8 levels; see ``Steps``."""
        return self._quantized(_QUANTIZE_GELU, _with_columns(x), steps)

    def quantize_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, steps: Steps
    ) -> torch.Tensor:
        """The layer norm of ``x``, as in ``layer_norm``, as uint8 levels; see ``Steps``."""
        x = _with_columns(x)
        weight, bias = arguments.floats("weight", weight, x.shape[-1:]), arguments.floats("bias", bias, x.shape[-1:])
        return self._quantized(_QUANTIZE_NORM, x, steps, weight=weight, bias=bias, eps=eps)

    def quantize_product(self, x: torch.Tensor, factor: torch.Tensor, steps: Steps) -> torch.Tensor:
        """``x * factor`` as uint8 levels; see ``Steps``.

        Args:
            x: ``(..., C)``, of one of ``DTYPES``; a slice of the last axis of a contiguous tensor is not copied.
            factor: like ``x``.
            steps: step and zero point of the result.
        """
        factor = arguments.values("the factor", _with_columns(factor), like=x)
        arguments.check("x", x)
        stride = x.stride(-2) if x.ndim > 1 else x.shape[-1]
        if x.stride() != (*(stride * x.shape[i + 1 : -1].numel() for i in range(x.ndim - 1)), 1):
            x, stride = x.contiguous(), x.shape[-1]
        return self._quantized(_QUANTIZE_PRODUCT, x, steps, factor=factor, x_stride=stride)

    def _quantized(self, kernel: int, x: torch.Tensor, steps: Steps, **others: Any) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=torch.uint8)
        self._rows(kernel, x, out=out, levels=steps.levels, zero_point=steps.zero_point, **others)
        return out

    def deformable_attention(
        self, values: torch.Tensor, sizes: Sequence[int], locations: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Multi-scale deformable attention, float32 ``(B, Q, H * D)``; see ``ops.deformable``.

        Args:
            values: ``(B, S, H, D)``, of a dtype of ``DTYPES``, any strides.
            sizes: height and width of each level, one after the other.
            locations: ``(B, Q, H, L, P, 2)``, float32.
            weights: ``(B, Q, H, L, P)``, float32.
        """
        values, locations, weights = _deformable(values, sizes, locations, weights)
        out = _floats(*weights.shape[:2], values.shape[2] * values.shape[3])
        job = _deformable_job(values, sizes, locations, weights, out=out)
        self._run("deformable", job, values.dtype == torch.bfloat16, False)
        return out

    def deformable_attention_backward(
        self,
        grad: torch.Tensor,
        values: torch.Tensor,
        sizes: Sequence[int],
        locations: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of values (in their dtype), locations and weights (float32), with a fixed order of every sum.

        Args:
            grad: gradient of the output, ``(B, Q, H * D)``, float32.
            values: as in ``deformable_attention``.
            sizes: as in ``deformable_attention``.
            locations: as in ``deformable_attention``.
            weights: as in ``deformable_attention``.
        """
        values, locations, weights = _deformable(values, sizes, locations, weights)
        shape = (*weights.shape[:2], values.shape[2] * values.shape[3])
        arguments.check("the gradient", grad, torch.float32, shape)
        grad = grad.contiguous()
        grad_values, *others = values.new_empty(values.shape), _floats(*locations.shape), _floats(*weights.shape)
        results = {"grad_values": grad_values, "grad_locations": others[0], "grad_weights": others[1]}
        job = _deformable_job(values, sizes, locations, weights, grad=grad, **results)
        self._run("deformable", job, values.dtype == torch.bfloat16, True)
        return grad_values, others[0], others[1]

    def _rows(self, kernel: int, x: torch.Tensor, **fields: torch.Tensor | float | None) -> None:
        given = {
            name: value.data_ptr() if isinstance(value, torch.Tensor) else value
            for name, value in fields.items()
            if value is not None
        }
        job = RowsJob(x=x.data_ptr(), rows=_rows(x), columns=x.shape[-1], **given)
        self._run("rows", job, kernel, x.dtype == torch.bfloat16)

    def _run(self, kernels: str, job: FocalContextJob | RowsJob | DeformableJob, *options: int) -> None:
        job.threads = min(torch.get_num_threads(), _MAX_THREADS)
        run = getattr(self._library, f"focalnet_{kernels}")
        if run(self._index, ctypes.byref(job), *map(int, options)):
            raise MemoryError(f"not enough memory for the temporary buffers of the CPU kernels of {kernels}")


def load() -> Library:
    """The library for this processor, after its self-test.

    Raises:
        InputError: it was not built, does not load, or computes wrong results; the message gives the reason.
    """
    library = _loaded()
    if isinstance(library, str):
        raise InputError(library)
    return library


@functools.cache
def _loaded() -> Library | str:
    """The library, or the reason why there is none; computed once."""
    _share_openmp()
    reason = ""
    try:
        for path in library_file.candidates():
            try:
                library = Library(path)
            except InputError as error:
                reason = reason or str(error)
                continue
            disagreement = proof.disagreement(library)
            if disagreement is None:
                return library
            reason = f"the CPU kernels ({library.variant}) are wrong on this machine: {disagreement}"
            warnings.warn(f"{reason}; models run on PyTorch's operations", RuntimeWarning, stacklevel=2)
            return reason
    except InputError as error:
        return str(error)
    return reason


def _share_openmp() -> None:
    """Makes the OpenMP runtime that PyTorch has loaded visible to the library, under the names in PyTorch's builds.

    PyTorch's x86 wheels load it globally, those for ARM and macOS for themselves only.
    """
    for name in ("libgomp.so.1", "libomp.so", "libiomp5.so", Path(torch.__file__).parent / "lib" / "libomp.dylib"):
        with contextlib.suppress(OSError):  # not loaded
            ctypes.CDLL(str(name), mode=os.RTLD_GLOBAL | os.RTLD_NOLOAD)


@modes.constant
def built() -> bool:
    """Whether ``load`` succeeds."""
    try:
        load()
    except InputError:
        return False
    return True


def why_not(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> str | None:
    """The reason why the CPU kernels do not support these tensors, or None."""
    tensors = (context, gates, *weights)
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "native runs on the CPU only"
    if context.dtype not in DTYPES or gates.dtype != context.dtype:
        return f"native takes float32 or bfloat16, got context {context.dtype} and gates {gates.dtype}"
    if context.numel() == 0:
        return "native does not support an empty feature map"
    if any(not weight.is_floating_point() for weight in weights):
        return f"native takes floating-point kernels, got {[str(weight.dtype) for weight in weights]}"
    if len(weights) > MAX_LEVELS or any(w.shape[-1] not in KERNELS for w in weights):
        return f"native supports odd kernel sizes from 1 to 15 and at most {MAX_LEVELS} levels"
    return None


def why_not_deformable(
    values: torch.Tensor, shapes: Sequence[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> str | None:
    """The reason why deformable attention of these tensors cannot go through the CPU kernels, or None."""
    tensors = (values, locations, weights)
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "native runs on the CPU only"
    if any(tensor.dtype not in (*DTYPES, torch.float16) for tensor in tensors):
        return f"native takes float32, bfloat16 or float16, got {[str(tensor.dtype) for tensor in tensors]}"
    if values.numel() == 0 or weights.numel() == 0:
        return "native needs at least one cell and one query"
    if len(shapes) > MAX_SCALES:
        return f"native has at most {MAX_SCALES} levels, got {len(shapes)}"
    return None


def _job(
    context: torch.Tensor, gates: torch.Tensor, kernels: Sequence[torch.Tensor], out: torch.Tensor
) -> FocalContextJob:
    job = FocalContextJob(context=context.data_ptr(), gates=gates.data_ptr(), out=out.data_ptr())
    job.weights[: len(kernels)] = [kernel.data_ptr() for kernel in kernels]
    job.context_stride[:] = context.stride()[:3]
    job.gates_stride[:] = gates.stride()[:3]
    job.shape[:] = context.shape
    job.kernels[: len(kernels)] = [kernel.shape[-1] for kernel in kernels]
    job.L = len(kernels)
    return job


def _context(
    context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Checks the tensors. Channels become contiguous; other axes may have any strides, like slices of a projection."""
    if context.ndim != 4 or len(weights) > MAX_LEVELS:
        raise InputError(f"context {tuple(context.shape)} must be (B, H, W, C), with at most {MAX_LEVELS} levels")
    arguments.check("context", context)
    arguments.check("gates", gates, context.dtype, (*context.shape[:3], len(weights) + 1))
    kernels = [arguments.floats("a kernel", weight, _kernel_shape(weight, context.shape[3])) for weight in weights]
    dense = [x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for x in (context, gates)]
    return dense[0], dense[1], kernels


def _kernel_shape(weight: torch.Tensor, channels: int) -> tuple[int, ...]:
    k = weight.shape[-1] if weight.ndim else 0
    return channels, 1, k, k if k in KERNELS else KERNELS[0]


def _deformable(
    values: torch.Tensor, sizes: Sequence[int], locations: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Checks the tensors and makes them contiguous; values only in their channels."""
    levels = len(sizes) // 2
    cells = sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=False))
    if not 0 < levels <= MAX_SCALES or len(sizes) % 2 or min(sizes) < 1:
        raise InputError(f"sizes {list(sizes)} must be height and width of 1 to {MAX_SCALES} levels")
    if values.ndim != 4 or weights.ndim != 5:
        raise InputError(
            f"values {tuple(values.shape)} and weights {tuple(weights.shape)} must be (B, S, H, D) and (B, Q, H, L, P)"
        )
    batch, _, heads, channels = values.shape
    arguments.check("values", values, shape=(batch, cells, heads, channels))
    points = (batch, weights.shape[1], heads, levels, weights.shape[4])
    arguments.check("locations", locations, torch.float32, (*points, 2))
    arguments.check("weights", weights, torch.float32, points)
    dense = values if values.stride(3) == 1 or channels == 1 else values.contiguous()
    return dense, locations.contiguous(), weights.contiguous()


def _deformable_job(
    values: torch.Tensor,
    sizes: Sequence[int],
    locations: torch.Tensor,
    weights: torch.Tensor,
    **tensors: torch.Tensor,
) -> DeformableJob:
    given = {"values": values, "locations": locations, "weights": weights, **tensors}
    job = DeformableJob(**{name: tensor.data_ptr() for name, tensor in given.items()})
    batch, cells, heads, channels = values.shape
    job.values_stride[:] = values.stride()[:3]
    job.shape[:] = batch, cells, weights.shape[1], heads, channels, weights.shape[4]
    job.L = len(sizes) // 2
    job.heights[: job.L], job.widths[: job.L] = list(sizes[::2]), list(sizes[1::2])
    return job


def _with_columns(x: torch.Tensor) -> torch.Tensor:
    """Checks ``x`` and makes it contiguous."""
    if x.ndim == 0:
        raise InputError("x is a scalar: the CPU kernels take (..., C)")
    return arguments.values("x", x)


def _rows(x: torch.Tensor) -> int:
    return x.shape[:-1].numel()


def _parts(x: torch.Tensor, sums: int) -> torch.Tensor:
    """Memory for partial sums over chunks of rows of ``x``, for each of ``sums`` sums."""
    return _floats(-(-_rows(x) // ROWS_OF_A_PART), sums, x.shape[-1])


def _floats(*shape: int) -> torch.Tensor:
    """An empty float32 CPU tensor, regardless of the default dtype and device."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
