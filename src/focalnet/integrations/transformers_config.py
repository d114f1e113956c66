"""The configuration of our backbone for transformers, registered with its ``AutoConfig``; see ``transformers.py``.

It is apart from the backbone, which is imported with the first configuration: that takes much of transformers, which
programs that only look at its names (torchmetrics, for one) must not wait for.
"""

# mypy: disable-error-code="no-untyped-call"
# transformers is only partly typed.

from __future__ import annotations

import importlib
from typing import Any

from focalnet.errors import ConfigError, UnknownName, did_you_mean, require
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.variants import VARIANTS

require("transformers", "dense")

# From the modules that define them: this module may be imported while the package transformers is.
from transformers.backbone_utils import BackboneConfigMixin  # noqa: E402
from transformers.configuration_utils import PreTrainedConfig  # noqa: E402
from transformers.models.auto.configuration_auto import AutoConfig  # noqa: E402


class FocalNetDenseConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of the backbone: architecture and returned feature maps.

    Args:
        architecture: one of ``focalnet.list_models()``.
        options: fields of ``FocalNetConfig`` that differ from the architecture's. ``pad_to_stride`` is on by
            default, since dense-prediction heads expect feature maps of ``ceil(size / stride)``.
        out_features: names among ``"stage1"`` (stride 4) to ``"stage4"`` (stride 32); all by default.
        out_indices: the same as stage numbers from 1, or from the end.

    Raises:
        UnknownName: there is no architecture of this name.
        ConfigError: an option is unknown or invalid, or ``out_features`` contains the stem.
    """

    model_type = "focalnet_dense"

    architecture: str = "focalnet_tiny_srf"
    options: dict[str, Any] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        importlib.import_module("focalnet.integrations.transformers")  # AutoBackbone gets to know the backbone
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.shape().depths) + 1))]
        if features is None and indices is None:
            features = self.stage_names[1:]
        self.set_output_features_output_indices(out_features=features, out_indices=indices)
        if "stem" in self.out_features:
            raise ConfigError(
                f"the stem of a FocalNet has no feature map to return; out_features can be {self.stage_names[1:]}"
            )
        super().__post_init__(**kwargs)

    def shape(self) -> FocalNetConfig:
        """The configuration of the FocalNet, with all its feature maps."""
        if self.architecture not in VARIANTS:
            near = did_you_mean(self.architecture, VARIANTS)
            raise UnknownName(f'no model "{self.architecture}"{near}; "focalnet models" lists all')
        settings = {"pad_to_stride": True, **VARIANTS[self.architecture].shape, **(self.options or {})}
        return FocalNetConfig.from_dict(settings)


AutoConfig.register(FocalNetDenseConfig.model_type, FocalNetDenseConfig, exist_ok=True)
