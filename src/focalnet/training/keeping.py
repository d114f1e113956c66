"""The best weights of a run so far, and how long ago that was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from focalnet.metrics.base import Metric
from focalnet.training.tasks.base import Task


class Best(pl.Callback):
    """Keeps a copy of the weights of the best validation; it travels in the checkpoint, so the two always agree.

    Better means a higher headline metric of the task (the first, where it has several), or a lower one where lower is
    better; of equal ones, the later counts, which has trained longer.

    Args:
        copies: whether to keep weights at all, or only count validations.

    Attributes:
        since: validations since the metric has improved.
    """

    def __init__(self, *, copies: bool) -> None:
        self.copies = copies
        self.since = 0
        self.best: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None
        self.weights: dict[str, torch.Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"since": self.since, "best": self.best, "last": self.last, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.since, self.best, self.last = (state_dict[name] for name in ("since", "best", "last"))
        self.weights = state_dict["weights"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        metric = headline_metric(pl_module.metrics)
        if trainer.state.fn != TrainerFn.FITTING or metric is None:
            return
        self.last = {
            "epoch": trainer.current_epoch + 1,
            "updates": trainer.global_step,
            "metrics": {one.name: float(one.value) for one in pl_module.metrics},
        }
        before = None if self.best is None else self.best["metrics"][metric.name]
        sign = 1 if metric.higher_is_better else -1
        defined = not math.isnan(metric.value)
        self.since = 0 if defined and (before is None or sign * (metric.value - before) > 0) else self.since + 1
        if defined and (before is None or sign * (metric.value - before) >= 0):
            self.best = self.last
            if self.copies:
                state = trainer.strategy.lightning_module_state_dict()  # all processes take part, where it is sharded
                self.weights = _copied(state, pl_module.trained_prefix) if trainer.is_global_zero else None


def headline_metric(metrics: Iterable[Metric]) -> Metric | None:
    """The metric by which weights are compared; None where the task has none."""
    return next((metric for metric in metrics if metric.headline), None)


def _copied(state: Mapping[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors with a prefix, without it, on the CPU; they do not change with those of the network."""
    return {k.removeprefix(prefix): v.detach().cpu().clone() for k, v in state.items() if k.startswith(prefix)}
