"""Masters follow what other code writes into their parameters, and else keep their low bits."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dualadam.torch import DualAdam
from helpers import bits
from torch.overrides import TorchFunctionMode

KINDS = [torch.bfloat16, torch.float16]


def stepped(kind: torch.dtype, count: int = 64, steps: int = 3) -> tuple[Any, Any]:
    """A parameter whose master has low bits that the parameter lacks, and its optimizer."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(count).to(kind))
    optimizer = DualAdam([("p", p)], lr=0.01, switching_steps=9, master_weights=True)
    for _ in range(steps):
        p.grad = torch.randn(count).to(kind)
        optimizer.step()
    return p, optimizer


def master(optimizer: Any, p: Any) -> torch.Tensor:
    # The attribute would make the optimizer forget what it knows of the tensors.
    value: torch.Tensor = optimizer.__dict__["state"][p]["master_param"]
    return value


def synced(param: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The master after the rule, element by element in torch."""
    kept = bits(old.to(param.dtype)) == bits(param)
    return torch.where(kept, old, param.detach().float())


def one_step(param: torch.Tensor, optimizer: Any, old: torch.Tensor) -> torch.Tensor:
    """The master after a step from `old`, in an optimizer of its own."""
    q = torch.nn.Parameter(old.to(param.dtype))
    other = DualAdam([q], lr=0.01, switching_steps=9, master_weights=True)
    state = {key: value.clone() for key, value in optimizer.__dict__["state"][param].items()}
    other.state[q] = {**state, "master_param": old.clone()}
    assert param.grad is not None
    q.grad = param.grad.clone()
    other.step()
    return master(other, q)


def clamped(p: Any) -> None:
    with torch.no_grad():
        p.clamp_(-0.5, 0.5)


def pruned(p: Any) -> None:
    with torch.no_grad():
        p.mul_((torch.arange(p.numel()) % 3 != 0).to(p.dtype))


def loaded(p: Any) -> None:
    module = torch.nn.Module()
    module.p = p
    values = p.detach().float()
    values[::5] += 1.0
    module.load_state_dict({"p": values})


def replaced(p: Any) -> None:
    p.data = torch.where(torch.arange(p.numel()) % 2 == 0, p.data, -p.data)


def trained_as_float32(p: Any) -> None:
    """Thirty steps of another optimizer, with the model in float32."""
    kind, module = p.dtype, torch.nn.Module()
    module.p = p
    p.grad = None
    module.float()
    other = torch.optim.SGD([p], lr=0.05, fused=True)
    for _ in range(30):
        p.grad = torch.ones_like(p)
        other.step()
    p.grad = None
    module.to(kind)


CHANGES = [
    clamped,
    pruned,
    loaded,
    replaced,
    trained_as_float32,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_elements_are_taken_over(kind: torch.dtype, change: Callable[[Any], None]) -> None:
    p, optimizer = stepped(kind)
    old = master(optimizer, p).clone()
    change(p)
    expected = synced(p, old)
    assert not torch.equal(expected, old)
    p.grad = torch.randn(p.shape).to(kind)
    after = one_step(p, optimizer, expected)
    optimizer.step()
    assert torch.equal(bits(master(optimizer, p)), bits(after))
    assert torch.equal(bits(p), bits(after.to(kind)))


def test_another_storage_at_the_same_address_is_noticed() -> None:
    p, optimizer = stepped(torch.bfloat16)
    memory = bytearray(p.detach().view(torch.int16).numpy().tobytes())
    p.data = torch.frombuffer(memory, dtype=torch.bfloat16)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    address, version = p.data_ptr(), p._version
    other = torch.frombuffer(memory, dtype=torch.bfloat16)
    other.neg_()
    p.data = other
    assert (p.data_ptr(), p._version) == (address, version)
    old = master(optimizer, p).clone()
    after = one_step(p, optimizer, synced(p, old))
    optimizer.step()
    assert torch.equal(bits(master(optimizer, p)), bits(after))


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_taken_over_once(kind: torch.dtype) -> None:
    p, optimizer = stepped(kind)
    clamped(p)
    for _ in range(3):
        old = synced(p, master(optimizer, p))
        p.grad = torch.randn(p.shape).to(kind)
        after = one_step(p, optimizer, old)
        optimizer.step()
        assert torch.equal(bits(master(optimizer, p)), bits(after))


def test_training_in_float32_with_the_same_optimizer() -> None:
    p, optimizer = stepped(torch.bfloat16)
    module = torch.nn.Module()
    module.p = p
    p.grad = None
    module.float()
    for _ in range(30):
        p.grad = torch.ones_like(p)
        optimizer.step()
    trained = p.detach().bfloat16()
    p.grad = None
    module.bfloat16()
    old = master(optimizer, p).clone()
    p.grad = torch.zeros_like(p)
    after = one_step(p, optimizer, synced(p, old))
    optimizer.step()
    assert torch.equal(bits(p), bits(after.bfloat16()))
    assert (p.float() - trained.float()).abs().max() < 0.03 < (old - trained.float()).abs().max()


def test_what_nobody_changed_keeps_its_low_bits() -> None:
    p, optimizer = stepped(torch.bfloat16, steps=1)
    q, other = stepped(torch.bfloat16, steps=1)
    for _ in range(20):
        for each in (p, q):
            each.grad = torch.full_like(each, 1e-3)
        optimizer.step()
        other.step()
        # Looking at the state, saving it, and writing the same values changes nothing.
        optimizer.state_dict()
        with torch.no_grad():
            p.copy_(p.clone())
        assert optimizer.state[p]["step"] == other.state[q]["step"]
        assert torch.equal(bits(master(optimizer, p)), bits(master(other, q)))


@pytest.mark.parametrize("is_synced", [False, True])
def test_a_master_that_the_user_sets_wins_over_an_unchanged_parameter(is_synced: bool) -> None:
    p, optimizer = stepped(torch.bfloat16)
    if is_synced:
        optimizer.sync_masters()
    better = torch.linspace(-1, 1, p.numel())
    optimizer.state[p]["master_param"].copy_(better)
    p.grad = torch.zeros_like(p)
    after = one_step(p, optimizer, better)
    optimizer.step()
    assert torch.equal(bits(master(optimizer, p)), bits(after))


def test_explicit_calls_see_what_steps_do_not() -> None:
    p, optimizer = stepped(torch.bfloat16)
    old = master(optimizer, p).clone()
    p.data.clamp_(-0.5, 0.5)
    optimizer.sync_masters()
    assert torch.equal(bits(master(optimizer, p)), bits(synced(p, old)))
    assert not torch.equal(bits(master(optimizer, p)), bits(old))
    optimizer.sync_masters()
    assert torch.equal(bits(master(optimizer, p)), bits(synced(p, old)))


def test_writes_through_data_need_the_call() -> None:
    p, optimizer = stepped(torch.bfloat16)
    p.data.fill_(5.0)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert bool((p < 4).all())


def test_inference_tensors_need_the_call() -> None:
    with torch.inference_mode():
        p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16), requires_grad=False)
        optimizer = DualAdam([p], lr=1e-4, weight_decay=0, switching_rate=1, master_weights=True)
        for _ in range(3):
            p.grad = torch.ones_like(p)
            optimizer.step()
        assert torch.equal(master(optimizer, p).bfloat16(), p)
        assert torch.allclose(master(optimizer, p), torch.tensor(1 - 3e-4))
        p.fill_(5.0)
        optimizer.step()
        assert bool((p < 1.1).all())
        p.fill_(5.0)
        optimizer.sync_masters()
        optimizer.step()
        assert bool((p > 4.9).all())


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_steps_of_fused_optimizers_need_the_call(kind: Any) -> None:
    p, optimizer = stepped(torch.bfloat16)
    p.grad = torch.ones_like(p)
    other = kind([p], lr=0.5, fused=True)
    other.step()
    trained = p.detach().clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not torch.allclose(p, trained, atol=0.1)
    p.grad = torch.ones_like(p)
    other.step()
    optimizer.sync_masters()
    trained = p.detach().clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(p, trained, atol=0.1)


def test_calls_read_storage_without_alignment_and_refuse_overlap() -> None:
    p, optimizer = stepped(torch.bfloat16)
    memory = bytearray(2 * p.numel() + 1)
    odd = torch.frombuffer(memory, dtype=torch.bfloat16, offset=1, count=p.numel())
    odd.copy_(p.detach() * 2)
    old, p.data = master(optimizer, p).clone(), odd
    optimizer.sync_masters()
    assert torch.equal(bits(master(optimizer, p)), bits(synced(p.detach().clone(), old)))
    old = master(optimizer, p).clone()
    p.data = master(optimizer, p).view(torch.bfloat16)[: p.numel()]
    text = "master_param of parameter 'p' must have memory of its own, it overlaps"
    with pytest.raises(ValueError, match=text):
        optimizer.sync_masters()
    assert torch.equal(bits(master(optimizer, p)), bits(old))


def test_explicit_calls_pass_over_the_rest() -> None:
    p, optimizer = stepped(torch.bfloat16)
    f32 = torch.nn.Parameter(torch.ones(3))
    new = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    frozen = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    optimizer.add_param_group({"params": [("f32", f32), ("new", new), ("frozen", frozen)]})
    optimizer.sync_masters()
    assert list(optimizer.state) == [p]
    DualAdam([f32], switching_steps=3).sync_masters()
    clone = copy.deepcopy(optimizer)
    clone.sync_masters()
    empty = DualAdam([torch.nn.Parameter(torch.ones(0).bfloat16())], switching_steps=3)
    empty.sync_masters()


def test_masters_of_another_layout_are_synced_too() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(4, 4).bfloat16())
    optimizer = DualAdam([("p", p)], lr=0.01, switching_steps=9, master_weights=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    old = master(optimizer, p).clone()
    p.data = p.data.t()
    expected = synced(p, old)
    optimizer.sync_masters()
    assert torch.equal(bits(master(optimizer, p)), bits(expected))
    # A transposed view of the same memory is another parameter for a step as well.
    p.data = p.data.t()
    old = master(optimizer, p).clone()
    p.grad = torch.zeros(4, 4, dtype=torch.bfloat16)
    after = one_step(p, optimizer, synced(p, old))
    optimizer.step()
    assert torch.equal(bits(master(optimizer, p)), bits(after))


def test_loaded_states_follow_the_loaded_parameters() -> None:
    p, optimizer = stepped(torch.bfloat16)
    saved, weights = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
    q, other = stepped(torch.bfloat16, steps=7)
    with torch.no_grad():
        q.copy_(weights)
    other.load_state_dict(saved)
    for each, of in ((p, optimizer), (q, other)):
        each.grad = torch.full_like(each, 0.5)
        of.step()
    assert torch.equal(bits(master(optimizer, p)), bits(master(other, q)))
    # Other parameters than those that were saved with the masters.
    with torch.no_grad():
        q.fill_(3.0)
    other.load_state_dict(saved)
    q.grad = torch.zeros_like(q)
    other.step()
    assert bool((q > 2.9).all())


def test_masters_that_do_not_fit_change_nothing() -> None:
    p, optimizer = stepped(torch.bfloat16)
    q = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer.add_param_group({"params": [("q", q)]})
    p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
    optimizer.step()
    p.data.fill_(2.0)
    old = master(optimizer, p).clone()
    optimizer.state[q]["master_param"] = torch.ones(4)
    text = r"master_param of parameter 'q' must have the shape \(3,\), it has \(4,\)"
    with pytest.raises(ValueError, match=text):
        optimizer.sync_masters()
    assert torch.equal(master(optimizer, p), old)


def test_masters_of_frozen_parameters_of_other_types_are_passed_over() -> None:
    p, optimizer = stepped(torch.bfloat16)
    p.grad = None
    p.requires_grad_(False)
    p.data = torch.zeros(64, dtype=torch.int8)
    old = master(optimizer, p).clone()
    optimizer.step()
    optimizer.sync_masters()
    assert torch.equal(bits(master(optimizer, p)), bits(old))


def test_states_of_other_code_without_a_master_are_passed_over() -> None:
    p, optimizer = stepped(torch.bfloat16)
    frozen = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
    optimizer.add_param_group({"params": [("frozen", frozen)]})
    optimizer.state[frozen] = {"ema": 1}
    optimizer.step()
    optimizer.sync_masters()


class Interrupting(TorchFunctionMode):
    """Raises when torch is asked for a tensor's count of changes."""

    def __init__(self, kind: type[BaseException]) -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is torch.Tensor._version:  # type: ignore[comparison-overlap]
            raise self.kind
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RecursionError, MemoryError])
@pytest.mark.parametrize("is_known", [False, True])
def test_an_exception_while_a_change_is_looked_for_is_not_lost(
    is_known: bool, kind: type[BaseException]
) -> None:
    p, optimizer = stepped(torch.bfloat16)
    if not is_known:
        optimizer.state  # noqa: B018
    before = bits(p)
    with pytest.raises(kind), Interrupting(kind):
        optimizer.step()
    assert torch.equal(bits(p), before)
    with pytest.raises(kind), Interrupting(kind):
        optimizer.sync_masters()
    optimizer.step()


