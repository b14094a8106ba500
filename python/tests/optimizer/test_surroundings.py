"""Steps in the surroundings that other tools make: modes, wrappers, compilers, scalers."""

import copy
import functools
import inspect
import math
import warnings
from typing import Any

import pytest
import torch
import torch._dynamo
from child import output_of
from dualadam.torch import DualAdam
from dualadam.torch.scaling import Skips
from helpers import assert_same, bits, everything
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

AS_ADAMW = {"switching_rate": 1.0}


def ones(*shape: int, kind: torch.dtype = torch.float32) -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.ones(shape, dtype=kind, device="cpu"))
    p.grad = torch.ones_like(p)
    return p


def some_steps() -> list[Any]:
    """What the first steps, a load and the end of float32's counters make."""
    params = [ones(3), ones(2, kind=torch.bfloat16)]
    optimizer = DualAdam(params, switching_steps=2**24, master_weights=True)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"].fill_(2**24 - 2)
    optimizer.step()
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    kinds = [
        (key, value.dtype, value.device, value.requires_grad)
        for state in optimizer.state.values()
        for key, value in state.items()
    ]
    return [*everything(optimizer), kinds]


def test_defaults_of_torch_do_not_matter() -> None:
    expected = some_steps()
    for default in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(default)
        try:
            found = some_steps()
        finally:
            torch.set_default_dtype(torch.float32)
        assert_same(expected, found)
    with torch.device("meta"):
        found = some_steps()
    assert_same(expected, found)
    torch.set_default_device("meta")
    try:
        found = some_steps()
    finally:
        torch.set_default_device(None)
    assert_same(expected, found)


class Wrapper:
    """Takes the class of what it wraps, but not its `__init__`, as Lightning Fabric's does."""

    def __init__(self, optimizer: DualAdam) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Wrapped", (Wrapper, DualAdam), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def test_a_wrapper_that_takes_the_class() -> None:
    p = ones(3)
    optimizer = DualAdam([p], **AS_ADAMW)
    wrapper: Any = Wrapper(optimizer)
    assert isinstance(wrapper, DualAdam)
    assert wrapper.state is optimizer.state and len(wrapper.state) == 0
    assert wrapper.skipped_steps == 0 and not wrapper._step_supports_amp_scaling
    optimizer.step()
    assert wrapper.state[p]["step"] == 1
    inner: Any = optimizer
    inner.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert wrapper.skipped_steps == 1
    wrapper.sync_masters()
    assert wrapper.state_dict()["state"][0]["step"] == 1


def test_missing_state_is_an_attribute_error() -> None:
    empty = DualAdam.__new__(DualAdam)
    assert not hasattr(empty, "state")
    with pytest.raises(AttributeError, match="DualAdam has no attribute 'state' yet"):
        empty.state


def test_steps_of_fake_tensors_make_their_states() -> None:
    p = ones(3)
    with FakeTensorMode():
        model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
        optimizer = DualAdam(model.named_parameters(), master_weights=True, **AS_ADAMW)
        for _ in range(2):
            model(torch.ones(4, 3, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
        for param, state in optimizer.state.items():
            assert list(state) == ["step", "exp_avg", "exp_avg_sq", "master_param"]
            tensors = [state[key] for key in state if key != "step"]
            assert all(t.shape == param.shape and t.dtype == torch.float32 for t in tensors)
        optimizer.add_param_group({"params": [("real", p)]})
    with pytest.raises(TypeError, match="'weight' must be a tensor with memory, as other"):
        optimizer.step()
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("has_state", [False, True])
def test_tensors_with_memory_are_not_stepped_in_fake_mode(has_state: bool) -> None:
    p = ones(3)
    optimizer = DualAdam([("w", p)], **AS_ADAMW)
    if has_state:
        optimizer.step()
    before = p.detach().clone()
    with FakeTensorMode(), pytest.raises(TypeError, match="'w' must be a FakeTensor in Fake"):
        optimizer.step()
    assert torch.equal(p, before)
    assert len(optimizer.state) == has_state


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.ones(3, dtype=torch.complex64), "'w' must be float32, bfloat16 or float16"),
        (lambda: torch.ones(3, dtype=torch.float64), "'w' must be float32, bfloat16 or float16"),
        (lambda: torch.ones(8)[::2], "'w' must fill its memory"),
        (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, "'w' must have its own values"),
        (lambda: torch.ones(3, device="mps"), "'w' must be on the CPU or on CUDA"),
    ],
)
def test_a_dry_run_refuses_what_a_step_refuses(make: Any, text: str) -> None:
    with FakeTensorMode():
        p = torch.nn.Parameter(make())
        p.grad = torch.ones_like(p)
        with pytest.raises((TypeError, ValueError), match=text):
            DualAdam([("w", p)], **AS_ADAMW).step()


