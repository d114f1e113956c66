"""Self-test of the GPU kernels before their first use: small cases, forward and backward, against float64.

After an illegal memory access a process can no longer use the GPU, and a compiler may crash the process. The cases
therefore run in a process of their own, ``python -m focalnet.kernels.triton.proof``, which also fills Triton's cache.
The result is stored per GPU, driver, versions and sources. If kernels did not compile or start, the next process tries
again, since the user may have fixed the cause.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from focalnet.errors import InputError
from focalnet.kernels import backend, reference
from focalnet.kernels.cpu.proof import deformable_example
from focalnet.ops import deformable
from focalnet.ops.precision import without_autocast

Result = TypeVar("Result")

SECONDS = 300  # time limit for compiling and running all cases, which usually takes some ten
# Relative to the largest value of a result: some ten times the expected rounding error.
_TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_SHAPES = (2, 17, 18, 40), (2, 5, 7, 40)  # one kernel per level; one for the whole plane
_SIZES = [3, 3]
_ANSWER = "verdict "
# Why some kernels, on this device and in this dtype, do not run in this process; found after the self-test.
_denied: dict[tuple[torch.device, torch.dtype, tuple[int, ...] | str], str] = {}


def deny(device: torch.device, dtype: torch.dtype, kernels: Sequence[int] | str, error: Exception) -> None:
    """Adds kernels that raised an error to the deny list, with a warning.

    Args:
        device: device that they ran on.
        dtype: dtype of the feature maps.
        kernels: kernel sizes of a focal context, or the name of another operation.
        error: what they raised.
    """
    kind = str(dtype).removeprefix("torch.")
    name = kernels if isinstance(kernels, str) else f"sizes {list(kernels)}"
    reason = f"the GPU kernels of {name} in {kind} do not compile or start: {brief(error)}"
    _denied[device, dtype, kernels if isinstance(kernels, str) else tuple(kernels)] = reason
    warn(reason)


def denied(device: torch.device, dtype: torch.dtype, kernels: Sequence[int] | str) -> str | None:
    """The reason why these kernels are on the deny list; None if they are not."""
    return _denied.get((device, dtype, kernels if isinstance(kernels, str) else tuple(kernels)))


def or_reference(
    run: Callable[[], Result],
    by_reference: Callable[[], Result],
    tensor: Tensor,
    kernels: Sequence[int] | str,
    by_name: bool,
) -> Result:
    """Runs kernels, or the reference if they are on the deny list; kernels that raise an error are put there.

    Operations call it within, so that it also protects compiled models, whose graphs call the operations.

    Args:
        run: runs the kernels.
        by_reference: computes the same by PyTorch's operations.
        tensor: the feature map, for its device and dtype.
        kernels: see ``deny``.
        by_name: the backend was requested by name: an error is raised instead.
    """
    if by_name:
        return run()
    if denied(tensor.device, tensor.dtype, kernels) is None:
        try:
            return run()
        except (torch.OutOfMemoryError, InputError):
            raise
        except Exception as error:  # compilers, drivers and caches may raise any exception
            deny(tensor.device, tensor.dtype, kernels, error)
    return by_reference()


def vector_jacobian(function: Callable[..., Any], inputs: Sequence[Tensor], grads: Any) -> tuple[Tensor, ...]:
    """Gradients of ``inputs``; within a registered operation autograd records nothing, but ``torch.func`` does."""
    with without_autocast(inputs[0].device):
        pull: Callable[[Any], tuple[Tensor, ...]] = torch.func.vjp(function, *inputs)[1]
        return pull(grads)


@functools.cache
def warn(reason: str) -> None:
    """Warns once that a GPU's kernels do not run."""
    warnings.warn(f"{reason}; models run on PyTorch's operations", RuntimeWarning, stacklevel=2)


