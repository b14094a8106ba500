"""Trains a small model on the ranks that torchrun starts, and saves the result.

`test_distributed.py` starts it.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    distribute_module,
    distribute_tensor,
)
from torch.nn.parallel import DistributedDataParallel

from dualadam.torch import DualAdam

STEPS = 12


def model() -> nn.Sequential:
    torch.manual_seed(0)
    # Sizes that neither two nor three ranks divide evenly.
    return nn.Sequential(
        nn.Linear(5, 17), nn.Tanh(), nn.Linear(17, 7), nn.Tanh(), nn.Linear(7, 1, bias=False)
    )


def wrapped(kind: str, trained: nn.Sequential) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(trained)
    if kind == "fsdp2":
        for layer in trained:
            fully_shard(layer)
        fully_shard(trained)
    if kind == "replicated":
        distribute_module(trained, init_device_mesh("cpu", (dist.get_world_size(),)))
    return trained


def optimizer(trained: nn.Module) -> DualAdam:
    decayed = [p for p in trained.parameters() if p.ndim > 1]
    others = [p for p in trained.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "lr": 3e-3}]
    return DualAdam(groups, lr=1e-2, switching_steps=8)


def backward(trained: nn.Module, step: int) -> None:
    """The same gradients on every rank: all see the same batch."""
    generator = torch.Generator().manual_seed(step)
    inputs, targets = (
        torch.randn(16, 5, generator=generator),
        torch.randn(16, 1, generator=generator),
    )
    (trained(inputs) - targets).square().mean().backward()


def assign_gradients(trained: nn.Module, step: int) -> None:
    """Gradients that do not depend on the number of ranks: each gets its part of the same ones."""
    generator = torch.Generator().manual_seed(step)
    for parameter in trained.parameters():
        full = torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor) and parameter.placements == (Replicate(),):
            # The ranks' parts must be added up first, as with sequence parallelism.
            part = full if dist.get_rank() == 0 else torch.zeros_like(full)
            full = DTensor.from_local(part, parameter.device_mesh, [Partial()])
        elif isinstance(parameter, DTensor):
            full = distribute_tensor(full, parameter.device_mesh, parameter.placements)
        parameter.grad = full


def full(value: object) -> object:
    return value.full_tensor() if isinstance(value, DTensor) else value


def result(trained: nn.Module, stepped: DualAdam) -> dict[str, object]:
    """Parameters and states as one process would have them. Every rank must call it."""
    state = {}
    for name, parameter in trained.named_parameters():
        entries = {key: full(value) for key, value in stepped.state[parameter].items()}
        state[name.removeprefix("module.")] = {"param": full(parameter).detach(), **entries}
    return state


def train(steps: range, gradients: str, trained: nn.Module, stepped: DualAdam) -> None:
    for step in steps:
        if gradients == "assigned":
            assign_gradients(trained, step)
        else:
            backward(trained, step)
        stepped.step()
        stepped.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=["alone", "ddp", "fsdp2", "replicated"], required=True)
    parser.add_argument("--gradients", choices=["backward", "assigned"], default="backward")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=STEPS)
    parser.add_argument("--load", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    trained = wrapped(arguments.kind, model())
    stepped = optimizer(trained)
    if arguments.load:
        load(trained, stepped, arguments.load)
    train(range(arguments.first, arguments.last), arguments.gradients, trained, stepped)
    if arguments.save:
        model_state, optimizer_state = get_state_dict(trained, stepped)
        dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=arguments.save)
    outcome = result(trained, stepped)
    torch.save(outcome, f"{arguments.result}.{dist.get_rank()}")
    dist.destroy_process_group()
    # Gloo's threads outlive the group, to which meshes and DDP refer. One that frees a tensor while
    # the interpreter shuts down ends the process with "terminate called without an active
    # exception". So the process ends without this shutdown.
    os._exit(0)


def load(trained: nn.Module, stepped: DualAdam, folder: Path) -> None:
    model_state, optimizer_state = get_state_dict(trained, stepped)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        trained, stepped, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )


if __name__ == "__main__":
    main()
