"""Python code that runs in a step may change lists and dicts.

A property of a subclass of parameters is such code. What a step has found stays alive until it is
done, so the objects made here, which take the memory of freed ones, are not stepped.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dualadam._dualadam import Stepper
from dualadam.torch import DualAdam
from helpers import bits

import dualadam


class Calls(torch.nn.Parameter):
    """A parameter that stands for `memory`, and calls `then` once whenever a step looks at it."""

    memory: torch.Tensor
    then: Callable[[], object] | None

    @property
    def _local_tensor(self) -> torch.Tensor:
        then, self.then = self.then, None
        if then is not None:
            then()
        return self.memory


def calls(memory: torch.Tensor) -> Calls:
    p = Calls(memory)
    p.memory, p.then = memory, None
    return p


def with_grads(*params: torch.Tensor) -> list[torch.Tensor]:
    for p in params:
        p.grad = torch.ones(3)
    return list(params)


def state_of(value: float) -> dict[str, torch.Tensor]:
    return {
        "step": torch.tensor(value),
        "exp_avg": torch.full((3,), value),
        "exp_avg_sq": torch.full((3,), value),
    }


def is_as_made(state: dict[str, torch.Tensor], value: float) -> bool:
    return all(bool((entry == value).all()) for entry in state.values())


def stepped(*params: torch.Tensor, **options: Any) -> DualAdam:
    optimizer = DualAdam(with_grads(*params), switching_steps=9, **options)
    for _ in range(2):
        optimizer.step()
    return optimizer


def test_a_list_of_parameters_becomes_shorter() -> None:
    p, q = calls(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = stepped(p, q)
    kept = bits(p.memory)
    p.then = optimizer.param_groups[0]["params"].pop
    with pytest.raises(RuntimeError, match="group 0 must keep its 2 parameters .* it has 1"):
        optimizer.step()
    assert torch.equal(bits(p.memory), kept) and optimizer.state[p]["step"] == 2


def test_a_list_of_parameters_becomes_longer() -> None:
    p, q, late = calls(torch.ones(3)), *(torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    with_grads(p, q, late)
    optimizer = DualAdam([{"params": [p]}, {"params": [q]}], switching_steps=9)
    optimizer.step()
    p.then = lambda: optimizer.param_groups[1]["params"].append(late)
    optimizer.step()
    assert (optimizer.state[p]["step"], optimizer.state[q]["step"]) == (2, 2)
    assert late not in optimizer.state
    optimizer.step()
    assert (optimizer.state[q]["step"], optimizer.state[late]["step"]) == (3, 1)


@pytest.mark.parametrize("in_order", [True, False])
def test_the_state_of_a_later_parameter_is_replaced(in_order: bool) -> None:
    p, q, last = calls(torch.ones(3)), *(torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = stepped(p, q, last)
    states = optimizer.__dict__["state"]
    if not in_order:
        for param in (q, p):
            states[param] = states.pop(param)
    made = [state_of(7.0) for _ in range(20)]

    def replace() -> None:
        states[q] = state_of(1.0)
        made.extend(state_of(7.0) for _ in range(20))

    p.then = replace
    optimizer.step()
    assert all(is_as_made(state, 7.0) for state in made)
    assert states[p]["step"] == states[last]["step"] == 3
    # If the order is another, the step has taken the states before.
    assert states[q]["step"] == (2 if in_order else 1)


def test_the_parameters_own_state_loses_entries() -> None:
    p = calls(torch.ones(3))
    optimizer = stepped(p)
    state = optimizer.__dict__["state"][p]
    state["exp_avg"] = calls(state["exp_avg"])
    made: list[torch.Tensor] = []

    def lose() -> None:
        del state["step"], state["exp_avg_sq"]
        made.extend(torch.full((3,), 7.0) for _ in range(20))
        made.extend(torch.tensor(7.0) for _ in range(20))

    state["exp_avg"].then = lose
    before = bits(p.memory)
    optimizer.step()
    assert not torch.equal(bits(p.memory), before)
    assert all(bool((each == 7.0).all()) for each in made)


def test_loads_and_syncs_in_a_step_are_refused() -> None:
    p = calls(torch.ones(3))
    optimizer = stepped(p)
    saved, state = optimizer.state_dict(), optimizer.__dict__["state"]
    for call in (lambda: optimizer.load_state_dict(saved), optimizer.sync_masters):
        p.then = call
        with pytest.raises(RuntimeError, match="must be stepped by one thread at a time"):
            optimizer.step()
    assert optimizer.__dict__["state"] is state and state[p]["step"] == 2


CONFIG = dualadam.Config(1e-3, (0.9, 0.999), 1e-8, 0.0, dualadam.Schedule.linear_until(9))


def stepper_of(plain: list[type]) -> Stepper:
    """A stepper to which no other tensor is a plain one."""
    return Stepper(
        plain=plain,
        unwrap=lambda tensor: 5,
        unwrap_grad=lambda param, grad: grad,
        weak_storage=lambda tensor: None,
        has_expired=lambda number: False,
        name_of=lambda group, index, position: "a parameter",
        threads=lambda: 1,
        parallel=0,
    )


def test_what_stands_for_a_tensor_is_a_tensor() -> None:
    p = calls(torch.ones(3))
    stepper = stepper_of([torch.Tensor])
    group: Any = (with_grads(p), {}, CONFIG, False, None)
    with pytest.raises(TypeError, match="unwrap must return a tensor or None, got <class 'int'>"):
        stepper.step({p: state_of(1.0)}, [group], None, 1.0, False, [])


@pytest.mark.parametrize(
    ("plain", "kind", "text"),
    [
        ([torch.Tensor, int], TypeError, "plain must have .*Tensor.* below it, got <class 'int'>"),
        ([], ValueError, "plain must have at least one type, got none"),
    ],
)
def test_types_of_plain_tensors(plain: list[type], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        stepper_of(plain)
