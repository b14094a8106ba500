"""Groups take the keys, numbers and sequences that torch's AdamW takes from other tools."""

import collections
import copy
import io
import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import omegaconf
import pytest
import torch
from dualadam.torch import DualAdam
from helpers import bits
from torch.testing._internal.two_tensor import TwoTensor

AS_ADAMW = {"switching_rate": 1.0, "weight_decay": 0}


def ones(*shape: int, kind: torch.dtype = torch.float32) -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.ones(shape, dtype=kind))
    p.grad = torch.ones_like(p)
    return p


def after_steps(steps: int = 3, **options: Any) -> torch.Tensor:
    """The bits of a parameter after some steps with these options."""
    p = ones(3)
    optimizer = DualAdam([p], **{**AS_ADAMW, **options})
    for step in range(steps):
        p.grad = torch.full((3,), 1.0 + step)
        optimizer.step()
    return bits(p)


def test_keys_of_other_tools_stay() -> None:
    groups = [{"params": [ones(3)], "name": "head", "lr_scale": 0.5, "extra": {"a": [1]}}]
    optimizer = DualAdam(groups, **AS_ADAMW)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in (optimizer.param_groups[0], saved["param_groups"][0]):
        assert (group["name"], group["lr_scale"], group["extra"]) == ("head", 0.5, {"a": [1]})
    saved["param_groups"][0]["lr_scale"] = 0.25
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr_scale"] == 0.25
    optimizer.add_param_group({"params": [ones(2)], "layer": 3})
    optimizer.step()
    assert [group.get("layer") for group in optimizer.param_groups] == [None, 3]


def test_the_callers_dict_becomes_the_group() -> None:
    given: dict[str, Any] = {"params": iter([ones(3)])}
    optimizer = DualAdam([given], **AS_ADAMW)
    assert optimizer.param_groups[0] is given
    given["lr"] = 0.5
    optimizer.step()
    assert torch.allclose(given["params"][0], torch.full((3,), 0.5))


def test_a_refused_group_stays_as_it_was() -> None:
    optimizer = DualAdam([ones(3)], **AS_ADAMW)
    given = {"params": [ones(2)], "switching_steps": 4, "eps": 0.0}
    before = dict(given)
    with pytest.raises(ValueError, match="group 1: eps must be"):
        optimizer.add_param_group(given)
    assert given == before and len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="group 1: params must be given, got only lr"):
        optimizer.add_param_group({"lr": 0.1})


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_groups_of_adam_are_taken(kind: Any) -> None:
    theirs = kind([ones(3)], lr=0.1, weight_decay=0.2, fused=False, maximize=True)
    optimizer = DualAdam(theirs.param_groups, **AS_ADAMW)
    optimizer.step()
    theirs_of_its_own = kind([ones(3)], lr=0.1, weight_decay=0.2, maximize=True)
    theirs_of_its_own.step()
    ours, other = (o.param_groups[0]["params"][0] for o in (optimizer, theirs_of_its_own))
    assert torch.allclose(ours, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("key", ["amsgrad", "foreach", "differentiable"])
def test_what_adamw_has_besides_is_refused_by_name(key: str) -> None:
    theirs = torch.optim.AdamW([ones(3)], **{key: True})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"group 0: {key} must not be set, got True"):
        DualAdam(theirs.param_groups, **AS_ADAMW)
    p = ones(3)
    optimizer = DualAdam([p], **AS_ADAMW)
    optimizer.step()
    optimizer.param_groups[0][key] = True
    with pytest.raises(ValueError, match=f"group 0: {key} must not be set, got True"):
        optimizer.step()
    optimizer.param_groups[0][key] = None
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("fused", [None, False, True])
def test_every_step_is_fused(fused: bool | None) -> None:
    assert torch.equal(after_steps(fused=fused), after_steps())


def test_a_key_that_takes_the_place_of_another_is_seen() -> None:
    optimizer = DualAdam([{"params": [ones(3)], "name": "x"}], **AS_ADAMW)
    optimizer.step()
    group = optimizer.param_groups[0]
    del group["name"]
    group["amsgrad"] = True
    with pytest.raises(ValueError, match="group 0: amsgrad must not be set"):
        optimizer.step()


def test_a_switching_length_is_not_ignored_later() -> None:
    optimizer = DualAdam([ones(3)], **AS_ADAMW)
    optimizer.step()
    optimizer.param_groups[0]["switching_steps"] = 7
    with pytest.raises(ValueError, match="group 0: switching_steps must be None or that of the"):
        optimizer.step()
    optimizer.param_groups[0]["switching_steps"] = None
    optimizer.step()


