"""`docs/src/guide/recipes/fabric.md`: a wrapper that shares the optimizer's class."""

import lightning
import torch
from dualadam.torch import DualAdam
from lightning.fabric.plugins import MixedPrecision
from programs import Program, Trained, assert_it_becomes_adamw, assert_same_bits, recipe
from regression import BATCHES, EPOCHS, model_and_data

STEPS = EPOCHS * BATCHES


def run(program: Program, done: int = 0) -> Trained:
    trained: Trained = program["train"](*model_and_data(), EPOCHS, done)
    return trained


def test_it_becomes_adamw() -> None:
    assert_it_becomes_adamw("fabric", run, STEPS, STEPS * 16 // 100)


def test_it_resumes() -> None:
    program = recipe("fabric")
    assert_same_bits(run(program), run(program, 1))


def test_the_wrapper_shows_the_optimizer() -> None:
    model, _ = model_and_data()
    optimizer = DualAdam(model.parameters(), switching_steps=3)
    _, wrapper = lightning.Fabric().setup(model, optimizer)
    assert isinstance(wrapper, DualAdam) and wrapper is not optimizer
    assert wrapper.state is optimizer.state and wrapper.param_groups is optimizer.param_groups
    wrapper.sync_masters()
    optimizer.load_state_dict(optimizer.state_dict())
    wrapper.sync_masters()
    assert wrapper._stepper is optimizer._stepper


def test_scaled_gradients_are_clipped() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fabric = lightning.Fabric(plugins=MixedPrecision("16-mixed", "cpu", scaler))
    model, data = model_and_data()
    optimizer = DualAdam(model.parameters(), switching_steps=3)
    model, optimizer = fabric.setup(model, optimizer)
    for x, y in data:
        fabric.backward(torch.nn.functional.mse_loss(model(x), y))
        norm = fabric.clip_gradients(model, optimizer, max_norm=0.1)
        clipped = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        assert clipped <= 0.1 < norm
        optimizer.step()
        optimizer.zero_grad()
    assert all(state["step"] == BATCHES for state in optimizer.state.values())
