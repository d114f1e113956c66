"""``focalnet.export``: writes a network to one file, after checking that the file computes what the network does."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import focalnet
from focalnet import registry
from focalnet.card import ModelCard
from focalnet.errors import ConfigError, ExportError, require, require_installed
from focalnet.exporting.agreement import check_agreement
from focalnet.exporting.quantization.data import EXPECTED, LabeledData
from focalnet.exporting.quantization.onnx_layers import OnnxLayers, module_of
from focalnet.exporting.quantization.openvino_layers import OpenVinoLayers
from focalnet.exporting.quantization.quantizing import Quantization, check_max_loss, quantize, report
from focalnet.exporting.tracing import Trace, check_exportable, trace
from focalnet.files import atomic, atomic_together, write
from focalnet.inference.exported import ExportedNetwork
from focalnet.kernels import processor
from focalnet.models import Model
from focalnet.runtime.header import EXTRA_FILE, FORMATS, KEY, Header
from focalnet.runtime.sessions import DIGEST_KEY, append_digest, file_size, store_digest

logger = logging.getLogger(__name__)

Format = Literal["onnx", "openvino", "torch"]
#: Packages that write and check a file of each format, and the extra that installs them.
_PACKAGES = {
    "onnx": ("export", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": ("openvino", ("onnx", "onnxscript", "openvino")),
    "torch": ("export", ()),
}
#: What int8 computes in files of a format.
_LAYERS: dict[Format, type[OnnxLayers] | type[OpenVinoLayers]] = {"onnx": OnnxLayers, "openvino": OpenVinoLayers}
OPSETS = (18, 19, 20)  # GridSample came with 16; the exporter writes 18 and converts to later ones
_LARGEST = 2**31 - 2**24  # bytes: an ONNX file is one protobuf message of less than 2 GiB
_THRESHOLDS = ("score_threshold", "nms_threshold", "max_per_image", "object_threshold", "overlap_threshold", "things")


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        path: of the file.
        header: its metadata.
        differences: largest difference from PyTorch of each quantity that was compared, such as ``"boxes (px)"``; of an
            int8 file, those of the file in float32 that it was made from.
        quantization: of an int8 file: what it costs, and which layers stay in float32.
        report: of an int8 file: the JSON file beside it, with the cost of each layer.
    """

    path: Path
    header: Header
    differences: dict[str, float]
    quantization: Quantization | None = None
    report: Path | None = None

    @property
    def bytes(self) -> int:
        """The size of the file, or of both of OpenVINO's."""
        return file_size(self.path)


