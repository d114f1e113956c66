"""Focal Modulation Networks: models, checkpoints, training, prediction and explanations.

The names below are imported when first used, so that ``import focalnet`` is fast and needs
neither a GPU nor an optional package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from focalnet import lazy

__version__ = "0.1.0"

_WHERE = {
    "Classification": "results",
    "Classifier": "models",
    "ClassifierConfig": "models",
    "FocalNet": "models.backbone",
    "FocalNetConfig": "models.backbone",
    "FocalNetError": "errors",
    "Int8": "kernels.quantization",
    "Predictor": "inference",
    "accelerate": "integrations",
    "create_model": "zoo",
    "explain": "explanations",
    "export": "exporting",
    "fit": "cli.train",
    "int8_from_data": "exporting",
    "list_models": "zoo",
    "load": "zoo",
    "optimize": "kernels.optimize",
    "push_to_hub": "weights",
    "save_pretrained": "weights",
}
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from focalnet.cli.train import fit as fit
    from focalnet.errors import FocalNetError as FocalNetError
    from focalnet.explanations import explain as explain
    from focalnet.exporting import export as export
    from focalnet.exporting import int8_from_data as int8_from_data
    from focalnet.inference import Predictor as Predictor
    from focalnet.integrations import accelerate as accelerate
    from focalnet.kernels.optimize import optimize as optimize
    from focalnet.kernels.quantization import Int8 as Int8
    from focalnet.models import Classifier as Classifier
    from focalnet.models import ClassifierConfig as ClassifierConfig
    from focalnet.models.backbone import FocalNet as FocalNet
    from focalnet.models.backbone import FocalNetConfig as FocalNetConfig
    from focalnet.results import Classification as Classification
    from focalnet.weights import push_to_hub as push_to_hub
    from focalnet.weights import save_pretrained as save_pretrained
    from focalnet.zoo import create_model as create_model
    from focalnet.zoo import list_models as list_models
    from focalnet.zoo import load as load

__getattr__ = lazy.attributes(__name__, _WHERE)


def __dir__() -> list[str]:
    return sorted(__all__)


# timm and transformers find our networks by name, whichever is imported first.
lazy.follow(
    {
        "timm": "focalnet.integrations.timm",
        "transformers.models.auto.configuration_auto": "focalnet.integrations.transformers_config",
    }
)
