"""`docs/src/guide/recipes/lightning.md`: a step forms, accumulates and clips its gradients."""

from typing import Any

import lightning
import pytest
import torch
from dualadam.torch import DualAdam
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from programs import Program, Trained, assert_it_becomes_adamw, assert_same_bits, recipe
from regression import BATCHES, EPOCHS, model_and_data

_ignored = pytest.mark.filterwarnings
pytestmark = [
    _ignored("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning:lightning"),
    _ignored("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]
STEPS = EPOCHS * BATCHES // 2


def trainer(**options: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(max_epochs=EPOCHS, **quiet, **options)


def run(program: Program, resume: str | None = None, **options: Any) -> Trained:
    checkpoints = ModelCheckpoint("run", "{epoch}", save_top_k=-1)
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, **options}
    used = trainer(callbacks=checkpoints, **options)
    trained: Trained = program["train"](used, *model_and_data(), resume)
    return trained


def test_it_becomes_adamw() -> None:
    assert_it_becomes_adamw("lightning", run, STEPS, STEPS * 16 // 100)


def test_it_becomes_adamw_with_scaled_gradients() -> None:
    def run_scaled(program: Program) -> Trained:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        return run(program, plugins=MixedPrecision("16-mixed", "cpu", scaler))

    assert_it_becomes_adamw("lightning", run_scaled, STEPS, STEPS * 16 // 100)


def test_it_resumes() -> None:
    program = recipe("lightning")
    assert_same_bits(run(program), run(program, "run/epoch=0.ckpt"))


def test_manual_optimization() -> None:
    class Manual(lightning.LightningModule):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.model = model

        def training_step(self, batch: Any) -> None:
            optimizer: Any = self.optimizers()
            assert isinstance(optimizer, DualAdam) and optimizer is not optimizer.optimizer
            optimizer.zero_grad()
            self.manual_backward(self.model(batch[0]).square().mean())
            optimizer.step()
            assert optimizer.state is optimizer.optimizer.state and len(optimizer.state) == 4

        def configure_optimizers(self) -> DualAdam:
            return DualAdam(self.parameters(), switching_steps=3)

    model, data = model_and_data()
    used = trainer(enable_checkpointing=False)
    used.fit(Manual(model), data)
    states = used.optimizers[0].state.values()
    assert all(state["step"] == EPOCHS * BATCHES for state in states)
