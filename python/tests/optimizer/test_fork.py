"""Steps in forked children, and the threads of steps.

Tensors that a child steps are in shared memory, so that the parent sees them. Children make no
other large operation of torch: after the parent's, those of OpenMP's threads may hang.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from child import SECONDS, in_child, output_of
from dualadam.torch import DualAdam
from dualadam.torch.openmp import parallel
from helpers import assert_same, bits, everything

LARGE = 100_003

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
counts_threads = pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="this system does not list threads"
)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def shared_twins() -> tuple[DualAdam, DualAdam]:
    """Two optimizers after the same large step. The tensors of the first are in shared memory."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(LARGE))
        p.grad = torch.randn(LARGE)
        made.append(DualAdam([p], lr=0.1, switching_steps=8))
        made[-1].step()
    p = made[0].param_groups[0]["params"][0]
    for tensor in (p.data, p.grad, *made[0].state[p].values()):
        tensor.share_memory_()
    return made[0], made[1]


def step(optimizer: DualAdam, times: int) -> None:
    for _ in range(times):
        optimizer.step()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_steps_on(threads: int) -> None:
    torch.set_num_threads(threads)
    optimizer, twin = shared_twins()
    optimizer.step()
    in_child(lambda: step(optimizer, 2))
    optimizer.step()
    step(twin, 4)
    assert_same(everything(optimizer), everything(twin))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_of_a_child_steps_on(threads: int) -> None:
    torch.set_num_threads(threads)
    optimizer, twin = shared_twins()

    def child() -> None:
        optimizer.step()
        in_child(lambda: step(optimizer, 2))
        optimizer.step()

    in_child(child)
    in_child(lambda: in_child(optimizer.step))
    optimizer.step()
    step(twin, 6)
    assert_same(everything(optimizer), everything(twin))


# Workers find it here: a function that is sent to them is sent by its name.
in_workers: list[DualAdam] = []


def stepped_in_worker(times: int) -> bytes:
    step(in_workers[0], times)
    p: torch.Tensor = in_workers[0].param_groups[0]["params"][0]
    return p.detach().numpy().tobytes()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_a_pool_of_processes_step() -> None:
    torch.set_num_threads(2)
    twin, in_worker = shared_twins()
    # Not in shared memory: each worker has a copy.
    in_workers[:] = [in_worker]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = [pool.apply_async(stepped_in_worker, (1,)) for _ in range(2)]
        taken = [result.get(timeout=SECONDS) for result in found]
    steps = []
    for _ in range(2):
        twin.step()
        steps.append(twin.param_groups[0]["params"][0].detach().numpy().tobytes())
    # One worker may have made both steps.
    assert taken[0] == steps[0] and taken[1] in steps


class Steps(torch.utils.data.Dataset[Any]):
    """Items that are made by a step."""

    def __init__(self, optimizer: DualAdam) -> None:
        self.optimizer = optimizer

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        self.optimizer.step()
        return index


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_worker_of_a_data_loader_steps() -> None:
    torch.set_num_threads(2)
    optimizer, twin = shared_twins()
    loader = torch.utils.data.DataLoader(
        Steps(optimizer), num_workers=1, timeout=SECONDS, multiprocessing_context="fork"
    )
    assert [int(index) for index in loader] == [0, 1, 2]
    step(twin, 3)
    assert_same(everything(optimizer), everything(twin))


def threads_now() -> int:
    return len(os.listdir("/proc/self/task"))


def wait_for_threads(expected: int) -> None:
    """Threads of a pool that was replaced end by themselves."""
    end = time.monotonic() + SECONDS
    while threads_now() != expected and time.monotonic() < end:
        time.sleep(0.002)
    assert threads_now() == expected


@counts_threads
def test_threads_are_started_when_a_step_needs_them_and_follow_torch() -> None:
    torch.set_num_threads(2)
    optimizer, _ = shared_twins()
    small = torch.nn.Parameter(torch.ones(32_768))
    small.grad = torch.ones(32_768)
    others = DualAdam([small], switching_steps=8)
    others.step()

    def child() -> None:
        assert threads_now() == 1
        others.step()
        torch.set_num_threads(1)
        optimizer.step()
        assert threads_now() == 1
        for threads in (3, 2):
            torch.set_num_threads(threads)
            step(optimizer, 2)
            wait_for_threads(1 + threads)

    in_child(child)


