"""FocalNets in other libraries and engines, and other networks of the same size, for comparison.

"official order" is transformers' FocalNet: it runs the operations of the official release, one by one, in its order.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import FocalNetConfig as TheirConfig
from transformers import FocalNetForImageClassification

import focalnet
from focalnet.kernels import backend, matmul

Call = Callable[[torch.Tensor], object]
LEVELS = {"srf": (2, 3), "lrf": (3, 3), "detection": (3, 9)}  # focal levels, first window


class Logits(nn.Module):
    """transformers' model with the logits as its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images).logits
        return logits


def ours(kind: str) -> nn.Module:
    """FocalNet-T of this library; ``kind`` is one of ``LEVELS``."""
    levels, window = LEVELS[kind]
    options = {"focal_windows": (window,) * 4} if kind == "detection" else {}
    return focalnet.create_model(f"focalnet_tiny_{'srf' if levels == 2 else 'lrf'}", **options)


def official_order(kind: str) -> nn.Module:
    """FocalNet-T of transformers."""
    levels, window = LEVELS[kind]
    config = TheirConfig(depths=[2, 2, 6, 2], focal_levels=[levels] * 4, focal_windows=[window] * 4, num_labels=1000)
    return Logits(FocalNetForImageClassification(config))


def of_timm(kind: str) -> nn.Module:
    """FocalNet-T of timm."""
    levels, window = LEVELS[kind]
    options = {"focal_windows": (window,) * 4} if kind == "detection" else {}
    return timm.create_model(f"focalnet_tiny_{'srf' if levels == 2 else 'lrf'}", pretrained=False, **options)


def compiled(model: nn.Module) -> Call:
    """``torch.compile``, with frozen weights where no gradient is needed."""
    torch._inductor.config.freezing = not torch.is_grad_enabled()
    return torch.compile(model)


def optimized(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``focalnet.optimize`` for inference."""
    focalnet.optimize(model, dtype=dtype)
    return model


def without_kernels(model: nn.Module) -> Call:
    """This library's plain operations."""

    def call(images: torch.Tensor) -> object:
        with backend.use("eager"):
            return model(images)

    return call


def runtimes(images: torch.Tensor) -> dict[str, Call]:
    """FocalNet-T SRF exported to ONNX, in the runtimes that are installed here (float32, and bfloat16 of OpenVINO)."""
    if not importlib.util.find_spec("onnxruntime"):
        return {}
    import onnxruntime

    like = images.float()
    path = Path(tempfile.mkdtemp()) / "focalnet.onnx"
    torch.onnx.export(ours("srf").eval(), (like,), path, dynamo=True, verbose=False)
    calls: dict[str, Call] = {}
    if images.dtype == torch.float32:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: like.numpy()}
        calls["ONNX Runtime"] = lambda _: session.run(None, feed)
    if importlib.util.find_spec("openvino"):
        import openvino

        precision = {"INFERENCE_PRECISION_HINT": "bf16" if images.dtype == torch.bfloat16 else "f32"}
        threads = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads()), "PERFORMANCE_HINT": "LATENCY"}
        network = openvino.compile_model(openvino.convert_model(path), "CPU", precision | threads)
        calls["OpenVINO"] = lambda _: network([like.numpy()])
    return calls


def matrix_products(run: Callable[[], object], dtype: torch.dtype) -> Call:
    """Only the matrix products that ``run`` makes, each by the faster of MKL and oneDNN on values in memory: a floor.

    Convolutions are left out: they are a few percent of a FocalNet's arithmetic.
    """
    recorder = _Products()
    with recorder:
        run()
    fastest = {size: _fastest_product(*size, dtype) for size in dict.fromkeys(recorder.sizes)}

    def call(_: torch.Tensor) -> None:
        with torch.inference_mode():
            for size in recorder.sizes:
                fastest[size]()

    return call


def _fastest_product(shape: tuple[int, ...], columns: int, dtype: torch.dtype) -> Callable[[], object]:
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(columns, shape[-1], dtype=dtype)
    packed = matmul.PackedWeight(weight).unchanged(weight, x)
    ways = (lambda: F.linear(x, weight), lambda: matmul.product(x, packed, None))

    def seconds(way: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.inference_mode():
        return min(ways, key=seconds)


class _Products(TorchDispatchMode):
    """Writes down the sizes of matrix products: the shape of the left side, columns of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[tuple[int, ...], int]] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        ops = torch.ops.mkldnn  # below: where x and the weight are
        linears = {ops._linear_pointwise.default: (0, 1), ops._linear_pointwise.binary: (0, 2)}
        convolutions = {ops._convolution_pointwise.default: (0, 1), ops._convolution_pointwise_.binary: (1, 2)}
        if func in linears:
            x, weight = (args[i] for i in linears[func])
            self.sizes.append((tuple(x.shape), len(weight)))
        elif func in convolutions:
            x, weight = (args[i] for i in convolutions[func])
            if weight.shape[2:].numel() == 1:
                self.sizes.append((tuple(x.permute(0, 2, 3, 1).shape), len(weight)))
        elif func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            a, b = args[-2:]
            self.sizes.append((tuple(a.shape), b.shape[1]))
        return func(*args, **(kwargs or {}))


def copy_bandwidth() -> float:
    """What this machine copies, GB/s read and written together: the best of ten copies of 256 MiB."""
    there, here = torch.ones(2**26), torch.empty(2**26)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        here.copy_(there)
        seconds.append(time.perf_counter() - start)
    return 2 * 4 * 2**26 / min(seconds) / 1e9


def processor() -> str:
    """The processor's own name, where the system tells."""
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown processor"
