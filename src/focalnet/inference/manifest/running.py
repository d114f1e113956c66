"""Predicts the rows of a manifest in shards, with any number of processes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from focalnet import errors
from focalnet.data.images import size_limit
from focalnet.errors import ConfigError, DataError, FocalNetError, ImageError, escaped, require_installed
from focalnet.inference.manifest.ledger import Ledger, Progress, Totals, compare, read_header, shard_name
from focalnet.inference.manifest.shards import Format, check_format, text, values_of, write_shard
from focalnet.inference.manifest.sources import Encoded, Manifest, Row, Unreadable, open_manifest

if TYPE_CHECKING:
    from focalnet.inference.tta import Views
    from focalnet.results import Result

logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 10_000
_LOOKED_AT = 100  # paths at the start of a manifest


class RowPredictor(Protocol):
    """What a process needs to predict rows."""

    @property
    def output(self) -> str:
        """The kind of its results, see ``shards.FIELDS``."""

    @property
    def identity(self) -> dict[str, str]:
        """``name`` of the model, and ``sha256`` of all that decides what it predicts."""

    def attempt(self, images: Iterable[Any]) -> Iterator[Result | FocalNetError]:
        """See ``Predictor.attempt``."""


@dataclass(frozen=True)
class Job:
    """What all processes of a run share.

    Args:
        manifest: the rows.
        out: output folder.
        shard_format: of the files.
        header: of the ledger, but for the model.
        make: returns the predictor of a process, given its number among those of this machine.
        mine: numbers of the shards that this run is to predict.
        workers: processes.
        stop: end with the first row that has no result.
        megapixels: larger images are refused.
    """

    manifest: Manifest
    out: Path
    shard_format: Format
    header: dict[str, Any]
    make: Callable[[int], RowPredictor]
    mine: range
    workers: int = 1
    stop: bool = False
    megapixels: int = 200


def predict_manifest(
    manifest: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    shard_format: Format = "parquet",
    column: str | None = None,
    share: tuple[int, int] | None = None,
    workers: int = 1,
    device: str | None = None,
    batch_size: int | None = None,
    top_k: int = 5,
    min_score: float | None = None,
    views: Views | None = None,
    max_megapixels: int = 200,
    on_error: str = "skip",
    report: Callable[[str], object] = logger.info,
) -> Totals:
    """Predicts every row of a manifest once, in shards of Parquet or JSON lines; run again, it resumes.

    Any number of runs may work in one folder at the same time, on one machine or on several that share it: each shard
    is predicted by one process. With ``workers`` above 1, call it from a script below ``if __name__ == "__main__":``,
    as ``multiprocessing`` asks.

    Args:
        manifest: one or several: a text file with a path a line, a Parquet file, a tar file (WebDataset), by its
            suffix ``.txt``, ``.parquet`` or ``.tar``, or a folder of images. Relative paths start in the folder that
            was the working directory of the first run.
        out: output folder: ``part-00000.parquet``, ... and ``_ledger.jsonl``.
        model: a name or file of ``focalnet.load``, or a file of ``focalnet.export``.
        rows_per_shard: rows in each shard of a source but its last; a tar file is one shard.
        shard_format: ``"parquet"`` or ``"jsonl"``.
        column: of Parquet files, with paths (text) or encoded images (bytes); default: ``path``, or the only one.
        share: ``(i, n)``: predict only the i-th of n shares of the shards, from 1; default: that of ``RANK`` and
            ``WORLD_SIZE``, which torchrun sets, otherwise all.
        workers: processes, each with the model in memory.
        device: as for ``Predictor``; default: the GPUs of this machine in turns, otherwise the CPU.
        batch_size: as for ``Predictor``.
        top_k: as for ``Predictor``.
        min_score: as for ``Predictor``.
        views: as for ``Predictor``.
        max_megapixels: larger images are refused.
        on_error: ``"skip"``: a row that has no result has the reason as its ``error``; ``"raise"``: it ends the run.
        report: called with a line of text for each finished shard.

    Returns:
        What is finished of the share, in this run or before: numbers of ``shards``, ``rows`` and ``errors``.

    Raises:
        ConfigError: an invalid option, or the folder has a job with another manifest, model or options.
        DataError: the manifest cannot be read, or has no rows.
        ImageError: an image that cannot be read, with ``on_error="raise"``.
        FocalNetError: the folder cannot be written, or processes were killed before all was done.
    """
    for name, value in (("rows_per_shard", rows_per_shard), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    check_format(shard_format)
    out = Path(out)
    part, parts = share or _launched()
    if not 1 <= part <= parts:
        raise ConfigError(f"share {part}/{parts} does not exist: shares count from 1/{parts} to {parts}/{parts}")
    known = read_header(out)
    paths = [manifest] if isinstance(manifest, (str, os.PathLike)) else list(manifest)
    opened = open_manifest(paths, rows_per_shard, listings=out, column=column)
    options = {"top": top_k, "min-score": min_score, **_view_options(views), "max-megapixels": max_megapixels}
    options |= {"rows-per-shard": rows_per_shard, "shard-format": shard_format, "column": column}
    header = {
        "manifest": {
            "sha256": opened.sha256,
            "rows": opened.count,
            "sources": [str(one.path) for one in opened.sources],
        },
        "options": options,
        "shards": opened.shards,
        "folder": os.getcwd(),
    }
    if known is None:
        _look_at_paths(opened)
    else:
        compare(known, header, out)
    given: dict[str, Any] = {"batch_size": batch_size, "top_k": top_k, "min_score": min_score}
    if views is not None:
        given["views"] = views
    make = functools.partial(_ModelPredictor, os.fspath(model), workers=workers, device=device, **given)
    mine = range(part - 1, opened.shards, parts)
    job = Job(opened, out, shard_format, header, make, mine, workers, on_error == "raise", max_megapixels)
    return run(job, report)


def run(job: Job, report: Callable[[str], object], start_method: str = "spawn") -> Totals:
    """Predicts the shards of a job; see ``predict_manifest``."""
    progress = Progress(job.out, job.manifest.shards)

    def report_shard(line: str) -> None:
        report(f"{line}; {progress.totals(job.mine).shards} of {len(job.mine)} shards are finished")

    if job.workers == 1:
        work(job, 0, report_shard)
    else:
        _run_processes(job, report_shard, start_method)
    totals = progress.totals(job.mine)
    if totals.missing:
        raise FocalNetError(
            f"all processes were killed, and {totals.missing} of {len(job.mine)} shards are not finished: "
            "run the same command again to continue"
        )
    return totals


def work(job: Job, number: int, report: Callable[[str], object], parent: int | None = None) -> None:
    """What one process does: it predicts one shard after another, as long as there are any that nobody has finished.

    Args:
        job: what to do.
        number: of the process, among those of this run.
        report: called with a line for each finished shard.
        parent: id of the process without which this one ends, if any.
    """
    predictor = job.make(number)
    with contextlib.closing(Ledger(job.out, {**job.header, "model": predictor.identity})) as ledger:
        # Without locks, the processes of a run divide its shards beforehand.
        mine: Sequence[int] = job.mine if ledger.locks else job.mine[number :: job.workers]
        with size_limit(job.megapixels):
            for shard in ledger.claimed(mine):
                path = job.out / shard_name(shard, job.shard_format)
                rows, failed = _predict_shard(job, shard, path, predictor, ledger.header, parent)
                source, first, _ = job.manifest.shard(shard)
                entry = {"source": ledger.header["manifest"]["sources"][source], "first": first}
                ledger.record(shard, path, {**entry, "rows": rows, "errors": failed})
                report(f"{path.name}: {rows} rows" + (f", {failed} with an error" if failed else ""))


def _predict_shard(
    job: Job, shard: int, path: Path, predictor: RowPredictor, header: dict[str, Any], parent: int | None
) -> tuple[int, int]:
    """Writes a shard; returns how many rows it has, and how many of them have an error."""
    number, start, stop = job.manifest.shard(shard)
    name = text(header["manifest"]["sources"][number])
    folder = header["folder"] if os.path.isdir(header["folder"]) else None
    waiting: deque[Row] = deque()

    def images() -> Iterator[Any]:
        for row in job.manifest.sources[number].rows(start, stop):
            waiting.append(row)
            yield _image(row, folder)

    count = failed = 0
    with write_shard(path, predictor.output) as add:
        for result in predictor.attempt(images()):
            row = waiting.popleft()
            values = values_of(result, predictor.output)
            if values["error"] is not None:
                failed += 1
                if job.stop:
                    raise ImageError(f"{values['error']}; what was finished before it is kept: --on-error skip goes on")
            add({"source": name, "row": row.number, "path": text(row.path), **values})
            count += 1
            if parent is not None and os.getppid() != parent:  # killed
                os._exit(1)
    if waiting or (stop is not None and count != stop - start):
        raise FocalNetError(f"{name}: rows from {start} gave {count} results; it may have been changed")
    return count, failed


def _image(row: Row, folder: str | None) -> str | Encoded | Unreadable:
    """What a predictor takes for a row: a path or an opened file."""
    if row.error is not None:
        return Unreadable(row.error)
    if row.content is not None:
        return Encoded(row.content, row.path or f"row {row.number}")
    assert row.path is not None
    if re.match("[A-Za-z][A-Za-z0-9+.-]+://", row.path):
        return Unreadable(f"{row.path}: is an address; download it and give its path")
    if folder is None and not os.path.isabs(row.path):
        raise DataError(
            f"{row.path}: is relative to the folder in which the job was begun, which is not on this machine"
        )
    return os.path.join(folder or "", row.path)


def _run_processes(job: Job, report: Callable[[str], object], start_method: str) -> None:
    """Starts the processes, passes on what they report, and stops all if one fails; those killed are only named."""
    context: Any = multiprocessing.get_context(start_method)
    processes: dict[Any, Any] = {}  # by the connection that each reports to
    try:
        for number in range(job.workers):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_process, args=(job, number, sender), name=f"focalnet-{number}")
            process.start()
            sender.close()
            processes[receiver] = process
        while processes:
            receivers: list[Any] = multiprocessing.connection.wait(list(processes))
            for receiver in receivers:
                try:
                    kind, message = receiver.recv()
                except EOFError:  # it has ended
                    process = processes.pop(receiver)
                    process.join()
                    if process.exitcode > 0:
                        raise FocalNetError(
                            f"process {process.pid} failed, as shown above; what was finished before is kept"
                        ) from None
                    if process.exitcode < 0:
                        what = f"process {process.pid} was killed (signal {-process.exitcode})"
                        logger.warning("%s%s", what, "; the others take over its shard" if processes else "")
                    continue
                if kind == "report":
                    report(message)
                else:
                    raise getattr(errors, kind, FocalNetError)(message)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _process(job: Job, number: int, sender: Any) -> None:
    """The main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it, too, and ends this one
    try:
        work(job, number, lambda line: sender.send(("report", line)), os.getppid())
    except FocalNetError as error:
        sender.send((type(error).__name__, str(error)))
    except BrokenPipeError:  # the parent was killed
        os._exit(1)


