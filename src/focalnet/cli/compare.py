"""``focalnet compare``: the metrics and options of several runs beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from focalnet.cli.terminal import say
from focalnet.errors import ConfigError, DataError
from focalnet.reading import parse_yaml, read_text

#: The value of ``per_class`` to compare, the first that there is.
_OF_CLASSES = ("accuracy", "iou", "mask_ap", "box_ap", "pq", "ap")
_OF_ALL_TASKS = {"images", "images_per_s", "epochs", "seconds"}  # numbers of every run, which are not metrics
_LONGEST = 32  # characters of a cell


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of finished runs, or results.json.")
    ],
    classes: Annotated[int, typer.Option(min=0, help="Number of classes to list, the largest difference first.")] = 10,
) -> None:
    """Compares runs: their metrics, the classes that differ most, and the options that differ.

    The files that 'focalnet validate --out' writes can be compared, too.
    """
    if len(runs) < 2:
        raise ConfigError("compare needs two runs or more")
    results = [_results(run) for run in runs]
    names = _names(runs)
    for why in _other_data(results, names):
        say(f"warning: {why}", err=True)
    _say_table(["metric", *names], _metrics(results))
    if classes and (rows := _classes(results, classes)):
        say("")
        _say_table(rows[0], rows[1:])
    if rows := list(_options([_options_of(run) for run in runs])):
        say("")
        _say_table(["option", *names], rows)


def _other_data(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """Why metrics should not be compared with those of the first run: other metrics, classes, or numbers of images."""
    first = results[0]
    for result, name in zip(results[1:], names[1:], strict=True):
        ours, theirs = (
            {key for key, value in one.items() if _is_number(value)} - _OF_ALL_TASKS for one in (first, result)
        )
        known = [{one["name"] for one in run.get("per_class") or []} for run in (first, result)]
        if not ours & theirs:
            yield f"{names[0]} and {name} have no metric in common: are they of one task?"
        elif all(known) and known[0] != known[1]:
            yield f"{names[0]} and {name} are measured on other classes, so differences of their metrics mean little"
        elif (images := [run.get("images") for run in (first, result)])[0] != images[1]:
            yield f"{names[0]} is measured on {images[0]} images and {name} on {images[1]}: is it the same data?"


def _names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell runs apart."""
    parts = [(run.parent if run.name == "results.json" else run).absolute().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(some[-count:]) for some in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _results(run: Path) -> dict[str, Any]:
    path = run / "results.json" if run.is_dir() else run
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        hint = "; is the run finished?" if run.is_dir() else ""
        raise DataError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: does not hold the results of a run")
    return content


def _metrics(results: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    measured = [{**one, **_of_test(one)} for one in results]
    for name in dict.fromkeys(name for one in measured for name, value in one.items() if _is_number(value)):
        values = [one.get(name) for one in measured]
        cells = [f"{value:.2f}" if _is_number(value) else "" for value in values]
        yield [name, *_with_differences(values, cells)]


def _of_test(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of the test split, if there is one: ``test.top1``, ..."""
    test = result.get("test")
    return {f"test.{name}": value for name, value in test.items()} if isinstance(test, Mapping) else {}


def _classes(results: Sequence[Mapping[str, Any]], most: int) -> list[list[str]]:
    """A header, and the classes whose values differ most; nothing where runs have no value by class in common."""
    by_class = [{one["name"]: one for one in result.get("per_class") or []} for result in results]
    shared = [name for name in by_class[0] if all(name in one for one in by_class)]
    key = next((k for k in _OF_CLASSES if shared and all(k in one[shared[0]] for one in by_class)), None)
    if key is None:
        return []
    values = {name: [one[name][key] for one in by_class] for name in shared}
    known = {name: some for name, some in values.items() if None not in some}
    largest = sorted(known, key=lambda name: min(known[name]) - max(known[name]))[:most]
    rows = [[name, *_with_differences(known[name], [f"{value:.2f}" for value in known[name]])] for name in largest]
    return [[f"class ({key})", *[""] * len(results)], *rows] if rows else []


def _with_differences(values: Sequence[Any], cells: Sequence[str]) -> list[str]:
    """The values, those from the second on with their difference from the first."""
    first, *others = values
    differences = [f" ({one - first:+.2f})" if _is_number(one) and _is_number(first) else "" for one in others]
    return [cells[0], *(cell + difference for cell, difference in zip(cells[1:], differences, strict=True))]


def _options_of(run: Path) -> dict[str, Any]:
    """Options by dotted name; none of a file of results without a run."""
    path = (run if run.is_dir() else run.parent) / "config.yaml"
    if not path.is_file():
        return {}
    try:
        content = parse_yaml(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as options: {error}") from error
    return dict(_flat(content if isinstance(content, dict) else {}))


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _options(options: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for name in dict.fromkeys(name for one in options for name in one):
        cells = [json.dumps(one[name], default=str) if name in one else "" for one in options]
        if len(set(cells)) > 1:
            yield [name, *cells]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _say_table(header: Sequence[str], rows: Iterator[list[str]] | Sequence[list[str]]) -> None:
    """Prints rows in columns as wide as their longest cell."""
    lines = [list(header), *rows]
    cut = [[cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 1]}…" for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    for first, *rest in cut:
        right = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        say("  ".join([first.ljust(widths[0]), *right]).rstrip())
