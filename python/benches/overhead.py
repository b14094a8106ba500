"""The time that a step of `dualadam.torch.DualAdam` takes beside its arithmetic.

It steps 160 parameters on the CPU and prints the least and the middle time of a step, in
microseconds. "Hot" steps follow each other: the smallest and the middle of 600 means of 10 steps,
with parameters of one element. "After a backward pass" is a step in the training of a network of 80
layers with 8 by 8 weights. Before a "cold" step, 256 MB of other memory are written, so that the
caches hold nothing of the optimizer, of torch and of the interpreter. The times include the
arithmetic. "torch's own" is an optimizer whose step does nothing.
"""

import time
import timeit
from collections.abc import Callable
from statistics import median

import torch
from dualadam.torch import DualAdam

TENSORS = 160
STEPS = 200

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Nothing(torch.optim.Optimizer):
    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        super().__init__(params, {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        pass


def dual_adam(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return DualAdam(params, switching_steps=100)


def fused(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, fused=True)


def foreach(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, foreach=True)


def parameters(kind: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.randn(1, dtype=kind)) for _ in range(TENSORS)]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def print_row(what: str, least: float, middle: float) -> None:
    print(f"{what:50} {least:8.1f} {middle:8.1f}")


def hot(what: str, call: Callable[[], object], less: float = 0.0) -> float:
    call()
    times = sorted(time * 1e5 - less for time in timeit.repeat(call, number=10, repeat=600))
    print_row(what, times[0], times[300])
    return times[0]


def before_each(what: str, work: Callable[[], object], optimizer: torch.optim.Optimizer) -> None:
    times = []
    for _ in range(STEPS):
        work()
        start = time.perf_counter()
        optimizer.step()
        times.append((time.perf_counter() - start) * 1e6)
    print_row(what, min(times[5:]), median(times[5:]))


def hot_rows() -> None:
    params = parameters()
    grads = [[torch.randn(1) for _ in params] for _ in range(2)]
    others = [[torch.randn(1) for _ in params] for _ in range(2)]

    def new_grads() -> None:
        grads.reverse()
        for param, grad in zip(params, grads[0]):
            param.grad = grad

    def new_memory() -> None:
        new_grads()
        others.reverse()
        for param, other in zip(params, others[0]):
            param.data = other

    def both(change: Callable[[], None], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def call() -> None:
            change()
            optimizer.step()

        return call

    hot("hot: torch's own", Nothing(params).step)
    optimizer = dual_adam(params)
    hot("hot: nothing changed", optimizer.step)
    alone = hot("(new gradients alone)", new_grads)
    hot("hot: new gradients", both(new_grads, optimizer), alone)
    alone = hot("(new gradients and parameters alone)", new_memory)
    hot("hot: new gradients and parameters", both(new_memory, optimizer), alone)
    halves = parameters(torch.bfloat16)
    with_masters = DualAdam(halves, switching_steps=100, master_weights=True)
    hot("hot: nothing changed, bfloat16 with masters", with_masters.step)
    hot("hot: torch's AdamW, fused", fused(params).step)
    hot("hot: torch's AdamW, foreach", foreach(params).step)


def training_rows(what: str, make: Make) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(TENSORS // 2)))
    optimizer, x = make(list(model.parameters())), torch.randn(4, 8)

    def backward() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()

    before_each(f"after a backward pass: {what}", backward, optimizer)


def cold_rows(what: str, make: Make) -> None:
    optimizer, other = make(parameters()), torch.zeros(64 << 20)
    before_each(f"cold: {what}", lambda: other.add_(1.0), optimizer)


def main() -> None:
    print(f"{'microseconds a step':50} {'least':>8} {'middle':>8}")
    hot_rows()
    makes = {"torch's own": Nothing, "DualAdam": dual_adam, "torch's AdamW, fused": fused}
    for rows in (training_rows, cold_rows):
        for what, make in makes.items():
            rows(what, make)


if __name__ == "__main__":
    main()
