"""Int8 layers of ONNX files, by ONNX Runtime's quantizer: weights and activations with QuantizeLinear nodes (QDQ)."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from focalnet.errors import ExportError
from focalnet.runtime.sessions import DIGEST_KEY, append_digest

#: Name of a tensor to its smallest and largest value.
Ranges = Mapping[str, tuple[float, float]]

_BINS = 512  # of histograms; the search for the least entropy takes time with their square
_LEVELS = 128  # of its quantized histograms, as in TensorRT
_PERCENTILE = 99.99  # of the values of an activation are within its range
_OPERATORS = ("MatMul", "Gemm", "Conv")
_SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: the modules it comes from
_ALIAS = "/int8"


@dataclass(frozen=True)
class Layer:
    """A layer that int8 can compute.

    Args:
        name: of the module in PyTorch, such as ``"layers.0.blocks.1.mlp.fc1"``.
        operator: of the format, such as ``"MatMul"``.
        parameters: number of its weights.
    """

    name: str
    operator: str
    parameters: int


class OnnxLayers:
    """The matrix products and ordinary convolutions with constant weights of an ONNX file that ``export`` wrote.

    Depthwise convolutions, norms, products of activations and postprocessing stay in float32. Weights are symmetric
    with a scale for each output channel, activations asymmetric with a scale for each tensor. The output of a
    convolution is quantized, too, without which ONNX Runtime computes no convolution in int8.

    Args:
        path: the file.

    Attributes:
        layers: by name, in the order of the graph; after ``observe``, those that an image has reached.
    """

    def __init__(self, path: Path) -> None:
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        self._model = load_model_with_shape_infer(path)
        graph = self._model.graph
        weights = {tensor.name: tensor for tensor in graph.initializer}
        self._values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
        owners: dict[str, str] = {}  # of weights that several nodes use
        self._nodes: dict[str, list[Any]] = {}
        sizes: dict[str, dict[str, int]] = {}
        for node in graph.node:
            weight = weights.get(node.input[1]) if node.op_type in _OPERATORS else None
            if (
                weight is None
                or len(weight.dims) not in (2, 4)
                or _is_grouped(node)
                or (module := module_of(node)) == ""
            ):
                continue
            name = owners.setdefault(weight.name, module)
            self._nodes.setdefault(name, []).append(node)
            sizes.setdefault(name, {})[weight.name] = int(np.prod(weight.dims))
        for name, nodes in list(self._nodes.items()):
            # ONNX Runtime refuses int8 convolutions that share their weight, such as heads on several feature maps.
            if len(nodes) > 1 and nodes[0].op_type == "Conv":
                del self._nodes[name]
        self.layers = {
            name: Layer(name, nodes[0].op_type, sum(sizes[name].values())) for name, nodes in self._nodes.items()
        }

    def observe(self, batches: Callable[[], Iterable[Mapping[str, npt.NDArray[Any]]]]) -> dict[str, Ranges]:
        """The ranges of all activations that are quantized, by the name of the rule that finds them.

        Args:
            batches: gives inputs of the file.

        Raises:
            ExportError: an activation is not finite.
        """
        import onnx
        import onnxruntime
        from onnxruntime.quantization.calibrate import HistogramCollector

        nodes = [node for nodes in self._nodes.values() for node in nodes]
        observed = {node.input[0] for node in nodes} | {node.output[0] for node in nodes if node.op_type == "Conv"}
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        known = {value.name for value in (*model.graph.input, *model.graph.output)}
        model.graph.output.extend(self._values[name] for name in sorted(observed - known))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        inputs = {value.name for value in session.get_inputs()}
        outputs = sorted(observed - inputs)
        collector = HistogramCollector("percentile", False, _BINS, _LEVELS, _PERCENTILE, "same")
        for batch in batches():
            given = {name: values for name, values in batch.items() if name in inputs}
            values = {**given, **dict(zip(outputs, session.run(outputs, given), strict=True))}
            for name in observed:
                if not np.isfinite(values[name]).all():
                    raise ExportError(f'activations become NaN or infinite ("{name}"): int8 has no range for them')
            with contextlib.redirect_stdout(io.StringIO()):  # it tells of each batch
                collector.collect({name: values[name] for name in observed if values[name].size})
        histograms = collector.histogram_dict
        for name, nodes in list(self._nodes.items()):
            if not any(node.input[0] in histograms for node in nodes):  # no image has reached it
                del self._nodes[name], self.layers[name]
        found: dict[str, Ranges] = {"minmax": {name: (float(h[2]), float(h[3])) for name, h in histograms.items()}}
        with contextlib.redirect_stdout(io.StringIO()):
            for rule, compute in (("percentile", collector.compute_percentile), ("entropy", collector.compute_entropy)):
                found[rule] = {name: (float(low), float(high)) for name, (low, high, *_) in compute().items()}
        return found

    def write(self, path: Path, ranges: Ranges, names: Collection[str], metadata: Mapping[str, str]) -> None:
        """Writes the file with some layers in int8.

        Args:
            path: the file to write.
            ranges: of activations; a node of which there are none, because no image has reached it, stays in float32.
            names: of layers.
            metadata: entries of the file to replace.
        """
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        chosen = {node.name for name in names for node in self._nodes[name] if node.input[0] in ranges}
        aliases = _separate(model.graph, chosen, self._values)
        known = {**ranges, **{alias: ranges[name] for alias, name in aliases.items()}}
        limits = {name: tuple(np.float32(value) for value in pair) for name, pair in known.items()}
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
            nodes_to_quantize=sorted(chosen),
            nodes_to_exclude=[],
            op_types_to_quantize=list(_OPERATORS),
            # Without a quantized output, ONNX Runtime computes products of int8 matrices with float32 results.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"], "MatMulConstBOnly": True},
        )
        if chosen:
            quantizer.quantize_model()
        written = quantizer.model.model
        _join(written.graph, aliases)
        for entry in list(written.metadata_props):
            # "onnx." are notes of ONNX Runtime's quantizer.
            if entry.key in (*metadata, DIGEST_KEY) or entry.key.startswith("onnx."):
                written.metadata_props.remove(entry)
        for key, value in metadata.items():
            written.metadata_props.add(key=key, value=value)
        onnx.save(written, str(path))
        append_digest(path)


def _is_grouped(node: Any) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)


def module_of(node: Any) -> str:
    """The name of the module in the network that a node comes from; empty if none is known."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope.startswith("model.")]
    return modules[-1].removeprefix("model.") if modules else ""


