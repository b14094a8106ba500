"""`dualadam.step` on arrays of NumPy, and on objects that have only what DLPack requires."""

from typing import Any

import dlpack
import numpy as np
import pytest
from dlpack import CPU, UNVERSIONED, Unversioned, capsule
from numpy.typing import NDArray

import dualadam

CONFIG = dualadam.Config(0.01, (0.9, 0.999), 1e-8, 0.1, dualadam.Schedule.linear_until(4))
Arrays = dict[str, Any]


def arrays(shape: tuple[int, ...] = (5,), kind: Any = np.float32) -> Arrays:
    generator = np.random.default_rng(0)
    return {
        "param": generator.normal(size=shape).astype(kind),
        "grad": generator.normal(size=shape).astype(kind),
        "exp_avg": np.zeros(shape, np.float32),
        "exp_avg_sq": np.zeros(shape, np.float32),
    }


def expected(
    p: NDArray[Any], g: NDArray[Any], m: NDArray[Any], v: NDArray[Any], t: int
) -> tuple[Any, Any, Any]:
    """Algorithm 1 in float64, with the hyperparameters of `CONFIG`."""
    p, g, m, v = (x.astype(np.float64) for x in (p, g, m, v))
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    m_hat, root = m / (1 - 0.9**t), np.sqrt(v / (1 - 0.999**t))
    alpha = max(0.0, 1 - t / 4)
    return p - 0.01 * 0.1 * p - 0.01 * m_hat * ((1 - alpha) / (root + 1e-8) + alpha * root), m, v


def test_the_rule() -> None:
    given = arrays((50, 3))
    for t in range(1, 9):
        exact = expected(*given.values(), t)
        dualadam.step(**given, config=CONFIG, step=t)
        for name, value in zip(("param", "exp_avg", "exp_avg_sq"), exact):
            # The parameter is below 4 and moves by less than 0.03: the bounds are three roundings.
            np.testing.assert_allclose(given[name], value, rtol=5e-7, atol=1e-8)


def test_one_large_step_uses_all_threads_and_gives_the_same_bits() -> None:
    whole = arrays((300_001,))
    parts = {name: array.copy() for name, array in whole.items()}
    dualadam.step(**whole, config=CONFIG, step=1)
    for start in range(0, 300_001, 70_000):
        dualadam.step(
            **{name: array[start : start + 70_000] for name, array in parts.items()},
            config=CONFIG,
            step=1,
        )
    for name in whole:
        assert np.array_equal(whole[name].view(np.uint32), parts[name].view(np.uint32))


def test_masters_of_float16() -> None:
    given = arrays(kind=np.float16)
    master = given["param"].astype(np.float32)
    plain = {
        **given,
        "param": master.copy(),
        "exp_avg": np.zeros(5, np.float32),
        "exp_avg_sq": np.zeros(5, np.float32),
    }
    dualadam.step(**given, config=CONFIG, step=1, master=master)
    dualadam.step(**plain, config=CONFIG, step=1)
    assert np.array_equal(master, plain["param"])
    assert np.array_equal(given["param"], master.astype(np.float16))


def test_a_multiplier_scales_the_gradient() -> None:
    given, scaled = arrays(), arrays()
    scaled["grad"] = scaled["grad"] * np.float32(1024)
    dualadam.step(**given, config=CONFIG, step=1)
    dualadam.step(**scaled, config=CONFIG, step=1, grad_multiplier=1 / 1024)
    assert np.array_equal(given["param"], scaled["param"])


def test_column_major_arrays() -> None:
    given = arrays((4, 3))
    turned = {name: np.asfortranarray(array) for name, array in given.items()}
    given = {name: array.copy() for name, array in given.items()}
    dualadam.step(**given, config=CONFIG, step=1)
    dualadam.step(**turned, config=CONFIG, step=1)
    assert np.array_equal(given["param"], turned["param"])


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_shapes_without_extent(shape: tuple[int, ...]) -> None:
    dualadam.step(
        **arrays(shape)
        | {"param": np.zeros(shape, np.float32), "grad": np.zeros(shape, np.float32)},
        config=CONFIG,
        step=1,
    )


def spoilt(**changes: Any) -> Arrays:
    return {**arrays(), **changes}