def brief(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def verdict(device: torch.device, dtype: torch.dtype, version: str, operation: str) -> str | None:
    """The stored or new result of the self-test: a description of a wrong result; None if all are right.

    Args:
        device: a CUDA device.
        dtype: dtype of the feature maps.
        version: version of Triton.
        operation: the operation to test, as in ``triton.load``.

    Raises:
        InputError: the cases did not compile or start; the message says why.
    """
    stored = _folder() / f"{_key(device, dtype, version, operation)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        wrong: str | None = json.loads(stored.read_text())["wrong"]
        return wrong
    wrong = _asked(device, dtype, operation)
    with contextlib.suppress(OSError):  # then the next process runs the test again
        stored.parent.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"wrong": wrong}))
        partial.replace(stored)
    return wrong


def disagreement(device: torch.device, dtype: torch.dtype, operation: str = "focal context") -> str | None:
    """Runs the self-test in this process; a description of the first wrong result, None if all are right."""
    cases: Iterator[tuple[str, Tensor, Tensor]]
    if operation == "focal context":
        cases = (case for shape in _SHAPES for case in _cases(shape, device, dtype))
    elif operation == "rank-1 global level":
        cases = (case for shape in _SHAPES for case in _rank_one_cases(shape, device, dtype))
    else:
        cases = _deformable_cases(device, dtype)
    for name, result, expected in cases:
        error = (result.double() - expected).abs().max() / expected.abs().max()
        if not error <= _TOLERANCE[dtype]:  # also true for NaN
            kind = str(dtype).removeprefix("torch.")
            return f"{name} in {kind} is off by {float(error):.1e} of its largest value"
    return None


