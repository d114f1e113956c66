"""``torch.hub.load("owner/focalnet", "focalnet_nano", weights="focalnet_nano.cifar10")``: every network by name."""

from __future__ import annotations

import functools
import pathlib
import sys
import typing

sys.path.insert(
    0, str(pathlib.Path(__file__).parent / "src")
)  # PyTorch downloads the repository, but does not install it

from focalnet.models import published as _published

dependencies = ["torch", "torchvision", "timm", "safetensors", "huggingface_hub", "yaml", "PIL", "numpy"]


def _network(name: str, weights: str | None = None, **options: typing.Any) -> typing.Any:
    """Builds a network.

    Args:
        name: one of ``focalnet.list_models()``.
        weights: a name in ``focalnet models``, a file, or a repository of the Hugging Face Hub; by default random.
        options: as for ``focalnet.create_model`` and ``focalnet.load``.
    """
    import focalnet

    if weights is None:
        return focalnet.create_model(name, **options)
    return focalnet.load(weights, **options)


for _name in _published.networks():
    _entry = functools.partial(_network, _name)
    _entry.__doc__ = f"``{_name}``; see ``focalnet.create_model``."
    globals()[_name] = _entry
