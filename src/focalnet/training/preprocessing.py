"""What the weights that a run starts from say of how images are prepared, as options of its data."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from focalnet import weights, zoo
from focalnet.card import Preprocessing
from focalnet.errors import FocalNetError

logger = logging.getLogger(__name__)

COLORS = ("mean", "std")


def data_options(preprocessing: Preprocessing) -> dict[str, Any]:
    """What a network wants of its images, as options of its data: a detector's are not cropped."""
    wanted = asdict(preprocessing)
    absent = {"max_size"} if preprocessing.max_size is None else {"crop_pct", "interpolation"}
    if preprocessing.fit == "crop":  # the default, and all that there is for images that are not cropped
        absent.add("fit")
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()}
    return {name: value for name, value in lists.items() if name not in absent}


def as_the_weights_want(options: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the options of a run by the preprocessing of the weights it starts from, and says what it took.

    What the options say stays; mean and deviation that differ from those of the weights are told. Of
    ``model.backbone_weights``, which were trained for classification, only mean and deviation are taken.

    Args:
        options: nested, as a recipe has them.

    Of weights that cannot be read nothing is taken: the run itself tells what is wrong with them.
    """
    data, model = dict(options.get("data") or {}), options.get("model") or {}
    whole, backbone = model.get("weights"), model.get("backbone_weights")
    name = whole or backbone
    if name in (None, "null"):
        return dict(options)
    try:
        preprocessing = _preprocessing(str(name), model.get("options"))
    except FocalNetError:
        return dict(options)
    wanted = data_options(preprocessing)
    cropped = options.get("task", "classification") in ("classification", "multilabel")
    if not whole or cropped != (preprocessing.max_size is None):
        wanted = {option: wanted[option] for option in COLORS}
    if len(preprocessing.mean) != 3:
        wanted = {option: value for option, value in wanted.items() if option not in COLORS}
    taken = {option: value for option, value in wanted.items() if option not in data}
    for option in COLORS:
        if option in data and option in wanted and not _same(data[option], wanted[option]):
            logger.warning(
                "data.%s is %s, but %s was trained with %s; leave the option out to take that",
                *(option, data[option], name, wanted[option]),
            )
    if taken:
        said = ", ".join(f"data.{option} {value}" for option, value in taken.items())
        logger.info("images are prepared as %s wants: %s", name, said)
    return {**options, "data": {**data, **taken}}


def _preprocessing(name: str, options: Any) -> Preprocessing:
    """Of a published name without downloading it; of a file, what its card says."""
    entry = weights.entries().get(name)
    if entry is not None and entry.embedded is None:
        return entry.preprocessing
    return zoo.open_checkpoint(name, _plain(options) or {}).card.preprocessing


def _same(given: Any, wanted: list[float]) -> bool:
    values = _plain(given)
    try:
        pairs = zip(values, wanted, strict=True)
        return all(math.isclose(float(value), other, abs_tol=1e-3) for value, other in pairs)
    except (TypeError, ValueError):  # not what it should be, which the options tell
        return True


def _plain(value: Any) -> Any:
    """A value as YAML reads it; on the command line, values are text."""
    return yaml.safe_load(value) if isinstance(value, str) else value
