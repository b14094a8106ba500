"""How `peers.py` times on CUDA: by events, with the device kept busy while the host enqueues."""

import time
from typing import NamedTuple

TIMES_CACHE = 4  # together the replicas are this many times as large as the cache,
MOST_REPLICAS = 256  # unless that takes more replicas than this
SHORTEST = 1e-3  # seconds of a timing
MOST_REPEATS = 300
WARM_UP = 0.1  # seconds
CALIBRATION_CYCLES = 20_000_000  # some 10 ms
# The device spins TIMES_HOST times as long as the host took to enqueue the same work, and a little
# longer.
TIMES_HOST, MORE_SPIN = 2, 2e-4
# LONGEST_SPIN bounds how often work is repeated; LONGEST_SPIN_OF_ONE bounds every spin, also that
# of a single step.
LONGEST_SPIN, LONGEST_SPIN_OF_ONE = 0.05, 0.25


class Plan(NamedTuple):
    repeats: int  # of the work, between two events
    spin: float  # seconds for which the device spins before


class CapturedStep:
    """Launches a graph, and owns what the graph knows by address only: moments and step
    counters."""

    def __init__(self, graph, optimizer):
        self.graph, self.optimizer = graph, optimizer

    def __call__(self):
        self.graph.replay()


class Machine:
    device, limit = "cuda", "copy"

    def __init__(self, torch):
        self.torch, self.name = torch, torch.cuda.get_device_name()
        work = torch.empty(512 << 20, dtype=torch.uint8, device=self.device)
        self.warm_up(work.zero_)
        torch.cuda._sleep(1)  # The first call loads the kernel.
        # A device that slows down later spins for longer, which does no harm.
        seconds = min(self.elapsed(1, lambda: torch.cuda._sleep(CALIBRATION_CYCLES)) for _ in range(3))
        self.cycles_per_second = CALIBRATION_CYCLES / seconds

    def warm_up(self, enqueue):
        """Keeps the device at work until its clocks have risen."""
        end = time.perf_counter() + WARM_UP
        while time.perf_counter() < end:
            self.elapsed(10, enqueue)

    def empty_cache(self):
        self.torch.cuda.empty_cache()

    def works(self):
        """Whether the device still works after an exception. After some errors every call fails."""
        try:
            # A capture that failed may have left its stream current.
            self.torch.cuda.set_stream(self.torch.cuda.default_stream())
            self.torch.cuda.synchronize()
        except Exception as error:
            print(f"the device is lost: {error}")
            return False
        return True

    def memory(self):
        self.torch.cuda.reset_peak_memory_stats()
        return self.torch.cuda.memory_allocated()

    def peak_since(self, before):
        return self.torch.cuda.max_memory_allocated() - before

    def replicas(self, footprint):
        cache = getattr(self.torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        return min(MOST_REPLICAS, max(1, -(-TIMES_CACHE * cache // footprint)))

    def limit_of(self, moved_bytes, replicas):
        """A copy that reads and writes `moved_bytes` in all."""
        source, target = (self.torch.ones(replicas, moved_bytes // 2, dtype=self.torch.uint8, device=self.device) for _ in range(2))
        return lambda replica: target[replica].copy_(source[replica])

    def more_variants(self, params, lr):
        return {"captured fused adam": lambda: self.captured(params, lr)}

    def captured(self, params, lr):
        """A step in a graph. An uncaptured step before it, on a side stream as torch requires,
        makes the moments."""
        torch = self.torch
        optimizer = torch.optim.Adam(params, lr=lr, fused=True, capturable=True)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        return CapturedStep(graph, optimizer)

    def host_seconds(self, enqueue):
        """The host's seconds to enqueue the work once, with nothing else in the device's queue."""
        self.torch.cuda.synchronize()
        start = time.perf_counter()
        enqueue()
        return time.perf_counter() - start

    def plan(self, enqueue, host):
        """How to time work that the host enqueues in `host` seconds."""
        seconds, _ = self.seconds(plan_for(1, host), enqueue)
        repeats = min(MOST_REPEATS, SHORTEST / max(seconds, 1e-7), LONGEST_SPIN / (TIMES_HOST * host))
        return plan_for(max(1, round(repeats)), host)

    def seconds(self, plan, enqueue):
        """Seconds on the device for each call of `enqueue`, and whether the host may have held the
        device up.

        It may if the device reached the first event before the last call was enqueued. That is also
        so where the driver's queue is full, since the host then waits for the device.
        """
        self.torch.cuda._sleep(round(plan.spin * self.cycles_per_second))
        start, end = self.record(plan.repeats, enqueue)
        is_host_bound = start.query()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / plan.repeats, is_host_bound

    def elapsed(self, repeats, enqueue):
        start, end = self.record(repeats, enqueue)
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / repeats

    def record(self, repeats, enqueue):
        """Enqueues the work between two events."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            enqueue()
        end.record()
        return start, end


def plan_for(repeats, host):
    return Plan(repeats, min(LONGEST_SPIN_OF_ONE, TIMES_HOST * repeats * host + MORE_SPIN))
