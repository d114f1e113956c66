"""``focalnet explain``: draws what the network attends to, and measures explanations on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from focalnet.cli import DEFAULT_MODEL
from focalnet.cli.terminal import say
from focalnet.errors import ConfigError

if TYPE_CHECKING:
    from typing import Any

    from focalnet.models import Model


IMAGES, SPLIT = 100, "test"  # that --evaluate looks at by default


def explain(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="FILES|FOLDERS|GLOBS...", help="Images.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A name in 'focalnet models', or a weights file.")] = (
        DEFAULT_MODEL
    ),
    out: Annotated[Path, typer.Option(help="Output folder; each image gets a folder in it.")] = Path("out"),
    block: Annotated[
        list[str] | None,
        typer.Option(help="Block to show, e.g. layers.2.blocks.1; repeatable; default: the last block of each stage."),
    ] = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="Also draw the depthwise kernels of the blocks.")] = False,
    profiles: Annotated[
        bool, typer.Option("--profiles", help="Also draw how far the kernels of each level reach, in all.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(help="Class to explain with a heat map, by name or number; default: what is predicted best."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Heat map to draw, e.g. context_cam, modulator_cam, grad_cam, integrated_gradients; repeatable; with "
            "--evaluate: methods to measure, by default all."
        ),
    ] = None,
    levels: Annotated[
        bool, typer.Option("--levels", help="Also draw a page with a row for each focal level, as in the paper.")
    ] = False,
    animation: Annotated[
        bool, typer.Option("--animation", help="Also write the modulators of all blocks, from first to last, as a GIF.")
    ] = False,
    dark: Annotated[bool, typer.Option("--dark", help="Light text on a dark background.")] = False,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            help="Instead of images: a labeled data set to measure methods on, or the config.yaml of a run on it; "
            "writes evaluation.json, .csv and .html to --out; continues an interrupted evaluation there."
        ),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="With --evaluate: what to measure, e.g. pointing_game, energy_inside, contrast (which are fast) or "
            "insertion, road; repeatable; default: everything."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="With --evaluate: images to look at, chosen at random.")] = IMAGES,
    split: Annotated[str, typer.Option(help="With --evaluate: split of the data: train, val or test.")] = SPLIT,
) -> None:
    """Draws what the network attends to.

    Overlays the gate of each focal level, the global gate and the norm of the modulator on each image. With --target or
    --method it also draws where the answer comes from, as a heat map. With --evaluate it measures how faithful such
    heat maps are.
    """
    to_draw = {"block": block, "kernels": kernels, "profiles": profiles, "target": target, "levels": levels}
    to_draw |= {"animation": animation, "dark": dark}
    to_measure = {"measure": measure, "images": images != IMAGES, "split": split != SPLIT}
    if given := [f"--{name}" for name, value in (to_measure if evaluate is None else to_draw).items() if value]:
        why = "need --evaluate DATA" if evaluate is None else "have no effect with --evaluate, which draws no images"
        raise ConfigError(f"{', '.join(given)}: {why}; leave them out or change the command")
    if evaluate is not None:
        if paths:
            raise ConfigError("--evaluate takes the images of its data set: give no other images")
        _evaluate(model, evaluate, out, method, measure, images, split)
        return
    if not paths:
        raise ConfigError("no images: give files, folders or patterns, or a data set to --evaluate")
    from focalnet.data.images import find

    files = find(paths)  # before importing torch, so that a mistyped path fails at once

    from focalnet import explanations, zoo
    from focalnet.visualize import draw_kernels, draw_profiles, save_animation, save_image, unique_names

    network = zoo.load(model)
    class_wanted = int(target) if target is not None and target.isdecimal() else target
    for file, name in zip(files, unique_names(files), strict=True):
        first, *more = method or [""]
        explanation = explanations.explain(network, file, block, target=class_wanted, method=first or None)
        sheet, *others = explanation.save(out / name, dark=dark)
        overlays = sum(len(found.named()) for found in explanation.blocks)
        say(file, f"  {sheet} and {overlays} overlays in the same folder")
        if explanation.heat is not None:
            say(explanation.heat.method, *(f"  {path}" for path in others[overlays:]))
        for other in more:
            another = explanations.explain(network, file, block, target=class_wanted, method=other)
            say(other, f"  {save_image(another.heat_sheet(dark=dark), out / name / f'heat-{other}.png')}")
        if levels:
            say("levels", f"  {save_image(explanation.levels(dark=dark), out / name / 'levels.png')}")
        if animation:
            all_blocks = explanations.explain(network, file, explanations.block_names(network))
            say("depth", f"  {save_animation(all_blocks.depth_frames(dark=dark), out / name / 'depth.gif')}")
    if kernels:
        drawing = draw_kernels(explanations.kernels(network, block), title=model, dark=dark)
        say("kernels", f"  {save_image(drawing, out / 'kernels.png')}")
    if profiles:
        found = explanations.kernel_profiles(network, block)
        shares = {name: profile.shares for name, profile in found.items()}
        strides = [profile.stride for profile in found.values()]
        drawing = draw_profiles(shares, strides, title=f"{model}: effective kernels", dark=dark)
        say("profiles", f"  {save_image(drawing, out / 'kernel-profiles.png')}")


def _evaluate(
    name: str,
    data: Path,
    out: Path,
    methods: list[str] | None,
    measured: list[str] | None,
    images: int,
    split: str,
) -> None:
    from focalnet import zoo
    from focalnet.explanations.evaluation import COLUMNS, evaluate
    from focalnet.explanations.page import write_page

    network: Model[Any, Any] = zoo.load(name)
    evaluation = evaluate(
        network,
        data,
        out,
        methods=methods,
        measured=measured,
        images=images,
        split=split,
        say=lambda line: say("progress", f"  {line}"),
    )
    page = write_page(evaluation, out / "evaluation.html")
    lines = []
    for measure, verdict in evaluation.verdicts.items():
        best = COLUMNS[measure].higher_is_better
        means = {method: row[measure].mean for method, row in evaluation.cells.items() if measure in row}
        winner = (max if best else min)(means, key=lambda method: means[method])
        tied = [method for method in evaluation.leaders[measure] if method != winner]
        more = f"; cannot be told apart: {', '.join(tied)}" if tied and verdict != "invalid" else ""
        lines.append(f"  {COLUMNS[measure].title:26} {verdict:10} best: {winner} ({means[winner]:.3f}){more}")
    say(page, *lines)