@counts_threads
def test_the_environment_says_how_many_threads() -> None:
    code = f"""
import os, torch
from dualadam.torch import DualAdam
torch.set_num_threads(1)
p = torch.nn.Parameter(torch.ones({LARGE}))
p.grad = torch.ones({LARGE})
before = len(os.listdir("/proc/self/task"))
DualAdam([p], switching_steps=8).step()
print(len(os.listdir("/proc/self/task")) - before)
"""
    for number, expected in (("3", 3), ("", 0)):
        assert output_of(code, RAYON_NUM_THREADS=number) == [str(expected)]


@counts_threads
@pytest.mark.skipif(parallel() == 0, reason="torch has no OpenMP with GOMP_parallel")
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(("number", "new"), [("", 0), ("2", 2)])
def test_torchs_threads_make_the_step(number: str, new: int, kind: str) -> None:
    code = f"""
import os, torch
from dualadam.torch import DualAdam
torch.set_num_threads(3)
p = torch.nn.Parameter(torch.ones({LARGE}, dtype=torch.{kind}))
p.grad = torch.ones_like(p)
torch.ones(1 << 20).add_(1)  # starts torch's threads
before = set(os.listdir("/proc/self/task"))
DualAdam([p], lr=0.5, switching_rate=1, weight_decay=0, master_weights=True).step()
print(len(set(os.listdir("/proc/self/task")) - before), bool((p == 0.5).all()))
"""
    assert output_of(code, RAYON_NUM_THREADS=number) == [str(new), "True"]


def test_large_states_are_made_and_loaded_in_a_child() -> None:
    torch.set_num_threads(2)
    optimizer, twin = shared_twins()
    saved = optimizer.state_dict()
    halves = [torch.nn.Parameter(torch.ones(LARGE, dtype=torch.bfloat16)) for _ in range(2)]
    for half in halves:
        half.grad = torch.ones_like(half)
        half.data.share_memory_()
    others = [DualAdam([half], switching_steps=8, master_weights=True) for half in halves]
    torch.ones(1 << 20).add_(1)  # starts torch's threads, which the child does not have

    def child() -> None:
        optimizer.load_state_dict(saved)
        optimizer.step()
        others[0].step()
        others[0].sync_masters()
        assert torch.get_num_threads() == 2

    in_child(child)
    twin.step()
    others[1].step()
    assert torch.equal(*(bits(each.param_groups[0]["params"][0]) for each in (optimizer, twin)))
    assert torch.equal(bits(halves[0]), bits(halves[1]))


@pytest.mark.parametrize("imported_in_child", [False, True])
def test_the_first_step_of_all_in_a_child(imported_in_child: bool) -> None:
    first, second = "import dualadam.torch", "pass"
    if imported_in_child:
        first, second = second, first
    code = f"""
import os, signal, torch
{first}
torch.set_num_threads(2)
p = torch.nn.Parameter(torch.ones({LARGE}))
p.grad = torch.ones({LARGE})
torch.ones(1 << 20).add_(1)  # starts torch's threads, which the child does not have
child = os.fork()
if child == 0:
    signal.alarm({SECONDS})  # ends a child that hangs
    {second}
    import dualadam.torch
    optimizer = dualadam.torch.DualAdam([p], lr=0.5, switching_rate=1, weight_decay=0)
    optimizer.step()
    os._exit(0 if p.detach().numpy()[-1] == 0.5 else 1)
print(os.waitpid(child, 0)[1])
"""
    assert output_of(code, "-W", "ignore", RAYON_NUM_THREADS="") == ["0"]


@counts_threads
def test_threads_that_cannot_be_started() -> None:
    import resource

    torch.set_num_threads(2)
    optimizer, twin = shared_twins()

    def child() -> None:
        torch.set_num_threads(64)
        pages = int(open("/proc/self/statm").read().split()[0])
        limits = resource.getrlimit(resource.RLIMIT_AS)
        # Room for a few of the threads' stacks.
        room = pages * resource.getpagesize() + (16 << 20)
        p = optimizer.param_groups[0]["params"][0]
        tensors = [p.detach(), *optimizer.state[p].values()]
        before = [tensor.numpy().tobytes() for tensor in tensors]
        resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))
        with pytest.raises(RuntimeError, match="must be able to start 64 threads, it cannot: "):
            optimizer.step()
        resource.setrlimit(resource.RLIMIT_AS, limits)
        assert before == [tensor.numpy().tobytes() for tensor in tensors]
        optimizer.step()

    in_child(child)
    twin.step()
    assert_same(everything(optimizer), everything(twin))


def test_bits_do_not_depend_on_threads() -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        optimizer, _ = shared_twins()
        found.append(bits(optimizer.param_groups[0]["params"][0]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