def export(
    model: Model[Any, Any],
    path: str | Path,
    format: Format | None = None,
    *,
    opset: int | None = None,
    grid_sample: bool = True,
    int8: bool = False,
    data: str | Path | None = None,
    split: Literal["val", "test"] = "val",
    calibration: int | None = None,
    max_loss: float | None = None,
) -> Exported:
    """Writes a network to one file, for any batch size, height and width, with its postprocessing and metadata.

    OpenVINO's format has a second file, ``.bin``, with the weights. What is written is compared with the network, at
    several sizes and batch sizes; a file that disagrees is not kept.

    Args:
        model: a classifier, detector or segmenter, float32, on the CPU, with a card or without.
        path: the file; missing folders are created.
        format: ``"onnx"``, ``"openvino"``, or ``"torch"`` for a program of ``torch.export``; default: as the suffix
            says, ``.onnx``, ``.xml`` or ``.pt2``.
        opset: of ONNX, 18 to 20; default: 18.
        grid_sample: whether the graph may contain ``GridSample``; without it, points are sampled by gathers, which
            needs more memory.
        int8: compute matrix products and convolutions in 8-bit integers, except in layers that cost too much accuracy.
            The file is measured on labeled images first; one that loses too much is not written.
        data: with int8: a labeled data set as for training, whose training images calibrate.
        split: with int8: whose images measure.
        calibration: with int8: number of training images that calibrate; default: 300, or all if there are fewer.
        max_loss: with int8: percentage points of each headline metric that may be lost; default: 0.3 of a classifier's
            top-1 accuracy, 0.5 of AP, mIoU and PQ.

    Returns:
        The path, the metadata, and how much the file differs from the network.

    Raises:
        ConfigError: an option has an invalid value, or the network cannot be exported.
        DataError: the data for int8 cannot be read or do not fit the network.
        ExportError: the file disagrees with the network, int8 loses too much, or it cannot be written as one file.
        MissingDependency: ONNX files need the extra ``export``, OpenVINO's the extra ``openvino``, int8 also
            ``train`` or ``dense``.
    """
    path = Path(path)
    format = format or _format_of(path)
    _check_options(path, format, opset)
    check_exportable(model)
    extra, packages = _PACKAGES[format]
    for package in packages:
        require(package, extra)
    if format != "torch" and sum(tensor.nbytes for tensor in model.state_dict().values()) > _LARGEST:
        raise ExportError(f"{path}: these weights exceed the 2 GiB of an ONNX graph; choose the format torch")
    labeled = None
    if int8:
        labeled = _labeled(model, format, data, split=split, calibration=calibration)
        most = check_max_loss(max_loss, model.config.output)
    elif data is not None or calibration is not None or max_loss is not None or split != "val":
        raise ConfigError("data, split, calibration and max_loss are options of int8")
    quantization = None
    with _evaluating(model):
        traced = trace(model, grid_sample=grid_sample)
        header = _header(model, traced)
        with _unfinished(path, format) as part:
            if format == "onnx":
                _write_onnx(traced, header, part, opset or OPSETS[0])
            elif format == "openvino":
                _write_openvino(traced, header, part)
            else:
                _write_program(traced, header, part)
            differences = check_agreement(model, ExportedNetwork(part, format), path)
            if labeled is not None:
                size = file_size(part)
                quantization, write_int8 = quantize(_LAYERS[format](part), part, format, labeled, most, path)
                header = dataclasses.replace(header, quantization=quantization.summary())
                write_int8(part, {KEY: header.to_json()})
    if quantization is None:
        return Exported(path, header, differences)
    content = report(quantization, header.card.name, {"float32": size, "int8": file_size(path)})
    beside = write(report_path(path), content, ExportError)
    return Exported(path, header, differences, quantization, beside)


def report_path(path: Path) -> Path:
    """Where the report on an int8 file is written."""
    return path.with_suffix(".int8.json")


def _labeled(
    model: Model[Any, Any], format: Format, data: str | Path | None, *, split: str, calibration: int | None
) -> LabeledData:
    """The data to calibrate and measure an int8 file with."""
    if format not in _LAYERS:
        raise ConfigError(f"int8 files of the format {format} are not written: choose the format onnx or openvino")
    if format == "openvino":
        require_installed("nncf", "openvino")
    if data is None:
        raise ConfigError(
            "int8 needs labeled data to calibrate with and to measure the loss of accuracy: --data must be "
            f"{EXPECTED[model.config.output]}"
        )
    if not processor.computes_int8():
        logger.warning("this processor has no instructions for int8 (VNNI): the file will be slower here than float32")
    return LabeledData(model, card_of(model), data, split=split, count=calibration)


def _format_of(path: Path) -> Format:
    for format, suffix in FORMATS.items():
        if path.suffix == suffix:
            return format  # type: ignore[return-value]
    raise ConfigError(f'{path}: must end in .onnx, .xml or .pt2, or give format="onnx", "openvino" or "torch"')


def _check_options(path: Path, format: Format, opset: int | None) -> None:
    if format not in FORMATS:
        raise ConfigError(f'format="{format}" must be "onnx", "openvino" or "torch"')
    if path.suffix != FORMATS[format]:
        raise ConfigError(f"{path}: a file of the format {format} must end in {FORMATS[format]}")
    if opset is not None and format != "onnx":
        raise ConfigError(f"opset={opset} is an option of the format onnx only")
    if opset is not None and opset not in OPSETS:
        raise ConfigError(f"opset={opset} must be one of {', '.join(map(str, OPSETS))}")
    weights = path.with_suffix(".bin")
    if format == "openvino" and weights.exists() and not path.exists():
        raise ConfigError(f"{weights}: exists, and is where the weights of {path.name} belong: choose another name")


