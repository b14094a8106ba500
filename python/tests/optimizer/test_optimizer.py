"""The features of torch's optimizers."""

import copy
import io
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dualadam
from helpers import assert_same, bits, everything
from dualadam.torch import DualAdam
from torch.optim.optimizer import register_optimizer_step_post_hook


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def train(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 2
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 6, generator=generator)).square().mean().backward()
        optimizer.step()


def weights(net: torch.nn.Module) -> list[torch.Tensor]:
    assert all(p.isfinite().all() for p in net.parameters())
    return [bits(p) for p in net.parameters()]


def test_groups_have_their_own_options() -> None:
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = DualAdam(
        [{"params": [a], "lr": 0.1, "switching_steps": 4}, {"params": [b], "weight_decay": 0.5}],
        switching_rate=1.0,
    )
    assert optimizer.param_groups[0]["schedule"] == ("linear", 0.25)
    assert optimizer.param_groups[1]["schedule"] == ("linear", 1.0)
    a.grad, b.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    alone = torch.nn.Parameter(torch.ones(3))
    alone.grad = torch.ones(3)
    DualAdam([alone], 0.1, switching_steps=4).step()
    assert torch.equal(bits(a), bits(alone))
    assert not torch.equal(bits(a), bits(b))


def test_every_group_may_have_a_schedule_of_its_own() -> None:
    p, q = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    DualAdam(
        [
            {"params": [p], "switching_steps": 4},
            {"params": [q], "schedule": dualadam.Schedule.fixed(3)},
        ]
    )
    with pytest.raises(ValueError, match="must be told when it becomes Adam"):
        DualAdam([{"params": [p], "switching_steps": 4}, {"params": [q]}])


def test_a_group_can_be_added_later() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = DualAdam([p], switching_steps=4)
    p.grad = torch.ones(2)
    optimizer.step()
    optimizer.add_param_group({"params": q, "lr": 0.5})
    q.grad = torch.ones(2)
    optimizer.step()
    assert (optimizer.state[p]["step"], optimizer.state[q]["step"]) == (2, 1)


def test_the_positional_order_is_that_of_adamw() -> None:
    p = torch.nn.Parameter(torch.ones(1))
    group = DualAdam([p], 0.5, (0.8, 0.9), 1e-5, 0.25, switching_rate=0.5).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        0.5,
        (0.8, 0.9),
        1e-5,
        0.25,
    )


def test_learning_rate_schedulers_steer_it() -> None:
    net, twin = model(), model()
    optimizer = DualAdam(net.parameters(), lr=0.1, switching_steps=10)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=8, cycle_momentum=True
    )
    by_hand = DualAdam(twin.parameters(), lr=0.1, switching_steps=10)
    for index in range(6):
        by_hand.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        by_hand.param_groups[0]["betas"] = optimizer.param_groups[0]["betas"]
        train(net, optimizer, 1, index)
        train(twin, by_hand, 1, index)
        scheduler.step()
        assert all(map(torch.equal, weights(net), weights(twin)))


def test_lr_may_be_a_tensor() -> None:
    net, twin = model(), model()
    train(net, DualAdam(net.parameters(), lr=torch.tensor(0.25), switching_steps=10), 3)
    train(twin, DualAdam(twin.parameters(), lr=0.25, switching_steps=10), 3)
    assert all(map(torch.equal, weights(net), weights(twin)))


def test_a_missing_gradient_leaves_the_parameter_alone() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = DualAdam([p, q], switching_steps=4)
    for index in range(6):
        p.grad = torch.ones(2)
        q.grad = torch.ones(2) if index % 2 else None
        before = bits(q)
        optimizer.step()
        assert torch.equal(bits(q), before) == (index % 2 == 0)
    assert (optimizer.state[p]["step"], optimizer.state[q]["step"]) == (6, 3)
    alone = torch.nn.Parameter(torch.ones(2))
    by_itself = DualAdam([alone], switching_steps=4)
    for _ in range(3):
        alone.grad = torch.ones(2)
        by_itself.step()
    assert torch.equal(bits(alone), bits(q))


def test_no_gradient_at_all() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = DualAdam([p], switching_steps=4)
    optimizer.step()
    assert len(optimizer.state) == 0


