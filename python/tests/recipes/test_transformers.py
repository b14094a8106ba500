"""`docs/src/guide/recipes/transformers.md`: gradients are accumulated and clipped by `Trainer`."""

import pytest
import torch
from programs import (
    Program,
    Trained,
    assert_it_becomes_adamw,
    assert_same_bits,
    recipe,
    recipe_with_adamw,
)
from transformers import GPT2Config, GPT2LMHeadModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning"
)
STEPS = 50


def run(program: Program, resume: str | None = None) -> Trained:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    data = [{"input_ids": ids, "labels": ids} for ids in torch.randint(32, (64, 16))]
    trained: Trained = program["train"](GPT2LMHeadModel(config), data, resume)
    return trained


def test_it_becomes_adamw() -> None:
    assert_it_becomes_adamw("transformers", run, STEPS, STEPS * 16 // 100)


def test_it_resumes() -> None:
    program = recipe("transformers")
    assert_same_bits(run(program), run(program, "run/checkpoint-5"))


def test_a_checkpoint_of_adamw_resumes() -> None:
    run(recipe_with_adamw("transformers"))
    _, optimizer = run(recipe("transformers"), "run/checkpoint-5")
    assert all(state["step"] == STEPS for state in optimizer.state.values())
    length = STEPS * 16 // 100
    assert all(group["schedule"] == ("linear", 1 / length) for group in optimizer.param_groups)
