"""On a CUDA device that torch finds, the optimizer has the bits that it has on the CPU."""

import os
import threading
from typing import Any

import pytest
import torch
from dualadam.torch import DualAdam
from helpers import assert_same, bits, everything, variants

import dualadam

DEVICE = "cuda"
IS_REQUIRED = "cuda" in os.environ.get("DUALADAM_REQUIRE", "").split(",")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and not IS_REQUIRED, reason="torch finds no CUDA device"
)

SHAPES: list[tuple[int, ...]] = [(3, 5), (1,), (0,), (70_001,), ()]


class Twins:
    """The same parameters on the device and on the CPU, with an optimizer each."""

    def __init__(
        self,
        shapes: list[tuple[int, ...]] = SHAPES,
        kind: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        values = [torch.randn(shape).to(kind) for shape in shapes]
        self.on_device = [torch.nn.Parameter(value.to(DEVICE)) for value in values]
        self.on_host = [torch.nn.Parameter(value.clone()) for value in values]
        options = {"lr": 0.01, "weight_decay": 0.1, "switching_steps": 4, **options}
        self.device = DualAdam(self.on_device, **options)
        self.host = DualAdam(self.on_host, **{**options, "capturable": False})

    def set_grads(self, seed: int, kind: torch.dtype | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        for on_device, on_host in zip(self.on_device, self.on_host):
            on_host.grad_dtype = on_device.grad_dtype = None
            on_host.grad = torch.randn(on_host.shape, generator=generator).to(kind or on_host.dtype)
            on_device.grad = on_host.grad.to(DEVICE)

    def step(self) -> None:
        self.device.step()
        self.host.step()

    def check(self) -> None:
        for on_device, on_host in zip(self.on_device, self.on_host):
            assert torch.equal(bits(on_device).cpu(), bits(on_host))
            ours, theirs = self.device.state[on_device], self.host.state[on_host]
            assert ours.keys() == theirs.keys()
            for key in ours.keys() - {"step"}:
                assert ours[key].device == on_device.device
                assert torch.equal(bits(ours[key]).cpu(), bits(theirs[key])), key
            assert float(ours["step"]) == float(theirs["step"])


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(("kind", "grads", "master_weights"), variants())
def test_the_bits_of_the_cpu(
    kind: torch.dtype, grads: torch.dtype, master_weights: bool, capturable: bool
) -> None:
    twins = Twins(kind=kind, master_weights=master_weights, capturable=capturable)
    for seed in range(6):
        twins.set_grads(seed, grads)
        twins.step()
        twins.check()


def test_the_order_of_the_current_stream() -> None:
    """The step is enqueued on a stream of its own before its gradients are computed."""
    twins = Twins()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for seed in range(4):
            twins.set_grads(seed)
            grads = [p.grad for p in twins.on_device]
            assert all(grad is not None for grad in grads)
            late = [torch.empty_like(grad) for grad in grads if grad is not None]
            torch.cuda._sleep(50_000_000)
            for p, grad, place in zip(twins.on_device, grads, late):
                p.grad = place.copy_(grad) if grad is not None else None
            twins.step()
    stream.synchronize()
    twins.check()


@pytest.mark.parametrize("lr_on_device", [False, True])
def test_a_captured_step_goes_on_counting(lr_on_device: bool) -> None:
    lr = torch.tensor(0.01, dtype=torch.float64, device=DEVICE)
    twins = Twins(capturable=True)
    if lr_on_device:
        twins.device.param_groups[0]["lr"] = lr
    twins.set_grads(0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        twins.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        twins.device.step()
    grads = [p.grad for p in twins.on_device]
    for seed in range(1, 6):
        twins.set_grads(seed)
        for p, grad in zip(twins.on_device, grads):
            assert grad is not None and p.grad is not None
            p.grad = grad.copy_(p.grad)
        if lr_on_device:
            lr.fill_(0.01 * seed)
            twins.host.param_groups[0]["lr"] = 0.01 * seed
        graph.replay()
        twins.host.step()
        twins.check()


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_what_is_not_capturable_is_not_captured() -> None:
    twins = Twins()
    twins.set_grads(0)
    twins.step()
    with (
        pytest.raises(RuntimeError, match="capturable must be True"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        twins.device.step()
    twins.check()
    twins.step()
    twins.check()


class Training(Twins):
    """Iterations whose gradients have the bits of the batch.

    The loss is the sum of the products of parameters and batch.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(capturable=True, **options)
        self.batch = [torch.zeros_like(p) for p in self.on_device]

    def iteration(self) -> None:
        """As in PyTorch's documentation: the capture makes new gradients, at other addresses."""
        self.device.zero_grad(set_to_none=True)
        loss = sum((p * x).sum() for p, x in zip(self.on_device, self.batch))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        self.device.step()

    def load(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p, x in zip(self.on_host, self.batch):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            x.copy_(p.grad)

    def warm_up(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for seed in range(100, 103):
                self.load(seed)
                self.iteration()
                self.host.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.check()

    def capture(self, mode: str = "global") -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.device.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph, capture_error_mode=mode):
            self.iteration()
        return graph

    def replay(self, graph: torch.cuda.CUDAGraph, seed: int) -> None:
        self.load(seed)
        graph.replay()
        self.host.step()
        self.check()

    def eager(self, seed: int) -> None:
        self.load(seed)
        self.iteration()
        self.host.step()
        self.check()


KINDS = [
    (torch.float32, False),
    (torch.bfloat16, False),
    (torch.bfloat16, True),
]


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
@pytest.mark.parametrize(("kind", "master_weights"), KINDS)
def test_a_whole_iteration_is_captured(kind: torch.dtype, master_weights: bool, mode: str) -> None:
    training = Training(kind=kind, master_weights=master_weights)
    training.warm_up()
    graph = training.capture(mode)
    training.check()
    for seed in range(3):
        training.replay(graph, seed)
        # The gradients of the ordinary step have other addresses, and are freed.
        training.eager(10 + seed)


def test_several_captures_of_one_optimizer() -> None:
    training = Training()
    training.warm_up()
    graphs = [training.capture() for _ in range(3)]
    for seed in range(6):
        training.replay(graphs[seed % 3], seed)
        if seed == 2:
            training.eager(50)


def test_a_first_step_is_not_captured() -> None:
    training = Training()
    training.load(0)
    with (
        pytest.raises(
            RuntimeError, match="must have had a step before its step is captured in a CUDA graph"
        ),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        training.iteration()
    assert not training.device.state
    training.warm_up()
    training.replay(training.capture(), 1)


def test_an_optimizer_is_freed_by_another_thread_during_a_capture() -> None:
    training = Training()
    training.warm_up()
    others = [Training() for _ in range(2)]
    for other in others:
        other.warm_up()
        other.load(5)
        other.iteration()
    graph = torch.cuda.CUDAGraph()
    training.device.zero_grad(set_to_none=True)

    def free() -> None:
        others.pop()

    with torch.cuda.graph(graph):
        thread = threading.Thread(target=free)
        thread.start()
        thread.join()
        training.iteration()
        others.clear()
    for seed in range(3):
        training.replay(graph, seed)


# torch keeps the nodes that add up gradients from its warm-up, which runs on a stream of its own.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match:UserWarning")
def test_graphed_callables_beside_ordinary_steps() -> None:
    layers = [torch.nn.Linear(8, 8).to(place) for place in (DEVICE, "cpu")]
    layers[1].load_state_dict({key: value.cpu() for key, value in layers[0].state_dict().items()})
    optimizers = [DualAdam(layer.parameters(), switching_steps=4) for layer in layers]
    graphed = torch.cuda.make_graphed_callables(layers[0], (torch.randn(4, 8, device=DEVICE),))
    for seed in range(4):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        optimizers[0].zero_grad(set_to_none=True)
        graphed(x.to(DEVICE)).sum().backward()
        # Both get the same gradients: products of matrices may round in other ways.
        for ours, theirs in zip(layers[0].parameters(), layers[1].parameters()):
            assert ours.grad is not None
            theirs.grad = ours.grad.cpu()
        for optimizer in optimizers:
            optimizer.step()
        for ours, theirs in zip(layers[0].parameters(), layers[1].parameters()):
            assert torch.equal(bits(ours).cpu(), bits(theirs))


# torch warns of it once, when the mode is first set.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
def test_grad_scaler_does_not_wait() -> None:
    p, q = torch.nn.Parameter(torch.ones(3, device=DEVICE)), torch.nn.Parameter(torch.ones(3))
    optimizer = DualAdam([p], switching_steps=4, fused=True)
    plain = DualAdam([q], switching_steps=4)
    assert optimizer._step_supports_amp_scaling and not plain._step_supports_amp_scaling
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    for index, factor in enumerate((1.0, 2.0, float("inf"), 3.0)):
        optimizer.zero_grad()
        plain.zero_grad()
        before = everything(optimizer) if index else []
        scaler.scale((p * factor).sum()).backward()
        # The first step makes the state.
        torch.cuda.set_sync_debug_mode("error" if index else "default")
        try:
            scaler.step(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        scaler.update()
        if factor == float("inf"):
            assert_same(before, everything(optimizer))
        else:
            (q * factor).sum().backward()
            plain.step()
            assert torch.equal(bits(p).cpu(), bits(q))
    assert int(optimizer.state[p]["step"]) == 3 and optimizer.skipped_steps == 1


@pytest.mark.parametrize("capturable", [False, True])
def test_state_dicts_go_from_device_to_host_and_back(capturable: bool) -> None:
    twins = Twins(capturable=capturable)
    twins.set_grads(0)
    twins.step()
    from_device, from_host = twins.device.state_dict(), twins.host.state_dict()
    twins.host.load_state_dict(from_device)
    twins.host.param_groups[0]["capturable"] = False
    twins.device.load_state_dict(from_host)
    twins.device.param_groups[0]["capturable"] = capturable
    for seed in range(1, 6):
        twins.set_grads(seed)
        twins.step()
        twins.check()


def test_a_gradient_that_is_freed_between_steps() -> None:
    twins = Twins([(8,), (9,)])
    twins.set_grads(0)
    twins.step()
    grad = twins.on_device[1].grad
    assert grad is not None
    grad.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="the gradient of parameter 1 of group 0 must have memory"):
        twins.device.step()
    twins.check()
    twins.set_grads(1)
    twins.step()
    twins.check()


def test_gradients_on_another_device() -> None:
    twins = Twins([(8,)])
    twins.set_grads(0)
    twins.step()
    # Only `.data` allows this.
    twins.on_device[0].data = twins.on_device[0].data.cpu()
    with pytest.raises(
        ValueError, match="gradient of parameter 0 of group 0 must be on cpu, it is on cuda"
    ):
        twins.device.step()


def test_the_array_function() -> None:
    values = [torch.randn(1000), torch.randn(1000), torch.zeros(1000), torch.zeros(1000)]
    device = [value.to(DEVICE) for value in values]
    config = dualadam.Config(0.01, (0.9, 0.999), 1e-8, 0.1, dualadam.Schedule.linear_until(4))
    stream = torch.cuda.current_stream().cuda_stream
    for step in range(1, 7):
        dualadam.step(*values, config=config, step=step)
        dualadam.step(*device, config=config, step=step, stream=stream or None)
    torch.cuda.synchronize()
    assert all(torch.equal(bits(ours).cpu(), bits(value)) for ours, value in zip(device, values))


def test_the_device_keeps_moments_and_a_small_table() -> None:
    # Loads the kernels.
    first = Twins([(1,)])
    first.set_grads(0)
    first.step()
    params = [torch.nn.Parameter(torch.randn(1 << 20, device=DEVICE)) for _ in range(300)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = DualAdam(params, switching_steps=4)
    torch.cuda.synchronize()
    free, reserved, allocated = (
        torch.cuda.mem_get_info()[0],
        torch.cuda.memory_reserved(),
        torch.cuda.memory_allocated(),
    )
    for _ in range(3):
        optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - allocated == 300 * 2 * 4 << 20
    beside = free - torch.cuda.mem_get_info()[0] - (torch.cuda.memory_reserved() - reserved)
    # The table takes 327 kB of stream-ordered memory, which the driver's pool takes from the device
    # in pieces of up to 32 MiB.
    assert beside <= 32 << 20


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_several_devices() -> None:
    params = [
        torch.nn.Parameter(torch.ones(5, device=place)) for place in ("cuda:0", "cuda:1", "cpu")
    ]
    optimizer = DualAdam(params, switching_steps=4)
    for _ in range(6):
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    assert torch.equal(bits(params[0]).cpu(), bits(params[2])) and torch.equal(
        bits(params[1]).cpu(), bits(params[2])
    )