def test_a_closure_is_called_with_gradients_enabled() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = DualAdam([p], switching_steps=4)

    def closure() -> float:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 2.0
    assert optimizer.state[p]["step"] == 1


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    net, whole = model(), model()
    optimizer = DualAdam(net.parameters(), lr=0.05, switching_steps=10, weight_decay=0.1)
    train(net, optimizer, 5, 3)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = model()
    resumed.load_state_dict(saved["net"])
    # All options come from the file.
    other = DualAdam(resumed.parameters(), switching_rate=1.0)
    other.load_state_dict(saved["optimizer"])
    train(resumed, other, 5, 4)

    at_once = DualAdam(whole.parameters(), lr=0.05, switching_steps=10, weight_decay=0.1)
    train(whole, at_once, 5, 3)
    train(whole, at_once, 5, 4)
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert_same(everything(other), everything(at_once))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopy", "pickle"],
)
def test_copies_go_on_alike_and_apart(copied) -> None:  # type: ignore[no-untyped-def]
    net = model()
    optimizer = DualAdam(net.parameters(), switching_steps=10)
    train(net, optimizer, 3)
    other_net, other = copied((net, optimizer))
    train(other_net, other, 3)
    assert not any(map(torch.equal, weights(net), weights(other_net)))
    train(net, optimizer, 3)
    assert all(map(torch.equal, weights(net), weights(other_net)))


def test_pickles_name_the_public_module() -> None:
    assert pickle.dumps(DualAdam, protocol=0).startswith(b"cdualadam.torch\nDualAdam\n")


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adams_state_is_taken_over(kind: type[torch.optim.Optimizer]) -> None:
    net = model()
    adam = kind(net.parameters(), lr=0.01, weight_decay=0.1)  # type: ignore[call-arg]
    train(net, adam, 5)
    optimizer = DualAdam(net.parameters(), switching_steps=12)
    optimizer.load_state_dict(adam.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["schedule"]) == (
        0.01,
        0.1,
        ("linear", 1 / 12),
    )
    assert group["decoupled_weight_decay"] == (kind is torch.optim.AdamW)
    assert "foreach" not in group
    for p in net.parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[p][key], adam.state[p][key])
            assert optimizer.state[p][key].data_ptr() != adam.state[p][key].data_ptr()
    train(net, optimizer, 1)
    assert all(state["step"] == 6 for state in optimizer.state.values())


def test_adam_takes_the_state_over() -> None:
    net = model()
    optimizer = DualAdam(net.parameters(), switching_steps=2)
    train(net, optimizer, 5)
    adam = torch.optim.AdamW(net.parameters())
    saved = optimizer.state_dict()
    adam.load_state_dict(
        {"state": saved["state"], "param_groups": [{**adam.state_dict()["param_groups"][0]}]}
    )
    train(net, adam, 1)
    assert all(state["step"] == 6 for state in adam.state.values())


def test_moments_of_16_bit_parameters_stay_float32() -> None:
    p = torch.nn.Parameter(torch.randn(9).bfloat16())
    optimizer = DualAdam([p], switching_steps=4, master_weights=True)
    p.grad = torch.randn(9).bfloat16()
    optimizer.step()
    other = DualAdam([p], switching_steps=4, master_weights=True)
    other.load_state_dict(optimizer.state_dict())
    assert_same(everything(optimizer), everything(other))
    assert {value.dtype for value in other.state[p].values()} == {torch.float32}


def test_load_hooks_run() -> None:
    net = model()
    optimizer = DualAdam(net.parameters(), switching_steps=4)
    train(net, optimizer, 1)
    seen = []

    def double_lr(_: torch.optim.Optimizer, state: dict) -> dict:  # type: ignore[type-arg]
        state = copy.deepcopy(state)
        state["param_groups"][0]["lr"] *= 2
        return state

    optimizer.register_load_state_dict_pre_hook(double_lr)
    optimizer.register_load_state_dict_post_hook(
        lambda loaded: seen.append(loaded.param_groups[0]["lr"])
    )
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [2e-3]


def test_step_hooks_run() -> None:
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = DualAdam([p], switching_steps=4)
    seen = []
    optimizer.register_step_pre_hook(
        lambda _, arguments, options: seen.append(("before", arguments[1:], options))
    )
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    assert seen == [("before", (), {}), "after"]


def test_hooks_of_a_subclass_run_once() -> None:
    class Logged(DualAdam):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    optimizer = Logged([torch.nn.Parameter(torch.ones(2))], switching_steps=3)
    called: list[int] = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    optimizer.step()
    assert called == [1]


def test_global_step_hooks_run_and_the_profiler_sees_steps() -> None:
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = DualAdam([p], switching_steps=4)
    seen = []
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert seen == ["after"]
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#DualAdam.step" in {event.name for event in profile.function_events}