@contextmanager
def _unfinished(path: Path, format: Format) -> Iterator[Path]:
    """A path to write to; the file there then replaces ``path``, and of OpenVINO also the one with the weights."""
    if format == "openvino":
        with atomic_together([path.with_suffix(".bin"), path], ExportError) as (_, part):
            yield part
    else:
        with atomic(path, ExportError) as part:
            yield part


def _header(model: Model[Any, Any], traced: Trace) -> Header:
    config, card = model.config, card_of(model)
    thresholds = {name: getattr(config, name) for name in _THRESHOLDS if hasattr(config, name)}
    return Header(
        output=config.output,
        family=registry.family_of(model).name,
        num_classes=config.num_classes,
        card=dataclasses.replace(card, metrics={name: float(value) for name, value in card.metrics.items()}),
        inputs=traced.inputs,
        outputs=traced.outputs,
        size_divisor=config.size_divisor,
        least_side=traced.least_side,
        thresholds=thresholds,
        sha256=weights_hash(model),
        version=focalnet.__version__,
    )


def card_of(model: Model[Any, Any]) -> ModelCard:
    """The card of the weights, or one of what is known without."""
    family = registry.family_of(model)
    return model.card or ModelCard(name=f"{family.name}.untitled", preprocessing=family.preprocessing)


def weights_hash(model: Model[Any, Any]) -> str:
    """SHA-256 of the names and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_onnx(traced: Trace, header: Header, path: Path, opset: int) -> None:
    program = _onnx_program(traced, header, opset)
    program.model.metadata_props[KEY] = header.to_json()
    program.save(str(path), external_data=False)
    append_digest(path)


def _onnx_program(traced: Trace, header: Header, opset: int) -> torch.onnx.ONNXProgram:
    """The network as an ONNX graph."""
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    with _quiet():
        try:
            program = torch.onnx.export(
                traced.program,
                dynamo=True,
                opset_version=opset,
                input_names=traced.inputs,
                output_names=traced.outputs,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).partition("\n")[0][:200]
            raise ExportError(f"ONNX cannot express this {header.family}: {reason}; choose the format torch") from error
        assert program is not None
        # The exporter's optimizer without its rewriting, which takes minutes and which runtimes do themselves.
        graph = program.model
        optimizer.fold_constants(graph)
        for cleanup in (passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass()):
            cleanup(graph)
    return program


def _write_openvino(traced: Trace, header: Header, path: Path) -> None:
    """Writes OpenVINO's files: the graph to ``path``, the weights to the ``.bin`` file beside it.

    Nodes are named after their modules, as in ``"head/node_linear_32"``.
    """
    import openvino

    onnx = _onnx_program(traced, header, OPSETS[0]).model_proto
    for node in onnx.graph.node:  # OpenVINO keeps these names
        node.name = f"{module_of(node)}/{node.name}"
    try:
        # Its function convert_model does the same, and reports each use to the authors of OpenVINO.
        graph = openvino.Core().read_model(onnx.SerializeToString())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"OpenVINO cannot express this {header.family}: {reason}; choose the format onnx or torch"
        ) from error
    graph.set_rt_info(header.to_json(), KEY)
    graph.set_rt_info("0" * 64, DIGEST_KEY)
    openvino.save_model(graph, path, compress_to_fp16=False)
    store_digest(path)


def _write_program(traced: Trace, header: Header, path: Path) -> None:
    traced.program.example_inputs = None  # they would be larger than a small network, and a pickle
    with _quiet(), path.open("wb") as file:
        torch.export.save(traced.program, file, extra_files={EXTRA_FILE: header.to_json()})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporters tell of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _evaluating(model: Model[Any, Any]) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode of each module before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
