"""``focalnet benchmark --formats``: one model in all formats that it can be deployed in.

``FORMATS`` has an entry for each row of the table. Every row predicts in a process of its own, from the image file to
the result; the processes take turns, so that a slow moment of the machine affects all of them, and each has its own
peak of memory.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import focalnet
from focalnet.cli.terminal import say
from focalnet.errors import ConfigError, FocalNetError, escaped
from focalnet.files import write

if TYPE_CHECKING:
    from focalnet.exporting.quantization.data import LabeledData
    from focalnet.models import Model

TIE = 0.05  # medians that differ by less are a tie
_IMAGES = 16  # of the data, whose predictions are timed


@dataclass(frozen=True)
class Format:
    """A way to run a model.

    Args:
        network: opens the file as a network, to measure it on data.
        predict: opens the file as a function of an image file, with so many threads; runs in a process of its own.
        suffix: of the file that ``focalnet export`` writes; without one, the file has the model's weights.
        eager: whether it computes by PyTorch's own operations instead of this library's kernels.
    """

    network: Callable[[Path], Model[Any, Any]]
    predict: Callable[[Path, int], Callable[[str], Any]]
    suffix: str = ".safetensors"
    eager: bool = False


def _loaded(path: Path) -> Model[Any, Any]:
    from focalnet.inference.exported import load_network

    network: Model[Any, Any] = load_network(path)
    return network.eval()


def _optimized(path: Path) -> Model[Any, Any]:
    from focalnet.kernels.optimize import optimize

    network = _loaded(path)
    optimize(network)
    return network


def _compiled(path: Path) -> Model[Any, Any]:
    network = _optimized(path)
    network.backbone.compile()
    return network


def _by_pytorch(network: Callable[[Path], Model[Any, Any]], path: Path, threads: int) -> Callable[[str], Any]:
    import torch

    from focalnet.inference import Predictor

    torch.set_num_threads(threads)
    return Predictor(network(path), "cpu", batch_size=1)


def _without_pytorch(path: Path, threads: int) -> Callable[[str], Any]:
    from focalnet.runtime import Predictor

    return Predictor(path, threads=threads)


#: The rows of the table, from top to bottom.
FORMATS: dict[str, Format] = {
    "PyTorch eager": Format(_loaded, partial(_by_pytorch, _loaded), eager=True),
    "PyTorch": Format(_loaded, partial(_by_pytorch, _loaded)),
    "PyTorch optimized": Format(_optimized, partial(_by_pytorch, _optimized)),
    "PyTorch compiled": Format(_compiled, partial(_by_pytorch, _compiled)),
    "torch.export": Format(_loaded, partial(_by_pytorch, _loaded), ".pt2"),
    "ONNX Runtime": Format(_loaded, _without_pytorch, ".onnx"),
    "OpenVINO": Format(_loaded, _without_pytorch, ".xml"),
}


@dataclass(frozen=True)
class Row:
    """What was measured of a format.

    Args:
        name: of the format, or of a file that was given.
        format: how it runs.
        path: its file.
        reason: why it was not measured; empty if it was.
        metrics: headline metrics on the data in percent, by title.
        seconds: of every prediction, in order.
        memory: peak of the process in bytes; 0 where the system does not say.
    """

    name: str
    format: Format
    path: Path
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    memory: int = 0

    @property
    def bytes(self) -> int:
        """The size of the file, or of both of OpenVINO's."""
        from focalnet.runtime.sessions import file_size

        return file_size(self.path)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """The time that 95 % of the predictions take at most, interpolated."""
        ordered = sorted(self.seconds)
        place = 0.95 * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    def to_dict(self) -> dict[str, Any]:
        """Its entry in the JSON file."""
        if self.reason:
            return {"format": self.name, "not_measured": self.reason}
        return {
            "format": self.name,
            "bytes": self.bytes,
            "metrics": dict(self.metrics),
            "median_s": self.median,
            "p95_s": self.p95,
            "peak_memory_bytes": self.memory or None,
            "seconds": list(self.seconds),
        }