def test_a_dry_run_refuses_states_that_a_step_refuses() -> None:
    with FakeTensorMode():
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones_like(p)
        optimizer = DualAdam([("w", p)], **AS_ADAMW)
        for _ in range(2):
            optimizer.step()
        good = dict(optimizer.state[p])
        for bad, kind, text in [
            ({**good, "exp_avg": torch.ones(4)}, ValueError, "exp_avg of parameter 'w' must have"),
            ({**good, "step": "x"}, TypeError, "step of parameter 'w' must be a number"),
            ({"ema": 1}, ValueError, "the state of parameter 'w' must have step"),
            (5, TypeError, "the state of parameter 'w' must be a dict"),
        ]:
            optimizer.state[p] = bad
            with pytest.raises(kind, match=text):
                optimizer.step()
            assert optimizer.state[p] is bad


def test_the_arguments_can_be_inspected() -> None:
    of_adamw = inspect.getfullargspec(torch.optim.AdamW).args
    assert inspect.getfullargspec(DualAdam).args == of_adamw[:7]


def test_a_traced_graph_cannot_contain_a_step() -> None:
    p = ones(3)
    optimizer = DualAdam([p], **AS_ADAMW)

    def trained(x: torch.Tensor) -> torch.Tensor:
        optimizer.step()
        return x + p

    for pre_dispatch in (False, True):
        with pytest.raises(RuntimeError, match="a traced graph cannot contain the step"):
            make_fx(trained, pre_dispatch=pre_dispatch)(torch.ones(3))
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("is_fake", [False, True])
def test_memory_trackers_see_what_they_see_of_adamw(is_fake: bool) -> None:
    def peak(kind: Any, **options: Any) -> dict[str, int]:
        model = torch.nn.Linear(100, 100)
        optimizer = kind(model.parameters(), **options)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()
                model(torch.ones(4, 100)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
        return {str(key): value for key, value in snapshot.items()}

    with FakeTensorMode() if is_fake else torch.enable_grad():
        assert peak(DualAdam, **AS_ADAMW) == peak(torch.optim.AdamW, fused=True)


def test_transforms_of_torch_func() -> None:
    p, q = ones(3), ones(3)
    optimizer, plain = DualAdam([("w", p)], **AS_ADAMW), DualAdam([q], **AS_ADAMW)
    p.grad = torch.func.grad(lambda x: (x * x).sum())(p.detach())
    q.grad = torch.full((3,), 2.0)
    optimizer.step()
    plain.step()
    assert torch.equal(bits(p), bits(q))

    def inside(x: torch.Tensor) -> torch.Tensor:
        x.grad = torch.ones_like(x)
        DualAdam([("w", x)], **AS_ADAMW).step()  # type: ignore[list-item]
        return x.sum()

    text = "parameter 'w' must be a tensor with memory, it is a tensor of a torch.func transform"
    with pytest.raises(TypeError, match=text):
        torch.func.grad(inside)(torch.ones(3))


def test_subclasses_with_operations_of_their_own() -> None:
    p = ones(3)
    q = torch.nn.Parameter(TwoTensor(torch.ones(3), torch.ones(3)))
    q.grad = TwoTensor(torch.ones(3), torch.ones(3))
    optimizer = DualAdam([("p", p), ("q", q)], **AS_ADAMW)
    text = "'q' must be a tensor with memory, it is a .*: step such tensors with torch.optim.AdamW"
    with pytest.raises(TypeError, match=text):
        optimizer.step()
    assert torch.equal(p, torch.ones(3)) and not optimizer.state


def test_devices_of_rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    from dualadam.torch import plain

    class OnDevice:
        device = torch.device("cuda", 0)
        is_cuda = True

    plain.check_device("w", torch.ones(2))
    plain.check_device("w", OnDevice())  # type: ignore[arg-type]
    monkeypatch.setattr(torch.version, "hip", "7.0")
    plain.check_device("w", torch.ones(2))
    with pytest.raises(ValueError, match="w must be on the CPU or on a GPU of NVIDIA.*ROCm"):
        plain.check_device("w", OnDevice())  # type: ignore[arg-type]


def at_odd_address(values: torch.Tensor, offset: int) -> torch.Tensor:
    """The same values, at an address that no tensor of torch's own memory has."""
    memory = bytearray(values.numel() * values.element_size() + offset)
    tensor = torch.frombuffer(memory, dtype=values.dtype, offset=offset, count=values.numel())
    return tensor.view(values.shape).copy_(values)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_storage_without_alignment(kind: torch.dtype) -> None:
    def trained(place: Any) -> list[Any]:
        torch.manual_seed(0)
        values = [torch.randn(5, 3).to(kind), torch.randn(7).to(kind)]
        params = [torch.nn.Parameter(place(values[0])), torch.nn.Parameter(values[1])]
        optimizer = DualAdam(params, lr=0.1, switching_steps=4, master_weights=True)
        for step in range(3):
            for p in params:
                grad = torch.randn(p.shape).to(kind)
                p.grad = place(grad) if step != 1 else grad
            optimizer.step()
            if step == 1:
                state = optimizer.state[params[1]]
                state.update({k: place(v) for k, v in state.items() if k != "step"})
        assert list(optimizer.state) == params
        return everything(optimizer)

    assert_same(trained(torch.clone), trained(lambda values: at_odd_address(values, 1)))


def test_overlap_without_alignment_is_refused() -> None:
    memory = bytearray(4 * 8 + 1)
    p, q = (
        torch.nn.Parameter(
            torch.frombuffer(memory, dtype=torch.float32, offset=1 + 4 * at, count=4)
        )
        for at in (0, 2)
    )
    p.grad, q.grad = torch.ones(4), torch.ones(4)
    optimizer = DualAdam([("p", p), ("q", q)], **AS_ADAMW)
    text = "parameter 'p' must have memory of its own, it overlaps a parameter"
    with pytest.raises(ValueError, match=text):
        optimizer.step()
    assert bytes(memory) == bytes(4 * 8 + 1) and not optimizer.state


def test_a_view_without_alignment_is_written() -> None:
    memory = torch.zeros(13, dtype=torch.uint8)
    view = torch.frombuffer(memory.numpy(), dtype=torch.float32, offset=1, count=3)
    p = torch.nn.Parameter(view)
    p.grad = torch.ones(3)
    DualAdam([p], lr=0.5, **AS_ADAMW).step()
    written = torch.frombuffer(bytearray(memory.numpy()[1:].tobytes()), dtype=torch.float32)
    assert torch.equal(written, p) and bool((p != 0).all())


def test_capturable_has_no_effect_on_the_cpu() -> None:
    p, q = ones(3), ones(3)
    ours, plain = DualAdam([p], capturable=True, **AS_ADAMW), DualAdam([q], **AS_ADAMW)
    saved = None
    for optimizer in (ours, plain):
        optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
    assert saved is not None
    saved["param_groups"][0]["capturable"] = True
    # A device counts in int64.
    saved["state"][0]["step"] = saved["state"][0]["step"].to(torch.int64)
    ours.load_state_dict(saved)
    assert ours.state[p]["step"].dtype == torch.float32
    ours.step()
    plain.step()
    assert torch.equal(bits(p), bits(q))


def graph_breaks(kind: Any, **options: Any) -> tuple[list[str], list[str], torch.Tensor]:
    """The graph breaks and warnings of compiled training, and a parameter after it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = kind(model.named_parameters(), lr=0.1, **options)
    x = torch.randn(8, 4)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    @torch.compile(backend="eager")
    def train() -> None:
        model(x).square().mean().backward()
        optimizer.step()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            train()
            optimizer.zero_grad()
    broken = torch._dynamo.utils.counters["graph_break"]
    return list(broken), [str(each.message) for each in caught], bits(model.weight)


def test_compiled_training_breaks_the_graph_once_and_does_not_warn() -> None:
    breaks, caught, weight = graph_breaks(DualAdam, **AS_ADAMW)
    _, caught_of_adamw, _ = graph_breaks(torch.optim.AdamW, fused=True)
    steps = [text for text in breaks if "DualAdam" in text]
    assert len(steps) == 1 and "DualAdam.step" in steps[0]
    assert set(caught) <= set(caught_of_adamw)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = DualAdam(model.named_parameters(), lr=0.1, **AS_ADAMW)
    x = torch.randn(8, 4)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weight, bits(model.weight))


def test_a_compiled_function_may_make_an_optimizer() -> None:
    def trained() -> torch.Tensor:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = DualAdam([p], **AS_ADAMW)
        (p * 2).sum().backward()
        optimizer.step()
        return p.detach()

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(trained, backend="eager")()
    assert torch.equal(bits(compiled), bits(trained()))


def test_the_compiler_is_not_imported() -> None:
    code = "import dualadam.torch, sys; print('torch._dynamo' in sys.modules)"
    assert output_of(code) == ["False"]


@pytest.mark.parametrize("begins_in_inference_mode", [False, True])
def test_skips_are_counted_where_the_gradients_are(begins_in_inference_mode: bool) -> None:
    skips = Skips()
    for is_inference in (begins_in_inference_mode, False):
        with torch.inference_mode(is_inference):
            for found in (1.0, 0.0, 1.0):
                skips.add((1.0, [(0, None, torch.tensor([found]))]))
    skips.add(None)
    skips.add((1.0, []))
    assert skips.total() == 5


class CountsSteps(DualAdam):
    def step(self, closure: Any = None) -> Any:
        self.count = getattr(self, "count", 0) + 1
        return super().step(closure)


class Delegates(DualAdam):
    @functools.wraps(DualAdam.step)
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_hooks_of_a_subclass_that_copies_attributes_run_once() -> None:
    optimizer = Delegates([ones(3)], **AS_ADAMW)
    called: list[int] = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    optimizer.step()
    assert called == [1]


@pytest.mark.parametrize("is_made_so", [False, True])
def test_hooks_of_a_subclass_run_once(is_made_so: bool) -> None:
    optimizer = (CountsSteps if is_made_so else DualAdam)([ones(3)], **AS_ADAMW)
    optimizer.__class__ = CountsSteps
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    optimizer.step()
    assert called == ["pre", "post"] and optimizer.count == 1


def test_a_scaler_on_the_cpu_does_not_call_a_skipped_step() -> None:
    p = ones(3)
    optimizer = DualAdam([p], **AS_ADAMW)
    called: list[int] = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    for grad in (1.0, math.inf, 1.0):
        scaler.scale(torch.ones(()))
        p.grad = torch.full((3,), grad)
        scaler.step(optimizer)
        scaler.update()
    assert len(called) == 2 and optimizer.state[p]["step"] == 2
    assert optimizer.skipped_steps == 0


def test_steps_that_found_inf_skips_are_counted() -> None:
    p = ones(3)
    optimizer: Any = DualAdam([p], **AS_ADAMW)
    for found_inf in (0.0, 1.0, 1.0, 0.0):
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
    assert optimizer.skipped_steps == 2 and optimizer.state[p]["step"] == 2
    assert copy.deepcopy(optimizer).skipped_steps == 0
