"""The trained parameters and their pace: parameter groups, AdamW, the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sca_batch.errors import ScaError
from sca_batch.model.sca import PromptableSam, ScaModel
from sca_batch.model.weight_names import published_name

__all__ = [
    "ParameterGroup",
    "build_optimizer",
    "cosine_with_warmup",
    "parameter_groups",
    "select_trainable",
]


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters under published names, with one weight decay and one learning rate.

    `lr_factor` multiplies the recipe's learning rate.
    """

    parameters: dict[str, nn.Parameter]
    decays: bool
    lr_factor: float = 1.0

    @property
    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())


def select_trainable(model: ScaModel, also: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """Freezes all but what the paper trains and what `also` names; returns that by its name.

    `also` are prefixes of published names, such as `mask_decoder.transformer`.

    Raises:
        ScaError: for a prefix that no parameter has.
    """
    model.requires_grad_(False)
    for module in model.trainable_modules().values():
        module.requires_grad_(True)
    named = {published_name(name): parameter for name, parameter in model.named_parameters()}
    for prefix in also:
        chosen = [p for name, p in named.items() if name == prefix or name.startswith(f"{prefix}.")]
        if not chosen:
            roots = sorted({name.split(".")[0] for name in named})
            raise ScaError(f"no parameter {prefix}.*; this model has {', '.join(roots)}")
        for parameter in chosen:
            parameter.requires_grad_(True)
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def parameter_groups(
    model: PromptableSam, *, lr_factors: Iterable[tuple[str, float]] = ()
) -> list[ParameterGroup]:
    """The parameters that require gradients, by whether they decay and by learning rate.

    As in the reference, what has "bias" in its published name and what belongs to an
    `nn.LayerNorm` does not decay; embeddings do, and so does the weight of SAM's own kind of
    LayerNorm (in the neck of a timm encoder), which is not an `nn.LayerNorm` there.
    `lr_factors` are (prefix of published names, factor); the longest prefix counts.
    """
    in_layer_norm = {
        parameter
        for module in model.modules()
        if type(module) is nn.LayerNorm  # exactly: newer releases derive SAM's from it
        for parameter in module.parameters(recurse=False)
    }
    by_length = sorted(lr_factors, key=lambda item: len(item[0]), reverse=True)
    groups: dict[tuple[bool, float], dict[str, nn.Parameter]] = {}
    for own_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = published_name(own_name)
        factor = next((f for prefix, f in by_length if name.startswith(prefix)), 1.0)
        decays = "bias" not in name and parameter not in in_layer_norm
        groups.setdefault((decays, factor), {})[name] = parameter
    return [
        ParameterGroup(parameters, decays, factor)
        for (decays, factor), parameters in sorted(groups.items(), key=lambda item: item[0][::-1])
    ]


def build_optimizer(
    groups: Iterable[ParameterGroup],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float = 1e-8,
    fused: bool = False,
) -> torch.optim.AdamW:
    """AdamW over the groups; each carries its `lr_factor` for the schedule."""
    options = [
        {
            "params": list(group.parameters.values()),
            "lr": lr * group.lr_factor,
            "lr_factor": group.lr_factor,
            "weight_decay": weight_decay if group.decays else 0.0,
        }
        for group in groups
    ]
    return torch.optim.AdamW(options, lr=lr, betas=betas, eps=eps, fused=fused or None)


def cosine_with_warmup(step: int, *, lr: float, steps: int, warmup_steps: int) -> float:
    """The rate of `step`, counted from 0: linear from 0, then half a cosine that ends at 0.

    The reference's schedule (`get_cosine_schedule_with_warmup`): its first step has a rate of 0.
    """
    if step < warmup_steps:
        return lr * step / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
