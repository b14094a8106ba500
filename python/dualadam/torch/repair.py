"""The step of parameters whose tensors the native module cannot take as they are."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dualadam._dualadam import Stepper
from dualadam.torch.groups import name_of
from dualadam.torch.native import Arguments, NativeGroup
from dualadam.torch.openmp import only_threads_that_exist
from dualadam.torch.options import is_on_device
from dualadam.torch.plain import (
    check_apart,
    check_fake,
    check_tensor,
    is_aligned,
    is_fake,
    plain,
    plain_grad,
    same_strides,
)
from dualadam.torch.state import check_repairable, check_state, is_incomplete, repaired

_States = defaultdict[Tensor, Any]


class _Odd(NamedTuple):
    """A parameter that the native module could not take: it is new, or its tensors do not fit."""

    group: dict[str, Any]
    param: Tensor
    place: tuple[int, int]

    @property
    def name(self) -> str:
        return name_of(self.group, *self.place)


@only_threads_that_exist()
def step_with_repairs(
    stepper: Stepper,
    param_groups: list[dict[str, Any]],
    states: _States,
    places: list[tuple[int, int]],
    groups: list[NativeGroup],
    arguments: Arguments,
) -> None:
    """Repairs or refuses the parameters at the odd `places`, then makes the step.

    If it raises before anything was stepped, `states` is as before.
    """
    odd = [_Odd(param_groups[g], groups[g][0][position], (g, position)) for g, position in places]
    for each in odd:
        check_tensor(each.name, each.param)
    if any(is_fake(each.param) for each in odd):
        _step_fake(states, odd, groups)
        return
    for each in odd:
        check_repairable(each.name, each.group, each.param, states.get(each.param, {}))
    with torch.no_grad(), _undoing(stepper, states, odd):
        _repair_states(states, odd, is_controlled=arguments[1])
        with _in_aligned_memory(states, odd, groups) as (groups, stepped):
            grads = _fitting_grads(odd, stepped)
            still_odd = stepper.step(states, groups, grads, *arguments)
        if still_odd:
            names = ", ".join(name_of(param_groups[g], g, position) for g, position in still_odd)
            text = "the tensors of a step must stay as they are while it is prepared"
            raise RuntimeError(f"{names}: {text}")


def _step_fake(states: _States, odd: list[_Odd], groups: list[NativeGroup]) -> None:
    """Makes the states that a step would make: fake tensors have no memory to step."""
    params = (param for group in groups for param in group[0])
    real = [param for param in params if param.grad is not None and not is_fake(param)]
    if real:
        name = next(each.name for each in odd if is_fake(each.param))
        text = "must be a tensor with memory, as other parameters are, it is a FakeTensor"
        raise TypeError(f"{name} {text}")
    for each in odd:
        check_fake(each.name, each.param)
        check_state(each.name, each.param, states.get(each.param, {}))
    with torch.no_grad():
        for group, param, _ in odd:
            has_masters, state = bool(group["master_weights"]), states.get(param, {})
            if is_incomplete(state, param, has_masters):
                states[param] = repaired(param, state, has_masters, on_device=False)


@contextmanager
def _undoing(stepper: Stepper, states: _States, odd: list[_Odd]) -> Iterator[None]:
    """Gives the parameters their old states if the block raises before anything was stepped."""
    before = {p: dict(states[p]) if p in states else None for p in (each.param for each in odd)}
    try:
        yield
    except BaseException:
        # Parameters that were stepped need their new state.
        if not stepper.has_begun():
            for param, old_state in before.items():
                if old_state is None:
                    states.pop(param, None)
                else:
                    states[param] = old_state
        raise


def _repair_states(states: _States, odd: list[_Odd], is_controlled: bool) -> None:
    counting = {param.device for param, state in states.items() if _counts_on_device(param, state)}
    for group, param, _ in odd:
        on_device = param.is_cuda and (is_controlled or param.device in counting)
        state, has_masters = states.get(param, {}), bool(group["master_weights"])
        states[param] = repaired(param, state, has_masters, on_device)


def _counts_on_device(key: Any, state: Any) -> bool:
    # Other code may have entries of its own among the states.
    return isinstance(key, Tensor) and isinstance(state, dict) and is_on_device(state.get("step"))


@contextmanager
def _in_aligned_memory(
    states: _States, odd: list[_Odd], groups: list[NativeGroup]
) -> Iterator[tuple[list[NativeGroup], list[Tensor]]]:
    """Replaces parameters at addresses that their type cannot have by copies, for the block.

    Yields the groups with the copies in place of those parameters, and for each odd parameter its
    copy, or itself if it has none. After the block the parameters get the copies' values.
    """
    copies: dict[Tensor, Tensor] = {}
    for each in odd:
        param, own = each.param, plain(each.param)
        assert own is not None
        if not is_aligned(own):
            # The native module sees the copies only, and refuses what overlaps them.
            for other in (p for group in groups for p in group[0]):
                if other is not param and other.grad is not None:
                    check_apart(name_of(each.group, *each.place), own, other)
            _check_writable(each.name, own)
            copies[param] = torch.empty_like(own).copy_(own)
    stepped = [copies.get(each.param, each.param) for each in odd]
    if copies:
        groups = [([copies.get(p, p) for p in group[0]], *group[1:]) for group in groups]
    try:
        states.update((copy, states[param]) for param, copy in copies.items())
        yield groups, stepped
        for param, copy in copies.items():
            param.copy_(copy)
    finally:
        for copy in copies.values():
            states.pop(copy, None)


def _check_writable(name: str, param: Tensor) -> None:
    """Fails if torch does not let values be written into a parameter."""
    try:
        param.copy_(param)
    except RuntimeError as error:
        text = "must be aligned, or a tensor that torch's operations can change in place"
        raise ValueError(f"{name} {text}: {error}") from None


def _fitting_grads(odd: list[_Odd], stepped: list[Tensor]) -> dict[int, Tensor]:
    """The gradients that the native module takes in place of a parameter's, by the id of it."""
    grads: dict[int, Tensor] = {}
    for (_, param, _), step in zip(odd, stepped):
        like, grad = plain(step), plain_grad(param, param.grad)
        assert like is not None and grad is not None
        if grad.is_neg() or not same_strides(grad, like) or not is_aligned(grad):
            grad = torch.empty_like(like, dtype=grad.dtype).copy_(grad)
        elif step is param:
            continue
        grads[id(step)] = grad
    return grads
