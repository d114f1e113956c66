"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) of whole batches."""

from __future__ import annotations

from dataclasses import dataclass

from timm.data import Mixup

from focalnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Which batches are mixed, and how strongly; timm does it.

    Args:
        mixup: alpha of the Beta distribution of mixup; 0 turns it off.
        cutmix: alpha of the Beta distribution of cutmix; 0 turns it off.
        probability: of mixing a batch at all.
        switch_probability: of cutmix rather than mixup, when both are on.
        clean_epochs: the last so many epochs of a run are not mixed, so that it ends on pictures as they are
            (He et al., arXiv 1909.09148).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch_probability: float = 0.5
    clean_epochs: int = 0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "clean_epochs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 (off) or more")
        for name in ("probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be a probability, 0 to 1")

    def build(self, num_classes: int) -> Mixup | None:
        """Returns timm's mixer, or None when both are off."""
        if self.mixup == 0 and self.cutmix == 0:
            return None
        return Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.probability,
            switch_prob=self.switch_probability,
            label_smoothing=0.0,  # the loss smooths, mixed or not
            num_classes=num_classes,
        )
