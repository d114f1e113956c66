"""The CPU kernels: C++ without PyTorch headers, loaded as a plain shared library.

Two families: the focal context, and what happens to a map row by row (layer norm, GELU, gradients of biases).

``pip install`` builds it where a C++ compiler is found (``setup.py``); where none is, ``load`` says so
and everything runs eagerly. The library uses the OpenMP threads PyTorch already has, as many as
``torch.get_num_threads()``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from focalnet.errors import InputError

MAX_LEVELS = 16
KERNELS = range(1, 16, 2)
DTYPES = (torch.float32, torch.bfloat16)
ROWS_OF_A_PART = 32  # FOCALNET_ROWS_OF_A_PART of rows.h
_COLUMN_SUM, _GELU, _GELU_BACKWARD, _NORM_FORWARD, _NORM_BACKWARD = range(5)  # RowsKernel of rows.h


class _Job(ctypes.Structure):
    """``FocalContextJob`` of focal_context.h, field by field."""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("gates", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * MAX_LEVELS),
        ("grad_weights", ctypes.c_void_p * MAX_LEVELS),
        ("grad_gates", ctypes.c_void_p),
        ("context_stride", ctypes.c_int64 * 3),
        ("gates_stride", ctypes.c_int64 * 3),
        ("shape", ctypes.c_int64 * 4),
        ("kernels", ctypes.c_int32 * MAX_LEVELS),
        ("L", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class _RowsJob(ctypes.Structure):
    """``RowsJob`` of rows.h, field by field."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("beside", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("again", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("moments", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