def test_an_equal_switching_length_asks_for_nothing() -> None:
    p, q = ones(3), ones(3)
    optimizer, twin = DualAdam([p], switching_steps=5), DualAdam([q], switching_steps=5)
    # As tools do that keep the arguments of the constructor, such as ZeroRedundancyOptimizer.
    optimizer.param_groups[0].update(switching_steps=5, switching_rate=None)
    for each in (optimizer, twin):
        each.step()
        each.load_state_dict(each.state_dict())
        each.step()
    assert torch.equal(bits(p), bits(q))


@pytest.mark.parametrize(
    ("name", "number", "tensor"),
    [
        ("lr", 0.1, torch.tensor(0.1)),
        ("betas", (0.9, 0.999), (0.9, torch.tensor(0.999))),
        ("eps", 1e-8, torch.tensor(1e-8)),
        ("weight_decay", 0.1, torch.tensor(0.1)),
    ],
)
def test_a_float32_that_equals_the_number_is_another_number(
    name: str, number: Any, tensor: Any
) -> None:
    def config_after(first: Any, second: Any) -> Any:
        optimizer = DualAdam([ones(3)], **{name: first, **AS_ADAMW})
        optimizer.step()
        optimizer.param_groups[0][name] = second
        optimizer.step()
        return optimizer._options[0].config

    assert number == tensor
    assert config_after(number, tensor) == config_after(tensor, tensor)
    assert config_after(number, tensor) != config_after(number, number)


def frozen_parameters() -> list[torch.nn.Parameter]:
    tensors = [
        torch.zeros(4, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(4, dtype=torch.complex64),
        torch.zeros(4, dtype=torch.float8_e4m3fn),
        torch.eye(3).to_sparse(),
        torch.ones(1, 3).expand(4, 3),
        torch.ones(4, 6)[:, ::2],
        torch.ones(2, dtype=torch.complex64).conj().imag,
        torch.ones(2, device="meta"),
        TwoTensor(torch.ones(3), torch.ones(3)),
    ]
    return [torch.nn.Parameter(tensor, requires_grad=False) for tensor in tensors]


def test_frozen_parameters_of_any_kind_may_stand_in_a_group() -> None:
    p = ones(3)
    frozen = [*frozen_parameters(), torch.nn.UninitializedParameter()]
    optimizer = DualAdam([frozen[0], p, *frozen[1:]], **AS_ADAMW)
    other = DualAdam([ones(3)], **AS_ADAMW)
    for _ in range(3):
        optimizer.step()
        other.step()
    assert torch.equal(bits(p), bits(other.param_groups[0]["params"][0]))
    assert list(optimizer.state) == [p]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    assert "DualAdam" in repr(optimizer)


NUMBERS = [
    np.float32,
    np.float64,
    np.array,
    lambda value: np.array([value]),
    lambda value: torch.tensor(value, dtype=torch.float64),
    lambda value: torch.tensor([value], dtype=torch.float64),
    Fraction,
    Decimal,
]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_from_elsewhere(number: Any) -> None:
    plain = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 2.0**-20, "weight_decay": 0.125}
    given = {k: number(v) for k, v in plain.items() if k != "betas"}
    betas = tuple(map(number, plain["betas"]))  # type: ignore[arg-type]
    expected = after_steps(**plain)
    assert torch.equal(after_steps(**given, betas=betas), expected)
    p = ones(3)
    optimizer = DualAdam([p], **AS_ADAMW)
    optimizer.param_groups[0].update(given, betas=list(betas))
    for step in range(3):
        p.grad = torch.full((3,), 1.0 + step)
        optimizer.step()
    assert torch.equal(bits(p), expected)


SEQUENCES = [list, np.array, torch.tensor, omegaconf.ListConfig, lambda pair: iter(pair)]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_betas_are_any_sequence(sequence: Any) -> None:
    expected = after_steps(betas=(0.5, 0.75))
    assert torch.equal(after_steps(betas=sequence([0.5, 0.75])), expected)
    p = ones(3)
    optimizer = DualAdam([{"params": [p], "betas": sequence([0.5, 0.75])}], **AS_ADAMW)
    assert type(optimizer.param_groups[0]["betas"]) is tuple


def test_a_configuration_of_omegaconf() -> None:
    config = omegaconf.OmegaConf.create(
        {"lr": 0.1, "betas": [0.5, 0.75], "weight_decay": 0, "switching_steps": 5, "maximize": True}
    )
    expected = after_steps(
        lr=0.1, betas=(0.5, 0.75), maximize=True, switching_rate=None, switching_steps=5
    )
    assert torch.equal(after_steps(**{"switching_rate": None, **config}), expected)


def test_flags_are_equal_to_true_or_false() -> None:
    assert torch.equal(after_steps(maximize=np.bool_(True)), after_steps(maximize=True))
    assert torch.equal(after_steps(maximize=1), after_steps(maximize=True))
    assert torch.equal(after_steps(decoupled_weight_decay=0), after_steps())


