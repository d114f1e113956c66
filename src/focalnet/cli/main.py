"""``focalnet``: registers the commands and handles their errors.

A user error prints one line on stderr and exits with code 2, Ctrl-C exits with code 130. Any other exception is a bug
in the library and keeps its traceback.
"""

from __future__ import annotations

import io
import itertools
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer

import focalnet
from focalnet.cli.benchmark import benchmark
from focalnet.cli.check_data import check_data
from focalnet.cli.compare import compare
from focalnet.cli.convert import convert
from focalnet.cli.convert_data import convert_data
from focalnet.cli.demo import demo
from focalnet.cli.doctor import doctor
from focalnet.cli.explain import explain
from focalnet.cli.export import export
from focalnet.cli.models import models
from focalnet.cli.predict import predict
from focalnet.cli.quickstart import quickstart
from focalnet.cli.recipes import recipes
from focalnet.cli.terminal import say
from focalnet.cli.train import (
    EPILOG,
    LR_EPILOG,
    MEASURE_EPILOG,
    PASS_THROUGH,
    RecipeCommand,
    evaluate_test_command,
    finish_command,
    fit_command,
    lr_command,
    validate_command,
)
from focalnet.errors import FocalNetError

USAGE_ERROR, INTERRUPTED = 2, 130
MAY_BE_EMPTY = {"--mask-suffix", "--label-delimiter"}  # options whose text may be empty
# The class of click, or of the copy of click inside newer versions of typer.
UsageError = cast("type[Exception]", typer.BadParameter.__base__)

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
for command in (quickstart, models, predict, explain, demo, recipes):
    app.command()(command)
app.command("fit", cls=RecipeCommand, context_settings=PASS_THROUGH, epilog=EPILOG)(fit_command)
for name, measure_command in (("validate", validate_command), ("test", evaluate_test_command)):
    app.command(name, cls=RecipeCommand, context_settings=PASS_THROUGH, epilog=MEASURE_EPILOG)(measure_command)
app.command("finish")(finish_command)
app.command("lr", cls=RecipeCommand, context_settings=PASS_THROUGH, epilog=LR_EPILOG)(lr_command)
app.command()(compare)
app.command("check-data")(check_data)
app.command("convert-data")(convert_data)
app.command()(convert)
app.command()(export)
app.command()(benchmark)
app.command()(doctor)


def _version(requested: bool) -> None:
    if requested:
        say(focalnet.__version__)
        raise typer.Exit


@app.callback()
def focalnet_(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Focal Modulation Networks: train, evaluate, predict and explain."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        arguments: what follows ``focalnet``; default: those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if (empty := _empty(arguments)) is not None:
        return _refuse(f"{empty} is empty: give it a value, or leave it out; the current folder is .")
    warnings.showwarning = _warn  # type: ignore[assignment]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and classes may hold what it cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments or ["--help"], prog_name="focalnet", standalone_mode=False)
    except UsageError as error:
        return _refuse(_usage(error))
    except FocalNetError as error:
        return _refuse(str(error))
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:
        say("interrupted", err=True)
    return code if isinstance(code, int) else 0


def _empty(arguments: Sequence[str]) -> str | None:
    """The option whose value is empty, as of a shell variable that is not set: as a path, it is the current folder."""
    for option, value in itertools.pairwise(["an argument", *arguments]):
        name = option if option.startswith("-") and "=" not in option else "an argument"
        if value.startswith("--") and value.endswith("="):
            name, value = value[:-1], ""
        if not value and name not in MAY_BE_EMPTY and "." not in name:  # options of recipes have their own types
            return name
    return None


def _refuse(message: str) -> int:
    say("error: " + " ".join(message.split()), err=True)
    return USAGE_ERROR


def _warn(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    """Prints a warning without the line of code that raised it, which is of no use to a user."""
    say("warning: " + " ".join(str(message).split()), err=True)


def _usage(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "focalnet"
    return f'{error.format_message().rstrip(".")}; see "{command} --help"'


if __name__ == "__main__":
    sys.exit(main())
