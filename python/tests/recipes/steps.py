"""What each step of an optimizer reads and writes, as torch's hooks of all optimizers see it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

_OPTIONS = ("lr", "betas", "eps", "weight_decay")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Values:
    """A parameter and its state. Before the first step, the moments are 0."""

    step: int
    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def equal(self, other: "Values") -> bool:
        """Whether all bits are the same."""
        ours, theirs = vars(self).values(), vars(other).values()
        return all(map(is_same, ours, theirs))


@dataclass(frozen=True)
class Update:
    """What a step read and wrote of one parameter."""

    options: dict[str, Any]
    grad: Tensor | None
    before: Values
    after: Values


def is_same(one: Any, other: Any) -> bool:
    """Whether two tensors have the same bits, or two other values are equal."""
    if not isinstance(one, Tensor):
        return bool(one == other)
    return torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


def values(optimizer: Optimizer) -> list[Values]:
    """The values of each parameter of an optimizer, in its order, as copies."""

    def of(param: Tensor) -> Values:
        state = optimizer.state.get(param, {})
        moments = [state[key].clone() if state else torch.zeros_like(param) for key in _MOMENTS]
        return Values(int(state.get("step", 0)), param.detach().clone(), *moments)

    return [of(param) for group in optimizer.param_groups for param in group["params"]]


def put(optimizer: Optimizer, values: list[Values]) -> None:
    """Writes parameters and moments over those of an optimizer that has made as many steps."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    with torch.no_grad():
        for param, given in zip(params, values, strict=True):
            param.copy_(given.param)
            for key in _MOMENTS if param in optimizer.state else ():
                optimizer.state[param][key].copy_(getattr(given, key))


@contextmanager
def watched(see: Callable[[Optimizer, list[Update]], None]) -> Iterator[None]:
    """Calls `see` after each step of any optimizer, with its updates of all parameters."""
    before: list[list[Values]] = []

    def on_begin(optimizer: Optimizer, *_: Any) -> None:
        before.append(values(optimizer))

    # The step's closure may form the gradients, so they are read after the step.
    def on_end(optimizer: Optimizer, *_: Any) -> None:
        read = [
            ({key: group[key] for key in _OPTIONS}, None if p.grad is None else p.grad.clone())
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        pairs = zip(read, before.pop(), values(optimizer), strict=True)
        see(optimizer, [Update(*inputs, old, new) for inputs, old, new in pairs])

    hooks = (register_optimizer_step_pre_hook(on_begin), register_optimizer_step_post_hook(on_end))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
