"""Image classification: a FocalNet with a linear head."""

from focalnet.card import Preprocessing
from focalnet.models.base import ModelFamily
from focalnet.models.classifier.config import ClassifierConfig
from focalnet.models.classifier.network import Classifier, best_classes, likely_classes
from focalnet.models.variants import VARIANTS

__all__ = ["FAMILIES", "Classifier", "ClassifierConfig", "best_classes", "likely_classes"]

FAMILIES = (
    ModelFamily(
        name="classifier",
        file_kind="classifier",
        tasks=("classification", "multilabel"),
        config=ClassifierConfig,
        variants=VARIANTS,
        preprocessing=Preprocessing(),
    ),
)
