"""The content of the snapshots: one function per topic, which returns ``{section: {entry: value}}``.

They use the public interface, so that they survive restructuring. What depends on the machine
or on versions of other packages is left out: of the trainer's options, only those are here that recipes or we set.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors
import torch
import yaml
from torch import nn

import focalnet
from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import app, main
from focalnet.cli.recipes import find_recipe, list_recipes, read_recipe
from focalnet.weights.files import DIGEST
from tests.models import small
from tests.snapshots.compare import flat, keys, mark, plain
from tests.weights.small import LARGE, PLAIN

TASKS = ("classification", "multilabel", "detection", "semantic", "panoptic")
#: What a task's data or model must be given, and is no default.
PLACE = {"data": {"root": "DATA"}}


# --- Options -------------------------------------------------------------------------------------


def resolved(recipe: dict[str, Any]) -> dict[str, Any]:
    """Every option of a recipe with its value, as ``--print_config`` prints them, by dotted name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        printed = output("fit", str(path), "--print_config")
    options = flat(yaml.safe_load(printed))
    ours = our_trainer_options()
    return {name: value for name, value in options.items() if not name.startswith("trainer.") or name in ours}


@functools.cache
def our_trainer_options() -> list[str]:
    """Trainer options that a recipe sets, or whose default differs from Lightning's."""
    ours = {f"trainer.{name}" for recipe in list_recipes() for name in read_recipe(find_recipe(recipe))["trainer"]}
    others = ("use_distributed_sampler", "num_sanity_val_steps", "enable_progress_bar", "enable_model_summary")
    return sorted(ours | {f"trainer.{name}" for name in (*others, "log_every_n_steps", "devices", "accelerator")})


@contextlib.contextmanager
def one_parser_a_task() -> Iterator[None]:
    """Keeps the parsers of options, which take most of the time; nothing else depends on it."""
    try:
        from focalnet.training import options as module

        parser = module._parser
    except (ImportError, AttributeError):  # its module has moved
        yield
        return
    with patch.object(module, "_parser", functools.cache(parser)):
        yield


def options() -> dict[str, dict[str, Any]]:
    """Names and defaults of every option of each task."""
    found: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        found[task] = resolved({"task": task, **PLACE, "trainer": {"max_epochs": 1}})
    sliding = resolved({"task": "semantic", **PLACE, "model": {"slide": {}}, "trainer": {"max_epochs": 1}})
    found["semantic, sliding"] = {name: value for name, value in sliding.items() if ".slide" in name}
    return found


@one_parser_a_task()
def recipes() -> dict[str, dict[str, Any]]:
    """For every recipe, the resolved options that differ from the defaults of its task."""
    defaults, found = plain(options()), {}
    for name in list_recipes():
        recipe = read_recipe(find_recipe(name))
        recipe["data"] = {**PLACE["data"], **recipe["data"]}
        every = plain(resolved(recipe))
        task = every.get("task", "classification")
        missing = [option for option in defaults[task] if option not in every]
        found[name] = {k: v for k, v in every.items() if k not in defaults[task] or v != defaults[task][k]}
        found[name] |= {option: "(absent)" for option in missing if f"{option}." not in str(list(every))}
    return found


# --- Command line --------------------------------------------------------------------------------


