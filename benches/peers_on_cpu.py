"""How `peers.py` times on the CPU: by the wall clock. The limit is a triad over the streams of a
step, compiled from `triad.c`."""

import ctypes
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

SHORTEST = 5e-3  # seconds of a timing
MOST_REPEATS = 300
CACHE = 256 << 20  # more than the last-level caches of most processors
MOST_REPLICAS = 64
SMALLEST_PEAK = 64 << 20  # smaller peaks cannot be told from the process's other allocations


class Machine:
    device, limit = "cpu", "triad"

    def __init__(self, torch, threads):
        self.torch, self.threads = torch, threads or os.cpu_count()
        torch.set_num_threads(self.threads)
        self.name = f"{processor()}, {self.threads} threads"
        self.triad = compiled_triad()

    def empty_cache(self):
        pass

    def works(self):
        return True

    def memory(self):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is used now
        return peak()

    def peak_since(self, before):
        more = peak() - before
        return more if more > SMALLEST_PEAK else None

    def replicas(self, footprint):
        return min(MOST_REPLICAS, max(1, -(-CACHE // footprint)))

    def limit_of(self, moved_bytes, replicas):
        """A triad in f32 over four streams, three of which are also written: `moved_bytes` in
        all."""
        elements = moved_bytes // 28
        streams = [[self.torch.ones(elements) for _ in range(4)] for _ in range(replicas)]
        pointers = [[ctypes.c_void_p(stream.data_ptr()) for stream in of] for of in streams]

        def triad(replica, streams=streams):  # the default keeps the streams alive
            self.triad(*pointers[replica], elements, self.threads)

        return triad

    def more_variants(self, params, lr):
        return {}

    def warm_up(self, enqueue):
        pass

    def host_seconds(self, enqueue):
        """The host's time cannot be told from the step's."""
        return None

    def plan(self, enqueue, host):
        self.elapsed(2, enqueue)
        return min(MOST_REPEATS, max(1, round(SHORTEST / max(self.elapsed(1, enqueue), 1e-7))))

    def seconds(self, plan, enqueue):
        # One untimed run first: threads of other variants may still spin for some milliseconds
        # after their last work.
        enqueue()
        return self.elapsed(plan, enqueue), False

    def elapsed(self, repeats, enqueue):
        start = time.perf_counter()
        for _ in range(repeats):
            enqueue()
        return (time.perf_counter() - start) / repeats


def processor():
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak():
    """The most memory that the process had since the peak was last reset, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def compiled_triad():
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "triad.so"
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, Path(__file__).with_name("triad.c"), "-o", library], check=True)
        triad = ctypes.CDLL(str(library)).triad
    triad.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_size_t, ctypes.c_int]
    triad.restype = None
    return triad
