"""Int8 layers of OpenVINO files, by NNCF: activations with FakeQuantize nodes, weights stored as 8-bit integers."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from focalnet.errors import ExportError, FocalNetError, require
from focalnet.exporting.quantization.data import Inputs
from focalnet.exporting.quantization.onnx_layers import Layer
from focalnet.runtime.sessions import DIGEST_KEY, store_digest

_OPERATORS = ("MatMul", "Convolution")
#: The rules that find ranges of activations, and NNCF's names of them; the first of them refuses what is not finite.
RULES = {"histogram": "HISTOGRAM", "percentile": "MEAN_QUANTILE", "minmax": "MINMAX"}


class OpenVinoLayers:
    """The matrix products and ordinary convolutions with constant weights of an OpenVINO file that ``export`` wrote.

    Everything else stays in float32, as in ``OnnxLayers``. Weights are symmetric with a scale for each output channel,
    activations asymmetric with a scale for each tensor. Weights have 7 of the 8 bits, so that sums of products cannot
    overflow on processors without VNNI either.

    Args:
        path: the file, whose nodes are named after their modules, as in ``"layers.0.blocks.1.mlp.fc1/node_MatMul_3"``.

    Attributes:
        layers: by name, in the order of the graph; after ``observe``, those that an image has reached.
    """

    def __init__(self, path: Path) -> None:
        openvino = require("openvino", "openvino")
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # the file may be replaced while its weights are in use
        self._graph = core.read_model(path, path.with_suffix(".bin"))
        owners: dict[str, str] = {}  # of weights that several nodes use
        sizes: dict[str, dict[str, int]] = {}
        operators: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of nodes, to those of their layers
        for node in self._graph.get_ordered_ops():
            if node.get_type_name() not in _OPERATORS:
                continue
            weight = node.input_value(1).get_node()
            module, named, _ = node.get_friendly_name().partition("/")
            if not (module and named) or weight.get_type_name() != "Constant" or len(weight.shape) not in (2, 4):
                continue
            name = owners.setdefault(weight.get_friendly_name(), module)
            self._names[node.get_friendly_name()] = name
            sizes.setdefault(name, {})[weight.get_friendly_name()] = math.prod(weight.shape)
            operators.setdefault(name, node.get_type_name())
        self.layers = {name: Layer(name, operators[name], sum(sizes[name].values())) for name in sizes}

    def observe(self, batches: Callable[[], Iterable[Inputs]]) -> dict[str, Any]:
        """Graphs with all layers in int8, by the name of the rule that found the ranges of their activations.

        Args:
            batches: gives inputs of the file, once for each rule.

        Raises:
            ExportError: an activation is not finite, or NNCF cannot quantize the graph.
            MissingDependency: NNCF is not installed.
        """
        if not self.layers:
            return {}
        nncf = import_nncf()
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        graphs = {
            rule: self._quantized(nncf, batches, getattr(RangeEstimatorParametersSet, name))
            for rule, name in RULES.items()
        }
        reached = {self._names[name] for graph in graphs.values() for name in _quantized_nodes(graph, self._names)}
        self.layers = {name: layer for name, layer in self.layers.items() if name in reached}
        return graphs

    def _quantized(self, nncf: Any, batches: Callable[[], Iterable[Inputs]], estimator: Any) -> Any:
        """The graph with all layers in int8."""
        inputs = [value.any_name for value in self._graph.inputs]
        given = [value for value in self._graph.get_ops() if value.get_type_name() not in ("Constant", "Parameter")]
        others = [node.get_friendly_name() for node in given if node.get_friendly_name() not in self._names]
        dataset = nncf.Dataset(_Again(batches), lambda batch: {name: batch[name] for name in inputs})
        # Below its decorator, which reports each use to the authors of NNCF.
        quantize = inspect.unwrap(nncf.quantize)
        with _quiet():
            try:
                return quantize(
                    self._graph,
                    dataset,
                    preset=nncf.QuantizationPreset.MIXED,
                    target_device=nncf.TargetDevice.CPU,
                    subset_size=2**31 - 1,  # all batches
                    ignored_scope=nncf.IgnoredScope(names=others, validate=False),
                    advanced_parameters=nncf.AdvancedQuantizationParameters(
                        overflow_fix=nncf.OverflowFix.ENABLE,
                        disable_bias_correction=True,  # it holds only while all layers are in int8
                        activations_range_estimator_params=estimator,
                    ),
                )
            except FocalNetError:  # of reading images
                raise
            except (nncf.ValidationError, nncf.InternalError, RuntimeError, ValueError) as error:
                if "not finite" in str(error):
                    raise ExportError("activations become NaN or infinite: int8 has no range for them") from error
                reason = " ".join(str(error).split())[:300]
                raise ExportError(f"NNCF cannot quantize this network: {reason}; choose the format onnx") from error

    def write(self, path: Path, ranges: Any, names: Collection[str], metadata: Mapping[str, str]) -> None:
        """Writes the file, and the ``.bin`` file beside it, with some layers in int8.

        Args:
            path: the ``.xml`` file to write.
            ranges: a graph with all layers in int8; a node that no image has reached stays in float32.
            names: of layers.
            metadata: entries of the file to replace.
        """
        import openvino

        graph = ranges.clone()
        chosen = _quantized_nodes(graph, [node for node, layer in self._names.items() if layer in names])
        originals = {node.get_friendly_name(): node for node in self._graph.get_ops()}
        constants: dict[str, Any] = {}
        for node in graph.get_ops():
            name = node.get_friendly_name()
            if name not in self._names or name in chosen:
                continue
            activation = node.input_value(0).get_node()
            if activation.get_type_name() == "FakeQuantize":
                node.input(0).replace_source_output(activation.input_value(0))
            weight = originals[name].input_value(1).get_node()
            if (key := weight.get_friendly_name()) not in constants:
                constants[key] = openvino.op.Constant(weight.data)
                constants[key].set_friendly_name(key)
            node.input(1).replace_source_output(constants[key].output(0))
        graph.validate_nodes_and_infer_types()
        if "nncf" in graph.rt_info:  # its notes: options, and names of all nodes
            del graph.rt_info["nncf"]
        for key, value in {**metadata, DIGEST_KEY: "0" * 64}.items():
            graph.set_rt_info(value, key)
        openvino.save_model(graph, path, compress_to_fp16=False)
        store_digest(path)


def import_nncf() -> Any:
    """NNCF, imported without its change of the class of loggers.

    Raises:
        MissingDependency: it is not installed.
    """
    before = logging.getLoggerClass()
    try:
        return require("nncf", "openvino")
    finally:
        logging.setLoggerClass(before)


class _Again:
    """Batches that can be read several times."""

    def __init__(self, batches: Callable[[], Iterable[Inputs]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Inputs]:
        return iter(self._batches())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences NNCF, which tells of each node on the standard output, and shows its progress there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, for ranges that are not finite
            yield
    finally:
        logging.disable(before)


def _quantized_nodes(graph: Any, names: Collection[str]) -> dict[str, Any]:
    """Those of the nodes of these names whose activations are quantized, by name."""
    nodes = {node.get_friendly_name(): node for node in graph.get_ops() if node.get_friendly_name() in names}
    return {
        name: node for name, node in nodes.items() if node.input_value(0).get_node().get_type_name() == "FakeQuantize"
    }