LAYOUTS = {
    "row-major": lambda x: x.clone(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
}


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_dense_layout_works(layout: str, grad_layout: str) -> None:
    values, grad = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    p, plain = torch.nn.Parameter(LAYOUTS[layout](values)), torch.nn.Parameter(values.clone())
    strides = p.stride()
    optimizers = [DualAdam([param], switching_steps=4, lr=0.1) for param in (p, plain)]
    for _ in range(3):
        p.grad, plain.grad = LAYOUTS[grad_layout](grad), grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert p.stride() == strides and optimizers[0].state[p]["exp_avg"].stride() == strides
    assert torch.equal(bits(p), bits(plain))


def test_a_layout_may_change_between_steps() -> None:
    values = torch.randn(2, 3, 4, 5)
    p, plain = torch.nn.Parameter(values.clone()), torch.nn.Parameter(values.clone())
    optimizers = [DualAdam([param], switching_steps=4, lr=0.1) for param in (p, plain)]
    for index in range(4):
        if index == 2:
            p.data = p.data.to(memory_format=torch.channels_last)
        grad = torch.randn(2, 3, 4, 5)
        p.grad, plain.grad = grad, grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(bits(p), bits(plain))


def test_expanded_gradients_are_copied() -> None:
    p, q = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3, 4))
    p.grad, q.grad = torch.tensor(2.0).expand(3, 4), torch.full((3, 4), 2.0)
    for param in (p, q):
        DualAdam([param], switching_steps=4).step()
    assert torch.equal(bits(p), bits(q))


def test_leaves_may_be_replaced() -> None:
    """After `p.data = …`, the step updates the parameter's new memory and not the old."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = DualAdam([p], switching_steps=4)
    p.grad = torch.ones(3)
    optimizer.step()
    old = p.data
    kept = old.clone()
    p.data = torch.zeros(3)
    optimizer.step()
    assert torch.equal(old, kept) and not torch.equal(p.data, torch.zeros(3))


def test_moments_may_be_replaced() -> None:
    net, twin = model(), model()
    optimizer, other = (DualAdam(each.parameters(), switching_steps=8) for each in (net, twin))
    for index in range(4):
        train(net, optimizer, 1, index)
        train(twin, other, 1, index)
        for state in optimizer.state.values():
            state["exp_avg"] = state["exp_avg"].clone()
            state["exp_avg_sq"].data = state["exp_avg_sq"].data.clone()
            state["step"] = state["step"].clone()
    assert all(map(torch.equal, weights(net), weights(twin)))
    assert_same(everything(optimizer), everything(other))


def test_replaced_moments_are_freed_at_once() -> None:
    """Callers who keep the state elsewhere between steps want to free its memory."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = DualAdam([p], switching_steps=4)
    p.grad = torch.ones(3)
    for _ in range(3):
        optimizer.step()
    state = optimizer.state[p]
    for key in ("exp_avg", "exp_avg_sq", "step"):
        old = weakref.ref(state[key])
        state[key] = state[key].clone()
        assert old() is None
    optimizer.step()
    assert state["step"] == 4


