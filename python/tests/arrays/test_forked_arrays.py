"""`dualadam.step` in forked children."""

import os
from mmap import mmap
from typing import Any

import numpy as np
import pytest
from child import in_child

import dualadam

CONFIG = dualadam.Config(0.01, (0.9, 0.999), 1e-8, 0.1, dualadam.Schedule.linear_until(4))
LARGE = 100_003

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def arrays(memory: Any) -> dict[str, Any]:
    whole = np.frombuffer(memory, np.float32, 4 * LARGE).reshape(4, LARGE)
    whole[:2] = np.random.default_rng(0).normal(size=(2, LARGE))
    whole[2:] = 0
    return dict(zip(("param", "grad", "exp_avg", "exp_avg_sq"), whole))


def test_a_child_and_its_child_step_on() -> None:
    # Memory of no file, which a process shares with its children.
    shared, own = arrays(mmap(-1, 16 * LARGE)), arrays(bytearray(16 * LARGE))

    def step(t: int) -> None:
        dualadam.step(**shared, config=CONFIG, step=t)

    def child() -> None:
        step(2)
        in_child(lambda: step(3))

    step(1)
    in_child(child)
    step(4)
    for t in range(1, 5):
        dualadam.step(**own, config=CONFIG, step=t)
    for name, array in own.items():
        assert array.tobytes() == shared[name].tobytes()