def _separate(graph: Any, chosen: Collection[str], values: Mapping[str, Any]) -> dict[str, str]:
    """Gives chosen nodes a copy of an input that others read, too: the quantizer changes what all readers get.

    Returns:
        The names of the copies, and of what they are copies of.
    """
    import onnx

    quantized = {node.output[0] for node in graph.node if node.name in chosen and node.op_type == "Conv"}
    shared = {name for node in graph.node if node.name not in chosen for name in node.input}
    shared |= {value.name for value in graph.output}
    aliases: dict[str, str] = {}
    for node in list(graph.node):
        name = node.input[0] if node.input else ""
        if node.name not in chosen or name not in shared or name in quantized:
            continue
        alias = name + _ALIAS
        node.input[0] = alias
        if alias not in aliases:
            aliases[alias] = name
            value = onnx.ValueInfoProto()
            value.CopyFrom(values[name])
            value.name = alias
            graph.value_info.append(value)
            place = next(i for i, other in enumerate(graph.node) if other.name == node.name)
            graph.node.insert(place, onnx.helper.make_node("Identity", [name], [alias], name=alias))
    return aliases


def _join(graph: Any, aliases: Mapping[str, str]) -> None:
    """The inverse of ``_separate``."""
    for node in list(graph.node):
        if node.op_type == "Identity" and node.output[0] in aliases:
            graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in aliases:
                node.input[i] = aliases[name]
    for value in list(graph.value_info):
        if value.name in aliases:
            graph.value_info.remove(value)
