"""``focalnet fit``, ``finish``, ``validate``, ``test``, ``lr``; the first three are functions of these names, too."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from focalnet.cli.models import names_of_weights
from focalnet.cli.recipes import find_recipe, list_recipes, merge, nested, read_recipe
from focalnet.cli.terminal import ToStderr, say
from focalnet.errors import ConfigError, require

if TYPE_CHECKING:
    from focalnet.training.finishing import Measurement
    from focalnet.training.run import Run

TableOption = Annotated[
    Path | None,
    typer.Option("--table", help="Write the predictions of every image to this table: .csv or .parquet."),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-recipe", help="Let the recipe import any class by its class_path, and so run its code."),
]
#: Context settings of both commands: the options of a recipe are passed through.
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}

RECIPE_HELP = (
    "A YAML file, or a recipe's name: classification/finetune for your own images, detection/finetune for your own "
    'COCO-format data, segmentation/finetune for your own label maps; "focalnet recipes" lists all.'
)
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE_HELP, autocompletion=list_recipes)]
EPILOG = (
    "Options of the recipe follow it, for example --data.root FOLDER, --data.batch_size 256, "
    "--model.optimizer.lr 1e-3, --trainer.max_epochs 100, --trainer.precision bf16-mixed, --trainer.devices 2, "
    "--seed_everything 1. RECIPE --help lists every option; --print_config prints them as a recipe. "
    "Running the same command again resumes an interrupted run."
)
MEASURE_EPILOG = (
    "Options of the recipe follow it, for example --data.root FOLDER, --data.batch_size 256, "
    "--trainer.precision bf16-mixed, --trainer.devices 2. RECIPE --help lists every option."
)
LR_EPILOG = "Options of the recipe follow it, as for 'focalnet fit'. RECIPE --help lists every option."


class RecipeCommand(TyperCommand):
    """A command whose help lists the options of the recipe that is named before ``--help``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["recipe"] = next((argument for argument in args if not argument.startswith("-")), None)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        recipe = ctx.meta["recipe"]
        rows = [] if recipe is None or Path(recipe).is_dir() else recipe_options(recipe)  # a folder is that of a run
        super().format_help(ctx, formatter)
        if rows:
            with formatter.section(f"Options of {recipe}, with their values"):
                formatter.write_dl(rows)


def recipe_options(recipe: str) -> list[tuple[str, str]]:
    """Every option of a recipe: its name and value, and what it does.

    Raises:
        UnknownName: no such recipe.
        MissingDependency: the extra ``train`` is not installed.
    """
    path = find_recipe(recipe)
    _require_engine()
    from focalnet.training.options import Options, with_placeholders
    from focalnet.training.preprocessing import as_the_weights_want

    options = Options(as_the_weights_want(with_placeholders(read_recipe(path))))
    return [(f"--{option.name} {option.value}", option.text) for option in options.described()]


def fit(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    force: bool = False,
    trust_recipe: bool = False,
    **overrides: Any,
) -> Run:
    """Trains a model by a recipe, or resumes an interrupted run.

    Args:
        recipe: a name such as ``"classification/digits"``, or the path of a YAML file.
        output: run folder; default: ``runs/RECIPE``.
        force: start over in a folder that holds another run.
        trust_recipe: whether the recipe may import, and so run, any code of this machine by a ``class_path``; by
            default only what the library, PyTorch, timm and Lightning offer for it.
        overrides: options of the recipe by dotted name: ``**{"trainer.max_epochs": 5}``.

    Returns:
        The run folder, which holds ``model.safetensors``, ``results.json``, ``report.html``, ``metrics.csv``, ...; a
        path that also has ``metrics``, ``model``, ``report`` and ``predict(images)``.

    Raises:
        UnknownName: no such recipe or option.
        ConfigError: an option has an invalid value, or the folder holds another run.
        TrainingError: the run had to stop; the message gives the reason and what was kept.
        MissingDependency: the extra ``train`` is not installed.
        KeyboardInterrupt: after Ctrl-C; weights, report and results of the run so far are written.
    """
    path = find_recipe(str(recipe))
    options = merge(read_recipe(path), nested(overrides))
    _require_engine()
    from focalnet.training import engine
    from focalnet.training.preprocessing import as_the_weights_want
    from focalnet.training.progress import shown_in_python
    from focalnet.training.run import Run
    from focalnet.training.run_folder import RunFolder

    folder = RunFolder(Path(output) if output else _default_output(str(recipe), path))
    with shown_in_python(ToStderr()):
        engine.fit(as_the_weights_want(options), folder, force=force, trusted=trust_recipe)
    return Run(folder.root)


