"""The programs of the book's recipes, and the comparison of their steps with torch's AdamW.

A program with AdamW becomes one with DualAdam by another class and a switching length, and by
nothing else. So the tests change a recipe's text in these two places.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from reference import HALF_ULP, Rule, step
from samples import RECIPES, blocks
from steps import Update, is_same, put, values, watched
from torch.optim import Optimizer

# The names that the code of a recipe defines.
Program = dict[str, Any]
Trained = tuple[torch.nn.Module, Optimizer]
# Trains with a program, with a model and data of the test.
Run = Callable[[Program], Trained]

_LENGTH = re.compile(r", switching_steps=[^,)]+")


def recipe(page: str, length: str | None = None) -> Program:
    """The program of a page, with `length` in place of its switching length if it is given."""
    code = _code(page)
    return _program(code if length is None else _LENGTH.sub(f", {length}", code))


def recipe_with_adamw(page: str) -> Program:
    """The program of a page with torch's AdamW."""
    code = _LENGTH.sub("", _code(page)).replace("from dualadam.torch", "from torch.optim")
    return _program(code.replace("DualAdam", "AdamW"))


def _code(page: str) -> str:
    ((_, code),) = blocks(RECIPES / f"{page}.md")
    assert len(_LENGTH.findall(code)) == 1
    return code


def _program(code: str) -> Program:
    names: Program = {"__name__": "recipe"}
    exec(code, names)
    return names


def assert_it_becomes_adamw(page: str, run: Run, steps: int, length: int) -> None:
    """Checks that a program's steps are AdamW's from its switching length on, and not before.

    With `switching_rate=1`, all are AdamW's.
    """
    theirs: list[list[Update]] = []
    with watched(lambda _, updates: theirs.append(updates)):
        run(recipe_with_adamw(page))
    assert len(theirs) == steps
    assert np.all(_distances(run, recipe(page, "switching_rate=1"), theirs) <= 1)
    distances = _distances(run, recipe(page), theirs)
    assert np.all(distances[: length - 1] > 1) and np.all(distances[length - 1 :] <= 1)


def assert_same_bits(one: Trained, other: Trained) -> None:
    """Checks that two runs ended with the same parameters, moments and counts of steps."""
    ours, theirs = one[0].state_dict(), other[0].state_dict()
    assert list(ours) == list(theirs) and all(map(is_same, ours.values(), theirs.values()))
    pairs = zip(values(one[1]), values(other[1]), strict=True)
    assert all(mine.equal(yours) for mine, yours in pairs)


def _distances(run: Run, program: Program, theirs: list[list[Update]]) -> Any:
    """How far each step is from AdamW's: the largest difference of a parameter, in bounds.

    Training amplifies roundings, and nothing bounds by how much. So the program goes on from the
    bits that AdamW wrote: each step must read what AdamW's step read, and is compared alone.
    """
    distances: list[float] = []

    def follow(optimizer: Optimizer, ours: list[Update]) -> None:
        adamw = theirs[len(distances)]
        distances.append(np.max([_distance(*pair) for pair in zip(ours, adamw, strict=True)]))
        put(optimizer, [update.after for update in adamw])

    with watched(follow):
        run(program)
    assert len(distances) == len(theirs)
    return np.array(distances)


def _distance(ours: Update, theirs: Update) -> float:
    """The largest difference between a parameter after two steps, in bounds."""
    assert ours.options == theirs.options and ours.before.equal(theirs.before)
    if ours.grad is None or theirs.grad is None:
        assert ours.grad is theirs.grad
        assert ours.after.equal(ours.before) and theirs.after.equal(ours.before)
        return 0.0
    assert is_same(ours.grad, theirs.grad)
    before, one, other = ours.before, ours.after, theirs.after
    assert one.step == other.step == before.step + 1
    lr, betas, eps, decay = ours.options.values()
    rule = Rule(lr, tuple(betas), eps, decoupled_decay=decay)
    exact = step(rule, one.step, before.param, ours.grad, before.exp_avg, before.exp_avg_sq)
    assert np.all(_difference(one.exp_avg, other.exp_avg) <= 2 * exact.m_bound)
    assert np.all(_difference(one.exp_avg_sq, other.exp_avg_sq) <= 2 * exact.v_bound)
    # Both are within the bound of the exact step. torch's decay rounds the parameter twice more.
    bound = 2 * exact.p_bound + (2 * HALF_ULP * np.abs(exact.p) if decay else 0)
    return float(np.max(_difference(one.param, other.param) / bound))


def _difference(one: torch.Tensor, other: torch.Tensor) -> Any:
    return np.abs(one.numpy().astype(np.float64) - other.numpy().astype(np.float64))
