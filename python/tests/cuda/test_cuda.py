"""The CUDA paths of the native module, on the stand-in for the driver, against the CPU's bits."""

import ctypes
from collections.abc import Iterator
from typing import Any

import gpu
import numpy as np
import pytest
from gpu import Posing, Tensor, new_stepper
from numpy.typing import NDArray

import dualadam
from dualadam._dualadam import Stepper

CONFIG = dualadam.Config(0.01, (0.9, 0.999), 1e-8, 0.1, dualadam.Schedule.linear_until(4))
Array = NDArray[Any]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    gpu.CURRENT_STREAM.value = None
    yield
    gpu.call("cuCtxSynchronize")
    assert gpu.text("stand_in_violations") == ""


@pytest.fixture(autouse=True, scope="session")
def started() -> None:
    gpu.start()


def values(count: int, *shape: int) -> list[Array]:
    generator = np.random.default_rng(count)
    return [generator.normal(size=shape).astype(np.float32) for _ in range(count)]


def stream() -> int:
    made = ctypes.c_void_p()
    gpu.call("cuStreamCreate", ctypes.byref(made), 1)
    assert made.value is not None
    return made.value


def same(tensor: Tensor, array: Array) -> bool:
    return tensor.read().tobytes() == array.tobytes()


@pytest.mark.parametrize("on_stream", [False, True])
def test_the_array_function(on_stream: bool) -> None:
    p, g = values(2, 33, 7)
    host = [p, g, np.zeros_like(p), np.zeros_like(p)]
    device = [Tensor(array) for array in host]
    handle = stream() if on_stream else None
    gpu.STREAMS.clear()
    for step in range(1, 7):
        dualadam.step(*host, config=CONFIG, step=step)
        dualadam.step(*device, config=CONFIG, step=step, stream=handle)
    assert set(gpu.STREAMS) == {handle if on_stream else 1}
    assert all(map(same, device, host))


def test_the_array_function_with_a_master() -> None:
    p, g = (array.astype(np.float16) for array in values(2, 50))
    zeros = np.zeros(50, np.float32)
    host = [p, g, zeros.copy(), zeros.copy()]
    master = p.astype(np.float32)
    device, device_master = [Tensor(array) for array in host], Tensor(master)
    dualadam.step(*host, config=CONFIG, step=1, master=master)
    dualadam.step(*device, config=CONFIG, step=1, master=device_master)
    assert all(map(same, [*device, device_master], [*host, master]))


def test_bad_arrays() -> None:
    p, g, m, v = (Tensor(array) for array in values(4, 5))
    for text, bad in [
        (
            "grad must be on cuda:0, it is on cpu",
            [p, Tensor(np.zeros(5, np.float32), on_host=True), m, v],
        ),
        ("must not overlap", [p, g, m, m]),
    ]:
        with pytest.raises(ValueError, match=text):
            dualadam.step(*bad, config=CONFIG, step=1)
    m.managed.flags = 1
    with pytest.raises(ValueError, match="exp_avg must be writable"):
        dualadam.step(p, g, m, v, config=CONFIG, step=1)


class Optimizer:
    """The calls of `dualadam.torch.DualAdam` to the native module, and the same run on the CPU."""

    def __init__(self, shapes: list[tuple[int, ...]], on_device: bool = False) -> None:
        self.stepper = new_stepper()
        self.params = [Posing(array) for shape in shapes for array in values(1, *shape)]
        self.state: dict[Any, Any] = {}
        self.host: list[list[Array]] = []
        self.steps = [0] * len(shapes)
        for p in self.params:
            zeros = np.zeros(p.array.shape, np.float32)
            counter = (
                Posing(np.array(0, np.int64))
                if on_device
                else Posing(np.array(0, np.float32), on_host=True)
            )
            self.state[p] = {"step": counter, "exp_avg": Posing(zeros), "exp_avg_sq": Posing(zeros)}
            self.host.append([p.array.copy(), zeros.copy(), zeros.copy()])

    def set_grads(self, seed: int, missing: int | None = None) -> None:
        generator = np.random.default_rng(seed)
        for index, p in enumerate(self.params):
            grad = generator.normal(size=p.array.shape).astype(np.float32)
            p.grad = None if index == missing else Posing(grad)

    def step(self, config: dualadam.Config = CONFIG, **options: Any) -> Any:
        lr = options.pop("lr", None)
        arguments = {
            "grads": None,
            "multiplier": 1.0,
            "is_controlled": False,
            "scalars": [],
            **options,
        }
        return self.stepper.step(self.state, [(self.params, {}, config, False, lr)], **arguments)

    def step_host(self, config: dualadam.Config = CONFIG, multiplier: float = 1.0) -> None:
        for index, (p, (array, m, v)) in enumerate(zip(self.params, self.host)):
            if p.grad is not None:
                self.steps[index] += 1
                grad = p.grad.read()
                dualadam.step(
                    array,
                    grad,
                    m,
                    v,
                    config=config,
                    step=self.steps[index],
                    grad_multiplier=multiplier,
                )

    def check(self) -> None:
        for index, (p, (array, m, v)) in enumerate(zip(self.params, self.host)):
            state = self.state[p]
            assert same(p, array) and same(state["exp_avg"], m) and same(state["exp_avg_sq"], v), (
                index
            )
            assert int(state["step"].read()) == self.steps[index]


