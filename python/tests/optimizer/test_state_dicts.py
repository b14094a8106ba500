"""State dicts whose parameters have names are loaded by name."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dualadam.torch import DualAdam
from helpers import bits
from torch._subclasses.fake_tensor import FakeTensorMode

import dualadam

Unchanged = Callable[[DualAdam, Callable[[], object], type[BaseException], str], None]

SHAPES = {"a": (3,), "b": (4,), "c": (3,), "d": (2, 2)}


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(3)


def optimizer_of(*groups: str, steps: int = 0, seed: int = 0, **options: Any) -> DualAdam:
    """An optimizer of parameters with these names, each letter one."""
    torch.manual_seed(seed)
    given: list[dict[str, Any]] = []
    for index, names in enumerate(groups):
        params = [(name, torch.nn.Parameter(torch.randn(SHAPES[name[-1]]))) for name in names]
        given.append({"params": params, "lr": 0.1 * (index + 1)})
    optimizer = DualAdam(given, switching_steps=9, **options)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer


def moments(optimizer: DualAdam) -> dict[str, torch.Tensor | None]:
    """The bits of each parameter's first moment, by name."""
    found = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"]):
            state = optimizer.state.get(p)
            found[name] = bits(state["exp_avg"]) if state else None
    return found


def assert_equal(one: dict[str, Any], other: dict[str, Any], names: str) -> None:
    for name in names:
        assert torch.equal(one[name], other[name]), name


def test_states_go_to_the_parameters_of_the_same_name() -> None:
    saved = optimizer_of("abc", "d", steps=2)
    loaded = optimizer_of("cab", "d", seed=1)
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert_equal(moments(saved), moments(loaded), "abcd")
    assert loaded.param_groups[0]["param_names"] == ["c", "a", "b"]


def test_other_names_in_the_same_order_are_taken_by_order() -> None:
    saved = optimizer_of("ab", steps=2)
    state_dict = copy.deepcopy(saved.state_dict())
    state_dict["param_groups"][0]["param_names"] = ["module.a", "module.b"]
    loaded = optimizer_of("ab", seed=1)
    loaded.load_state_dict(state_dict)
    assert_equal(moments(saved), moments(loaded), "ab")
    assert loaded.param_groups[0]["param_names"] == ["a", "b"]


def test_the_schedule_of_a_state_dict_counts(unchanged: Unchanged) -> None:
    def schedule_after(**options: Any) -> Any:
        state_dict = optimizer_of("ab").state_dict()
        state_dict["param_groups"][0].pop("schedule")
        state_dict["param_groups"][0].update(options)
        loaded = optimizer_of("ab")
        loaded.param_groups[0]["switching_steps"] = 9
        loaded.load_state_dict(state_dict)
        loaded.step()
        return loaded.param_groups[0]["schedule"]

    five, nine = (dualadam.Schedule.linear_until(steps).as_tuple() for steps in (5, 9))
    assert schedule_after(schedule=five, switching_steps=5) == five
    assert schedule_after(schedule=five) == five
    assert schedule_after(switching_steps=5) == five
    assert schedule_after() == nine


def test_names_that_differ_in_part_are_those_of_another_model(unchanged: Unchanged) -> None:
    state_dict = optimizer_of("ab", steps=2).state_dict()
    state_dict["param_groups"][0]["param_names"] = ["a", "other"]
    loaded = optimizer_of("ab", steps=1, seed=1)
    text = "it lacks 'b' and has 'other' besides; strict=False loads what both have, and without"
    unchanged(loaded, lambda: loaded.load_state_dict(state_dict), ValueError, text)
    del state_dict["param_groups"][0]["param_names"]
    loaded.load_state_dict(state_dict)


@pytest.mark.parametrize("value", [5, torch.ones(2), {"step": torch.ones(())}])
@pytest.mark.parametrize("key", ["ema", "a", "0", 7])
def test_entries_of_other_code_stay_in_the_state(key: Any, value: Any) -> None:
    optimizer = optimizer_of("ab")
    optimizer.state[key] = value
    for _ in range(2):
        optimizer.load_state_dict(optimizer.state_dict())
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert optimizer.state[key] is value
    assert_equal(moments(optimizer), moments(optimizer_of("ab", steps=2)), "ab")


@pytest.mark.parametrize(
    "kind", [tuple, set, dict.fromkeys, lambda ps: dict(enumerate(ps)).values()]
)
def test_parameters_in_other_collections(kind: Any) -> None:
    optimizer = optimizer_of("a", steps=1)
    (p,) = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0]["params"] = kind([p])
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize(
    "keys", [["0", "1"], [0, "1"], ["a", "b"], ["module.a", "module.b"], [10, 11]]
)
def test_states_under_other_keys_are_not_lost(unchanged: Unchanged, keys: list[Any]) -> None:
    state_dict = optimizer_of("ab", steps=2).state_dict()
    state_dict["state"] = dict(zip(keys, state_dict["state"].values()))
    loaded = optimizer_of("ab", steps=1)
    text = "must have the keys that its groups have as params, such as 0, got"
    unchanged(loaded, lambda: loaded.load_state_dict(state_dict), ValueError, text)


