"""The optimizer has the bits of the Rust CPU backend.

The tests call the backend through the C library, which shares no code with this package.
"""

import ctypes
import os
from typing import Any

import pytest
import torch
from dualadam.torch import DualAdam
from helpers import bits, variants

LIBRARY = os.environ.get("DUALADAM_C_LIBRARY")
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="DUALADAM_C_LIBRARY names no C library")

DTYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
WEIGHT_DECAY, DECOUPLED, L2, LINEAR, FIXED = 0.1, 1, 2, 0, 3


class Config(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
        *(
            (name, ctypes.c_uint32)
            for name in ("weight_decay_kind", "inverse_term", "maximize", "schedule")
        ),
        ("switching_rate", ctypes.c_double),
        ("base", ctypes.c_double),
        ("period", ctypes.c_uint64),
        ("cutoff", ctypes.c_double),
        ("switching_step", ctypes.c_uint64),
    ]


class Coeffs(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("values", ctypes.c_float * 10)]


class CTensor(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        *((name, ctypes.c_void_p) for name in ("param", "grad", "exp_avg", "exp_avg_sq", "master")),
        ("len", ctypes.c_uint64),
        *(
            (name, ctypes.c_uint32)
            for name in ("param_dtype", "grad_dtype", "master_dtype", "coeffs_index")
        ),
    ]


class Twin:
    """A tensor that the C library steps."""

    def __init__(self, values: torch.Tensor, master_weights: bool) -> None:
        self.param = values.clone()
        self.exp_avg, self.exp_avg_sq = (torch.zeros(values.shape) for _ in range(2))
        self.master = values.float() if master_weights else None

    def step(self, library: Any, config: Config, step: int, grad: torch.Tensor) -> None:
        tensor, coeffs = CTensor(), Coeffs()
        library.dualadam_tensor_init(ctypes.byref(tensor), ctypes.c_size_t(ctypes.sizeof(tensor)))
        tensor.param, tensor.param_dtype = self.param.data_ptr(), DTYPES[self.param.dtype]
        tensor.grad, tensor.grad_dtype = grad.data_ptr(), DTYPES[grad.dtype]
        tensor.exp_avg, tensor.exp_avg_sq, tensor.len = (
            self.exp_avg.data_ptr(),
            self.exp_avg_sq.data_ptr(),
            grad.numel(),
        )
        if self.master is not None:
            tensor.master, tensor.master_dtype = self.master.data_ptr(), DTYPES[torch.float32]
        size = ctypes.c_size_t(ctypes.sizeof(coeffs))
        arguments = (
            ctypes.byref(config),
            ctypes.c_uint64(step),
            ctypes.c_double(1.0),
            ctypes.byref(coeffs),
            size,
        )
        assert library.dualadam_config_coeffs(*arguments) == 0
        assert library.dualadam_cpu_step(ctypes.byref(tensor), ctypes.byref(coeffs)) == 0


@pytest.mark.parametrize(("kind", "grads", "master_weights"), variants())
@pytest.mark.parametrize("config_kind", ["blend", "other"])
def test_the_bits_of_the_rust_backend(
    kind: torch.dtype, grads: torch.dtype, master_weights: bool, config_kind: str
) -> None:
    library = ctypes.CDLL(str(LIBRARY))
    config = Config()
    library.dualadam_config_init(ctypes.byref(config), ctypes.c_size_t(ctypes.sizeof(config)))
    config.weight_decay = WEIGHT_DECAY
    options: dict[str, Any]
    if config_kind == "blend":
        config.lr, config.weight_decay_kind, config.schedule, config.switching_rate = (
            0.01,
            DECOUPLED,
            LINEAR,
            1 / 6,
        )
        options = {"lr": 0.01, "switching_steps": 6}
    else:
        config.lr, config.beta1, config.beta2, config.eps = 0.1, 0.5, 0.9, 1e-3
        config.weight_decay_kind, config.inverse_term, config.maximize = L2, 1, 1
        config.schedule, config.switching_step = FIXED, 4
        options = {
            "lr": 0.1,
            "betas": (0.5, 0.9),
            "eps": 1e-3,
            "decoupled_weight_decay": False,
            "maximize": True,
        }
        options |= {"inverse_term": "with_eps", "schedule": ("fixed", 4)}
    shapes = [(3, 5), (1,), (0,), (70_001,), ()]
    params = [torch.nn.Parameter(torch.randn(shape).to(kind)) for shape in shapes]
    twins = [Twin(p.detach(), master_weights) for p in params]
    optimizer = DualAdam(
        params, weight_decay=WEIGHT_DECAY, master_weights=master_weights, **options
    )
    for step in range(1, 9):
        for p, twin in zip(params, twins):
            p.grad_dtype = None
            p.grad = torch.randn(p.shape).to(grads)
            twin.step(library, config, step, p.grad)
        optimizer.step()
        for p, twin in zip(params, twins):
            state = optimizer.state[p]
            assert torch.equal(bits(p), bits(twin.param))
            assert torch.equal(bits(state["exp_avg"]), bits(twin.exp_avg))
            assert torch.equal(bits(state["exp_avg_sq"]), bits(twin.exp_avg_sq))
            if twin.master is not None:
                assert torch.equal(bits(state["master_param"]), bits(twin.master))