SHARED = np.zeros(9, np.float32)
READ_ONLY = np.zeros(5, np.float32)
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (
            spoilt(grad=np.zeros(6, np.float32)),
            ValueError,
            r"grad must have param's shape \[5\], it has \[6\]",
        ),
        (
            spoilt(exp_avg=np.zeros((5, 1), np.float32)),
            ValueError,
            "exp_avg must have param's shape",
        ),
        (
            spoilt(exp_avg=np.zeros(5, np.float64)),
            TypeError,
            "exp_avg must be float32, it is float64",
        ),
        (
            spoilt(exp_avg_sq=np.zeros(5, np.float16)),
            TypeError,
            "exp_avg_sq must be float32, it is float16",
        ),
        (
            spoilt(param=np.zeros(5, np.float64)),
            TypeError,
            "param must be float32, bfloat16 or float16, it is float64",
        ),
        (
            spoilt(grad=np.zeros(5, np.int32)),
            TypeError,
            "grad must be float32, bfloat16 or float16, it is int32",
        ),
        (spoilt(grad=np.zeros(5, np.complex64)), TypeError, "grad must be .* it is complex64"),
        (
            spoilt(grad=np.zeros(10, np.float32)[::2]),
            ValueError,
            r"grad must fill its memory without gaps or overlap, its strides are \[2\]$",
        ),
        (
            spoilt(grad=np.zeros(5, np.float32)[::-1]),
            ValueError,
            "grad must fill its memory without gaps",
        ),
        (
            spoilt(param=np.zeros((5, 1), np.float32).T.T[:, 0], grad=3),
            TypeError,
            "grad must have __dlpack__, got <class 'int'>",
        ),
        (spoilt(param=3), TypeError, "param must have __dlpack_device__"),
        (spoilt(param=READ_ONLY), ValueError, "param must be writable, it is read-only"),
        (spoilt(exp_avg_sq=READ_ONLY), ValueError, "exp_avg_sq must be writable"),
        (spoilt(master=np.zeros(5, np.float16)), TypeError, "master must be float32"),
        (spoilt(master=np.zeros(5, np.float32)), TypeError, "got f32 param, .* f32 master"),
        (spoilt(exp_avg=SHARED[:5], exp_avg_sq=SHARED[4:]), ValueError, "must not overlap"),
        (spoilt(grad=SHARED[:5], param=SHARED[:5]), ValueError, "must not overlap"),
        (spoilt(step=0), ValueError, "step must be at least 1"),
        (spoilt(step=-1), OverflowError, "negative"),
        (spoilt(grad_multiplier=float("nan")), ValueError, "grad_multiplier must be finite"),
        (spoilt(stream=7), ValueError, "stream must be None for arrays on the CPU, got 7"),
    ],
)
def test_bad_input(given: Arrays, kind: type[BaseException], text: str) -> None:
    before = {name: value.copy() for name, value in given.items() if isinstance(value, np.ndarray)}
    with pytest.raises(kind, match=text):
        dualadam.step(**{"config": CONFIG, "step": 1, **given})
    for name, value in before.items():
        assert np.array_equal(given[name], value)


def test_other_strides() -> None:
    given, text = arrays((2, 3)), r"must have param's strides \[3, 1\], it has \[1, 2\]$"
    given["grad"] = np.asfortranarray(given["grad"])
    with pytest.raises(ValueError, match=f"^grad {text}"):
        dualadam.step(**given, config=CONFIG, step=1)
    # The same parameter from a producer that leaves the strides out.
    array = given["param"]
    tensor = dlpack.tensor(array.ctypes.data, CPU, "float32", array.shape, None)
    managed = Unversioned(tensor, None, None)
    given["param"] = Gives((CPU, 0), capsule(managed, UNVERSIONED))
    with pytest.raises(ValueError, match=f"^grad {text}"):
        dualadam.step(**given, config=CONFIG, step=1)


def test_a_read_only_gradient_is_fine() -> None:
    dualadam.step(**spoilt(grad=READ_ONLY), config=CONFIG, step=1)


class Old:
    """A producer from before DLPack had versions.

    It takes no keyword but `stream`, leaves the strides out and has the data at an offset.
    """

    def __init__(
        self, array: NDArray[Any], kind: int = CPU, lanes: int = 1, name: bytes = UNVERSIONED
    ) -> None:
        self.memory = np.concatenate([np.zeros(4, array.dtype), array])
        address, offset = self.memory.ctypes.data, 4 * array.itemsize
        shape, dtype = array.shape, array.dtype.name
        tensor = dlpack.tensor(address, kind, dtype, shape, None, lanes=lanes, byte_offset=offset)
        self.kind, self.name = kind, name
        self.managed = Unversioned(tensor, None, None)

    @property
    def array(self) -> NDArray[Any]:
        return self.memory[4:]

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.kind, 0)

    def __dlpack__(self, stream: int | None = None) -> Any:
        return capsule(self.managed, self.name)


class Gives:
    """A producer that returns any object."""

    def __init__(self, device: Any, capsule: Any) -> None:
        self.device, self.capsule = device, capsule

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        return self.capsule


def test_producers_from_before_versions() -> None:
    plain = arrays()
    given = {name: Old(array) for name, array in plain.items()}
    dualadam.step(**given, config=CONFIG, step=1)
    dualadam.step(**plain, config=CONFIG, step=1)
    for name in plain:
        assert np.array_equal(given[name].array, plain[name])
        assert not given[name].memory[:4].any()


def test_producers_that_are_wrong() -> None:
    array = np.zeros(5, np.float32)
    for bad, kind, text in [
        (
            Old(array, kind=8),
            ValueError,
            "param must be on the CPU or on CUDA, it is on DLPack device type 8",
        ),
        (Old(array, lanes=4), TypeError, "param must be .* or float16, it is float32x4"),
        (
            Old(array, name=b"used_dltensor"),
            TypeError,
            r"param.__dlpack__\(\) must give a capsule of a DLPack tensor, it gave <capsule .*used_dlt",
        ),
        (
            Gives((CPU, 0), 4),
            TypeError,
            r"param.__dlpack__\(\) must give a capsule, it gave <class 'int'>",
        ),
        (
            Gives("cpu", 4),
            TypeError,
            r"param.__dlpack_device__\(\) must give two integers, it gave 'cpu'",
        ),
    ]:
        with pytest.raises(kind, match=text):
            dualadam.step(**spoilt(param=bad), config=CONFIG, step=1)
    with pytest.raises(ValueError, match="grad must be on cpu, it is on DLPack device type 8"):
        dualadam.step(**spoilt(grad=Old(array, kind=8)), config=CONFIG, step=1)
