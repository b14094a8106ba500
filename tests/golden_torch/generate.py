"""Runs of torch's Adam and AdamW in float64, for tests that continue them, as one safetensors file.

usage: generate.py OUTFILE     (needs PyTorch, NumPy and safetensors)

For each case of CASES, with T = 20 recorded steps and N = 32 elements:

    CASE.start.params, .exp_avg, .exp_avg_sq   [N] f32      the state after step 10
    CASE.grad                                  [T, N] f32   the gradients of steps 11 to 30
    CASE.params, .exp_avg, .exp_avg_sq         [T, N] f64   the state after each of those steps

torch itself continues from the f32 state after step 10, so both sides start from the same values.
The metadata holds torch's version, the step of the start, and each case's hyperparameters as JSON.
"""
import json
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

START, STEPS, N = 10, 20, 32
CASES = {
    "adam": dict(optimizer="Adam", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    "adam_l2": dict(optimizer="Adam", lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.05),
    "adamw": dict(optimizer="AdamW", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    "adam_maximize": dict(optimizer="Adam", lr=1e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0, maximize=True),
}
ARRAYS = ("params", "exp_avg", "exp_avg_sq")


def gradients(rng):
    scale = 10.0 ** rng.uniform(-5, 1, N)
    grad = (rng.normal(size=(START + STEPS, N)) + 0.5 * rng.normal(size=N)) * scale
    grad[:, :4] *= rng.random((START + STEPS, 4)) < 0.3  # mostly zero
    grad[:, 4] = 0.0
    return torch.from_numpy(grad.astype(np.float32))


def step(optimizer, params, grad):
    params.grad = grad.double()
    optimizer.step()


def arrays(optimizer, params):
    state = optimizer.state[params]
    return dict(params=params.detach(), exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"])


def run(case, rng):
    kind = getattr(torch.optim, case.pop("optimizer"))
    grad = gradients(rng)
    # Small parameters too, to which an update is large.
    params = torch.nn.Parameter(torch.from_numpy(rng.normal(size=N) * 10.0 ** rng.uniform(-5, 0, N)))
    optimizer = kind([params], foreach=False, fused=False, **case)
    for t in range(START):
        step(optimizer, params, grad[t])
    assert optimizer.state[params]["step"] == START
    start = {name: array.float() for name, array in arrays(optimizer, params).items()}
    with torch.no_grad():
        for name, array in arrays(optimizer, params).items():
            array.copy_(start[name])
    after = {name: [] for name in ARRAYS}
    for t in range(START, START + STEPS):
        step(optimizer, params, grad[t])
        for name, array in arrays(optimizer, params).items():
            after[name].append(array.numpy().copy())
    return (
        {f"start.{name}": array.numpy() for name, array in start.items()}
        | {"grad": grad[START:].numpy()}
        | {name: np.stack(steps) for name, steps in after.items()}
    )


if __name__ == "__main__":
    data, metadata = {}, {"torch": torch.__version__, "step": json.dumps(START)}
    for seed, (name, case) in enumerate(CASES.items()):
        metadata[name] = json.dumps(case)
        data |= {f"{name}.{key}": array for key, array in run(dict(case), np.random.default_rng(seed)).items()}
    save_file(data, sys.argv[1], metadata=metadata)
