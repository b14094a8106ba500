"""What needs a group of processes, but only one process."""

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


def test_masters_follow_changes_of_dtensors() -> None:
    code = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

mesh = init_device_mesh("cpu", (1,))
options = dict(lr=1e-5, weight_decay=0, switching_rate=1, master_weights=True)

def is_kept(model, change):
    optimizer = DualAdam(model.parameters(), **options)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    with torch.no_grad():
        change(model)
    expected = [p.full_tensor().clone() for p in model.parameters()]
    optimizer.step()
    return all(torch.equal(p.full_tensor(), e) for p, e in zip(model.parameters(), expected))

def distributed():
    model = torch.nn.Module()
    ones = torch.ones(6, dtype=torch.bfloat16)
    model.p = torch.nn.Parameter(distribute_tensor(ones, mesh, [Shard(0)]))
    return model

def sharded():
    model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    fully_shard(model)
    return model

def loaded(model):
    state = model.state_dict()
    model.load_state_dict({name: value * 0.5 for name, value in state.items()})

def written_locally(model):
    for p in model.parameters():
        p.to_local().mul_(0.5)

def written_detached(model):
    for p in model.parameters():
        p.detach().to_local().mul_(0.5)

outcome = [
    is_kept(distributed(), lambda model: model.p.mul_(0.5)),
    is_kept(distributed(), lambda model: model.p.clamp_(max=0.5)),
    is_kept(distributed(), written_locally),
    is_kept(sharded(), loaded),
    # torch counts this nowhere, as the documentation says.
    is_kept(distributed(), written_detached),
]
"""
    assert outcome_of(code) == [True, True, True, True, False]


def test_dtensors_of_fake_tensors() -> None:
    code = """
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

mesh = init_device_mesh("cpu", (1,))
with FakeTensorMode():
    local = torch.ones(5, 3, dtype=torch.bfloat16)
    p = torch.nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)], run_check=False))
    p.grad = torch.ones_like(p)
    optimizer = DualAdam([p], switching_steps=5, master_weights=True)
    optimizer.step()
    optimizer.step()
    master = optimizer.state[p]["master_param"]
outcome = [isinstance(master, DTensor), master.shape == p.shape, master.dtype == torch.float32]
"""
    assert outcome_of(code) == [True, True, True]


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
