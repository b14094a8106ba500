"""Each wrong input raises a clear exception, and leaves optimizer and parameters unchanged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dualadam.torch import DualAdam
from helpers import bits

import dualadam

Unchanged = Callable[[DualAdam, Callable[[], object], type[BaseException], str], None]


def param(*shape: int, kind: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(shape).to(kind))


def stepped(*params: torch.nn.Parameter, **options: Any) -> DualAdam:
    """An optimizer that has made a step. Its parameters are called a, b and so on."""
    optimizer = DualAdam(list(zip("abcdef", params)), switching_steps=9, **options)
    for each in params:
        each.grad = torch.randn_like(each)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "must be told when it becomes Adam.*switching_steps.*16%.*switching_rate.*schedule"),
        (
            {"switching_rate": 0.1, "switching_steps": 10},
            "only one of .* and schedule must be given, got switching_rate and switching_steps",
        ),
        ({"switching_steps": 0}, "switching_steps must be at least 1"),
        ({"switching_rate": 1.5}, "switching_rate must lie in 0..=1, got 1.5"),
        ({"switching_rate": float("nan")}, "switching_rate must lie in 0..=1, got NaN"),
        ({"switching_rate": 1, "schedule": ("cosine", 1)}, "only one of"),
        ({"schedule": ("cosine", 1)}, "schedule must be a dualadam.Schedule"),
        ({"schedule": 7}, "schedule must be a dualadam.Schedule"),
        ({"switching_rate": 1, "lr": float("nan")}, "lr must be finite and at least 0, got NaN"),
        ({"switching_rate": 1, "lr": -1.0}, "lr must be finite and at least 0"),
        ({"switching_rate": 1, "lr": torch.tensor([1.0, 2.0])}, "lr must have one element"),
        ({"switching_rate": 1, "betas": (1.0, 0.9)}, "beta1 must be at least 0 and below 1"),
        (
            {"switching_rate": 1, "betas": (0.9, float("nan"))},
            "beta2 must be at least 0 and below 1",
        ),
        ({"switching_rate": 1, "eps": 0.0}, "eps must be finite and above 0"),
        ({"switching_rate": 1, "weight_decay": float("inf")}, "weight_decay must be finite"),
        (
            {"switching_rate": 1, "inverse_term": "other"},
            "inverse_term must be 'paper' or 'with_eps', got 'other'",
        ),
        ({"switching_steps": -1}, "switching_steps must be at least 1, and a whole number, got -1"),
        (
            {"switching_steps": 1.5},
            "switching_steps must be at least 1, and a whole number, got 1.5",
        ),
        (
            {"switching_steps": True},
            "switching_steps must be at least 1, and a whole number, got True",
        ),
        (
            {"switching_rate": 1, "betas": (0.9,)},
            r"group 0: betas must be two numbers, got \(0.9,\)",
        ),
        ({"switching_rate": 1, "betas": 0.9}, "betas must be two numbers, got 0.9"),
        ({"switching_rate": 1, "amsgrad": True}, "amsgrad must not be set"),
        ({"switching_rate": 1, "foreach": True}, "foreach must not be set"),
        ({"switching_rate": 1, "differentiable": True}, "differentiable must not be set"),
    ],
)
def test_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DualAdam([param(2)], **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"switching_rate": "a"}, "switching_rate must be a number, got 'a'"),
        ({"switching_rate": 1, "lr": "x"}, "group 0: lr must be a number, got 'x'"),
        ({"switching_rate": 1, "eps": None}, "eps must be a number, got None"),
        ({"switching_rate": 1, "betas": (0.9, "b")}, "beta2 must be a number, got 'b'"),
        (
            {"switching_rate": 1, "master_weights": "yes"},
            "master_weights must be True or False, got 'yes'",
        ),
        ({"switching_rate": 1, "capturable": 3}, "capturable must be True or False, got 3"),
    ],
)
def test_options_of_another_type(options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        DualAdam([param(2)], **options)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("eps", -1.0, "eps must be"),
        ("amsgrad", True, "amsgrad must not be set, got True"),
        ("schedule", ("linear", "x"), r"schedule must be .* got \('linear', 'x'\)"),
        ("schedule", ("fixed", -1), r"schedule must be .* got \('fixed', -1\)"),
        ("switching_steps", 0, "switching_steps must be at least 1"),
    ],
)
def test_the_group_of_a_wrong_option_is_named(option: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=f"group 1: {text}"):
        DualAdam([{"params": [param(2)]}, {"params": [param(2)], option: value}], switching_steps=3)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), 1e-39])
def test_a_scale_that_cannot_be_divided_by(unchanged: Unchanged, scale: float) -> None:
    optimizer = stepped(param(2))
    optimizer.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
    text = "grad_scale must be finite and above 0, and so must its inverse, as float32, got"
    unchanged(optimizer, optimizer.step, ValueError, text)


def test_a_learning_rate_of_two_elements_later(unchanged: Unchanged) -> None:
    optimizer = stepped(param(2))

    def step() -> None:
        optimizer.param_groups[0]["lr"] = torch.ones(2)
        try:
            optimizer.step()
        finally:
            optimizer.param_groups[0]["lr"] = 1e-3

    unchanged(optimizer, step, ValueError, "group 0: lr must have one element, it has 2")


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(TypeError, match="momentum"):
        DualAdam([param(2)], switching_rate=1.0, momentum=0.9)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (
            lambda: torch.randn(4, 6)[:, ::2],
            ValueError,
            "'w' must fill its memory without gaps or overlap",
        ),
        (
            lambda: torch.randn(1, 3).expand(4, 3),
            ValueError,
            "'w' must fill its memory without gaps or overlap",
        ),
        (
            lambda: torch.eye(3).to_sparse(),
            ValueError,
            "'w' must be dense, its layout is torch.sparse_coo",
        ),
        (
            lambda: torch.zeros(2, dtype=torch.complex64),
            TypeError,
            "'w' must be float32.*it is torch.complex64",
        ),
        (
            lambda: torch.zeros(2, dtype=torch.float64),
            TypeError,
            r"'w' must be float32.*it is torch.float64: convert the model.*model.float\(\)",
        ),
    ],
)
def test_parameters_that_cannot_be_stepped(
    make: Callable[[], torch.Tensor], kind: type[BaseException], text: str
) -> None:
    p, bad = param(2), torch.nn.Parameter(make())
    named = DualAdam([("p", p), ("w", bad)], switching_rate=1.0)
    unnamed = DualAdam([p, bad], switching_rate=1.0)
    p.grad, before = torch.ones(2), p.detach().clone()
    bad.grad = torch.zeros_like(bad)
    with pytest.raises(kind, match=text):
        named.step()
    with pytest.raises(kind, match=text.replace("'w'", "1 of group 0")):
        unnamed.step()
    assert torch.equal(p, before) and not named.state and not unnamed.state
    bad.grad = None
    named.step()
    assert list(named.state) == [p]


def test_what_is_no_parameter() -> None:
    with pytest.raises(TypeError, match="parameter 1 of group 0 must be a Tensor, it is a int"):
        DualAdam([param(2), 3], switching_rate=1.0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="parameter 'w' must be a leaf"):
        DualAdam([("w", param(2) * 2)], switching_rate=1.0)


def test_a_parameter_that_appears_twice(unchanged: Unchanged) -> None:
    p, q = param(2), param(2)
    with pytest.raises(ValueError, match="parameter 2 of group 0 must appear once"):
        DualAdam([p, q, p], switching_rate=1.0)
    text = "parameter 0 of group 1 must be in one group, it is in more than one parameter group"
    with pytest.raises(ValueError, match=text):
        DualAdam([{"params": [p]}, {"params": [p]}], switching_rate=1.0)
    with pytest.raises(ValueError, match="parameter 'b' must be in one group"):
        DualAdam([{"params": [("a", p)]}, {"params": [("b", p)]}], switching_rate=1.0)
    optimizer = DualAdam([p], switching_rate=1.0)
    unchanged(
        optimizer,
        lambda: optimizer.add_param_group({"params": [p]}),
        ValueError,
        "more than one parameter group",
    )
    unchanged(
        optimizer,
        lambda: optimizer.add_param_group({"params": [q], "lr": -1.0}),
        ValueError,
        "lr must be finite",
    )
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("lr", float("nan"), "lr must be finite"),
        ("betas", (0.9, 1.0), "beta2 must be"),
        ("eps", -1.0, "eps must be"),
        ("weight_decay", float("nan"), "weight_decay must be"),
        ("schedule", ("linear", 2.0), "switching_rate must lie"),
    ],
)
def test_options_that_become_wrong(
    unchanged: Unchanged, option: str, value: object, text: str
) -> None:
    optimizer = stepped(param(3), param(4))
    kept = optimizer.param_groups[0][option]

    def step() -> None:
        optimizer.param_groups[0][option] = value
        try:
            optimizer.step()
        finally:
            optimizer.param_groups[0][option] = kept

    unchanged(optimizer, step, ValueError, text)


def test_sparse_gradients(unchanged: Unchanged) -> None:
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    p = param(3)
    optimizer = DualAdam([("p", p), *embedding.named_parameters()], switching_steps=3)
    embedding(torch.tensor([1, 2])).sum().backward()
    p.grad = torch.ones(3)
    unchanged(
        optimizer, optimizer.step, ValueError, "the gradient of parameter 'weight' must be dense"
    )
    assert len(optimizer.state) == 0


def test_gradients_of_types_without_a_kernel(unchanged: Unchanged) -> None:
    p = param(3, kind=torch.bfloat16)
    optimizer = stepped(p, param(2))
    p.grad_dtype = None
    p.grad = torch.ones(3, dtype=torch.float16)
    unchanged(
        optimizer,
        optimizer.step,
        TypeError,
        "parameter 'a': .* must have the formats of a variant .* got bf16 param, f16 grad, f32 exp_avg",
    )
    p.grad = torch.ones(3, dtype=torch.float64)
    unchanged(
        optimizer,
        optimizer.step,
        TypeError,
        "the gradient of parameter 'a' must be float32.*torch.float64",
    )


def test_freed_memory(unchanged: Unchanged) -> None:
    p, q = param(3), param(4)
    optimizer = stepped(p, q)
    assert q.grad is not None
    q.grad.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="the gradient of parameter 'b' must have memory"):
        optimizer.step()
    q.grad = torch.ones(4)
    kept = p.detach().clone()
    for name in ("exp_avg", "exp_avg_sq"):
        storage = optimizer.state[q][name].untyped_storage()
        storage.resize_(0)
        with pytest.raises(
            ValueError, match=f"parameter 'b': {name} must have memory, it has none"
        ):
            optimizer.step()
        storage.resize_(16)
    q.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="parameter 'b': param must have memory, it has none"):
        optimizer.step()
    assert torch.equal(kept, p) and optimizer.state[p]["step"] == 1


def test_freed_memory_of_arrays() -> None:
    schedule = dualadam.Schedule.linear_until(9)
    config = dualadam.Config(0.1, (0.9, 0.999), 1e-8, 0.0, schedule)
    names = ("param", "grad", "exp_avg", "exp_avg_sq", "master")
    for freed in names:
        given: dict[str, Any] = {name: torch.ones(4) for name in names}
        given.update(param=given["param"].half(), grad=given["grad"].half())
        given[freed].untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=f"^{freed} must have memory, it has none$"):
            dualadam.step(**given, config=config, step=1)
        assert all((tensor == 1).all() for name, tensor in given.items() if name != freed)


@pytest.mark.parametrize(
    "names", [["a"], [], "ab", ("a",), [1, 2], [None, None], {"a": 1}, 7, [b"a", b"b"], None]
)
def test_names_that_are_no_names(names: Any) -> None:
    p, q = param(8), param(4)
    optimizer = stepped(p, q)
    q.data = p.data[2:6]
    optimizer.param_groups[0]["param_names"] = names
    with pytest.raises(ValueError, match="^parameter 1 of group 0 and parameter 0 of group 0: "):
        optimizer.step()
    optimizer.param_groups[0]["param_names"] = ["a", b"b"]
    with pytest.raises(ValueError, match="^parameter 1 of group 0 and parameter 'a': "):
        optimizer.step()
    optimizer.param_groups[0]["param_names"] = ["a", "\udc80"]
    with pytest.raises(ValueError, match="^parameter '\ufffd+' and parameter 'a': "):
        optimizer.step()


def test_shared_memory(unchanged: Unchanged) -> None:
    p, q = param(8), param(4)
    optimizer = stepped(p, q)
    q.data = p.data[2:6]
    unchanged(
        optimizer,
        optimizer.step,
        ValueError,
        "parameter 'b' and parameter 'a': param .* must not overlap param of tensor 0",
    )
    q.data = torch.ones(4)
    q.grad = p.data[:4]
    unchanged(optimizer, optimizer.step, ValueError, "parameter '[ab]'.*must not overlap")
    q.grad = torch.ones(4)
    optimizer.step()


def test_a_parameter_becomes_another(unchanged: Unchanged) -> None:
    p, q = param(8), param(4)
    optimizer = stepped(p, q)
    p.grad = None
    p.data = torch.ones(9)
    p.grad = torch.ones(9)
    unchanged(
        optimizer,
        optimizer.step,
        ValueError,
        r"exp_avg of parameter 'a' must have the shape \(9,\), it has \(8,\)",
    )
    p.grad = None
    p.data = torch.ones(8, 2)[:, 0]
    p.grad = torch.ones(8)
    unchanged(
        optimizer, optimizer.step, ValueError, "parameter 'a' must fill its memory without gaps"
    )


def test_states_that_are_no_states(unchanged: Unchanged) -> None:
    p, q = param(8), param(4)
    optimizer = stepped(p, q)
    good = dict(optimizer.state[q])
    for bad, kind, text in [
        (
            {**good, "exp_avg": torch.ones(5)},
            ValueError,
            "exp_avg of parameter 'b' must have the shape",
        ),
        (
            {**good, "exp_avg": torch.ones(4, dtype=torch.int32)},
            TypeError,
            "exp_avg of parameter 'b' must be a dense floating",
        ),
        (
            {**good, "step": torch.tensor(-1.0)},
            ValueError,
            "step of parameter 'b' must be a whole number",
        ),
        (
            {**good, "step": torch.tensor(1.5)},
            ValueError,
            "step of parameter 'b' must be a whole number",
        ),
        (
            {**good, "step": torch.tensor(float("nan"))},
            ValueError,
            "step of parameter 'b' must be a whole number",
        ),
        ({**good, "step": torch.ones(2)}, ValueError, "step of parameter 'b' must be one number"),
        (
            {"step": good["step"], "exp_avg": good["exp_avg"]},
            ValueError,
            "the state of parameter 'b' must have exp_avg_sq",
        ),
    ]:
        optimizer.state[q] = bad
        kept = p.detach().clone()
        with pytest.raises(kind, match=text):
            optimizer.step()
        assert torch.equal(kept, p) and optimizer.state[p]["step"] == 1
    optimizer.state[q] = good
    optimizer.step()


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "master_param"])
def test_a_shorter_tensor_at_the_same_address(key: str) -> None:
    p = param(500, kind=torch.bfloat16)
    optimizer = stepped(p, master_weights=True)
    state = optimizer.state[p]
    optimizer.step()
    # The tensor has the same address, and less memory than before.
    state[key].data = state[key].data[:10]
    kept = p.detach().clone()
    text = rf"{key} of parameter 'a' must have the shape \(500,\), it has \(10,\)"
    with pytest.raises(ValueError, match=text):
        optimizer.step()
    assert torch.equal(kept, p)


@pytest.mark.parametrize("bad", [torch.ones(2), 5, "x", [1]])
def test_states_that_are_no_dicts(bad: object) -> None:
    p = param(3)
    optimizer = stepped(p)
    optimizer.state[p] = bad
    with pytest.raises(TypeError, match="the state of parameter 'a' must be a dict, it is"):
        optimizer.step()


@pytest.mark.parametrize("bad", [torch.ones(2), 5, "x", [1]])
def test_a_sync_of_states_that_are_no_dicts(bad: object) -> None:
    p = param(3, kind=torch.bfloat16)
    optimizer = stepped(p, master_weights=True)
    optimizer.state[p] = bad
    with pytest.raises(TypeError, match="the state of parameter 'a' must be a dict, it is"):
        optimizer.sync_masters()


@pytest.mark.parametrize("bad", [None, 3])
def test_parameters_that_are_no_sequence(bad: object) -> None:
    text = f"params of group 0 must be an iterable of parameters, got {bad}"
    with pytest.raises(TypeError, match=text):
        DualAdam([{"params": bad}], switching_rate=1)  # type: ignore[dict-item]
    optimizer = stepped(param(3))
    optimizer.param_groups[0]["params"] = bad
    with pytest.raises(TypeError, match=text):
        optimizer.step()


@pytest.mark.parametrize("bad", [None, 3, "x"])
def test_parameters_that_are_no_tensors(unchanged: Unchanged, bad: object) -> None:
    p = param(3)
    optimizer = stepped(p)
    optimizer.param_groups[0]["params"].append(bad)
    before = bits(p)
    with pytest.raises(TypeError, match="parameter 1 of group 0 must be a Tensor, it is a"):
        optimizer.step()
    assert torch.equal(bits(p), before)


def test_an_inference_tensor_without_alignment() -> None:
    with torch.inference_mode():
        memory = torch.frombuffer(bytearray(20), dtype=torch.float32, offset=1, count=3)
        p = torch.nn.Parameter(memory, requires_grad=False)
        p.grad = torch.ones(3)
    optimizer = DualAdam([("a", p)], switching_rate=1)
    text = "parameter 'a' must be aligned, or a tensor that torch's operations can change in place"
    with pytest.raises(ValueError, match=text):
        optimizer.step()
    assert torch.equal(p, torch.zeros(3)) and len(optimizer.state) == 0
    with torch.inference_mode():
        optimizer.step()
    assert bool((p < 0).all())


@pytest.mark.parametrize(("value", "kind"), [(torch.ones(2), ValueError), ("x", TypeError)])
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_scalars_that_no_scaler_gives(
    unchanged: Unchanged, name: str, value: object, kind: type[BaseException]
) -> None:
    optimizer = stepped(param(3))
    setattr(optimizer, name, value)
    unchanged(optimizer, optimizer.step, kind, f"{name} must (have one element|be a number)")


def saved_by_another(*shapes: tuple[int, ...]) -> dict[str, Any]:
    return stepped(*(param(*shape) for shape in shapes)).state_dict()


def saved_by_sgd() -> dict[str, Any]:
    return torch.optim.SGD([param(3), param(4)]).state_dict()


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (
            lambda saved: saved_by_another((3,)),
            ValueError,
            "group 0 of the state dict must have 2 parameters, it has 1",
        ),
        (
            lambda saved: saved_by_another((3,), (5,)),
            ValueError,
            r"parameter 'b' must have the shape \(4,\), it has \(5,\)",
        ),
        (
            lambda saved: {**saved, "param_groups": saved["param_groups"] * 2},
            ValueError,
            "must have 1 parameter groups",
        ),
        (
            lambda saved: saved["param_groups"][0].update(lr=float("nan")) or saved,
            ValueError,
            "lr must be finite",
        ),
        (
            lambda saved: saved["param_groups"][0].update(amsgrad=True) or saved,
            ValueError,
            "group 0 of the state dict: amsgrad must not be set",
        ),
        (
            lambda saved: saved["param_groups"][0].update(schedule=("x", 1)) or saved,
            ValueError,
            "group 0 of the state dict: schedule must be",
        ),
        (
            lambda saved: saved["state"][1].pop("exp_avg") is None or saved,
            ValueError,
            "must have exp_avg",
        ),
        (
            lambda saved: saved["state"][1].update(step=-3) or saved,
            ValueError,
            "step of parameter 'b'",
        ),
        (
            lambda saved: saved["state"][1].update(max_exp_avg_sq=1) or saved,
            ValueError,
            "must be without max_exp_avg_sq",
        ),
        (
            lambda saved: saved["state"].update({1: 7}) or saved,
            TypeError,
            "the state of parameter 'b' must be a dict",
        ),
        (lambda saved: {"state": saved["state"]}, ValueError, "must have param_groups"),
        (
            lambda saved: saved["state"][1].update(step=9e15) or saved,
            ValueError,
            "step of parameter 'b' must be .* below 9e",
        ),
        (
            lambda saved: saved["param_groups"][0].update(master_weights="yes") or saved,
            TypeError,
            "master_weights must be True",
        ),
        (
            lambda saved: saved_by_sgd(),
            ValueError,
            "group 0 of the state dict must be that of a DualAdam or Adam, it has no betas, eps",
        ),
    ],
)
def test_state_dicts(
    unchanged: Unchanged,
    spoil: Callable[[dict[str, Any]], dict[str, Any]],
    kind: type[BaseException],
    text: str,
) -> None:
    optimizer = stepped(param(3), param(4))
    saved = spoil(saved_by_another((3,), (4,)))
    unchanged(optimizer, lambda: optimizer.load_state_dict(saved), kind, text)


def test_an_interrupted_load(unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = stepped(param(3), param(4))
    saved = saved_by_another((3,), (4,))
    calls = []

    def interrupted(*arguments: object, **options: object) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return empty_like(*arguments, **options)  # type: ignore[arg-type]

    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", interrupted)
    unchanged(optimizer, lambda: optimizer.load_state_dict(saved), KeyboardInterrupt, "^$")


def test_a_closure_that_raises(unchanged: Unchanged) -> None:
    optimizer = stepped(param(3))

    def closure() -> float:
        raise RuntimeError("no loss")

    unchanged(optimizer, lambda: optimizer.step(closure), RuntimeError, "no loss")


def test_devices_without_kernels() -> None:
    p = torch.nn.Parameter(torch.ones(2, device="meta"))
    optimizer = DualAdam([("w", p)], switching_steps=3)
    p.grad = torch.ones(2, device="meta")
    with pytest.raises(ValueError, match="'w' must be on the CPU or on CUDA, it is on meta"):
        optimizer.step()
    assert len(optimizer.state) == 0