def test_a_counter_may_get_other_memory() -> None:
    """The caller does it through an earlier reference, which the optimizer does not see."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = DualAdam([p], switching_steps=40)
    p.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state[p]
    optimizer.step()
    optimizer.step()
    base = torch.zeros(4)
    state["step"].data = base[1]
    base[1] = 7
    optimizer.step()
    assert state["step"] == 8 and base.tolist() == [0, 8, 0, 0]
    state["step"].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="step of parameter 0 of group 0 must have memory"):
        optimizer.step()


def test_parameters_may_be_swapped() -> None:
    net, twin = model(), model()
    optimizer, other = (DualAdam(each.parameters(), switching_steps=8) for each in (net, twin))
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for index in range(3):
            train(net, optimizer, 1, index)
            net.double().float()
            train(twin, other, 1, index)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert all(map(torch.equal, weights(net), weights(twin)))


def test_the_state_may_be_read_within_a_step() -> None:
    class Reads(torch.nn.Parameter):
        @property
        def _local_tensor(self) -> torch.Tensor:
            seen.extend(len(optimizer.state) for optimizer in made)
            return plain

    seen: list[int] = []
    made: list[DualAdam] = []
    plain = torch.ones(3)
    p, q = Reads(plain), torch.nn.Parameter(torch.ones(3))
    optimizer = DualAdam([p, q], switching_steps=4)
    made.append(optimizer)
    for _ in range(3):
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
    assert torch.equal(bits(plain), bits(q)) and max(seen) == 2


def test_one_thread_steps_at_a_time() -> None:
    class Steps(torch.nn.Parameter):
        @property
        def _local_tensor(self) -> torch.Tensor:
            for optimizer in made:
                stepper: Any = optimizer._stepper
                with pytest.raises(RuntimeError, match="must be stepped by one thread at a time"):
                    stepper.step({}, [], None, 1.0, False, [])
                refused.append(True)
            return plain

    made: list[DualAdam] = []
    refused: list[bool] = []
    plain = torch.ones(3)
    p = Steps(plain)
    optimizer = DualAdam([p], switching_steps=4)
    p.grad = torch.ones(3)
    optimizer.step()
    made.append(optimizer)
    optimizer.step()
    assert refused and optimizer.state[p]["step"] == 2


def test_masters_are_made_from_what_was_loaded_last() -> None:
    net, adam = model().bfloat16(), model().bfloat16()
    twin = torch.optim.AdamW(adam.parameters())
    for p in adam.parameters():
        p.grad = torch.ones_like(p)
    twin.step()
    optimizer = DualAdam(net.parameters(), switching_steps=4, master_weights=True)
    optimizer.load_state_dict(twin.state_dict())
    for p in net.parameters():
        p.data.fill_(3.0)
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in net.parameters():
        assert torch.equal(p, torch.full_like(p, 3.0))
        assert torch.allclose(
            optimizer.state[p]["master_param"], torch.tensor(3.0), atol=2e-3, rtol=0
        )


def test_other_entries_of_the_state_stay() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = DualAdam([p], switching_steps=4)
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[p]["mine"] = "kept"
    p.data = p.data.clone()
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    assert optimizer.state[p]["mine"] == "kept" and optimizer.state[p]["step"] == 3


def test_a_groups_schedule_may_be_changed() -> None:
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer, other = DualAdam([p], switching_steps=4), DualAdam([q], schedule=("fixed", 3))
    optimizer.param_groups[0]["schedule"] = dualadam.Schedule.fixed(3)
    for _ in range(2):
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        other.step()
    assert torch.equal(bits(p), bits(q))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["schedule"] == ("fixed", 3)


def test_the_step_counts_on_where_float32_ends() -> None:
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = DualAdam([p], switching_steps=4)
    p.grad = torch.ones(1)
    optimizer.step()
    optimizer.state[p]["step"].fill_(2**24 - 2)
    for steps in (2**24 - 1, 2**24, 2**24 + 1):
        optimizer.step()
        assert float(optimizer.state[p]["step"]) == steps


def test_grad_scaler_unscales_and_skips() -> None:
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer, plain = DualAdam([p], switching_steps=4), DualAdam([q], switching_steps=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, 2.0, float("inf"), 3.0):
        optimizer.zero_grad()
        plain.zero_grad()
        before = everything(optimizer)
        scale = scaler.get_scale()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor == float("inf"):
            assert_same(before, everything(optimizer))
            assert scaler.get_scale() == scale / 2
        else:
            (q * factor).sum().backward()
            plain.step()
            assert torch.equal(bits(p), bits(q))
    assert optimizer.state[p]["step"] == 3


def test_a_scaler_whose_gradients_were_unscaled_by_hand() -> None:
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer, plain = DualAdam([p], switching_steps=4), DualAdam([q], switching_steps=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((p * 3).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    (q * 3).sum().backward()
    plain.step()
    assert torch.equal(bits(p), bits(q))


def test_subclasses_of_parameters_are_stepped() -> None:
    class Named(torch.nn.Parameter):
        pass

    p, q = Named(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    for param in (p, q):
        DualAdam([param], switching_steps=4).step()
    assert torch.equal(bits(p), bits(q))


def test_it_trains() -> None:
    net = model()
    optimizer = DualAdam(net.parameters(), lr=0.01, switching_steps=50)
    inputs = torch.randn(64, 6)
    targets = inputs[:, :3] * 2
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (net(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = model()
        train(net, DualAdam(net.named_parameters(), switching_steps=4, fused=True), 2)


def test_schedules_are_values() -> None:
    for schedule in (
        dualadam.Schedule.linear(0.25),
        dualadam.Schedule.linear_until(7),
        dualadam.Schedule.linear_early_drop(0.1),
        dualadam.Schedule.exponential(0.5, 10, 1e-3),
        dualadam.Schedule.fixed(9),
    ):
        assert pickle.loads(pickle.dumps(schedule)) == schedule == copy.deepcopy(schedule)
        assert hash(schedule) == hash(dualadam.Schedule.from_tuple(list(schedule.as_tuple())))
        assert eval(repr(schedule), {"Schedule": dualadam.Schedule}) == schedule
    assert dualadam.Schedule.linear_until(160).alpha(40) == 0.75
    assert dualadam.Schedule.linear_until(160).first_adam_step() == 160
    assert dualadam.Schedule.linear(0).first_adam_step() is None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: dualadam.Schedule.linear(1.5), "switching_rate must lie in 0..=1, got 1.5"),
        (lambda: dualadam.Schedule.linear_until(0), "step must be at least 1, got 0"),
        (lambda: dualadam.Schedule.from_tuple("linear"), "schedule must be .*; got 'linear'"),
        (
            lambda: dualadam.Schedule.from_tuple(("fixed", 0.5)),
            r"schedule must be .*; got \('fixed', 0.5\)",
        ),
    ],
)
def test_schedules_that_there_are_not(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        make()
