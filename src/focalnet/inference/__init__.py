"""Prediction with trained networks."""

import warnings
from typing import Any

from focalnet.inference.predictor import Predictor, devices
from focalnet.inference.tta import Views

__all__ = ["Predictor", "Views", "devices"]


def __getattr__(name: str) -> Any:
    if name == "Looks":
        warnings.warn("focalnet.inference.Looks is called Views now", DeprecationWarning, stacklevel=2)
        return Views
    raise AttributeError(f'module "focalnet.inference" has no attribute "{name}"')