SHAPES = [(3, 5), (1,), (0,), (40_000,), ()]


def test_a_list_on_the_current_stream() -> None:
    optimizer = Optimizer(SHAPES)
    for step in range(6):
        gpu.CURRENT_STREAM.value = stream()
        optimizer.set_grads(step)
        assert optimizer.step() is None
        optimizer.step_host()
        optimizer.check()


def test_only_what_changed_travels() -> None:
    optimizer = Optimizer(SHAPES)
    optimizer.set_grads(0)
    optimizer.step()
    gpu.call("cuCtxSynchronize")
    names = "cuMemcpyHtoDAsync_v2", "cuMemAlloc_v2", "cuMemHostAlloc", "cuCtxSynchronize"
    for step in range(1, 8):
        counted = [gpu.calls(name) for name in names]
        optimizer.step()
        after = [gpu.calls(name) for name in names]
        assert after == counted
        gpu.call("cuCtxSynchronize")


@pytest.mark.parametrize("on_device", [False, True])
def test_a_missing_gradient_leaves_the_list_as_it_is(on_device: bool) -> None:
    optimizer = Optimizer(SHAPES, on_device)
    for step in range(6):
        optimizer.set_grads(step, missing=step % 3 if step else None)
        counted = gpu.calls("cuMemAlloc_v2")
        optimizer.step()
        if step > 1:
            assert gpu.calls("cuMemAlloc_v2") == counted
        optimizer.step_host()
        optimizer.check()


def test_counters_on_the_device() -> None:
    optimizer = Optimizer(SHAPES, on_device=True)
    for step in range(6):
        optimizer.set_grads(step)
        optimizer.step()
        optimizer.step_host()
        optimizer.check()


def test_loss_scale_and_found_inf_are_read_on_the_device() -> None:
    optimizer = Optimizer(SHAPES, on_device=True)
    scale, found_inf = Posing(np.array(1024, np.float32)), Posing(np.array(0, np.float32))
    for step in range(4):
        optimizer.set_grads(step)
        found_inf.write(np.array(step == 2, np.float32))
        reads = gpu.calls("cuMemcpyDtoH_v2"), gpu.calls("cuMemcpyDtoHAsync_v2")
        waits = gpu.calls("cuStreamSynchronize")
        optimizer.step(is_controlled=True, scalars=[(0, scale, found_inf)])
        assert (gpu.calls("cuMemcpyDtoH_v2"), gpu.calls("cuMemcpyDtoHAsync_v2")) == reads
        # The first step makes the list, whose tables travel on a stream of the library's own.
        if step > 0:
            assert gpu.calls("cuStreamSynchronize") == waits
        if step != 2:
            optimizer.step_host(multiplier=1 / 1024)
        optimizer.check()


def test_a_learning_rate_on_the_device() -> None:
    optimizer = Optimizer(SHAPES, on_device=True)
    lr = Posing(np.array(0.0, np.float64))
    of = {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "schedule": dualadam.Schedule.linear_until(4),
    }
    for step in range(4):
        optimizer.set_grads(step)
        lr.write(np.array(0.01 * step))
        optimizer.step(dualadam.Config(0.0, **of), is_controlled=True, lr=lr)
        optimizer.step_host(dualadam.Config(0.01 * step, **of))
        optimizer.check()


def test_a_learning_rate_that_is_none() -> None:
    optimizer = Optimizer([(5,)], on_device=True)
    optimizer.set_grads(0)
    text = "lr of group 0 must be a tensor with one float32 or float64 on cuda:0, got"
    for lr, got in [
        (Posing(np.array(1, np.int64)), r"int64 of shape \[\] on cuda:0"),
        (7, "<class 'int'>"),
    ]:
        with pytest.raises(ValueError, match=f"{text} {got}$"):
            optimizer.step(is_controlled=True, lr=lr)
    optimizer.check()


def test_a_config_changes_on_the_device() -> None:
    optimizer = Optimizer(SHAPES, on_device=True)
    for step in range(4):
        optimizer.set_grads(step)
        config = dualadam.Config(
            0.01 * (step + 1), (0.9, 0.999), 1e-8, 0.1, dualadam.Schedule.fixed(2)
        )
        optimizer.step(config, is_controlled=True)
        optimizer.step_host(config)
        optimizer.check()


def test_counters_on_the_host_are_not_in_order_where_the_device_counts() -> None:
    optimizer = Optimizer(SHAPES)
    optimizer.set_grads(0)
    assert optimizer.step(is_controlled=True) == [(0, index) for index in range(len(SHAPES))]
    optimizer.check()


