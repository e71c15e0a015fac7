"""Optimisers with named groups of parameters, and schedules of the learning rate.

Example:
    >>> from torch import nn
    >>> from foveal.training.config import Optimiser
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> optimiser = build(net, {"head": list(net.parameters())}, Optimiser(weight_decay=0.1))
    >>> [(len(g["params"]), g["weight_decay"]) for g in optimiser.param_groups]
    [(1, 0.1), (3, 0.0)]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.training.config import Optimiser

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def build(model: nn.Module, groups: Mapping[str, Sequence[nn.Parameter]], config: Optimiser) -> torch.optim.Optimizer:
    """Create an optimiser.

    Args:
        model: the model with these parameters, to find normalisation layers.
        groups: parameters by group name, for ``group_lr`` and ``l2_groups``; empty groups are left out.
        config: see `Optimiser`. Each parameter group of the result has its ``base_lr``.

    Raises:
        ConfigError: the model does not have one of the named groups, or the optimiser does not take the options.
    """
    groups = {name: list(parameters) for name, parameters in groups.items() if parameters}
    for option, names in (("group_lr", config.group_lr), ("l2_groups", config.l2_groups or ())):
        for name in names:
            if name not in groups:
                raise ConfigError(
                    f"optimiser.{option}: the model has no group of parameters {name!r}; use {' or '.join(groups)}"
                )
    norm = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)}
    exempt, depth = _exempt(model), _layer_scales(model, config.layer_decay)
    parts: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        lr = config.group_lr.get(name, config.lr)
        penalised = bool(config.l2) and (config.l2_groups is None or name in config.l2_groups)
        by_decay: dict[tuple[float, float], list[nn.Parameter]] = {}
        for p in parameters:
            # The gradient of l2 * |w|^2 is 2 l2 w; torch's coupled weight decay adds weight_decay * w.
            decay = 2 * config.l2 if penalised and id(p) not in norm else 0.0
            decay += config.weight_decay if config.decay_all or (p.ndim > 1 and id(p) not in norm) else 0.0
            by_decay.setdefault((0.0 if id(p) in exempt else decay, depth.get(id(p), 1.0)), []).append(p)
        parts += [
            {"params": ps, "lr": lr * scale, "base_lr": lr * scale, "weight_decay": decay}
            for (decay, scale), ps in by_decay.items()
        ]
    usual = Optimiser()
    options: dict[str, Any] = {
        key: getattr(config, key)
        for key in ("betas", "eps")
        if config.name in ("adam", "adamw") or getattr(config, key) != getattr(usual, key)
    }
    if config.name == "sgd":
        options = {"nesterov": config.nesterov}  # timm's own default is Nesterov momentum
    from timm.optim import create_optimizer_v2

    try:
        return create_optimizer_v2(parts, config.name, config.lr, momentum=config.betas[0], **options)
    except Exception as error:  # each optimiser raises its own, for options or for packages that are missing
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ConfigError(
            f"optimiser.name: {config.name} cannot be made ({reason}); change its options or use another one"
        ) from error


def _layer_scales(model: nn.Module, layer_decay: float | None) -> dict[int, float]:
    """Factor of the learning rate by id of a parameter of the backbone, by timm's layers (``group_matcher``)."""
    if layer_decay is None:
        return {}
    backbone = getattr(model, "network", getattr(model, "backbone", None))
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"optimiser.layer_decay: {getattr(model, 'label', type(model).__name__)} has no backbone, whose layers "
            "would be counted; leave it out"
        )
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(backbone, layer_decay=layer_decay)
    if layer_decay < 1 and len({group["lr_scale"] for group in groups}) == 1:
        raise ConfigError(
            f"optimiser.layer_decay: timm finds no layers in {type(backbone).__name__}, which has no group_matcher; "
            "leave it out"
        )
    return {id(p): group["lr_scale"] for group in groups for p in group["params"]}


def _exempt(model: nn.Module) -> set[int]:
    """Ids of parameters in ``no_weight_decay`` of modules, which is a list of names, or as in timm a method."""
    found = set()
    for module in model.modules():
        names = getattr(module, "no_weight_decay", ())
        own = dict(module.named_parameters()) if names else {}
        found |= {id(own[name]) for name in (names() if callable(names) else names) if name in own}
    return found


def lr_factor(config: Optimiser, step: int, progress: float) -> float:
    """Factor of the learning rates.

    Args:
        config: see `Optimiser`.
        step: number of updates so far.
        progress: progress of the run, 0 to 1.
    """
    # Tolerance for shares such as a third, which are given with a few digits.
    drops = sum(progress >= share - 1e-7 for share in config.steps())
    factor = {
        "constant": 1.0,
        "step": config.step_factor**drops,
        "cosine": 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))),
    }[config.schedule]
    if config.warmup_factor is not None:
        return factor * (config.warmup_factor if step < config.warmup else 1.0)
    return factor * min(1.0, (step + 1) / (config.warmup + 1))
