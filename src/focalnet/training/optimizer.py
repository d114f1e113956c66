"""The paper's AdamW and its parameter groups, Muon for small data, and the learning rate per update.

The released code decays no parameter at all (a keyword filter matches every name); the paper states a
weight decay of 0.05. Here weight decay is really applied, to every parameter with two or more
dimensions: norms, biases and layer scales are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import Muon, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from focalnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon.

    Args:
        name: ``"adamw"`` as in the paper, or ``"muon"`` (timm's): orthogonalised momentum for matrices and kernels,
            with the size of an AdamW update, and AdamW for the rest. It needs fewer epochs on small data.
        lr: peak learning rate, for a global batch of ``reference_batch`` images.
        reference_batch: with another global batch, every learning rate (also those of the schedule) is scaled
            by ``global batch / reference_batch``; None never scales.
        weight_decay: of parameters with two or more dimensions; the rest has none.
        layer_decay: learning rate of a block over that of the next one, in (0, 1]; None for equal rates. What is above
            the backbone has the full rate.
        backbone_scale: learning rate of a detector's or segmenter's backbone over that of its head, in (0, 1]; times
            what ``layer_decay`` makes of it.
        betas: decay rates of the two moments.
        eps: added to AdamW's denominator; Muon has its own.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    reference_batch: int | None = 1024
    weight_decay: float = 0.05
    layer_decay: float | None = None
    backbone_scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.weight_decay >= 0):
            raise ConfigError(f"lr={self.lr} must be positive and weight_decay={self.weight_decay} not negative")
        if self.reference_batch is not None and self.reference_batch < 1:
            raise ConfigError(f"reference_batch={self.reference_batch} must be at least 1, or null for no scaling")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay={self.layer_decay} must be in (0, 1]")
        if self.name == "muon" and self.eps != OptimizerConfig.eps:
            raise ConfigError(f"optimizer.eps={self.eps} is AdamW's: leave it out, or choose optimizer.name=adamw")
        if not 0 < self.backbone_scale <= 1:
            raise ConfigError(f"backbone_scale={self.backbone_scale} must be in (0, 1]")

    def scale(self, global_batch: int) -> float:
        """What every learning rate is multiplied by, for ``global_batch`` images an update."""
        return 1.0 if self.reference_batch is None else global_batch / self.reference_batch


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate at every update: a linear warm-up, then one of four curves.

    As in the official code, the cosine counts from the first update, not from the end of the warm-up (which
    therefore ends in a small jump down); so does ``"poly"``, of segmentation, whose warm-up rises to the curve, not to
    the peak. The linear descent and the steps count from the end of the warm-up.

    Args:
        kind: ``"cosine"``, ``"linear"`` or ``"poly"`` down to ``min_lr``, or ``"step"``.
        warmup_epochs: epochs of linear warm-up from ``warmup_lr``.
        warmup_lr: learning rate of the first update, unless ``warmup_epochs`` is 0.
        min_lr: learning rate after the last update, but of ``"step"``.
        decay_epochs: epochs between two steps, counted from the end of the warm-up.
        steps: of ``"step"``, the epochs of the steps instead, counted from the first update, as in detection.
        decay_rate: factor of one step.
        power: of ``"poly"``: what is left of the run, to this power, is what is left of the rate.
    """

    kind: Literal["cosine", "linear", "step", "poly"] = "cosine"
    warmup_epochs: float = 20
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    decay_epochs: float = 30
    steps: tuple[float, ...] | None = None
    decay_rate: float = 0.1
    power: float = 1.0

    def __post_init__(self) -> None:
        if min(self.warmup_epochs, self.warmup_lr, self.min_lr) < 0:
            raise ConfigError("warmup_epochs, warmup_lr and min_lr must not be negative")
        if self.decay_epochs <= 0 or self.power <= 0:
            raise ConfigError(f"decay_epochs={self.decay_epochs} and power={self.power} must be positive")
        if self.steps is not None and (self.kind != "step" or list(self.steps) != sorted(self.steps)):
            raise ConfigError(f'schedule.steps={self.steps} must rise, and go with schedule.kind="step"')

    def learning_rate(
        self,
        update: int,
        peak: float,
        epochs: int,
        updates_per_epoch: int,
        scale: float = 1.0,
        max_updates: int | None = None,
    ) -> float:
        """The learning rate of an update.

        Args:
            update: index of the update, from 0.
            peak: learning rate at the end of the warm-up.
            epochs: of the whole run.
            updates_per_epoch: optimizer updates in one epoch.
            scale: of ``peak``, ``warmup_lr`` and ``min_lr``; see ``OptimizerConfig.scale``.
            max_updates: the run ends after so many at the latest.
        """
        warmup, total = int(self.warmup_epochs * updates_per_epoch), epochs * updates_per_epoch
        total = total if max_updates is None else min(total, max_updates)
        if self.kind == "poly":
            peak = self.min_lr + (peak - self.min_lr) * max(1 - update / total, 0.0) ** self.power
        if update < warmup:
            return scale * (self.warmup_lr + (peak - self.warmup_lr) * update / warmup)
        if self.kind == "poly":
            return scale * peak
        if self.kind == "step" and self.steps is not None:
            return scale * peak * self.decay_rate ** sum(update >= step * updates_per_epoch for step in self.steps)
        if self.kind == "step":
            steps = max(int(self.decay_epochs * updates_per_epoch), 1)
            return scale * peak * self.decay_rate ** ((update - warmup) // steps)
        if self.kind == "linear":
            done = min((update - warmup) / max(total - warmup, 1), 1.0)
            return scale * (peak + (self.min_lr - peak) * done)
        done = min(update / total, 1.0)
        return scale * (self.min_lr + 0.5 * (peak - self.min_lr) * (1 + math.cos(math.pi * done)))


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters grouped by weight decay, and by ``lr_scale`` where learning rates differ.

    Call it before a strategy shards the network: afterwards every parameter looks one-dimensional.

    Raises:
        ConfigError: nothing is left to train; or an option would change no learning rate, since there is no backbone
            within the network, or what it is for is frozen.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("every parameter is frozen: nothing is left to train")
    if config.layer_decay is None:
        groups = param_groups_weight_decay(network, config.weight_decay)
    else:
        groups = param_groups_layer_decay(network, config.weight_decay, layer_decay=config.layer_decay)
        if config.layer_decay != 1 and all(group["lr_scale"] == 1 for group in groups):
            raise ConfigError(
                f"optimizer.layer_decay={config.layer_decay} would change no learning rate: every layer it is for is "
                "frozen, or the network names none; leave it out, or freeze fewer stages"
            )
    return list(groups) if config.backbone_scale == 1 else _scaled(groups, network, config.backbone_scale)


def _scaled(groups: list[dict[str, Any]], network: nn.Module, scale: float) -> list[dict[str, Any]]:
    """The groups with the backbone's parameters in groups of their own."""
    backbone = getattr(network, "backbone", network)
    if backbone is network or not isinstance(backbone, nn.Module):
        raise ConfigError("optimizer.backbone_scale is for networks with a head of their own, not for a classifier")
    inside = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    if not inside:
        raise ConfigError(
            f"optimizer.backbone_scale={scale} would change no learning rate: the whole backbone is frozen; leave it "
            "out, or freeze fewer stages"
        )
    split = []
    for group in groups:
        for within, factor in ((True, scale), (False, 1.0)):
            if chosen := [p for p in group["params"] if (id(p) in inside) == within]:
                split.append({**group, "params": chosen, "lr_scale": group.get("lr_scale", 1.0) * factor})
    return split


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of ``parameter_groups``, at the unscaled peak learning rate; a scheduler sets the real one."""
    groups = [{**g, "lr": config.lr * g.get("lr_scale", 1.0)} for g in groups]
    if config.name == "muon":
        muon: torch.optim.Optimizer = Muon(groups, lr=config.lr, nesterov=True, betas=config.betas)
        return muon
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    schedule: ScheduleConfig,
    *,
    epochs: int,
    updates_per_epoch: int,
    global_batch: int,
    max_updates: int | None = None,
) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler to be stepped after every update.

    Args:
        optimizer: from ``build_optimizer``.
        config: what the optimizer was built with.
        schedule: the curve.
        epochs: of the whole run.
        updates_per_epoch: optimizer updates in one epoch.
        global_batch: images an update sees: of all processes, and of all accumulated batches.
        max_updates: the run ends after so many at the latest.
    """
    scale = config.scale(global_batch)

    def factor(update: int) -> float:
        rate = schedule.learning_rate(update, config.lr, epochs, updates_per_epoch, scale, max_updates)
        return rate / config.lr

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
