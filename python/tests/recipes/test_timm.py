"""`docs/src/guide/recipes/timm.md`: groups with layer decay, and timm's own registry."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from dualadam.torch import DualAdam
from programs import Program, Trained, assert_it_becomes_adamw, assert_same_bits, recipe
from steps import is_same
from timm.optim import OptimInfo, create_optimizer_v2, param_groups_layer_decay
from timm.optim._optim_factory import default_registry
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 12
BATCHES = 4


def model_and_data() -> tuple[torch.nn.Module, DataLoader[tuple[torch.Tensor, ...]]]:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **sizes)
    images, classes = torch.randn(BATCHES * 4, 3, 16, 16), torch.arange(BATCHES * 4) % 4
    return model, DataLoader(TensorDataset(images, classes), batch_size=4)


def run(program: Program, resume: str | None = None) -> Trained:
    Path("run").mkdir(exist_ok=True)
    trained: Trained = program["train"](*model_and_data(), EPOCHS, resume)
    return trained


def test_it_becomes_adamw() -> None:
    assert_it_becomes_adamw("timm", run, EPOCHS * BATCHES, EPOCHS * BATCHES * 16 // 100)


def test_it_resumes() -> None:
    program = recipe("timm")
    assert_same_bits(run(program), run(program, "run/checkpoint-0.pth.tar"))


def trained(make: Callable[[Any], Optimizer]) -> Trained:
    model, data = model_and_data()
    optimizer = make(model)
    for _ in range(2):
        for images, classes in data:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), classes).backward()
            optimizer.step()
    return model, optimizer


def test_each_way_to_make_it_gives_the_same_run() -> None:
    default_registry.register(OptimInfo("dualadam", DualAdam, has_betas=True))
    options = {"lr": 1e-3, "switching_steps": 3}
    groups = {"weight_decay": 0.05, "layer_decay": 0.75}

    def directly(model: Any) -> Optimizer:
        no_decay = model.no_weight_decay()
        params = param_groups_layer_decay(model, no_weight_decay_list=no_decay, **groups)
        return DualAdam(params, **options)

    registered = trained(lambda model: create_optimizer_v2(model, "dualadam", **options, **groups))
    assert_same_bits(registered, trained(directly))


def test_lookahead_resumes() -> None:
    registry = recipe("timm")["registry"]

    def make(model: Any) -> Optimizer:
        return registry.create_optimizer(model, "lookahead_dualadam", lr=1e-3, switching_steps=3)

    saved = trained(make)[1].state_dict()
    other = make(model_and_data()[0])
    other.load_state_dict(saved)
    for index, state in other.state_dict()["state"].items():
        assert is_same(state["lookahead_slow_buff"], saved["state"][index]["lookahead_slow_buff"])
