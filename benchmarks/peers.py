"""The same networks in other libraries and engines, and other networks of the same size, ready to be called.

"official order" is transformers' FocalNet: it runs the operations of the official release, one by one, in its order.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch._inductor.config
from torch import nn
from transformers import FocalNetConfig as TheirConfig
from transformers import FocalNetForImageClassification

import focalnet
from focalnet.ops import backend

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


def processor() -> str:
    """The processor's own name, where the system tells."""
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown processor"
