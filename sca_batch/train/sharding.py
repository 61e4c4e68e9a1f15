"""Parameters that FSDP has cut into shards, one on each process, by accelerate's configuration.

That is torch's `fully_shard` (FSDP 2): a parameter is a `DTensor`, which is whole only while its
module runs. Everything here is a collective: all processes call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = [
    "OptimizerState", "is_sharded", "make_whole", "sharded_like", "sharded_optimizer_state",
    "whole", "whole_everywhere", "whole_optimizer_state",
]  # fmt: skip


class OptimizerState(TypedDict):
    """The `state_dict` of a torch optimizer: moments by the parameter's number and by name."""

    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, object]]


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def whole(value: Tensor) -> Tensor:
    """The whole tensor of a shard; any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, cut as the parameter is; as it was where the parameter is whole."""
    if not isinstance(parameter, DTensor):
        return value
    local = value.to(parameter.device, parameter.dtype)
    return distribute_tensor(local, parameter.device_mesh, parameter.placements)


def whole_optimizer_state(state: OptimizerState) -> OptimizerState:
    """The state with whole moments."""
    return _with_moments(state, lambda index, moment: whole(moment))


def sharded_optimizer_state(
    saved: OptimizerState, parameters: Sequence[nn.Parameter]
) -> OptimizerState:
    """The state with moments cut as the parameters, which are in the optimizer's order."""

    def cut(index: int, moment: Tensor) -> Tensor:
        like = parameters[index]
        return sharded_like(moment, like) if moment.shape == like.shape else moment

    return _with_moments(saved, cut)


def _with_moments(state: OptimizerState, change: Callable[[int, Tensor], Tensor]) -> OptimizerState:
    changed = {
        index: {name: change(index, moment) for name, moment in moments.items()}
        for index, moments in state["state"].items()
    }
    return {"state": changed, "param_groups": state["param_groups"]}


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
    """Puts whole parameters, on the CPU, instead of shards for good: to be saved, not run."""
    found: dict[int, nn.Parameter] = {}  # a tied parameter stays one
    for part in module.modules():
        parameters: dict[str, Tensor | None] = dict(part._parameters)
        for name, parameter in parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in found:
                    found[id(parameter)] = nn.Parameter(
                        parameter.full_tensor().cpu(), requires_grad=parameter.requires_grad
                    )
                part._parameters[name] = found[id(parameter)]