def finish(run: str | Path, *, trust_recipe: bool = False) -> Run:
    """Makes weights, report and results of an interrupted run, by its last checkpoint; ``fit`` can still go on with it.

    Args:
        run: its folder.
        trust_recipe: as for ``fit``.

    Raises:
        ConfigError: there is no run, it is finished, or another process works in the folder.
        CheckpointError: none of its checkpoints is whole.
    """
    _require_engine()
    from focalnet.training import engine
    from focalnet.training.run import Run
    from focalnet.training.run_folder import RunFolder

    engine.finish_run(RunFolder(Path(run)), trusted=trust_recipe)
    return Run(run)


def validate(
    recipe: str | Path,
    weights: str | Path,
    *,
    trust_recipe: bool = False,
    split: Literal["val", "test"] = "val",
    **overrides: Any,
) -> dict[str, Any]:
    """Evaluates weights on the validation images of a recipe, with the preprocessing of the weights.

    Args:
        recipe: a name or the path of a YAML file.
        weights: a catalogue name or the path of a checkpoint.
        trust_recipe: as for ``fit``.
        split: ``"test"`` evaluates on the test images instead.
        overrides: as for ``fit``.

    Returns:
        ``top1`` and ``top5`` in percent (the latter with more than 5 classes), or ``box_ap``, ``mask_ap``, ..., or
        ``miou``, ``pixel_accuracy``, ``mean_accuracy``, or ``pq``, ``sq``, ``rq``, ... in percent; ``images``,
        ``images_per_s``.

    Raises:
        ConfigError: the weights are of another task than the recipe, or have other classes than the data.
        DataError: there is no test split.
    """
    return _measure(recipe, weights, overrides, trust_recipe=trust_recipe, split=split).to_dict()


def _measure(
    recipe: str | Path,
    weights: str | Path,
    overrides: Mapping[str, Any],
    *,
    trust_recipe: bool,
    split: Literal["val", "test"] = "val",
    records: bool = False,
) -> Measurement:
    options = read_recipe(find_recipe(str(recipe)))
    _require_engine()
    from focalnet import zoo
    from focalnet.training import engine
    from focalnet.training.preprocessing import data_options

    model = zoo.load(str(weights))
    if model.card is not None:
        options = merge(options, {"data": data_options(model.card.preprocessing)})
    options = merge(options, nested(overrides))
    return engine.validate(options, model, trusted=trust_recipe, test=split == "test", records=records)


def fit_command(
    context: typer.Context,
    recipe: Recipe,
    output: Annotated[Path | None, typer.Option(help="Run folder; default: runs/RECIPE.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Start over in a folder that holds another run.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print_config", "--print-config", help="Print every option with its value and exit.")
    ] = False,
    trust_recipe: Trust = False,
) -> None:
    """Trains a model by a recipe.

    Writes weights, metrics and a report to the run folder.
    """
    overrides = parse_overrides(context.args)
    if print_config:
        _require_engine()
        from focalnet.training.options import Options
        from focalnet.training.preprocessing import as_the_weights_want

        options = as_the_weights_want(merge(read_recipe(find_recipe(recipe)), nested(overrides)))
        say(*Options(options, trusted=trust_recipe).to_yaml().split("\n"))
        return
    show_progress()
    fit(recipe, output=output, force=force, trust_recipe=trust_recipe, **overrides)