def test_a_captured_step_goes_on_counting() -> None:
    optimizer = Optimizer(SHAPES, on_device=True)
    handle = stream()
    gpu.CURRENT_STREAM.value = handle
    optimizer.set_grads(0)
    optimizer.step(is_controlled=True)
    optimizer.step_host()
    gpu.call("cuStreamBeginCapture_v2", ctypes.c_void_p(handle), 0)
    optimizer.step(is_controlled=True)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    gpu.call("cuStreamEndCapture", ctypes.c_void_p(handle), ctypes.byref(graph))
    gpu.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
    for _ in range(5):
        gpu.call("cuGraphLaunch", executable, ctypes.c_void_p(handle))
        optimizer.step_host()
    optimizer.check()


def test_a_driver_that_fails() -> None:
    optimizer = Optimizer([(5,)])
    optimizer.set_grads(0)
    optimizer.step()
    optimizer.step_host()
    gpu.DRIVER.stand_in_fail(b"cuLaunchKernel", ctypes.c_uint64(1), 701)
    with pytest.raises(
        RuntimeError, match="cuLaunchKernel failed with CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
    ):
        optimizer.step()
    optimizer.check()


def test_masters_take_over_what_other_code_wrote() -> None:
    (values_of_p,), zeros = values(1, 50), np.zeros(50, np.float32)
    p = Posing(values_of_p.astype(np.float16))
    entries = {key: Posing(zeros) for key in ("exp_avg", "exp_avg_sq")}
    master = Posing(p.array.astype(np.float32))
    counter = Posing(np.array(0, np.float32), on_host=True)
    state = {p: {"step": counter, **entries, "master_param": master}}
    stepper = new_stepper()

    def step() -> None:
        p.grad = Posing(np.ones(50, np.float16))
        groups = [([p], {}, CONFIG, True, None)]
        assert stepper.step(state, groups, None, 1.0, False, []) is None

    def changed() -> Array:
        """The master after the change of two elements, which keep a rounding of their own."""
        array, old = p.read(), master.read()
        array[:2] = 5.0
        p.write(array)
        return np.where(old.astype(np.float16) == array, old, array.astype(np.float32))

    step()
    expected = changed()
    stepper.sync_masters([(0, p, master)])
    assert same(master, expected)
    step()
    assert not (p.read()[:2] < 4.9).any() and not same(master, p.read().astype(np.float32))
    changed()
    step()
    # The write was not counted, so the step did not see it.
    assert (p.read()[:2] < 5.0).all()
    changed()
    p._version += 1
    before = gpu.calls("cuLaunchKernel")
    step()
    assert gpu.calls("cuLaunchKernel") == before + 2
    assert (p.read()[:2] > 4.97).all()


def host_and_device() -> tuple[Stepper, list[Posing], dict[Any, Any]]:
    """A parameter in the host's memory, and one on the device."""
    params = [Posing(np.ones(5, np.float32), on_host=on_host) for on_host in (True, False)]
    state = {}
    for p in params:
        p.grad = Posing(np.ones(5, np.float32), on_host=p.on_host)
        moments = [Posing(np.zeros(5, np.float32), on_host=p.on_host) for _ in range(2)]
        counter = (
            Posing(np.array(0, np.float32), on_host=True)
            if p.on_host
            else Posing(np.array(0, np.int64))
        )
        state[p] = {"step": counter, "exp_avg": moments[0], "exp_avg_sq": moments[1]}
    return new_stepper(), params, state


def test_nothing_is_stepped_before_all_devices_are_ready() -> None:
    stepper, params, state = host_and_device()
    good, bad = Posing(np.array(1, np.float32)), Posing(np.array(1, np.float64))
    on_host = "a number or a tensor on the CPU for parameter 0 of group 0, which is on cpu"
    one = "must be a tensor with one float32 or float64 on cuda:0, got float32 of shape"
    two, host = Posing(np.ones(2, np.float32)), Posing(np.array(1, np.float32), on_host=True)
    for text, lr, scalars in [
        ("grad_scale must be float32, it is float64", None, [(0, bad, None)]),
        (rf"grad_scale {one} \[2\] on cuda:0$", None, [(0, two, None)]),
        (rf"found_inf {one} \[\] on cpu$", None, [(0, good, host)]),
        (f"lr must be {on_host}", good, []),
    ]:
        with pytest.raises(ValueError, match=text):
            stepper.step(state, [(params, {}, CONFIG, False, lr)], None, 1.0, True, scalars)
        assert not stepper.has_begun()
        assert all(same(p, np.ones(5, np.float32)) for p in params)
    stepper.step(state, [(params, {}, CONFIG, False, None)], None, 1.0, True, [])
    assert stepper.has_begun() and same(params[0], params[1].read())
    gpu.DRIVER.stand_in_fail(b"cuLaunchKernel", ctypes.c_uint64(1), 701)
    with pytest.raises(RuntimeError, match="cuLaunchKernel failed"):
        stepper.step(state, [(params, {}, CONFIG, False, None)], None, 1.0, True, [])
    # The first list was stepped, and counts.
    assert stepper.has_begun() and int(state[params[0]]["step"].read()) == 2
