"""`docs/src/guide/recipes/peft.md`: adapters are trained, and the base is frozen."""

import pytest
import torch
from dualadam.torch import DualAdam
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from programs import Program, Trained, assert_it_becomes_adamw, assert_same_bits, recipe
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers"
)
EPOCHS = 12
BATCHES = 4
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def base(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=32, num_attention_heads=2, **sizes)
    return LlamaForCausalLM(config).to(dtype)


def run(program: Program, dtype: torch.dtype, done: int = 0) -> Trained:
    model = base(dtype)
    trained: Trained = program["train"](model, torch.randint(32, (BATCHES, 4, 16)), EPOCHS, done)
    return trained


@DTYPES
def test_it_becomes_adamw(dtype: torch.dtype) -> None:
    steps = EPOCHS * BATCHES
    assert_it_becomes_adamw("peft", lambda program: run(program, dtype), steps, steps * 16 // 100)


@DTYPES
def test_it_resumes(dtype: torch.dtype) -> None:
    program = recipe("peft")
    assert_same_bits(run(program, dtype), run(program, dtype, 1))


@DTYPES
def test_only_adapters_have_a_state(dtype: torch.dtype) -> None:
    model, optimizer = run(recipe("peft"), dtype)
    for name, param in model.named_parameters():
        is_adapter = "lora_" in name
        assert (param in optimizer.state) == is_adapter
        assert param.dtype == (torch.float32 if is_adapter else dtype)


def test_a_base_of_whole_numbers_stays_frozen() -> None:
    model = base(torch.float32)
    codes = torch.randint(-128, 128, (16, 16), dtype=torch.int8)
    model.register_parameter("codes", torch.nn.Parameter(codes.clone(), requires_grad=False))
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    optimizer = DualAdam(model.parameters(), switching_steps=3)
    ids = torch.randint(32, (4, 16))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer.state) == 4 and torch.equal(model.base_model.model.codes, codes)


def test_loraplus_takes_the_class() -> None:
    model = get_peft_model(base(torch.float32), LoraConfig(target_modules=["q_proj"]))
    optimizer = create_loraplus_optimizer(
        model, DualAdam, lr=1e-3, loraplus_lr_ratio=16, switching_steps=3
    )
    assert isinstance(optimizer, DualAdam)
    assert {1e-3, 16e-3} <= {group["lr"] for group in optimizer.param_groups}
