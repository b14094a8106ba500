"""Work in other processes, for tests of several folders."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable

import pytest

SECONDS = 60


def in_child(work: Callable[[], object]) -> None:
    """Runs `work` in a forked child. Fails if it raises or does not end."""
    with warnings.catch_warnings():
        # Newer Pythons warn of every fork of a process with threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"the child ended with status {status}"
            return
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f"the child did not end in {SECONDS} s")


def output_of(code: str, *flags: str, **environment: str) -> list[str]:
    """The words that a program prints in an interpreter of its own."""
    ended = subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={**os.environ, **environment},
        # Not here, where the folder of the package lacks the native module.
        cwd=tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    return ended.stdout.split()
