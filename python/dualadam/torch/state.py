"""The state of a parameter: its checks, and its repair into the form that the kernels take."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dualadam.torch.groups import as_list, name_of
from dualadam.torch.modes import is_capturing
from dualadam.torch.openmp import only_threads_that_exist
from dualadam.torch.options import REFUSED, is_on_device, number
from dualadam.torch.plain import (
    check_apart,
    check_grad,
    check_memory,
    check_param,
    check_tensor,
    is_aligned,
    is_fake,
    is_strided,
    kind,
    plain,
    same_strides,
)

MASTER = "master_param"
_MOMENTS = ("exp_avg", "exp_avg_sq")
# Float32 represents every whole number up to here. Counters from here on are float64.
_FLOAT32_END = 2**24 - 1
# Above every count of steps, and below where float64 skips whole numbers.
_STEPS_END = 9e15


def needs_master(param: Tensor, master_weights: bool) -> bool:
    """Whether the step of a parameter updates a master."""
    return master_weights and param.dtype in (torch.bfloat16, torch.float16)


def is_incomplete(state: dict[str, Any], param: Tensor, master_weights: bool) -> bool:
    """Whether a repair of this state would make new tensors."""
    needed = ["step", *_MOMENTS]
    if needs_master(param, master_weights):
        needed.append(MASTER)
    return any(key not in state for key in needed)


def check_state(name: str, param: Tensor, state: dict[str, Any]) -> None:
    """Fails if this cannot be the state of a parameter, which `name` names.

    An empty state passes. So does a state whose tensors have another type or layout than the
    kernels take: `repaired` converts them.
    """
    if not isinstance(state, dict):
        raise TypeError(f"the state of {name} must be a dict, it is {kind(state)}")
    if not state:
        return
    for key in ("step", *_MOMENTS):
        if key not in state:
            found = ", ".join(map(str, state))
            raise ValueError(f"the state of {name} must have {key}, it has {found}")
    tensors = [key for key in (*_MOMENTS, MASTER) if key in state]
    for key in tensors:
        _check_like(f"{key} of {name}", param, state[key])
    step = state["step"]
    if isinstance(step, Tensor) and not is_strided(step):
        raise TypeError(f"step of {name} must be a dense tensor or a number, it is {kind(step)}")
    # Before a value is read.
    for key in ("step", *tensors):
        if isinstance(state[key], Tensor):
            check_memory(f"{key} of {name}", plain(state[key]))
    if not is_fake(step):
        _check_step(f"step of {name}", step)


def _check_like(what: str, param: Tensor, value: Any) -> None:
    """Fails if this cannot be a moment or the master of a parameter."""
    is_tensor = isinstance(value, Tensor)
    if not is_tensor or not value.is_floating_point() or not is_strided(value):
        raise TypeError(f"{what} must be a dense floating-point tensor, it is {kind(value)}")
    if is_fake(value) and not is_fake(param):
        raise TypeError(f"{what} must have memory, it is a FakeTensor")
    if value.shape != param.shape:
        text = f"{what} must have the shape {tuple(param.shape)}, it has {tuple(value.shape)}"
        raise ValueError(text)
    if value.is_meta and not param.is_meta:
        raise ValueError(f"{what} must have memory, it is on meta")
    placements, expected = (getattr(tensor, "placements", None) for tensor in (value, param))
    if placements != expected:
        raise ValueError(f"{what} must have the placements {expected}, it has {placements}")


def _check_step(what: str, step: Any) -> None:
    """Fails if this cannot be a step counter. The value of one on a device is not read."""
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(f"{what} must be one number, it has the shape {tuple(step.shape)}")
    if not is_on_device(step):
        steps = number(what, step)
        if not (0 <= steps < _STEPS_END and steps.is_integer()):
            raise ValueError(
                f"{what} must be a whole number of at least 0 and below {_STEPS_END:.0e}, "
                f"it is {steps}"
            )


def check_repairable(
    name: str, group: dict[str, Any], param: Tensor, state: dict[str, Any]
) -> None:
    """Fails if a parameter, its gradient or its state cannot be repaired."""
    check_param(name, param)
    check_grad(name, param, param.grad)
    check_state(name, param, state)
    would_be_made = param.is_cuda and is_incomplete(state, param, group["master_weights"])
    if would_be_made and is_capturing():
        # Each replay of the graph would set the moments to zero again.
        text = "must have had a step before its step is captured in a CUDA graph"
        raise RuntimeError(f"{name} {text}")


@only_threads_that_exist()
def with_masters(
    groups: list[dict[str, Any]], states: dict[Tensor, Any]
) -> list[tuple[int, Tensor, Tensor]]:
    """The parameters that have masters, after their positions among all, and the masters.

    A master of another layout is replaced. Fails before that if a master cannot be one.
    """
    found = []
    places = (
        (index, each)
        for index, group in enumerate(groups)
        for each in enumerate(as_list(group["params"], index))
    )
    for flat, (index, (position, param)) in enumerate(places):
        group, name = groups[index], name_of(groups[index], index, position)
        check_tensor(name, param)
        state = states.get(param, {})
        has_master = not isinstance(state, dict) or MASTER in state
        if has_master and needs_master(param, group["master_weights"]):
            check_state(name, param, state)
            check_param(name, param)
            check_apart(f"{MASTER} of {name}", state[MASTER], param)
            found.append((flat, param, state))
    pairs = []
    with torch.no_grad():
        for flat, param, state in found:
            if not _fits(state[MASTER], param):
                fitting = torch.empty_like(param, dtype=torch.float32, requires_grad=False)
                state[MASTER] = fitting.copy_(state[MASTER])
            own = plain(param)
            assert own is not None
            # A parameter is only read, so a copy can stand for it.
            pairs.append((flat, param if is_aligned(own) else own.clone(), state[MASTER]))
    return pairs


def check_loaded(name: str, param: Tensor, state: dict[str, Any]) -> None:
    """Fails if this, from a state dict, cannot be the state of a parameter, which `name` names."""
    if isinstance(state, dict) and "max_exp_avg_sq" in state:
        reason = REFUSED["amsgrad"]
        raise ValueError(f"the state of {name} must be without max_exp_avg_sq: {reason}")
    check_state(name, param, state)


def repaired(
    param: Tensor,
    state: dict[str, Any],
    master_weights: bool,
    on_device: bool,
    copies: bool = False,
) -> dict[str, Any]:
    """The state of a parameter as the kernels take it.

    Missing tensors are made. Tensors that fit stay the same objects, unless `copies` is set.
    """

    def zeros() -> Tensor:
        return torch.zeros_like(param, dtype=torch.float32, requires_grad=False)

    def copy_of(value: Tensor) -> Tensor:
        return torch.empty_like(param, dtype=torch.float32, requires_grad=False).copy_(value)

    def fitting(key: str, start: Callable[[], Tensor]) -> Tensor:
        value: Tensor | None = state.get(key)
        if value is None:
            return start()
        return value if not copies and _fits(value, param) else copy_of(value)

    # Entries of other code stay as they are.
    own = ("step", *_MOMENTS, MASTER)
    result: dict[str, Any] = {key: value for key, value in state.items() if key not in own}
    result["step"] = _counter(state.get("step", 0), param.device, on_device, copies)
    for key in _MOMENTS:
        result[key] = fitting(key, zeros)
    if needs_master(param, master_weights):
        result[MASTER] = fitting(MASTER, lambda: copy_of(param.detach()))
    return result


def _fits(value: Tensor, param: Tensor) -> bool:
    """Whether the kernels can take a tensor as a moment or the master of a parameter."""
    own, like = plain(value), plain(param)
    if own is None or like is None:
        return False
    is_alike = own.dtype == torch.float32 and own.device == like.device
    return is_alike and same_strides(own, like) and is_aligned(own)


def _counter(step: Any, device: torch.device, on_device: bool, copies: bool) -> Tensor:
    """A step counter as the kernels take it.

    On the device it is int64. On the CPU it is float32, as torch's, and float64 where float32 skips
    whole numbers.
    """
    if on_device or (is_on_device(step) and not copies):
        if isinstance(step, Tensor):
            return step.detach().reshape(()).to(device=device, dtype=torch.int64, copy=copies)
        return torch.full((), int(step), dtype=torch.int64, device=device)
    steps = float(step)
    dtype = torch.float32 if steps < _FLOAT32_END else torch.float64
    if isinstance(step, Tensor) and not copies:
        if step.dtype == dtype and step.device.type == "cpu" and is_aligned(step):
            return step
    return torch.tensor(steps, dtype=dtype, device="cpu")