@pytest.mark.parametrize(
    ("option", "value", "kind", "text"),
    [
        ("lr", np.array([1.0, 2.0]), ValueError, "lr must have one element, it has 2"),
        ("lr", np.array([]), ValueError, "lr must have one element, it has 0"),
        ("lr", np.bool_(True), TypeError, "lr must be a number"),
        ("eps", "1e-8", TypeError, "eps must be a number, got '1e-8'"),
        ("eps", 1j, TypeError, "eps must be a number"),
        ("eps", b"1", TypeError, "eps must be a number, got b'1'"),
        ("lr", 10**400, TypeError, "lr must be a number"),
        ("lr", torch.tensor(1j), TypeError, "lr must be a number"),
        ("lr", torch.tensor(1.0, device="meta"), TypeError, "lr must be a number"),
        ("betas", {"a": 1, "b": 2}, TypeError, "beta1 must be a number, got 'a'"),
        ("betas", (0.9, 0.99, 0.999), ValueError, "betas must be two numbers"),
        ("betas", torch.tensor(0.9), ValueError, "betas must be two numbers"),
        ("betas", None, ValueError, "betas must be two numbers, got None"),
        ("maximize", torch.tensor(True), TypeError, "maximize must be True or False"),
        ("maximize", np.array([True, False]), TypeError, "maximize must be True or False"),
        ("maximize", "True", TypeError, "maximize must be True or False, got 'True'"),
        ("inverse_term", 3, TypeError, "inverse_term must be 'paper' or 'with_eps', got 3"),
        ("inverse_term", "x", ValueError, "inverse_term must be 'paper' or 'with_eps', got 'x'"),
    ],
)
def test_what_is_no_value(option: str, value: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=f"group 0: {text}"):
        DualAdam([ones(3)], **{**AS_ADAMW, option: value})
    p = ones(3)
    optimizer = DualAdam([p], **AS_ADAMW)
    optimizer.step()
    before = bits(p)
    optimizer.param_groups[0][option] = value
    with pytest.raises(kind, match=f"group 0: {text}"):
        optimizer.step()
    assert torch.equal(bits(p), before) and optimizer.state[p]["step"] == 1


def test_options_that_change_in_place() -> None:
    betas = (torch.tensor(0.9), torch.tensor(0.999))
    eps, decay, lr = torch.tensor(1e-8), np.array(0.0), torch.tensor(1e-3)
    p, q = ones(3), ones(3)
    ours = DualAdam([p], lr, betas, eps, decay, switching_rate=1)  # type: ignore[arg-type]
    plain = DualAdam([q], **AS_ADAMW)
    ours.step()
    plain.step()
    betas[0].fill_(0.5)
    betas[1].fill_(0.75)
    eps.fill_(0.25)
    lr.fill_(0.125)
    decay[...] = 0.5
    plain.param_groups[0].update(lr=0.125, betas=(0.5, 0.75), eps=0.25, weight_decay=0.5)
    ours.step()
    plain.step()
    assert torch.equal(bits(p), bits(q))
    assert ours.param_groups[0]["betas"][0] is betas[0]
    betas[0].fill_(1.0)
    with pytest.raises(ValueError, match="group 0: beta1 must be at least 0 and below 1, got 1"):
        ours.step()
    betas[0].fill_(0.5)
    ours.step()


def test_lists_that_change_in_place() -> None:
    p, q = ones(3), ones(3)
    ours, plain = DualAdam([p], switching_steps=2), DualAdam([q], switching_steps=2)
    betas: list[float] = [0.9, 0.999]
    schedule: list[Any] = ["linear", 0.5]
    ours.param_groups[0].update(betas=betas, schedule=schedule)
    ours.step()
    plain.step()
    betas[0], schedule[1] = 0.5, 0.25
    plain.param_groups[0].update(betas=(0.5, 0.999), schedule=("linear", 0.25))
    ours.step()
    plain.step()
    assert torch.equal(bits(p), bits(q))


@pytest.mark.parametrize("kind", [tuple, omegaconf.ListConfig, torch.nn.ParameterList])
def test_parameters_may_be_any_sequence(kind: Any) -> None:
    p, q = ones(3), ones(2)
    optimizer = DualAdam([p, q], **AS_ADAMW)
    params = [p, q]
    if kind is omegaconf.ListConfig:
        optimizer.param_groups[0]["params"] = omegaconf.ListConfig(
            params, flags={"allow_objects": True}
        )
        params = list(optimizer.param_groups[0]["params"])
    else:
        optimizer.param_groups[0]["params"] = kind(params)
    optimizer.step()
    optimizer.step()
    assert all(optimizer.state[each]["step"] == 2 for each in params)