class Library:
    """The loaded library, with one of the variants it holds.

    Args:
        path: the shared library.
        variant: an instruction set's name; default: the best this processor has.
    """

    def __init__(self, path: Path, variant: str | None = None) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.focalnet_variant_name.restype = ctypes.c_char_p
        self.variants = {
            self._library.focalnet_variant_name(i).decode(): i
            for i in range(self._library.focalnet_variants())
            if self._library.focalnet_variant_supported(i)
        }
        self.variant = variant or next(iter(self.variants))
        self._index = self.variants[self.variant]
        self._lanes = self._library.focalnet_variant_lanes(self._index)

    def forward(self, context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """See ``ops.focal_context``; context and gates of one dtype of ``DTYPES``."""
        context, gates, kernels = _dense(context), _dense(gates), _plain(weights)
        out = context.new_empty(context.shape)
        self._run("focal_context", _job(context, gates, kernels, out), context.dtype == torch.bfloat16, False)
        return out

    def backward(
        self, grad: torch.Tensor, context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Gradients of context, gates and weights, in their dtypes; every sum has a fixed order."""
        context, gates, kernels, grad = _dense(context), _dense(gates), _plain(weights), grad.contiguous()
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
        """Layer norm over the last axis of ``x``, of a dtype of ``DTYPES``.

        Returns:
            The normed values; and, for ``layer_norm_backward``, mean and 1 / deviation of each row, ``(rows, 2)``.
        """
        x = x.contiguous()
        out, moments = x.new_empty(x.shape), _floats(_rows(x), 2)
        self._rows(_NORM_FORWARD, x, out=out, weight=_float(weight), bias=_float(bias), moments=moments, eps=eps)
        return out, moments

    def layer_norm_backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        moments: torch.Tensor,
        beside: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of x; those of weight and bias, ``(2, C)``, in float32; every sum has a fixed order.

        Args:
            grad: of the normed values, as ``x``.
            x: what was normed.
            weight: ``(C,)``.
            moments: from ``layer_norm``.
            beside: a gradient that reaches x another way and is added, as ``x``.
        """
        x, out, sums = x.contiguous(), x.new_empty(x.shape), _parts(x, 2)
        beside = None if beside is None else beside.contiguous()
        grad, weight = grad.contiguous(), _float(weight)
        self._rows(_NORM_BACKWARD, x, grad=grad, beside=beside, out=out, weight=weight, moments=moments, sums=sums)
        return out, sums.sum(0)

    def gelu_(self, x: torch.Tensor) -> torch.Tensor:
        """GELU (exact) in place of ``x``, ``(..., C)`` dense, of a dtype of ``DTYPES``."""
        self._rows(_GELU, x, out=x)
        return x

    def gelu_backward(
        self, grad: torch.Tensor, x: torch.Tensor, *, again: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradient of GELU's input, its sum over all rows in float32, and the output of GELU.

        Args:
            grad: of the output, as ``x``.
            x: ``(..., C)``, of a dtype of ``DTYPES``.
            again: whether the output is wanted; empty if not.
        """
        x, out = x.contiguous(), x.new_empty(x.shape)
        output = x.new_empty(x.shape if again else 0)
        sums = _parts(x, 1)
        self._rows(_GELU_BACKWARD, x, grad=grad.contiguous(), out=out, again=output if again else None, sums=sums)
        return out, sums.sum(0)[0], output

    def column_sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of ``x``, of a dtype of ``DTYPES``, over all axes but the last, in float32."""
        x = x.contiguous()
        sums = _parts(x, 1)
        self._rows(_COLUMN_SUM, x, sums=sums)
        return sums.sum(0)[0]

    def _rows(self, kernel: int, x: torch.Tensor, *, eps: float = 0.0, **tensors: torch.Tensor | None) -> None:
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
        job = _RowsJob(x=x.data_ptr(), rows=_rows(x), columns=x.shape[-1], eps=eps, **pointers)
        job.threads = torch.get_num_threads()
        self._run("rows", job, kernel, x.dtype == torch.bfloat16)

    def _run(self, kernels: str, job: ctypes.Structure, *options: int) -> None:
        run = getattr(self._library, f"focalnet_{kernels}")
        if run(self._index, ctypes.byref(job), *map(int, options)):
            raise MemoryError(f"not enough memory for what the CPU kernels of {kernels} keep beside their tensors")


def find() -> Path:
    """The shared library that ``pip install`` built.

    Raises:
        InputError: it was not built.
    """
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        raise InputError("the CPU kernels were not built: install a C++ compiler (g++ or clang++) and focalnet again")
    return found[0]


@functools.cache
def load() -> Library:
    """The library for this processor.

    Raises:
        InputError: it was not built, or does not load; the message says which and why.
    """
    path = find()
    _share_openmp()
    try:
        return Library(path)
    except OSError as error:
        raise InputError(f"the CPU kernels do not load: {error}") from error


def _share_openmp() -> None:
    """Lets the library find the OpenMP runtime that PyTorch has loaded, under the names it has in its builds.

    PyTorch's wheels for x86 show it to every library, those for ARM and macOS to their own only.
    """
    for name in ("libgomp.so.1", "libomp.so", "libiomp5.so", Path(torch.__file__).parent / "lib" / "libomp.dylib"):
        with contextlib.suppress(OSError):  # not among those loaded
            ctypes.CDLL(str(name), mode=os.RTLD_GLOBAL | os.RTLD_NOLOAD)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def built() -> bool:
    """Whether there is a library to ``load``."""
    try:
        load()
    except InputError:
        return False
    return True


def why_not(context: torch.Tensor, gates: torch.Tensor, weights: Sequence[torch.Tensor]) -> str | None:
    """The reason why these tensors cannot go through the CPU kernels, or None."""
    tensors = (context, gates, *weights)
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "native runs on the CPU only"
    if context.dtype not in DTYPES or gates.dtype != context.dtype:
        return f"native takes float32 or bfloat16, got context {context.dtype} and gates {gates.dtype}"
    if context.numel() == 0:
        return "native has nothing to do for an empty map"
    if len(weights) > MAX_LEVELS or any(w.shape[-1] not in KERNELS for w in weights):
        return f"native has kernels of 1 to 15 and at most {MAX_LEVELS} levels"
    return None


def _job(context: torch.Tensor, gates: torch.Tensor, kernels: Sequence[torch.Tensor], out: torch.Tensor) -> _Job:
    job = _Job(context=context.data_ptr(), gates=gates.data_ptr(), out=out.data_ptr())
    job.weights[: len(kernels)] = [kernel.data_ptr() for kernel in kernels]
    job.context_stride[:] = context.stride()[:3]
    job.gates_stride[:] = gates.stride()[:3]
    job.shape[:] = context.shape
    job.kernels[: len(kernels)] = [kernel.shape[-1] for kernel in kernels]
    job.L, job.threads = len(kernels), torch.get_num_threads()
    return job


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Channels must lie side by side; the other axes may have any strides, as slices of one projection have."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _plain(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [_float(weight) for weight in weights]


def _float(weight: torch.Tensor) -> torch.Tensor:
    there = weight.dtype == torch.float32 and weight.is_contiguous()
    return weight if there else weight.detach().float().contiguous()


def _rows(x: torch.Tensor) -> int:
    return x.shape[:-1].numel()


def _parts(x: torch.Tensor, sums: int) -> torch.Tensor:
    """Room for so many sums over the rows of ``x``, in parts."""
    return _floats(-(-_rows(x) // ROWS_OF_A_PART), sums, x.shape[-1])


def _floats(*shape: int) -> torch.Tensor:
    """Of the dtype and on the device that the kernels write, whatever the defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
