"""How `peers.py` times on CUDA: by events, with the device kept busy while the host enqueues."""

import time

TIMES_CACHE = 4  # together the replicas have so many times the size of the cache,
MOST_REPLICAS = 256  # but are no more than this
SHORTEST = 1e-3  # seconds of a timing
MOST_REPEATS = 300
PLUG_BYTES = 512 << 20


class CapturedStep:
    """Launches a graph, and owns what the graph knows by address only: moments and step counters."""

    def __init__(self, graph, optimizer):
        self.graph, self.optimizer = graph, optimizer

    def __call__(self):
        self.graph.replay()


class Machine:
    device, limit = "cuda", "copy"

    def __init__(self, torch):
        self.torch, self.name = torch, torch.cuda.get_device_name()
        self.plug = torch.empty(PLUG_BYTES, dtype=torch.uint8, device="cuda")
        self.plug.zero_()
        self.seconds_of_plug = self.elapsed(1, self.plug.zero_)

    def empty_cache(self):
        self.torch.cuda.empty_cache()

    def memory(self):
        self.torch.cuda.reset_peak_memory_stats()
        return self.torch.cuda.memory_allocated()

    def peak_since(self, before):
        return self.torch.cuda.max_memory_allocated() - before

    def replicas(self, footprint):
        cache = getattr(self.torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        return min(MOST_REPLICAS, max(1, -(-TIMES_CACHE * cache // footprint)))

    def limit_of(self, moved_bytes, replicas):
        """A copy that reads and writes so many bytes together."""
        source, target = (self.torch.ones(replicas, moved_bytes // 2, dtype=self.torch.uint8, device="cuda") for _ in range(2))
        return lambda replica: target[replica].copy_(source[replica])

    def more_variants(self, params, lr):
        return {"captured fused adam": lambda: self.captured(params, lr)}

    def captured(self, params, lr):
        """A step in a graph. A step before makes the moments, beside the capture as torch wants it."""
        torch = self.torch
        optimizer = torch.optim.Adam(params, lr=lr, fused=True, capturable=True)
        before = [param.detach().clone() for param in params]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        with torch.no_grad():  # the caller counts the steps
            for param, value in zip(params, before):
                param.copy_(value)
        return CapturedStep(graph, optimizer)

    def plan(self, enqueue):
        """How often to enqueue the work between two events, and how many plugs keep the device busy meanwhile."""
        self.elapsed(3, enqueue)
        self.plug.zero_()
        repeats = min(MOST_REPEATS, max(1, round(SHORTEST / max(self.elapsed(1, enqueue), 1e-7))))
        self.torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            enqueue()
        host = time.perf_counter() - start
        self.torch.cuda.synchronize()
        return repeats, min(100, max(1, round(1.5 * host / self.seconds_of_plug)))

    def seconds(self, plan, enqueue):
        """Seconds on the device for each call of `enqueue`."""
        repeats, plugs = plan
        for _ in range(plugs):
            self.plug.zero_()
        return self.elapsed(repeats, enqueue)

    def elapsed(self, repeats, enqueue):
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            enqueue()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / repeats

    def host_seconds(self, step):
        self.torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
