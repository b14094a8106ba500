"""The OpenMP library that torch uses on the CPU."""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dualadam._dualadam import lacks_threads


@functools.cache
def parallel() -> int:
    """The address of the function with which torch starts its threads, or 0.

    It is `GOMP_parallel` of the library that torch was linked with. Other builds of torch may not
    have it.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # torch has loaded it. This looks the function up, in it and in what it was linked with.
        function = ctypes.CDLL(str(library)).GOMP_parallel
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@contextmanager
def only_threads_that_exist() -> Iterator[None]:
    """Runs torch's operations on the calling thread alone if this process was forked.

    The threads that torch started before are not in this process, and torch would wait for them.
    """
    if not lacks_threads():
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
