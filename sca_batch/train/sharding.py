"""Parameters that FSDP has cut into shards, one on each process, by accelerate's configuration.

That is torch's `fully_shard` (FSDP 2): a parameter is a `DTensor`, which is whole only while its
module runs. Everything here is a collective: all processes call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = [
    "is_sharded",
    "make_whole",
    "sharded_like",
    "sharded_optimizer_state",
    "whole",
    "whole_everywhere",
]


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def whole(value: Any) -> Any:
    """The same with every shard replaced by the whole tensor, inside dicts and lists too."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, cut as the parameter is; as it was where the parameter is whole."""
    if not isinstance(parameter, DTensor):
        return value
    local = value.to(parameter.device, parameter.dtype)
    return distribute_tensor(local, parameter.device_mesh, parameter.placements)


def sharded_optimizer_state(
    saved: Mapping[str, Any], parameters: Sequence[nn.Parameter]
) -> dict[str, Any]:
    """A whole optimizer's state, its moments cut as the parameters (in the optimizer's order)."""
    state = {
        index: {
            name: sharded_like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in moments.items()
        }
        for index, moments in saved["state"].items()
    }
    return {"state": state, "param_groups": saved["param_groups"]}


@contextmanager
def whole_everywhere(module: nn.Module) -> Iterator[None]:
    """Whole parameters on every process, for work that differs among them, such as captioning.

    A module that gathered its parameters when it ran would wait for the others, which run something
    else.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()


@torch.no_grad()
def make_whole(module: nn.Module) -> None:
    """Puts whole parameters, on the CPU, in the place of shards for good: to be saved, not run."""
    found: dict[int, nn.Parameter] = {}  # a tied parameter stays one
    for part in module.modules():
        parameters: dict[str, Any] = dict(part._parameters)
        for name, parameter in parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in found:
                    found[id(parameter)] = nn.Parameter(
                        parameter.full_tensor().cpu(), requires_grad=parameter.requires_grad
                    )
                part._parameters[name] = found[id(parameter)]
