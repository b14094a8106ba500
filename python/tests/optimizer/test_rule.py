"""The arithmetic, compared with a float64 transcription, with torch and with the array function.

The array function must have the same bits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import HALF_ULP, Rule, step
from safetensors import safe_open

import dualadam
from helpers import bits, variants
from dualadam.torch import DualAdam

GOLDEN = Path(__file__).parents[3] / "tests" / "golden"

RULES = {
    "adam": (Rule(), {}),
    "the blend": (Rule(rate=0.05), {}),
    "inverse Adam": (Rule(rate=0.0), {}),
    "decoupled decay": (Rule(rate=0.05, decoupled_decay=0.1), {"weight_decay": 0.1}),
    "L2": (Rule(rate=0.05, l2=0.1), {"weight_decay": 0.1, "decoupled_weight_decay": False}),
    "with eps": (
        Rule(rate=0.05, with_eps=True, eps=1e-3),
        {"inverse_term": "with_eps", "eps": 1e-3},
    ),
    "maximize": (Rule(rate=0.05, maximize=True), {"maximize": True}),
    "other betas": (Rule(rate=0.05, betas=(0.5, 0.9), lr=0.1), {"betas": (0.5, 0.9), "lr": 0.1}),
}


@pytest.mark.parametrize("name", RULES)
def test_each_step_is_within_the_bound_of_float64(name: str) -> None:
    rule, options = RULES[name]
    p = torch.nn.Parameter(torch.randn(1000))
    options = {"weight_decay": 0, **options}
    optimizer = DualAdam([p], switching_rate=rule.rate, **options)
    m, v = np.zeros(1000), np.zeros(1000)
    for t in range(1, 31):
        p.grad = torch.randn(1000) * 10.0 ** (t % 5 - 2)
        expected = step(rule, t, p.detach().numpy().copy(), p.grad.numpy(), m, v)
        optimizer.step()
        state = optimizer.state[p]
        m, v = state["exp_avg"].numpy().copy(), state["exp_avg_sq"].numpy().copy()
        for actual, exact, bound in (
            (p.detach().numpy(), expected.p, expected.p_bound),
            (m, expected.m, expected.m_bound),
            (v, expected.v, expected.v_bound),
        ):
            assert np.all(np.abs(actual - exact) <= bound), (
                f"step {t}: {np.max(np.abs(actual - exact) / bound)} of the bound"
            )


def torch_twin(kind: str, p: torch.Tensor, decay: float) -> torch.optim.Optimizer:
    if kind == "AdamW":
        return torch.optim.AdamW([p], weight_decay=decay, foreach=False)
    return torch.optim.Adam([p], weight_decay=decay, foreach=False)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_at_rate_one_it_is_torchs(kind: str, decay: float) -> None:
    """Both are within the bound of the exact step.

    torch rounds the parameter twice more, for the decay, and its update as often as DualAdam.
    """
    ours, theirs = torch.nn.Parameter(torch.randn(1000)), torch.nn.Parameter(torch.zeros(1000))
    optimizer = DualAdam(
        [ours], switching_rate=1.0, weight_decay=decay, decoupled_weight_decay=kind == "AdamW"
    )
    twin = torch_twin(kind, theirs, decay)
    rule = Rule(
        l2=0.0 if kind == "AdamW" else decay, decoupled_decay=decay if kind == "AdamW" else 0.0
    )
    m, v = np.zeros(1000), np.zeros(1000)
    for t in range(1, 31):
        # Both steps begin at the same place, so that differences do not add up.
        theirs.data.copy_(ours.data)
        ours.grad = torch.randn(1000)
        theirs.grad = ours.grad.clone()
        exact = step(rule, t, ours.detach().numpy().copy(), ours.grad.numpy(), m, v)
        optimizer.step()
        if t > 1:
            for key in ("exp_avg", "exp_avg_sq"):
                twin.state[theirs][key].copy_(before[key])
        twin.step()
        bound = 2 * exact.p_bound + 3 * HALF_ULP * np.abs(exact.p)
        assert np.all(np.abs(ours.detach().numpy() - theirs.detach().numpy()) <= bound)
        before = {key: optimizer.state[ours][key].clone() for key in ("exp_avg", "exp_avg_sq")}
        m, v = before["exp_avg"].numpy(), before["exp_avg_sq"].numpy()


def schedule_of(plain: dict[str, Any]) -> dualadam.Schedule:
    kind = plain.pop("kind")
    return getattr(dualadam.Schedule, kind)(**plain)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda path: path.stem)
def test_recorded_runs_are_replayed(path: Path) -> None:
    """The blend has the recorded weights, and the float32 run stays close to the float64 run."""
    with safe_open(path, "numpy") as file:
        options = {key: json.loads(value) for key, value in file.metadata().items()}
        run = {key: file.get_tensor(key) for key in file.keys()}
    schedule = schedule_of(options["schedule"])
    for t, alpha in zip(run["step"], run["alpha"]):
        assert abs(schedule.alpha(int(t)) - alpha) <= 1e-12
    if len(run["grad"]) > 2000:
        return
    p = torch.nn.Parameter(torch.from_numpy(run["theta0"].copy()))
    optimizer = DualAdam(
        [p],
        lr=options["lr"],
        betas=tuple(options["betas"]),
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        decoupled_weight_decay=options["weight_decay_mode"] != "l2",
        inverse_term=options["inverse_term"],
        schedule=schedule,
    )
    records = {int(t): i for i, t in enumerate(run["step"])}
    columns = run["theta"].shape[1]
    travelled = np.zeros(columns)
    last = run["theta0"][:columns].astype(np.float64)
    for t, grad in enumerate(run["grad"], 1):
        p.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        now = p.detach().numpy()[:columns].astype(np.float64)
        travelled += np.abs(now - last)
        last = now
        if t in records:
            # Each step rounds the parameter once, and its update 40 times at most. These 40 include
            # the errors of the moments.
            theta = run["theta"][records[t]]
            bound = (
                t * 1.5 * HALF_ULP * (np.abs(theta) + travelled)
                + (40 + 60 * t) * HALF_ULP * travelled
                + 2.0**-126
            )
            if options["weight_decay_mode"] != "l2":
                assert np.all(np.abs(now - theta) <= bound), f"step {t}"


NEEDS_NO_MASTER = pytest.param(torch.float32, torch.float32, True, id="f32_f32 needs no master")


@pytest.mark.parametrize(("kind", "grads", "masters"), [*variants(), NEEDS_NO_MASTER])
def test_the_optimizer_and_the_array_function_have_the_same_bits(
    kind: torch.dtype, grads: torch.dtype, masters: bool
) -> None:
    shapes = [(3, 5), (1,), (0,), (70_001,), ()]
    params = [torch.nn.Parameter(torch.randn(shape).to(kind)) for shape in shapes]
    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = DualAdam(params, switching_steps=6, master_weights=masters, **options)
    config = dualadam.Config(0.01, (0.9, 0.999), 1e-8, 0.1, dualadam.Schedule.linear_until(6))
    arrays = [p.detach().clone() for p in params]
    moments = [
        (torch.zeros_like(p, dtype=torch.float32), torch.zeros_like(p, dtype=torch.float32))
        for p in arrays
    ]
    copies = [p.float() if masters and kind != torch.float32 else None for p in arrays]
    for t in range(1, 11):
        for p, array, (m, v), master in zip(params, arrays, moments, copies):
            p.grad_dtype = None
            p.grad = torch.randn(p.shape).to(grads)
            dualadam.step(array, p.grad, m, v, config=config, step=t, master=master)
        optimizer.step()
        for p, array, (m, v), master in zip(params, arrays, moments, copies):
            state = optimizer.state[p]
            assert torch.equal(bits(p), bits(array))
            assert torch.equal(bits(state["exp_avg"]), bits(m)) and torch.equal(
                bits(state["exp_avg_sq"]), bits(v)
            )
            assert float(state["step"]) == t
            if master is not None:
                assert torch.equal(bits(state["master_param"]), bits(master))
                assert torch.equal(bits(p), bits(master.to(kind)))


def test_a_float32_parameter_takes_16_bit_gradients() -> None:
    for kind in (torch.bfloat16, torch.float16):
        p = torch.nn.Parameter(torch.randn(100))
        q = torch.nn.Parameter(p.detach().clone())
        grad = torch.randn(100).to(kind)
        p.grad_dtype = None
        p.grad, q.grad = grad, grad.float()
        for param in (p, q):
            DualAdam([param], switching_steps=5).step()
        assert torch.equal(bits(p), bits(q))


def test_masters_keep_what_bfloat16_loses() -> None:
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    options = {"lr": 1e-4, "weight_decay": 0, "switching_rate": 1.0}
    optimizer = DualAdam([p], **options, master_weights=True)
    for _ in range(50):
        p.grad = torch.ones_like(p)
        optimizer.step()
    torch.testing.assert_close(
        optimizer.state[p]["master_param"], torch.full((4,), 1 - 50e-4), rtol=0, atol=1e-6
    )
    assert torch.equal(p.detach(), optimizer.state[p]["master_param"].bfloat16())


def test_the_defaults_are_those_of_adamw() -> None:
    ours, theirs = DualAdam([torch.ones(1)], switching_rate=1), torch.optim.AdamW([torch.ones(1)])
    shared = ours.defaults.keys() & theirs.defaults.keys()
    assert len(shared) == 8
    for key in shared:
        assert ours.defaults[key] == theirs.defaults[key], key