def test_special_values() -> None:
    values = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 3e38, -3e38, 1.0]
    p = torch.nn.Parameter(torch.ones(len(values), dtype=torch.bfloat16))
    optimizer = DualAdam([p], lr=0.0, switching_steps=9, master_weights=True)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    with torch.no_grad():
        p.copy_(torch.tensor(values))
    optimizer.step()
    assert torch.equal(bits(master(optimizer, p)), bits(p.detach().float()))


def test_a_failed_step_does_not_forget_a_change() -> None:
    p, optimizer = stepped(torch.bfloat16)
    clamped(p)
    old = master(optimizer, p).clone()
    optimizer.param_groups[0]["lr"] = -1.0
    p.grad = torch.zeros_like(p)
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.01
    q = torch.nn.Parameter(torch.ones(3))
    q.grad = p.grad.view(torch.float32)[:3]
    optimizer.add_param_group({"params": [("q", q)]})
    q.data = master(optimizer, p)[:3]
    with pytest.raises(ValueError, match="must not overlap"):
        optimizer.step()
    assert torch.equal(bits(master(optimizer, p)), bits(old))
    q.grad = None
    after = one_step(p, optimizer, synced(p, old))
    optimizer.step()
    assert torch.equal(bits(master(optimizer, p)), bits(after))