def lr_command(
    context: typer.Context,
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="Write the plot to this file: .png, .svg or .pdf.")] = Path("lr.png"),
    lowest: Annotated[float, typer.Option(help="First learning rate.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="Last learning rate.")] = 1.0,
    updates: Annotated[int, typer.Option(help="Number of updates, each with a higher rate.")] = 100,
    trust_recipe: Trust = False,
) -> None:
    """Suggests a learning rate for a recipe.

    Trains for a hundred updates with a rising rate (a range test) until the loss diverges, prints the rate at which it
    falls most steeply, and draws the losses. Nothing that it trains is kept, and no run is touched.
    """
    overrides = parse_overrides(context.args)
    _require_engine()
    from focalnet.training.lr_finder import check_suffix, find_learning_rate
    from focalnet.training.preprocessing import as_the_weights_want

    check_suffix(out)
    show_progress()
    options = as_the_weights_want(merge(read_recipe(find_recipe(recipe)), nested(overrides)))
    found = find_learning_rate(options, lowest=lowest, highest=highest, updates=updates, trusted=trust_recipe)
    say(f"{len(found.rates)} updates, rates from {found.rates[0]:.2g} to {found.rates[-1]:.2g}: see {found.save(out)}")
    if found.suggestion is None:
        say("no suggestion: the loss does not fall; try more --updates or another range (--lowest, --highest)")
    else:
        say(f"suggested: --model.optimizer.lr {found.suggestion:g}")


def validate_command(
    context: typer.Context,
    recipe: Recipe,
    weights: Annotated[
        str,
        typer.Option(
            "--weights", "-w", help="A name in 'focalnet models', or a weights file.", autocompletion=names_of_weights
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    table: TableOption = None,
    trust_recipe: Trust = False,
) -> None:
    """Evaluates weights on validation images.

    Prints the metrics of the recipe's task (accuracy, average precision, mIoU or panoptic quality) and images/s.
    """
    _measure_and_say(context, recipe, weights, out, table, trust_recipe=trust_recipe, split="val")


def evaluate_test_command(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help=f"{RECIPE_HELP} Or the folder of a run.")],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", "-w", help="A name in 'focalnet models', or a weights file; default: those of the run."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    table: TableOption = None,
    trust_recipe: Trust = False,
) -> None:
    """Evaluates weights on test images.

    Prints the metrics of the recipe's task, as 'focalnet validate' does for the validation images.
    """
    run = Path(recipe)
    if (run / "config.yaml").is_file():
        recipe = str(run / "config.yaml")
        weights = weights or str(run / "model.safetensors")
    if weights is None:
        raise ConfigError("--weights is missing: a name in 'focalnet models', or a weights file")
    _measure_and_say(context, recipe, weights, out, table, trust_recipe=trust_recipe, split="test")


def finish_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    trust_recipe: Trust = False,
) -> None:
    """Makes weights, report and results of an interrupted run.

    They are those of its last checkpoint. 'focalnet fit' can still go on with the run.
    """
    show_progress()
    finish(run, trust_recipe=trust_recipe)


def _measure_and_say(
    context: typer.Context,
    recipe: str,
    weights: str,
    out: Path | None,
    table: Path | None,
    *,
    trust_recipe: bool,
    split: Literal["val", "test"],
) -> None:
    from focalnet.results.tables import check_table, write_table

    if table is not None:
        check_table(table)
    show_progress()
    overrides = parse_overrides(context.args)
    records = table is not None
    measurement = _measure(recipe, weights, overrides, trust_recipe=trust_recipe, split=split, records=records)
    for metric in measurement.metrics:
        say(f"{metric.name:<14} {metric.value:8.2f} {metric.unit}")
    say(f"{'images_per_s':<14} {measurement.images_per_s:8.2f} images/s")
    say(f"{'images':<14} {measurement.images:8d}")
    if out is not None:
        from focalnet.training.run_folder import write

        write(out, json.dumps({"recipe": recipe, "weights": weights, **measurement.to_dict()}, indent=2).encode())
    if table is not None:
        write_table(measurement.rows or [], table)


def parse_overrides(arguments: list[str]) -> dict[str, str | None]:
    """``["--a.b", "1", "--c=2", "--d", "null"]`` as ``{"a.b": "1", "c": "2", "d": None}``.

    Raises:
        ConfigError: an argument is neither an option nor the value of one.
    """
    overrides: dict[str, str | None] = {}
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or name == "--":
            raise ConfigError(f'unexpected "{argument}": options are given as --name value')
        if not equals:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise ConfigError(f"option {name} needs a value, e.g. {name} true")
        overrides[name.removeprefix("--")] = None if value == "null" else value
    return overrides


def _default_output(recipe: str, path: Path) -> Path:
    return Path("runs") / (path.stem if Path(recipe).suffix else recipe)


def _require_engine() -> None:
    for package in ("lightning", "jsonargparse", "tensorboard"):
        require(package, "train")


def show_progress() -> None:
    """Shows the library's log on stderr, and only the warnings of Lightning."""
    _require_engine()  # imports Lightning, which sets its own log level
    logger = logging.getLogger("focalnet")
    if not logger.handlers:
        logger.addHandler(ToStderr())
    logger.setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