class _ModelPredictor:
    """The predictor of a process: a model loaded by its name, on its share of the machine.

    Args:
        model: as for ``predict_manifest``.
        number: of the process among those of its run.
        workers: processes of the run.
        device: as for ``predict_manifest``.
        options: those of ``Predictor``.
    """

    def __init__(self, model: str, number: int, *, workers: int, device: str | None, **options: Any) -> None:
        import torch

        from focalnet.inference.exported import load_network
        from focalnet.inference.predictor import Predictor

        if workers > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
        network = load_network(model)
        self.output: str = network.config.output
        if self.output in ("semantic", "panoptic") or network.config.learns_masks:
            require_installed("pycocotools", "dense")
        self.attempt = Predictor(network, device or _device(number, workers), **options).attempt
        self.identity = {"name": model, "sha256": _identity(network, model)}


def _device(number: int, workers: int) -> str | None:
    """The GPU of a process, where this machine has several."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return None
    return f"cuda:{(_variable('LOCAL_RANK', 0) * workers + number) % count}"


def _identity(network: Any, model: str) -> str:
    """The sha256 of what decides what a network predicts: of its exported file, or of configuration, card, weights."""
    from focalnet.inference.exported import ExportedNetwork

    if isinstance(network, ExportedNetwork):
        with open(model, "rb") as file:
            return _sha256(iter(lambda: file.read(1 << 20), b""))
    return _sha256(_parts(network))


def _parts(network: Any) -> Iterator[bytes]:
    import torch

    card = None if network.card is None else dataclasses.asdict(network.card)
    described = {"type": type(network.config).__name__, "config": network.config.to_dict(), "card": card}
    yield json.dumps(described, sort_keys=True, default=str).encode()
    for name, tensor in network.state_dict().items():
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _launched() -> tuple[int, int]:
    """The share of a process that torchrun has started, otherwise 1 of 1."""
    return _variable("RANK", 0) + 1, _variable("WORLD_SIZE", 1)


def _variable(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} is {value}: unset it, or give --shard")
    return int(value)


def _view_options(views: Views | None) -> dict[str, Any]:
    """The options of views that are not the default, as the command line names them."""
    if views is None or views == type(views)():
        return {}
    return {"tile": views.tile, "overlap": views.overlap, "flip": views.flip, "short-side": list(views.short_sides)}


def _look_at_paths(manifest: Manifest) -> None:
    """Warns where no path at the start of a manifest exists: its folder is probably another one."""
    source = manifest.sources[0]
    if not source.count:
        return
    rows = list(source.rows(0, min(source.count, _LOOKED_AT)))
    paths = [row.path for row in rows if row.path and row.content is None]
    if paths and not any(os.path.lexists(path.replace("\0", "")) for path in paths):
        logger.warning(
            "%s: none of its first %d paths exists, e.g. %s; relative paths start in %s",
            source.path,
            len(paths),
            escaped(paths[0]),
            os.getcwd(),
        )