def output(*arguments: str) -> str:
    """The output of a command, which must succeed."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(list(arguments)) == 0, arguments
    return text.getvalue()


def commands() -> dict[str, Any]:
    """All commands by name, including ``focalnet`` itself."""
    from typer.main import get_command

    group: Any = get_command(app)
    return {"focalnet": group, **group.commands}


def help_texts() -> dict[str, dict[str, Any]]:
    """The help texts of each command, without layout, which depends on the version of Typer."""
    found = {}
    for name, command in commands().items():
        entries: dict[str, Any] = {"help": _words(command.help), "epilog": _words(command.epilog)}
        if name == "focalnet":
            entries["commands"] = list(command.commands)
        found[name] = entries | {" ".join(opts(p)): _parameter(p) for p in command.params if "--help" not in p.opts}
    return found


def opts(parameter: Any) -> list[str]:
    """``["--tile"]``, or the name of an argument."""
    return [*parameter.opts, *parameter.secondary_opts]


def _parameter(parameter: Any) -> dict[str, Any]:
    default = parameter.default
    default = default.value if isinstance(default, Enum) and isinstance(default, str) else default
    known: dict[str, Any] = {
        "metavar": parameter.metavar,
        "required": parameter.required or None,
        "several": getattr(parameter, "multiple", False) or parameter.nargs == -1 or None,
        "flag": getattr(parameter, "is_flag", None) or None,
        "default": default if isinstance(default, str | int | float) and default is not False else None,
        "help": _words(parameter.help),
    }
    for name in ("min", "max"):  # an attribute of the parameter or of its type, by the version of Typer
        bound = getattr(parameter, name, None)
        bound = getattr(getattr(parameter, "type", None), name, None) if bound is None else bound
        known[name] = None if bound is None else float(bound)
    return {name: value for name, value in known.items() if value is not None}


def _words(text: str | None) -> str | None:
    return " ".join(text.split()) if text else None


@contextlib.contextmanager
def plain_terminal() -> Iterator[None]:
    """A narrow terminal without colors."""
    before = dict(os.environ)
    os.environ |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    os.environ.pop("FORCE_COLOR", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def listings() -> dict[str, dict[str, Any]]:
    """Keys of the JSON that the command line prints."""
    found = {}
    for name in ("focalnet_tiny_srf", "mask_rcnn_focalnet_tiny_srf", "upernet_focalnet_tiny_srf"):
        models = json.loads(output("models", f"{name}*", "--json"))
        found[f"models {name}* --json"] = {"keys": keys(models)}
    return found


# --- Networks ------------------------------------------------------------------------------------


def _classifier(shape: dict[str, Any]) -> nn.Module:
    config = focalnet.ClassifierConfig(backbone=focalnet.FocalNetConfig(**shape), num_classes=5)
    return config.build()


FAMILIES: dict[str, Callable[[], Any]] = {
    "classifier": lambda: _classifier(PLAIN),
    "classifier, large": lambda: _classifier({**LARGE, "normalize_modulator": True}),
    "classifier, huge": lambda: _classifier({**LARGE, "post_norm_in_modulation": True}),
    "backbone": lambda: focalnet.FocalNetConfig(**PLAIN, out_indices=(0, 1)).build(),
    "faster_rcnn": lambda: small.config("mask_rcnn", masks=False).build(),
    "mask_rcnn": lambda: small.config("mask_rcnn").build(),
    "cascade_mask_rcnn": lambda: small.config("cascade_mask_rcnn").build(),
    "atss": lambda: small.config("atss").build(),
    "sparse_rcnn": lambda: small.config("sparse_rcnn").build(),
    "dino": lambda: small.config("dino").build(),
    "upernet": lambda: small.upernet().build(),
    "mask2former": lambda: small.mask2former().build(),
    "mask2former, placed": lambda: small.mask2former(placed=True, levels=2).build(),
}


def built(family: str) -> Any:
    """The small network of a family with its initial weights at seed 0."""
    torch.manual_seed(0)
    return FAMILIES[family]()


def state_dicts() -> dict[str, dict[str, Any]]:
    """Names, shapes and initial weights of every family, in order."""
    found = {}
    for family in FAMILIES:
        state = built(family).state_dict()
        found[family] = {
            key: ["x".join(map(str, t.shape)) or "scalar", str(t.dtype).removeprefix("torch."), mark(t)]
            for key, t in state.items()
        }
    return found


def architectures() -> dict[str, dict[str, Any]]:
    """For every published architecture: number of tensors and values, and a hash of names and shapes in order."""
    found = {}
    unchanged = {name: lambda tensor, *_args, **_kwargs: tensor for name in ("uniform_", "normal_", "erfinv_")}
    with torch.device("meta"), patch.multiple(torch.Tensor, **unchanged):  # initial values take most of the time
        for name in focalnet.list_models():
            state = focalnet.create_model(name).state_dict()
            text = "\n".join(f"{key} {tuple(tensor.shape)}" for key, tensor in state.items())
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            found[name] = [len(state), sum(t.numel() for t in state.values()), digest]
    return {"architectures": found}


def header(path: Path) -> dict[str, Any]:
    """The strings in the header of a safetensors file but the digest; those that are JSON by dotted names."""
    with safetensors.safe_open(path, framework="pt") as file:
        strings = file.metadata()
    assert len(strings.pop(DIGEST)) == 64  # of numbers that differ in their last bits between processors
    read = {key: json.loads(text) if text.startswith("{") else text for key, text in sorted(strings.items())}
    return flat(read)


def headers() -> dict[str, dict[str, Any]]:
    """The header of the weights file of every family, with a card."""
    found = {}
    for family in FAMILIES:
        network = built(family)
        network.card = ModelCard(
            name="small.test",
            class_names=tuple(f"animal {i}" for i in range(getattr(network.config, "num_classes", 0))),
            preprocessing=Preprocessing(image_size=64),
            licence="MIT",
            source="nowhere",
            metrics={"top1": 1.5},
        )
        with tempfile.TemporaryDirectory() as folder:
            found[family] = header(weights.save(network, Path(folder) / "small.safetensors"))
    return found


#: Topics that need no run. Fractions of the second kind may differ in their last digits between processors.
EXACT: dict[str, Callable[[], dict[str, dict[str, Any]]]] = {
    "options": options,
    "recipes": recipes,
    "help": help_texts,
    "listings": listings,
    "architectures": architectures,
    "headers": headers,
}
NEARLY: dict[str, Callable[[], dict[str, dict[str, Any]]]] = {"state_dicts": state_dicts}
