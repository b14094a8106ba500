"""The examples in the docstrings run, and give what they show."""

import doctest
from typing import Any

import pytest

import dualadam
import dualadam.torch

# Each has at least one example. The finder goes into the methods of classes by itself.
PUBLIC = {
    "dualadam": dualadam,
    "dualadam.Config": dualadam.Config,
    "dualadam.Schedule": dualadam.Schedule,
    "dualadam.step": dualadam.step,
    "dualadam.torch.DualAdam": dualadam.torch.DualAdam,
}


def doctests() -> list[Any]:
    # `module=False` means that objects of every module are searched, such as native methods.
    found = []
    for name, thing in PUBLIC.items():
        recurse = name != "dualadam"
        tests = doctest.DocTestFinder(recurse=recurse).find(thing, name, module=False)
        found += [pytest.param(test, id=test.name) for test in tests if test.examples]
    return found


@pytest.mark.parametrize("test", doctests())
def test_it_gives_what_it_shows(test: doctest.DocTest) -> None:
    report: list[str] = []
    assert doctest.DocTestRunner().run(test, out=report.append).failed == 0, "".join(report)


def test_each_public_name_has_an_example() -> None:
    names = [parameter.id for parameter in doctests()]
    assert set(PUBLIC) <= set(names)
    methods = ("linear", "linear_until", "linear_early_drop", "exponential", "fixed")
    more = ("from_tuple", "as_tuple", "alpha", "first_adam_step")
    assert {f"dualadam.Schedule.{name}" for name in (*methods, *more)} <= set(names)
    assert {"dualadam.Config.coeffs", "dualadam.torch.DualAdam.load_state_dict"} <= set(names)