def _cases(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, result and expected result. Gates and context are slices of a projection with an odd pixel stride."""
    from focalnet.kernels.triton import focal_context

    importlib.import_module("focalnet.kernels.triton.op")  # registers the operation
    C, L = shape[3], len(_SIZES)
    projection = _waves((*shape[:3], 2 * C + L + 1), dtype, 1, device)
    kernels = [_waves((C, 1, k, k), torch.float32, 2 + level, device) / k for level, k in enumerate(_SIZES)]
    grad = _waves(shape, dtype, 7, device)

    def differentiated(function: object, computed_dtype: torch.dtype) -> list[Tensor]:
        assert callable(function)
        leaf = projection.to(computed_dtype).requires_grad_()
        weights = [
            kernel.to(computed_dtype if computed_dtype == torch.float64 else torch.float32).requires_grad_()
            for kernel in kernels
        ]
        _, context, gates = torch.split(leaf, [C, C, L + 1], -1)
        out = function(context, gates, weights)
        return [out.detach(), *torch.autograd.grad(out, [leaf, *weights], grad.to(computed_dtype))]

    with backend.use("triton"):  # by name, so that errors are raised
        results = differentiated(focal_context, dtype)
    expected = differentiated(reference.focal_context, torch.float64)
    names = ["the output", "the gradient of context and gates", *["the gradient of a kernel"] * L]
    yield from zip([f"{name} of a feature map {shape}" for name in names], results, expected, strict=True)


def _rank_one_cases(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, result and expected result of a modulated query, whose global level is added after the projection ``h``."""
    from focalnet.kernels.modulator import by_rank_one

    for name in ("op", "rank_one"):  # registers the operations
        importlib.import_module(f"focalnet.kernels.triton.{name}")
    C, L = shape[3], len(_SIZES)
    projection = _waves((*shape[:3], 2 * C + L + 1), dtype, 1, device)
    kernels = [_waves((C, 1, k, k), dtype, 2 + level, device) / k for level, k in enumerate(_SIZES)]
    h = _waves((C, C), dtype, 5, device) / C**0.5, _waves((C,), dtype, 6, device)
    grad = _waves(shape, dtype, 7, device)

    linear = torch.nn.functional.linear

    def differentiated(computed_dtype: torch.dtype) -> list[Tensor]:
        leaf, *leaves = (x.to(computed_dtype).detach().requires_grad_() for x in (projection, *h, *kernels))
        query, context, gates = torch.split(leaf, [C, C, L + 1], -1)
        if computed_dtype == torch.float64:
            aggregated = reference.focal_context(context, gates, leaves[2:]) / (L + 1)
            out = query * linear(aggregated, *leaves[:2])
        else:
            out = by_rank_one(linear, query, context, gates, leaves[2:], leaves[:2], True)
        return [out.detach(), *torch.autograd.grad(out, [leaf, *leaves], grad.to(computed_dtype))]

    with backend.use("triton"):  # by name, so that errors are raised
        results = differentiated(dtype)
    expected = differentiated(torch.float64)
    of = "query, context and gates", "the weight of h", "the bias of h", *["a kernel"] * L
    names = ["the output", *(f"the gradient of {name}" for name in of)]
    yield from zip([f"{name} of a feature map {shape}" for name in names], results, expected, strict=True)


def _deformable_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, result and truth of deformable attention, with points beyond the edges."""
    importlib.import_module("focalnet.kernels.triton.deformable")  # registers the operation
    values, sizes, locations, weights, grad = deformable_example(dtype)
    tensors, grad = [x.to(device) for x in (values, locations, weights)], grad.to(device)

    def differentiated(function: object, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
        assert callable(function)
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(leaves[0], sizes, leaves[1], leaves[2])
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    def run(values: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = torch.ops.focalnet.deformable_attention_triton(values, sizes, locations, weights, True)
        return out

    found = differentiated(run, tensors, grad)
    doubles = [x.double() for x in tensors]
    truth = differentiated(lambda v, s, p, w: deformable.differentiable(s, v, p, w), doubles, grad.double())
    names = ["the output", *(f"the gradient of the {name}" for name in ("values", "locations", "weights"))]
    yield from zip([f"{name} of deformable attention" for name in names], found, truth, strict=True)


def _waves(shape: tuple[int, ...], dtype: torch.dtype, step: float, device: torch.device) -> Tensor:
    """Irregular numbers between -2 and 2, without a random generator."""
    count = torch.Size(shape).numel()
    return (2 * (torch.arange(count, dtype=torch.float64) * (1 + step / 7)).sin()).view(shape).to(device, dtype)


def _asked(device: torch.device, dtype: torch.dtype, operation: str = "focal context") -> str | None:
    """Runs the self-test in a process of its own."""
    index = torch.cuda.current_device() if device.index is None else device.index
    kind = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-W", "ignore", "-m", "focalnet.kernels.triton.proof", operation, str(index), kind]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the GPU kernels were not compiled and run within {SECONDS} seconds") from error
    except OSError as error:
        raise InputError(f"the GPU kernels cannot be checked: {error}") from error
    for line in done.stdout.splitlines():
        if line.startswith(_ANSWER):
            wrong: str | None = json.loads(line.removeprefix(_ANSWER))
            return wrong
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise InputError(f"the GPU kernels do not compile or start: {last.strip()}")


def _key(device: torch.device, dtype: torch.dtype, version: str, operation: str) -> str:
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    known = (
        torch.cuda.get_device_name(device),
        torch.cuda.get_device_capability(device),
        _driver(),
        torch.__version__,
        version,
        str(dtype),
        operation,
        sources.hexdigest(),
    )
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


def _driver() -> str:
    """Version of the NVIDIA driver on Linux; elsewhere a new driver is not noticed."""
    try:
        return Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""


def _folder() -> Path:
    """Folder of the stored results."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "focalnet" / "gpu_kernels"


def main() -> None:
    """Prints the result of the self-test, or exits with the error that kept the kernels from running."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operation", help="the operation to test, as in focalnet.kernels.triton.load")
    parser.add_argument("index", type=int, help="index of the CUDA device")
    parser.add_argument("dtype", choices=[str(dtype).removeprefix("torch.") for dtype in _TOLERANCE])
    a = parser.parse_args()
    wrong = disagreement(torch.device("cuda", a.index), getattr(torch, a.dtype), a.operation)
    print(_ANSWER + json.dumps(wrong), flush=True)


if __name__ == "__main__":
    main()
