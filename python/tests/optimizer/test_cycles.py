"""Optimizers and parameters that refer to each other, and Python's garbage collector."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dualadam.torch import DualAdam
from helpers import assert_same, bits, everything


@pytest.fixture(autouse=True)
def collects_when_asked() -> Iterator[None]:
    threshold = gc.get_threshold()
    gc.collect()
    gc.disable()
    yield
    gc.set_threshold(*threshold)
    gc.enable()


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params)


def dual_adam(params: Any) -> torch.optim.Optimizer:
    return DualAdam(params, switching_steps=9)


def hook(model: Any, optimizer: Any) -> None:
    model.weight.register_hook(lambda grad, optimizer=optimizer: grad)


def two_hooks(model: Any, optimizer: Any) -> None:
    hook(model, optimizer)
    model.bias.register_hook(lambda grad, optimizer=optimizer: grad)


def hook_after_accumulation(model: Any, optimizer: Any) -> None:
    model.weight.register_post_accumulate_grad_hook(lambda param, optimizer=optimizer: None)


def attribute(model: Any, optimizer: Any) -> None:
    model.weight.optimizer = optimizer


def attribute_of_a_gradient(model: Any, optimizer: Any) -> None:
    model.weight.grad.optimizer = optimizer


def module(model: Any, optimizer: Any) -> None:
    model.optimizer = optimizer
    model.itself = [model]
    optimizer.model = model


def closure(model: Any, optimizer: Any) -> None:
    optimizer.closure = lambda: model(optimizer.defaults["lr"])


def itself(model: Any, optimizer: Any) -> None:
    optimizer.itself = optimizer


SHAPES = [hook, two_hooks, attribute, module, closure, itself]
# torch 2.15 does not show these cycles to the collector.
OTHER_SHAPES = [hook_after_accumulation, attribute_of_a_gradient]


def train(model: Any, optimizer: Any, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()


def collected(
    make: Callable[[Any], Any], tie: Callable[[Any, Any], None], late: bool
) -> list[bool]:
    """Whether the optimizer, a parameter, its memory and its moment are freed by one collection."""

    def made() -> list[weakref.ref[Any]]:
        model: Any = torch.nn.Linear(3, 3)
        memory = np.ones((3, 3), np.float32)
        model.weight.data = torch.from_numpy(memory)
        optimizer = make(model.parameters())
        train(model, optimizer)
        tie(model, optimizer)
        if not late:
            train(model, optimizer)
        moment = optimizer.__dict__["state"][model.weight]["exp_avg"]
        return [weakref.ref(each) for each in (optimizer, model.weight, memory, moment)]

    refs = made()
    assert refs[0]() is not None
    gc.collect()
    return [ref() is None for ref in refs]


@pytest.mark.parametrize("late", [False, True], ids=["before steps", "after the last step"])
@pytest.mark.parametrize("tie", SHAPES)
def test_cycles_are_freed(tie: Callable[[Any, Any], None], late: bool) -> None:
    assert all(collected(dual_adam, tie, late))


@pytest.mark.parametrize("tie", SHAPES + OTHER_SHAPES)
def test_what_torchs_adamw_frees_is_freed(tie: Callable[[Any, Any], None]) -> None:
    assert collected(dual_adam, tie, False) == collected(adamw, tie, False)


def twins() -> list[Any]:
    made: list[Any] = []
    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
        made += [model, DualAdam(model.parameters(), lr=0.1, switching_steps=8)]
    return made


def test_steps_go_on_after_collections() -> None:
    model, optimizer, other_model, other = twins()
    for generation in (0, 1, 2, 2):
        train(model, optimizer)
        gc.collect(generation)
        train(other_model, other)
    assert_same(everything(optimizer), everything(other))


def test_steps_amid_collections() -> None:
    model, optimizer, other_model, other = twins()
    train(other_model, other, 20)
    started: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        started.append(info["generation"])

    gc.callbacks.append(note)
    try:
        gc.enable()
        gc.set_threshold(1, 1, 1)
        train(model, optimizer, 20)
    finally:
        gc.callbacks.remove(note)
    assert {0, 1} <= set(started)
    assert_same(everything(optimizer), everything(other))


def test_a_collection_in_a_step() -> None:
    class Collects(torch.nn.Parameter):
        @property
        def _local_tensor(self) -> torch.Tensor:
            gc.collect()
            return plain

    plain = torch.ones(3)
    p, q = torch.nn.Parameter(torch.ones(3)), Collects(plain)
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    optimizer = DualAdam([p, q], switching_steps=9)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(bits(p), bits(plain))
    assert [state["step"] for state in optimizer.state.values()] == [3, 3]
    p.__dict__["optimizer"] = optimizer
    freed: list[weakref.ref[Any]] = [weakref.ref(each) for each in (optimizer, p, plain)]
    del p, q, plain, optimizer
    gc.collect()
    assert [ref() for ref in freed] == [None, None, None]


def test_a_step_by_a_finalizer() -> None:
    """The collector calls finalizers before it clears anything."""
    seen: list[torch.Tensor] = []

    class Last:
        def __init__(self, optimizer: DualAdam) -> None:
            self.optimizer = optimizer

        def __del__(self) -> None:
            self.optimizer.step()
            seen.append(bits(self.optimizer.param_groups[0]["params"][0]))

    def made(tied: bool) -> tuple[weakref.ref[Any], torch.Tensor]:
        p: Any = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        optimizer = DualAdam([p], lr=0.1, switching_steps=9)
        optimizer.step()
        optimizer.step()
        if tied:
            p.last = Last(optimizer)
        else:
            optimizer.step()
        return weakref.ref(p), bits(p)

    ref, _ = made(True)
    gc.collect()
    _, expected = made(False)
    assert len(seen) == 1 and torch.equal(seen[0], expected)
    # The finalizer's step refers to the parameter until the next collection.
    gc.collect()
    assert ref() is None


def test_a_step_that_fails_keeps_no_parameter() -> None:
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    q = torch.nn.Parameter(torch.ones(8))
    optimizer = DualAdam([p, q], switching_steps=3, master_weights=True)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    with torch.no_grad():
        p.clamp_(max=0.5)
    q.grad = torch.ones(8).to_sparse()
    with pytest.raises(ValueError, match="must be dense"):
        optimizer.step()
    p.register_hook(lambda grad, optimizer=optimizer: grad)
    freed = weakref.ref(p)
    del p, q, optimizer
    gc.collect()
    assert freed() is None


def test_a_state_that_is_deleted_is_freed_at_once() -> None:
    model, optimizer, _, _ = twins()
    train(model, optimizer)
    p = model[0].weight
    freed = [weakref.ref(entry) for entry in optimizer.__dict__["state"][p].values()]
    del optimizer.state[p]
    assert [ref() for ref in freed] == [None, None, None]
    train(model, optimizer, 1)
    assert optimizer.state[p]["step"] == 1 and optimizer.state[model[0].bias]["step"] == 4
