"""What needs a group of processes, but only one process."""

import os

from child import output_of

GROUP = """
import os, torch
import torch.distributed as dist
from dualadam.torch import DualAdam

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
"""
# As in worker.py.
END = """
print(*map(int, outcome), flush=True)
os._exit(0)
"""


def outcome_of(code: str) -> list[bool]:
    """The entries of `outcome` after a program in a group of one process."""
    words = output_of(GROUP + code + END, OMP_NUM_THREADS="1")
    return [bool(int(word)) for word in words]


def test_zero_keeps_the_switching_length() -> None:
    code = """
from torch.distributed.optim import ZeroRedundancyOptimizer

def trained(make):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = make([p])
    for _ in range(3):
        p.grad = p.detach() * 2
        optimizer.step()
    return p

options = dict(lr=0.1, switching_steps=5)
zero = trained(lambda params: ZeroRedundancyOptimizer(params, DualAdam, **options))
outcome = [torch.equal(zero, trained(lambda params: DualAdam(params, **options)))]
"""
    assert outcome_of(code) == [True]


def test_parts_of_a_dtensor_in_another_order() -> None:
    code = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

mesh = init_device_mesh("cpu", (1,))
values, grads = torch.arange(15.0).reshape(5, 3), torch.linspace(-1, 1, 15).reshape(5, 3)
expected = torch.nn.Parameter(values.clone())
expected.grad = grads.clone()
DualAdam([expected], lr=0.1, switching_steps=5).step()

def is_same(local, grad):
    p = torch.nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)]))
    p.grad = DTensor.from_local(grad, mesh, [Shard(0)])
    DualAdam([p], lr=0.1, switching_steps=5).step()
    return torch.equal(p.to_local(), expected)

def transposed(tensor):
    return tensor.t().contiguous().t()

outcome = [
    is_same(values.clone(), transposed(grads)),
    is_same(transposed(values), grads),
    is_same(values.clone(), torch.stack([grads, grads], dim=-1)[..., 0]),
]
"""
    assert outcome_of(code) == [True, True, True]