def compare_formats(
    model: str, *, data: Path | None, split: str, files: Sequence[Path], compiled: bool, rounds: int, out: Path | None
) -> None:
    """Measures a model in every format and prints the table.

    Args:
        model: a name or file of ``focalnet.load``.
        data: labeled data to measure it on; its image files are also those whose predictions are timed.
        split: of the data: ``"val"`` or ``"test"``.
        files: more exported files of the model, such as those in int8.
        compiled: whether to compile the model with ``torch.compile``.
        rounds: predictions of each row.
        out: a JSON file to write everything to.

    Raises:
        FocalNetError: the model or the data cannot be read, or a given file is not an exported one.
    """
    import torch

    from focalnet import zoo
    from focalnet.runtime.header import FORMATS as EXPORTED

    for file in files:
        if file.suffix not in EXPORTED.values():
            raise ConfigError(f'{file}: --file takes files of "focalnet export": .onnx, .xml or .pt2')
        if not file.is_file():
            raise ConfigError(f"{file}: no such file")
    network: Model[Any, Any] = zoo.load(model).eval()
    labeled = None if data is None else _labeled(network, data, split)
    with tempfile.TemporaryDirectory(prefix="focalnet-") as folder:
        images, described = _images(network, labeled, Path(folder))
        rows = _files(network, Path(folder), compiled=compiled)
        rows += [Row(str(file), _format_of(file), file) for file in files]
        rows = time_in_turns(rows, images, rounds, torch.get_num_threads())
        if labeled is not None:
            rows = [row if row.reason else _measured(row, labeled) for row in rows]
        setting = {
            "model": model,
            "images": described,
            "rounds": rounds,
            "threads": torch.get_num_threads(),
            "focalnet": focalnet.__version__,
            "torch": torch.__version__,
        }
        say(f"{escaped(model)}, {escaped(described)}, {rounds} rounds, {torch.get_num_threads()} threads")
        say(*table(rows))
        if out is not None:
            content = {**setting, "rows": [row.to_dict() for row in rows], "ties": ties(rows)}
            write(out, json.dumps(content, indent=1).encode(), ConfigError)