@pytest.mark.parametrize(
    ("key", "value", "kind", "text"),
    [
        ("step", "x", TypeError, "step of parameter 'a' must be a number, got 'x'"),
        ("step", None, TypeError, "step of parameter 'a' must be a number, got None"),
        ("step", torch.tensor(1.0, device="meta"), TypeError, "step of parameter 'a' must be a"),
        ("step", 10**400, TypeError, "step of parameter 'a' must be a number"),
        ("step", torch.ones(1).to_sparse(), TypeError, "step of parameter 'a' must be a dense"),
        ("exp_avg", torch.ones(3, device="meta"), ValueError, "exp_avg of parameter 'a' must have"),
        ("exp_avg", nested(), TypeError, "exp_avg of parameter 'a' must be a dense .* nested"),
        ("exp_avg", fake(), TypeError, "exp_avg of parameter 'a' must have memory, it is a Fake"),
    ],
)
def test_entries_that_no_state_has(
    unchanged: Unchanged, key: str, value: Any, kind: type[BaseException], text: str
) -> None:
    state_dict = copy.deepcopy(optimizer_of("ab", steps=2).state_dict())
    state_dict["state"][0][key] = value
    loaded = optimizer_of("ab", steps=1)
    unchanged(loaded, lambda: loaded.load_state_dict(state_dict), kind, text)


def test_parameters_that_moved_are_not_mixed_up(unchanged: Unchanged) -> None:
    state_dict = optimizer_of("ac", steps=2).state_dict()
    loaded = optimizer_of("cb", steps=1, seed=1)
    state_dict["param_groups"][0]["param_names"] = ["a", "c"]
    unchanged(
        loaded,
        lambda: loaded.load_state_dict(state_dict),
        ValueError,
        "must have the optimizer's parameters, but it lacks 'b' and has 'a' besides; strict=False",
    )
    state_dict = optimizer_of("ab", "cd", steps=2).state_dict()
    loaded = optimizer_of("cb", "ad", steps=1, seed=1)
    unchanged(
        loaded,
        lambda: loaded.load_state_dict(state_dict),
        ValueError,
        "but it has 'c', 'a' in other groups; strict=False",
    )


def test_what_both_have_is_loaded() -> None:
    saved = optimizer_of("abc", steps=3)
    loaded = optimizer_of("db", "c", steps=1, seed=1)
    before = moments(loaded)
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()), strict=False)
    after = moments(loaded)
    assert_equal(after, moments(saved), "bc")
    assert_equal(after, before, "d")
    assert [group["lr"] for group in loaded.param_groups] == [0.1, 0.1]
    steps = [loaded.state[p]["step"].item() for g in loaded.param_groups for p in g["params"]]
    assert steps == [1, 3, 3]
    loaded.step()


def test_nothing_in_common() -> None:
    loaded = optimizer_of("ab", "c", steps=1)
    before = moments(loaded)
    loaded.load_state_dict(optimizer_of("d", steps=1).state_dict(), strict=False)
    assert_equal(moments(loaded), before, "abc")
    assert [group["lr"] for group in loaded.param_groups] == [0.1, 0.2]


@pytest.mark.parametrize("where", ["the optimizer", "the state dict"])
def test_names_are_needed_for_it(unchanged: Unchanged, where: str) -> None:
    loaded, other = optimizer_of("ab", steps=1), optimizer_of("ab", steps=1)
    state_dict = other.state_dict()
    if where == "the optimizer":
        del loaded.param_groups[0]["param_names"]
    else:
        del state_dict["param_groups"][0]["param_names"]
    unchanged(
        loaded,
        lambda: loaded.load_state_dict(state_dict, strict=False),
        ValueError,
        f"strict must be True where parameters have no names of their own, as in {where}",
    )


def test_shapes_must_fit_also_by_name(unchanged: Unchanged) -> None:
    state_dict = copy.deepcopy(optimizer_of("ab", steps=1).state_dict())
    state_dict["state"][0]["exp_avg"] = torch.ones(9)
    loaded = optimizer_of("ad", steps=1)
    unchanged(
        loaded,
        lambda: loaded.load_state_dict(state_dict, strict=False),
        ValueError,
        r"exp_avg of parameter 'a' must have the shape \(3,\), it has \(9,\)",
    )


def test_masters_that_were_not_saved_are_made() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5).bfloat16())
    p.grad = torch.randn(5).bfloat16()
    without = DualAdam([p], lr=0.5, switching_steps=9)
    without.step()
    state_dict = copy.deepcopy(without.state_dict())
    # The saved group switches masters off. The option asks for them.
    with_masters = DualAdam([p], switching_steps=9, master_weights=True)
    with_masters.load_state_dict(state_dict)
    assert with_masters.param_groups[0]["master_weights"] is True
    before = p.detach().float()
    with_masters.step()
    state = with_masters.state[p]
    assert state["step"] == 2 and state["master_param"].dtype == torch.float32
    assert torch.equal(state["master_param"].bfloat16(), p) and not torch.equal(before, p.float())


@pytest.mark.parametrize(
    ("state_dict", "kind", "text"),
    [
        ({}, ValueError, "the state dict must have state, it has nothing"),
        ({"state": {}}, ValueError, "the state dict must have param_groups, it has state"),
        (7, TypeError, "the state dict must be a dict, it is <class 'int'>"),
        (None, TypeError, "the state dict must be a dict"),
        ({"state": [], "param_groups": []}, TypeError, "state of the state dict must be a dict"),
        ({"state": {}, "param_groups": [{"params": 3}]}, ValueError, "group 0 .* with params"),
        ({"state": {}, "param_groups": [{"params": [[1]]}]}, TypeError, "params of group 0 of the"),
        ({"state": {}, "param_groups": {}}, TypeError, "param_groups of the .* must be a list"),
        ({"state": {}, "param_groups": [{}]}, ValueError, "group 0 .* must be a dict with params"),
        ({"state": {}, "param_groups": [3]}, ValueError, "group 0 .* must be a dict with params"),
    ],
)
def test_what_is_no_state_dict(
    unchanged: Unchanged, state_dict: Any, kind: type[BaseException], text: str
) -> None:
    optimizer = optimizer_of("ab", steps=1)
    unchanged(optimizer, lambda: optimizer.load_state_dict(state_dict), kind, text)
