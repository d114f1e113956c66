"""Prediction with trained networks. Names are imported when first used: dividing a job must not need PyTorch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from focalnet import lazy

_WHERE = {
    "BatchPredictor": "batch_predictor",
    "Predictor": "predictor",
    "Views": "tta",
    "devices": "predictor",
    "predict_manifest": "manifest.running",
}
__all__ = ["BatchPredictor", "Predictor", "Views", "devices", "predict_manifest"]

if TYPE_CHECKING:
    from focalnet.inference.batch_predictor import BatchPredictor as BatchPredictor
    from focalnet.inference.manifest.running import predict_manifest as predict_manifest
    from focalnet.inference.predictor import Predictor as Predictor
    from focalnet.inference.predictor import devices as devices
    from focalnet.inference.tta import Views as Views

_public = lazy.attributes(__name__, _WHERE)


def __getattr__(name: str) -> Any:
    if name == "Looks":
        warnings.warn("focalnet.inference.Looks is called Views now", DeprecationWarning, stacklevel=2)
        return _public("Views")
    return _public(name)
