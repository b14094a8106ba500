"""DLPack's structs, and the capsules that producers give, for tests that pose as producers."""

import ctypes
from collections.abc import Iterable
from typing import Any

CPU, CUDA = 1, 2
# The code and the bits of a type, by the name that NumPy has for it.
TYPES = {"float16": (2, 16), "float32": (2, 32), "float64": (2, 64), "int64": (0, 64)}
# The names of capsules. A capsule keeps no copy of its name, so it must live here.
EXCHANGE_API, VERSIONED, UNVERSIONED = b"dlpack_exchange_api", b"dltensor_versioned", b"dltensor"


class Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("id", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DlTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DlTensor),
    ]


class Unversioned(ctypes.Structure):
    _fields_ = [("tensor", DlTensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


def tensor(
    address: int,
    kind: int,
    dtype: str,
    shape: Iterable[int],
    strides: Iterable[int] | None,
    *,
    lanes: int = 1,
    byte_offset: int = 0,
) -> DlTensor:
    """A tensor on device 0 of this kind. It keeps its shape and strides alive."""
    extents = list(shape)
    entries = ctypes.c_int64 * len(extents)
    places = None if strides is None else entries(*strides)
    code, bits = TYPES[dtype]
    kinds = Device(kind, 0), len(extents), DataType(code, bits, lanes)
    return DlTensor(address, *kinds, entries(*extents), places, byte_offset)


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def capsule(struct: ctypes.Structure, name: bytes) -> Any:
    """A capsule of a struct that its producer keeps alive."""
    return new_capsule(ctypes.addressof(struct), name, None)
