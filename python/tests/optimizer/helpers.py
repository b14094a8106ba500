"""Functions that several tests use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dualadam.torch import DualAdam

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def variants() -> list[Any]:
    """The variants of the repository's `variants.txt` that the optimizer has.

    Each is the type of the parameter, the type of the gradient, and whether there is a master. In
    the other variants, moments or masters are not float32.
    """
    lines = (Path(__file__).parents[3] / "variants.txt").read_text().splitlines()
    found = []
    for line in lines:
        if line and not line.startswith("#"):
            name, param, grad, exp_avg, exp_avg_sq, master = line.split()
            if exp_avg == exp_avg_sq == "f32" and master in ("-", "f32"):
                found.append(pytest.param(TYPES[param], TYPES[grad], master != "-", id=name))
    return found


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor's elements, for comparison."""
    kinds = {
        torch.float32: torch.int32,
        torch.bfloat16: torch.int16,
        torch.float16: torch.int16,
        torch.float64: torch.int64,
    }
    return tensor.detach().contiguous().view(kinds[tensor.dtype]).clone()


def everything(optimizer: DualAdam) -> list[Any]:
    """All that a step or a load can change, as bits."""
    seen: list[Any] = []
    for group in optimizer.param_groups:
        seen.append({key: value for key, value in group.items() if key != "params"})
        for param in group["params"]:
            seen.append(
                bits(param)
                if param.layout == torch.strided and param.dtype != torch.complex64
                else None
            )
            state = optimizer.state.get(param, {})
            seen.append(
                {
                    key: bits(value) if value.is_floating_point() else value.clone()
                    for key, value in state.items()
                }
            )
    return seen


def assert_same(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    for one, other in zip(before, after):
        if isinstance(one, dict):
            assert list(one) == list(other)
            assert all(map(is_same, one.values(), other.values())), (one, other)
        else:
            assert is_same(one, other)


def is_same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
