"""What torch may do around a step: capture it, trace it, or only simulate it."""

from typing import Any

import torch
from torch._C import _get_dispatch_mode, _len_torch_dispatch_stack, _TorchDispatchModeKey
from torch._ops import _get_dispatch_mode_pre_dispatch, _len_torch_dispatch_stack_pre_dispatch

from dualadam.torch.groups import name_of
from dualadam.torch.plain import is_fake


def is_capturing() -> bool:
    """Whether work on the current CUDA stream goes into a CUDA graph."""
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()


def check_modes(param_groups: list[dict[str, Any]], is_controlled: bool) -> None:
    """Fails if what torch does around a step would not see it.

    Kernels of the native module write to memory, whatever mode torch is in.
    """
    if not is_controlled and is_capturing():
        text = "capturable must be True for a DualAdam whose step is captured in a CUDA graph"
        raise RuntimeError(text)
    before_dispatch: int = _len_torch_dispatch_stack_pre_dispatch()  # type: ignore[no-untyped-call]
    if _len_torch_dispatch_stack() + before_dispatch == 0:
        return
    proxy = _TorchDispatchModeKey.PROXY
    is_traced_before = _get_dispatch_mode_pre_dispatch(proxy)  # type: ignore[no-untyped-call]
    if _get_dispatch_mode(proxy) or is_traced_before:
        text = "a traced graph cannot contain the step of a DualAdam: trace what is around it"
        raise RuntimeError(text)
    if _get_dispatch_mode(_TorchDispatchModeKey.FAKE) is not None:
        for index, group in enumerate(param_groups):
            _check_fake(group, index)


def _check_fake(group: dict[str, Any], index: int) -> None:
    for position, param in enumerate(group["params"]):
        if getattr(param, "grad", None) is not None and not is_fake(param):
            text = "must be a FakeTensor in FakeTensorMode, it has memory: make the model there"
            raise TypeError(f"{name_of(group, index, position)} {text}")
