"""``focalnet quickstart``: the whole library in two minutes, on data that comes with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focalnet.cli.terminal import say

RECIPE = "classification/digits"


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/quickstart"),
    force: Annotated[bool, typer.Option("--force", help="Train again, though an earlier quickstart did.")] = False,
) -> None:
    """Tries it all on handwritten digits.

    Trains, evaluates, predicts and explains, in about two minutes on two cores.
    """
    from focalnet.cli.explain import explain
    from focalnet.cli.predict import predict
    from focalnet.cli.train import fit, show_progress, validate

    run, images, predictions, explanations = (out / name for name in ("run", "digits", "predicted", "explained"))
    weights = str(run / "model.safetensors")

    _say(f"focalnet fit {RECIPE} --output {run}")
    show_progress()
    fit(RECIPE, output=run, force=force)

    _say(f"focalnet validate {RECIPE} --weights {weights}")
    measured = validate(RECIPE, weights)
    say("top-1 {top1:.2f} % of {images} images, {images_per_s:.0f} images a second".format(**measured))

    files = _write_digits(images)
    _say(f"focalnet predict {images} --model {weights} --top 2 --out {predictions}")
    predict([str(images)], model=weights, top=2, out=predictions)

    chosen = [str(file) for file in files[:3]]
    _say(f"focalnet explain {' '.join(chosen)} --model {weights} --out {explanations}")
    explain(chosen, model=weights, out=explanations)

    say("", "What to look at:")
    for what, where in {
        "how training went": run / "report.html",
        "which digits were predicted": predictions,
        "what the network attends to": explanations / files[0].stem / "sheet.png",
    }.items():
        say(f"  {what:<32} {where}")


def _say(command: str) -> None:
    say("", f"$ {command}")


def _write_digits(folder: Path) -> list[Path]:
    """One test image of each digit, as PNG."""
    import numpy as np

    from focalnet.data.readers.digits import Digits
    from focalnet.visualize import save_image

    digits = Digits("test")
    _, firsts = np.unique(digits.labels, return_index=True)
    return [save_image(digits.read(i), folder / f"digit-{digits.class_names[digits.labels[i]]}.png") for i in firsts]
