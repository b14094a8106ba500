#!/usr/bin/env python3
"""Times torch's Adam on CUDA, fused, foreach, and fused in a CUDA graph, over the shapes of `benches/cuda`, in turns with a device copy
of as many bytes.

Times are those of CUDA events, medians over rounds. With --json FILE the results go into the file under "torch"; what is there stays,
so that FILE can be the one that `cargo bench --bench cuda -- --json FILE` wrote; the times are then also given over those of its DualAdam
step. Where Python has no torch, or torch no CUDA, it says so and ends without a failure. torch keeps bf16 moments for bf16 parameters: it
moves 14 bytes an element where f32 moments take 22. It has no f32 masters with a 16-bit copy in one pass. The bytes counted are those
that one pass must move; foreach makes several.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

BYTES_PER_ELEMENT = {"f32_f32": 28, "bf16_bf16": 14}  # p, m, v read and written, g read
FLOPS = {"copy": 0, "fused adam": 14, "foreach adam": 14, "captured fused adam": 14}
CALLS = {
    "fused adam": "torch.optim.Adam(fused=True).step",
    "foreach adam": "torch.optim.Adam(foreach=True).step",
    "captured fused adam": "torch.cuda.CUDAGraph.replay",
}
START, LR = 2.0**-5, 2.0**-10  # after a few steps a parameter is still a bf16
TIMES_CACHE = 4  # together the replicas have so many times the size of the cache,
MOST_REPLICAS = 256  # but are no more than this
SHORTEST = 1e-3  # seconds of a timing
MOST_REPEATS = 300
PLUG_BYTES = 512 << 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to this file")
    parser.add_argument("--shapes", type=Path, metavar="FILE", help="only these, in the form of shapes.json")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError as error:
        print(f"torch's Adam did not run: {error}")
        return
    if not torch.cuda.is_available():
        print(f"torch's Adam did not run: torch {torch.__version__} finds no CUDA device")
        return
    shapes = json.loads(arguments.shapes.read_text()) if arguments.shapes else all_shapes(Path(__file__).parent)
    results = run(torch, shapes, arguments.rounds)
    report = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    compare(results["rows"], report.get("rows", []))
    print_tables(results)
    if arguments.json:
        report["torch"] = results
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def all_shapes(folder):
    models = json.loads((folder / "models.json").read_text())
    models = [{"name": name, "repeat": 1, "lens": model["tensors"]} for name, model in models.items()]
    return json.loads((folder / "shapes.json").read_text()) + models


def compare(rows, dualadam):
    """Adds the time over that of the DualAdam step of the same shape and types, where there is one."""
    wanted = {"variant": "dual", "alignment": "aligned"}
    dual = {(r["shape"], r["types"]): r["us"] for r in dualadam if wanted.items() <= r.items()}
    for r in rows:
        us = dual.get((r["shape"], r["types"]))
        r["over_dual"] = us and r["us"] / us


def run(torch, shapes, rounds):
    results = {"program": f"torch {torch.__version__}", "device": torch.cuda.get_device_name(), "rows": [], "host": [], "skipped": []}
    plug = Plug(torch)
    for shape in shapes:
        for types in BYTES_PER_ELEMENT:
            try:
                group = Group(torch, shape, types)
                results["rows"] += time_group(torch, plug, group, rounds)
                if types == "f32_f32":
                    results["host"] += time_host(torch, group, 10 * rounds)
            except torch.cuda.OutOfMemoryError:
                results["skipped"].append(f"{shape['name']} {types}: out of device memory")
            group = None
            torch.cuda.empty_cache()
    return results


class Group:
    """The tensors of a shape, each replica with its optimizers, and the variants that are timed."""

    def __init__(self, torch, shape, types):
        self.shape, self.types = shape["name"], types
        self.lens = shape["lens"] * shape["repeat"]
        self.elements = sum(self.lens)
        self.bytes = self.elements * BYTES_PER_ELEMENT[types]
        dtype = {"f32_f32": torch.float32, "bf16_bf16": torch.bfloat16}[types]
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        footprint = 4 * self.elements * dtype.itemsize
        self.replicas = min(MOST_REPLICAS, max(1, -(-TIMES_CACHE * cache // footprint)))
        self.steps = [self.steps_of_replica(torch, dtype) for _ in range(self.replicas)]
        half = self.bytes // 2
        self.copies = [torch.ones(self.replicas, half, dtype=torch.uint8, device="cuda") for _ in range(2)]
        self.next = 0

    def steps_of_replica(self, torch, dtype):
        """The steps of each kind, by variant. They share parameters and gradients; each has moments of its own."""
        params = [torch.full((length,), START, dtype=dtype, device="cuda") for length in self.lens]
        for param in params:
            param.grad = torch.full_like(param, 0.25)
        fused = torch.optim.Adam(params, lr=LR, fused=True)
        foreach = torch.optim.Adam(params, lr=LR, foreach=True)
        steps = {"fused adam": fused.step, "foreach adam": foreach.step, "captured fused adam": captured(torch, params)}
        for done, step in enumerate(steps.values(), start=2):
            step()
            self.check(torch, params, done)
        return steps

    def check(self, torch, params, done):
        """While the gradient is the same, a step moves each parameter by the learning rate, against it."""
        tolerance = LR / 3 if self.types == "bf16_bf16" else LR * 1e-4
        for param in params[:3] + params[-3:]:
            ends = param.detach()[[0, -1]].float()
            torch.testing.assert_close(ends, torch.full_like(ends, START - done * LR), rtol=0.0, atol=tolerance)

    def enqueue(self, variant):
        replica, self.next = self.next, (self.next + 1) % self.replicas
        if variant == "copy":
            self.copies[1][replica].copy_(self.copies[0][replica])
        else:
            self.steps[replica][variant]()


def captured(torch, params):
    """The launch of a graph that captured a step. One step is done: it makes the moments, beside the capture as torch wants it."""
    optimizer = torch.optim.Adam(params, lr=LR, fused=True, capturable=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


class Plug:
    """Work that keeps the device busy for a while, so that what follows is in its queue when it gets there."""

    def __init__(self, torch):
        self.memory = torch.empty(PLUG_BYTES, dtype=torch.uint8, device="cuda")
        self.enqueue()
        self.seconds = elapsed(torch, 1, self.enqueue)

    def enqueue(self):
        self.memory.zero_()


def elapsed(torch, repeats, enqueue):
    """Seconds on the device for each call of `enqueue`."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        enqueue()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats


