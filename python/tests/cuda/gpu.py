"""The stand-in for the CUDA driver: its memory as arrays, and as objects that act as torch tensors.

The stand-in must be opened before anything looks for libcuda, so that the dynamic linker finds it.
These tests do not import torch.
"""

import ctypes
import os
from typing import Any

import dlpack
import numpy as np
from dlpack import CPU, CUDA, EXCHANGE_API, VERSIONED, DlTensor, Managed, capsule
from numpy.typing import NDArray

from dualadam._dualadam import Stepper

DRIVER = ctypes.CDLL(os.environ["STAND_IN_CUDA_LIBRARY"], mode=ctypes.RTLD_GLOBAL)


def call(name: str, *arguments: Any) -> None:
    code = getattr(DRIVER, name)(*arguments)
    assert code == 0, f"{name}: {code}"


def start() -> None:
    """A driver in its first state, whose primary context is current."""
    DRIVER.stand_in_reset()
    context = ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)


def text(name: str) -> str:
    function = getattr(DRIVER, name)
    function.restype = ctypes.c_size_t
    buffer = ctypes.create_string_buffer(1 << 16)
    length = function(buffer, ctypes.c_size_t(len(buffer)))
    return buffer.raw[:length].decode()


def calls(name: str) -> int:
    function = DRIVER.stand_in_calls
    function.restype = ctypes.c_uint64
    return int(function(name.encode()))


class Tensor:
    """An array in device memory, or with `on_host` in the host's.

    It has what the native module asks of a torch tensor, and DLPack of any.
    """

    __slots__ = ("_version", "grad", "array", "address", "managed", "on_host")

    def __init__(self, array: NDArray[Any], on_host: bool = False) -> None:
        self._version = 0
        self.grad: Tensor | None = None
        self.on_host = on_host
        self.array = np.array(array, order="C")
        if on_host:
            self.address = self.array.ctypes.data
        else:
            address = ctypes.c_uint64()
            call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(self.array.nbytes, 1)))
            self.address = address.value
            self.write(self.array)
        strides = (stride // self.array.itemsize for stride in self.array.strides)
        kind, dtype = CPU if on_host else CUDA, self.array.dtype.name
        tensor = dlpack.tensor(self.address, kind, dtype, self.array.shape, strides)
        self.managed = Managed(1, 0, None, None, 0, tensor)

    def write(self, array: NDArray[Any]) -> None:
        array = np.array(array, order="C")
        call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(self.address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
        )
        call("cuCtxSynchronize")

    def read(self) -> NDArray[Any]:
        if self.on_host:
            return self.array.copy()
        call("cuCtxSynchronize")
        out = np.empty_like(self.array)
        call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(out.ctypes.data),
            ctypes.c_uint64(self.address),
            ctypes.c_size_t(out.nbytes),
        )
        return out

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU if self.on_host else CUDA, 0)

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, copy: Any = None
    ) -> Any:
        STREAMS.append(stream)
        return capsule(self.managed, VERSIONED)


class Storage:
    """A weak reference to the storage of a tensor, which is never freed here."""

    cdata = 1

    def __init__(self, tensor: Tensor) -> None:
        pass


def new_stepper() -> Stepper:
    """A stepper for tensors of this module."""
    return Stepper(
        plain=[Posing],
        unwrap=lambda tensor: None,
        unwrap_grad=lambda param, grad: None,
        weak_storage=Storage,
        has_expired=lambda number: False,
        name_of=lambda group, index, position: f"parameter {position} of group {index}",
        threads=lambda: 1,
        parallel=0,
    )


STREAMS: list[int | None] = []
CURRENT_STREAM = ctypes.c_void_p(None)


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DlTensor))
def tensor_from_object(tensor: Tensor, out: Any) -> int:
    out[0] = tensor.managed.tensor
    return 0


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
def managed_from_object(tensor: Tensor, out: Any) -> int:
    out[0] = ctypes.addressof(tensor.managed)
    return 0


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
def current_stream(kind: int, device: int, out: Any) -> int:
    out[0] = CURRENT_STREAM.value
    return 0


class Functions(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    ]


FUNCTIONS = Functions(
    1,
    3,
    None,
    None,
    ctypes.cast(managed_from_object, ctypes.c_void_p),
    None,
    ctypes.cast(tensor_from_object, ctypes.c_void_p),
    ctypes.cast(current_stream, ctypes.c_void_p),
)


class Posing(Tensor):
    """An array whose type has DLPack's table of functions."""

    __slots__ = ()
    __dlpack_c_exchange_api__ = capsule(FUNCTIONS, EXCHANGE_API)
