"""`docs/src/guide/recipes/accelerate.md`: accumulated and clipped gradients, and skipped steps."""

from typing import Any

import torch
from accelerate import Accelerator
from dualadam.torch import DualAdam
from programs import Program, Trained, assert_it_becomes_adamw, assert_same_bits, recipe
from regression import BATCHES, EPOCHS, model_and_data

STEPS = EPOCHS * BATCHES // 2


def run(program: Program, done: int = 0) -> Trained:
    trained: Trained = program["train"](*model_and_data(), EPOCHS, done)
    return trained


def test_it_becomes_adamw() -> None:
    assert_it_becomes_adamw("accelerate", run, STEPS, STEPS * 16 // 100)


def test_it_resumes() -> None:
    program = recipe("accelerate")
    assert_same_bits(run(program), run(program, 1))


def skips(kind: Any, clips: bool, **options: Any) -> list[tuple[bool, float, float, bool]]:
    """For each of five steps: skipped or not, learning rate, loss scale, and whether p changed."""
    accelerator = Accelerator()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model = torch.nn.Linear(4, 1)
    optimizer = kind(model.parameters(), lr=1e-2, weight_decay=0.01, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    seen = []
    for factor in (1.0, float("inf"), 1.0, float("nan"), 1.0):
        before = model.weight.detach().clone()
        accelerator.backward(model(torch.full((2, 4), factor)).sum())
        if clips:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        lr, scale = scheduler.get_last_lr()[0], accelerator.scaler.get_scale()
        changed = not torch.equal(model.weight, before)
        seen.append((optimizer.step_was_skipped, lr, scale, changed))
    return seen


def test_skipped_steps_are_seen() -> None:
    for clips in (True, False):
        seen = skips(DualAdam, clips, switching_steps=3)
        assert [skipped for skipped, *_ in seen] == [False, True, False, True, False]
        assert all(changed != skipped for skipped, _, _, changed in seen)
        assert seen == skips(torch.optim.AdamW, clips)