def plan(torch, plug, enqueue):
    """How often to enqueue the work between two events, and how many plugs keep the device busy meanwhile."""
    elapsed(torch, 3, enqueue)
    plug.enqueue()
    repeats = min(MOST_REPEATS, max(1, round(SHORTEST / max(elapsed(torch, 1, enqueue), 1e-7))))
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        enqueue()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    return repeats, min(100, max(1, round(1.5 * host / plug.seconds)))


def time_group(torch, plug, group, rounds):
    variants = {variant: (lambda variant=variant: group.enqueue(variant)) for variant in FLOPS}
    plans = {variant: plan(torch, plug, enqueue) for variant, enqueue in variants.items()}
    times = []
    for _ in range(rounds):
        times.append({})
        for variant, enqueue in variants.items():
            repeats, plugs = plans[variant]
            for _ in range(plugs):
                plug.enqueue()
            times[-1][variant] = elapsed(torch, repeats, enqueue)
    return [row(group, variant, times) for variant in variants]


def row(group, variant, times):
    low, median, high = statistics.quantiles([round[variant] for round in times], n=4, method="inclusive")
    return {
        "shape": group.shape,
        "tensors": len(group.lens),
        "elements": group.elements,
        "types": group.types,
        "alignment": "aligned",
        "variant": variant,
        "us": median * 1e6,
        "us_low": low * 1e6,
        "us_high": high * 1e6,
        "bytes_per_element": BYTES_PER_ELEMENT[group.types],
        "gb_per_s": group.bytes / median * 1e-9,
        "of_copy": statistics.median(round["copy"] / round[variant] for round in times),
        "gflop_per_s": FLOPS[variant] * group.elements / median * 1e-9,
        "replicas": group.replicas,
    }


def time_host(torch, group, rounds):
    """The host's time of a step of each kind, with nothing else in the device's queue."""
    rows = []
    for variant, step in group.steps[0].items():
        times = []
        for _ in range(rounds):
            torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        low, median, high = statistics.quantiles(times[rounds // 10 :], n=4, method="inclusive")
        us = {"us": median * 1e6, "us_low": low * 1e6, "us_high": high * 1e6}
        rows.append({"shape": group.shape, "tensors": len(group.lens), "call": CALLS[variant], **us})
    return rows


def print_tables(results):
    print(f"{results['program']} on {results['device']}\n")
    print("| shape | types | what | µs | GB/s | of the copy | GFLOP/s | over dualadam's dual |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for r in results["rows"]:
        numbers = f"{r['us']:.1f} | {r['gb_per_s']:.0f} | {r['of_copy']:.3f} | {r['gflop_per_s']:.0f}"
        over_dual = f"{r['over_dual']:.3f}" if r["over_dual"] else ""
        print(f"| {r['shape']} | {r['types']} | {r['variant']} | {numbers} | {over_dual} |")
    print("\n| shape | tensors | the host's time of a step | µs |\n| --- | ---: | --- | ---: |")
    for r in results["host"]:
        print(f"| {r['shape']} | {r['tensors']} | {r['call']} | {r['us']:.1f} |")
    for skipped in results["skipped"]:
        print(f"did not run: {skipped}")


if __name__ == "__main__":
    main()