def _images(network: Model[Any, Any], labeled: LabeledData | None, folder: Path) -> tuple[list[str], str]:
    """Image files to predict, and what they are: those that measure, evenly spread, or one of noise without data.

    An image of a shard or table, which is no file of its own, is written to ``folder``.
    """
    import numpy as np
    from PIL import Image

    if labeled is not None:
        files = []
        for index in range(0, labeled.images, max(1, labeled.images // _IMAGES))[:_IMAGES]:
            file = labeled.path(index)
            if not file.is_file():
                file = folder / f"{index}.png"
                labeled.image(index).save(file)
            files.append(str(file))
        return files, f"{len(files)} images of {labeled.root} (split {labeled.split})"
    side = network.card.preprocessing.image_size if network.card is not None else 224
    height, width = (side, side) if isinstance(side, int) else side
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return [str(folder / "noise.png")], "an image of noise"


def _files(network: Model[Any, Any], folder: Path, *, compiled: bool) -> list[Row]:
    """A row for each format, with the file that it runs."""
    from focalnet import weights
    from focalnet.exporting import export

    native = weights.save(network, folder / "model.safetensors")
    rows = []
    for name, format in FORMATS.items():
        path, reason = native, ""
        if format.suffix != native.suffix:
            path = folder / f"model{format.suffix}"
            try:
                export(network, path)
            except FocalNetError as error:
                reason = str(error)
        elif format.network is _compiled and not compiled:
            reason = "takes minutes; add --compile"
        rows.append(Row(name, format, path, reason))
    return rows


def _format_of(file: Path) -> Format:
    return next(format for format in FORMATS.values() if format.suffix == file.suffix)


def _labeled(network: Model[Any, Any], data: Path, split: str) -> LabeledData:
    from focalnet.exporting.quantization.data import LabeledData

    if network.card is None:
        raise ConfigError("these weights do not name their classes, so that they cannot be measured on data")
    return LabeledData(network, network.card, data, split=split)


def _measured(row: Row, labeled: LabeledData) -> Row:
    """The row with its metrics on the data."""
    with _computing(row.format):
        metrics = labeled.measure(row.format.network(row.path))
    return replace(row, metrics={metric.title: metric.value for metric in metrics.values()})


@contextlib.contextmanager
def _computing(format: Format) -> Iterator[None]:
    if not format.eager:
        yield
        return
    from focalnet.kernels import backend

    with backend.use("eager"):
        yield


def time_in_turns(rows: Sequence[Row], images: Sequence[str], rounds: int, threads: int) -> list[Row]:
    """The rows with the times of ``rounds`` predictions and the peak of memory of the process of each.

    Args:
        rows: those with a reason are left as they are.
        images: files, which the rounds go through one after another.
        rounds: predictions of each row, after one of every image to warm up.
        threads: that compute in each process.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[int, tuple[Connection, Any]] = {}
    done = list(rows)
    try:
        for i, row in enumerate(done):
            if row.reason:
                continue
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, row.format, row.path, list(images), threads))
            process.start()
            theirs.close()
            workers[i] = (ours, process)
            if problem := _received(ours):  # one after another: they need all cores to load and to compile
                done[i] = replace(row, reason=problem)
                del workers[i]
        seconds: dict[int, list[float]] = {i: [] for i in workers}
        order = list(workers)
        for turn in range(rounds if workers else 0):
            for i in order[turn % len(order) :] + order[: turn % len(order)]:
                workers[i][0].send(turn % len(images))
                seconds[i].append(_received(workers[i][0]))
        for i, (connection, _) in workers.items():
            connection.send(None)
            done[i] = replace(done[i], seconds=tuple(seconds[i]), memory=_received(connection))
    finally:
        for connection, process in workers.values():
            connection.close()
            process.join(10)
            if process.is_alive():
                process.terminate()
    return done


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        raise ConfigError("a process of the benchmark died, most likely because memory ran out") from None


def _serve(connection: Connection, format: Format, path: Path, images: Sequence[str], threads: int) -> None:
    """Predicts the images whose numbers arrive and answers with seconds; at last, with the peak of memory."""
    with _computing(format):
        try:
            predict = format.predict(path, threads)
            for image in images:
                predict(image)
        except Exception as error:  # the compiler of PyTorch and the runtimes raise anything
            connection.send(" ".join(str(error).split())[:300] or type(error).__name__)
            return
        connection.send("")
        with contextlib.suppress(EOFError):  # the other end is gone
            while (number := connection.recv()) is not None:
                connection.send(_timed(predict, images[number]))
            connection.send(_peak_memory())


def _timed(predict: Callable[[str], Any], image: str) -> float:
    start = time.perf_counter()
    predict(image)
    return time.perf_counter() - start


def _peak_memory() -> int:
    """Bytes of this process at its peak; 0 if the system does not say."""
    with contextlib.suppress(OSError):  # not Linux, whose ru_maxrss includes the process that started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if os.name != "posix":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ties(rows: Sequence[Row]) -> list[list[str]]:
    """Groups of two or more rows, by name, whose medians are within ``TIE`` of the fastest of the group."""
    groups: list[list[Row]] = []
    for row in sorted((row for row in rows if not row.reason), key=lambda row: row.median):
        if groups and row.median <= groups[-1][0].median * (1 + TIE):
            groups[-1].append(row)
        else:
            groups.append([row])
    return [[row.name for row in group] for group in groups if len(group) > 1]


def table(rows: Sequence[Row]) -> list[str]:
    """The lines to print, and those below on ties and on what was not measured."""
    measured = [row for row in rows if not row.reason]
    titles = list(dict.fromkeys(title for row in measured for title in row.metrics))
    cells = [["format", "file", *titles, "median", "p95", "peak memory"]]
    for row in measured:
        memory = f"{row.memory / 1e6:.0f} MB" if row.memory else "unknown"
        metrics = [f"{row.metrics[title]:.2f} %" for title in titles]
        times = (f"{1e3 * row.median:.2f} ms", f"{1e3 * row.p95:.2f} ms")
        cells.append([escaped(row.name), f"{row.bytes / 1e6:.1f} MB", *metrics, *times, memory])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    lines += [f"tie (within {TIE:.0%}): {', '.join(map(escaped, group))}" for group in ties(rows)]
    reasons = [f"not measured: {escaped(row.name)}: {escaped(row.reason)}" for row in rows if row.reason]
    return lines + reasons
