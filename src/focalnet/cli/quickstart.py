"""``focalnet quickstart``: the whole library in two minutes, on data that comes with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focalnet.cli.terminal import say

RECIPE = "classification/digits"


def quickstart(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/quickstart"),
    force: Annotated[bool, typer.Option("--force", help="Train again, even after an earlier quickstart.")] = False,
) -> None:
    """Runs the whole library on small data.

    Trains, evaluates, predicts and explains on handwritten digits, in about two minutes on two cores.
    """
    from focalnet.cli.explain import explain
    from focalnet.cli.predict import predict
    from focalnet.cli.train import fit, show_progress, validate

    run, images, predictions, explanations = (out / name for name in ("run", "digits", "predicted", "explained"))
    weights = str(run / "model.safetensors")

    _print_command(f"focalnet fit {RECIPE} --output {run}")
    show_progress()
    fit(RECIPE, output=run, force=force)

    _print_command(f"focalnet validate {RECIPE} --weights {weights}")
    measured = validate(RECIPE, weights)
    say("top-1 {top1:.2f} % of {images} images, {images_per_s:.0f} images a second".format(**measured))

    files = _write_digits(images)
    _print_command(f"focalnet predict {images} --model {weights} --top 2 --out {predictions}")
    predict([str(images)], model=weights, top=2, out=predictions)

    chosen = [str(file) for file in files[:3]]
    _print_command(f"focalnet explain {' '.join(chosen)} --model {weights} --out {explanations}")
    explain(chosen, model=weights, out=explanations)

    say("", "Results:")
    for title, path in {
        "training report": run / "report.html",
        "predictions": predictions,
        "what the network attends to": explanations / files[0].stem / "sheet.png",
    }.items():
        say(f"  {title:<32} {path}")


def _print_command(command: str) -> None:
    say("", f"$ {command}")


def _write_digits(folder: Path) -> list[Path]:
    """One test image of each digit, as PNG."""
    import numpy as np

    from focalnet.data.readers.digits import Digits
    from focalnet.visualize import save_image

    digits = Digits("test")
    _, firsts = np.unique(digits.labels, return_index=True)
    return [save_image(digits.read(i), folder / f"digit-{digits.class_names[digits.labels[i]]}.png") for i in firsts]