@pytest.mark.parametrize("names", [[], ["a"], ["a", 3], ("a", "b"), "ab", 7, [None, None]])
def test_names_are_for_messages_only(names: Any) -> None:
    p, q = ones(3), ones(2)
    optimizer = DualAdam([("a", p), ("b", q)], **AS_ADAMW)
    optimizer.param_groups[0]["param_names"] = names
    optimizer.step()
    q.grad = torch.ones(2, dtype=torch.float32).to_sparse()
    one = "'a'" if names in (("a", "b"), ["a", 3]) else "0 of group 0"
    two = "'b'" if names == ("a", "b") else "1 of group 0"
    with pytest.raises(ValueError, match=f"the gradient of parameter {two} must be dense"):
        optimizer.step()
    q.grad = torch.ones(2)
    q.data = p.data[:2]
    with pytest.raises(
        ValueError, match=f"parameter {two} and parameter {one}: .* must not overlap"
    ):
        optimizer.step()


def test_numbers_that_cannot_change_are_stored_as_pythons() -> None:
    options = {"lr": np.float32(0.5), "eps": Fraction(1, 4), "weight_decay": np.float64(0)}
    optimizer = DualAdam(
        [{"params": [ones(3)], "betas": np.array([0.5, 0.75]), "lr": np.float64(0.25)}],
        **options,
        switching_steps=np.int64(4),
    )
    optimizer.step()
    group = optimizer.param_groups[0]
    numbers = [group["lr"], group["eps"], group["weight_decay"], *group["betas"]]
    assert numbers == [0.25, 0.25, 0, 0.5, 0.75] and {type(n) for n in numbers} == {float}
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))


def test_flags_and_schedules_that_change_in_place() -> None:
    maximize, rate = np.array(False), torch.tensor(0.25, dtype=torch.float64)
    p, q = ones(3), ones(3)
    ours, plain = DualAdam([p], switching_steps=4), DualAdam([q], switching_steps=4)
    ours.param_groups[0].update(maximize=maximize, schedule=("linear", rate))
    ours.step()
    plain.step()
    maximize[...] = True
    rate.fill_(0.125)
    plain.param_groups[0].update(maximize=True, schedule=("linear", 0.125))
    ours.step()
    plain.step()
    assert torch.equal(bits(p), bits(q))
    rate.fill_(7.0)
    with pytest.raises(ValueError, match="group 0: switching_rate must lie in 0..=1, got 7"):
        ours.step()


def test_options_that_are_missing_later() -> None:
    optimizer = DualAdam([ones(3)], **AS_ADAMW)
    optimizer.step()
    del optimizer.param_groups[0]["eps"]
    with pytest.raises(ValueError, match="group 0: the group must have eps, it has params, lr"):
        optimizer.step()


@pytest.mark.parametrize("name", ["amsgrad", "foreach", "differentiable"])
def test_what_is_refused_may_have_any_type(name: str) -> None:
    optimizer = DualAdam([ones(3)], **AS_ADAMW)
    optimizer.param_groups[0][name] = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=f"group 0: {name} must not be set, got tensor"):
        optimizer.step()


def test_a_number_without_a_value() -> None:
    class Sized:
        size = 1

    optimizer = DualAdam([ones(3)], **AS_ADAMW)
    optimizer.param_groups[0]["lr"] = Sized()
    with pytest.raises(TypeError, match="group 0: lr must be a number, got <") as caught:
        optimizer.step()
    assert isinstance(caught.value.__cause__, AttributeError)


def test_an_exception_of_the_users_iterator_is_the_users() -> None:
    def params() -> Any:
        yield ones(3)
        raise TypeError("the user's own")

    with pytest.raises(TypeError, match="^the user's own$"):
        DualAdam(params(), **AS_ADAMW)
    with pytest.raises(TypeError, match="^the user's own$"):
        DualAdam([{"params": params()}], **AS_ADAMW)


def test_a_learning_rate_that_has_a_gradient() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DualAdam([ones(3)], lr=torch.tensor(0.1, requires_grad=True), **AS_ADAMW).step()


def test_groups_that_are_another_mapping() -> None:
    p = ones(3)
    optimizer = DualAdam([p], **AS_ADAMW)
    optimizer.param_groups[0] = collections.UserDict(optimizer.param_groups[0])  # type: ignore[call-overload]
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


def test_pairs_without_a_parameter() -> None:
    for entry in (("w",), ("w", ones(2), 3)):
        with pytest.raises(ValueError, match="parameter 1 of group 0 must be a Tensor, or a name"):
            DualAdam([("p", ones(2)), entry], **AS_ADAMW)  # type: ignore[list-item]
