"""The time that a step of `dualadam.torch.DualAdam` takes beside its arithmetic.

It steps 160 parameters of one element on the CPU. It prints the smallest and the middle of 600
means of 10 steps each, in microseconds. They include the arithmetic of the 160 elements. "torch's
own" is an optimizer whose step does nothing.
"""

import timeit
from collections.abc import Callable

import torch
from dualadam.torch import DualAdam

TENSORS = 160


class Nothing(torch.optim.Optimizer):
    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        super().__init__(params, {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        pass


def measure(what: str, call: Callable[[], object], less: float = 0.0) -> float:
    call()
    times = sorted(time * 1e5 - less for time in timeit.repeat(call, number=10, repeat=600))
    print(f"{what:50} {times[0]:8.1f} {times[300]:8.1f}")
    return times[0]


def main() -> None:
    params = [torch.nn.Parameter(torch.randn(1)) for _ in range(TENSORS)]
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

    print(f"{'microseconds a step':50} {'least':>8} {'middle':>8}")
    measure("torch's own", Nothing(params).step)
    new_grads()
    optimizer = DualAdam(params, switching_steps=100)
    measure("nothing changed", optimizer.step)
    alone = measure("(new gradients alone)", new_grads)
    measure("new gradients", both(new_grads, optimizer), alone)
    alone = measure("(new gradients and parameters alone)", new_memory)
    measure("new gradients and parameters", both(new_memory, optimizer), alone)
    measure("torch's AdamW, fused", torch.optim.AdamW(params, fused=True).step)
    measure("torch's AdamW, foreach", torch.optim.AdamW(params, foreach=True).step)


if __name__ == "__main__":
    main()
