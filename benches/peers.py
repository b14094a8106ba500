#!/usr/bin/env python3
"""Times torch's Adam, fused, foreach, one tensor after the other and, on CUDA, captured, beside
DualAdam's Python package, in turns with a limit that moves as many bytes: on the CPU a triad, on
CUDA a device copy.

All variants of a shape take turns over the same parameters and gradients; times are medians over
rounds. Every variant is checked before it is timed. On CUDA the device spins while the host
enqueues, and the host's time of a step stands beside the device's. A row is marked as host-bound if
the device began before the host had enqueued all: it may have waited for the host then.

With --json FILE the results go into the file under "torch". The rest of the file stays, so FILE can
be the one that `cargo bench --features cuda --bench cuda -- --json FILE` wrote. The times are then
also given over those of its DualAdam step. Without torch, or if torch finds no such device, the
program says so and ends without a failure.

A variant that fails is left out, which is printed and noted in FILE. The others go on, and the exit
status is 1. A variant that finds too little device memory is left out too, which is no failure. If
the device is lost, the program ends.

torch keeps bf16 moments for bf16 parameters: it moves 14 bytes an element where DualAdam's f32
moments take 22. The bytes counted are those that one pass must move; foreach and the loop make
several. "At equal bytes" is the time over that of the fused step, each divided by its bytes.
"""

import time

BEGIN = time.monotonic()  # torch may take many seconds to import, and the deadline counts them.

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import peers_on_cpu
import peers_on_cuda

BYTES_PER_ELEMENT = {"f32_f32": {"torch": 28, "dualadam": 28}, "bf16_bf16": {"torch": 14, "dualadam": 22}}
FLOPS_PER_ELEMENT = {"torch": 14, "dualadam": 18}
START, LR, GRAD = 2.0**-5, 2.0**-10, 0.25  # after a few steps a parameter is still a bf16
SWITCHING_STEPS = 1 << 20  # no timing gets there, so that both branches count
MOST_TENSORS_OF_LOOP = 5000  # ten thousand take a second a step
LEAST_ROUNDS = 5
MOST_HOST_ROUNDS, HOST_SECONDS = 100, 0.5
MOST_OF_ERROR = 500  # characters
CORE = ["2^28", "gpt2", "10,000 x 1,000", "resnet50"]
KEY_VARIANTS = {"dual": "dual", "captured fused adam": "captured"}
NO_TIME_LEFT = "no time left"
FEW_LATE = 0.25  # A row is host-bound if the host was late in more of its rounds.
# Okabe and Ito's, which the colour-blind can tell apart.
COLOURS = ["#56B4E9", "#D55E00", "#009E73", "#999999", "#E69F00"]
SHAPES_OF_THE_CPU = ["2^16", "2^20", "2^24", "2^26", "2,000 x 1,000", "resnet50", "gpt2"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: CUDA where torch finds it")
    parser.add_argument("--threads", type=int, help="threads on the CPU; as many as there are processors unless given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to this file")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the speeds in f32 as a picture (needs matplotlib)")
    parser.add_argument("--shapes", type=Path, metavar="FILE", help="time only the shapes of this file, which has the form of shapes.json")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--core", action="store_true", help="on CUDA: only the most informative shapes, without the loop and foreach")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="begin no shape after this many seconds")
    arguments = parser.parse_args()
    # So that a run that is killed has printed its results.
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
    try:
        import torch
    except ImportError as error:
        print(f"torch's Adam did not run: {error}")
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(f"torch's Adam did not run: torch {torch.__version__} finds no CUDA device")
        return
    if arguments.chart:
        ensure_drawable(arguments.chart)
    on_cuda = torch.cuda.is_available() and arguments.device != "cpu"
    machine = peers_on_cuda.Machine(torch) if on_cuda else peers_on_cpu.Machine(torch, arguments.threads)
    shapes = shapes_for(machine, arguments.shapes)
    if arguments.core:
        shapes = sorted((s for s in shapes if s["name"] in CORE), key=lambda s: CORE.index(s["name"]))
    until = None if arguments.deadline is None else BEGIN + arguments.deadline
    results = Results(torch, machine, arguments.json)
    run(torch, machine, shapes, arguments.rounds, arguments.core, until, results)
    if arguments.chart:
        draw(results.known, arguments.chart)
    if results.has_failed:
        sys.exit("the comparison with torch has failures: see above")


class Results:
    """The results so far, printed and written as they come, so that a run that is killed keeps
    them."""

    def __init__(self, torch, machine, file):
        self.torch, self.machine, self.file = torch, machine, file
        self.report = json.loads(file.read_text()) if file and file.exists() else {}
        programs = {"torch": torch.__version__, "python": platform.python_version()}
        self.known = {"programs": programs, "device": machine.name, "limit": machine.limit, "rows": [], "skipped": []}
        self.has_failed = False

    def add(self, rows):
        compare(rows, self.report.get("rows", []))
        self.known["rows"] += rows
        self.write()
        print_group(rows, self.machine.limit)

    def skip(self, what, why):
        self.known["skipped"].append(f"{what}: {why}")
        self.write()
        print(f"did not run: {what}: {why}")

    def fail(self, what, error):
        """Notes an exception. If the device is lost, as after a wrong access, nothing more can run
        on it."""
        if isinstance(error, self.torch.OutOfMemoryError):
            self.skip(what, "out of device memory")
            return
        self.has_failed = True
        self.skip(what, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:MOST_OF_ERROR]}")
        if not self.machine.works():
            self.skip("the rest", "the device is lost")
            sys.stdout.flush()
            os._exit(1)  # Without destructors, which would fail or wait.

    def write(self):
        if self.file:
            self.report["torch"] = self.known
            new = self.file.with_suffix(".new")
            new.write_text(json.dumps(self.report, indent=2) + "\n")
            new.replace(self.file)


def shapes_for(machine, file):
    if file:
        return json.loads(file.read_text())
    folder = Path(__file__).parent
    models = json.loads((folder / "models.json").read_text())
    models = [{"name": name, "repeat": 1, "lens": model["tensors"]} for name, model in models.items()]
    shapes = json.loads((folder / "shapes.json").read_text()) + models
    if machine.device == "cuda":
        return shapes
    shapes.append({"name": "2,000 x 1,000", "repeat": 2000, "lens": [1000]})
    return sorted((s for s in shapes if s["name"] in SHAPES_OF_THE_CPU), key=lambda s: SHAPES_OF_THE_CPU.index(s["name"]))


def compare(rows, dualadam):
    """Adds the time over that of the DualAdam step of the same shape and types, where the other
    benchmark measured one."""
    wanted = {"variant": "dual", "alignment": "aligned"}
    dual = {(r["shape"], r["types"]): r["us"] for r in dualadam if wanted.items() <= r.items()}
    for r in rows:
        us = dual.get((r["shape"], r["types"]))
        r["over_dual"] = us and r["us"] / us


def run(torch, machine, shapes, rounds, is_core, until, results):
    dual_adam = None
    try:
        from dualadam.torch import DualAdam as dual_adam

        results.known["programs"]["dualadam"] = version("dualadam")
    except ImportError as error:
        print(f"without DualAdam through Python: {error}")
    except Exception as error:
        results.fail("DualAdam through Python", error)
    print(f"{', '.join(map(' '.join, results.known['programs'].items()))}, on {machine.name}")
    print("Bytes: bytes per element that one pass must move. At equal bytes: time per byte, over that of fused.")
    print("Peak bytes: bytes per element that the first step allocated beside parameters and gradients.")
    is_cut = False
    for shape in shapes:
        for types in BYTES_PER_ELEMENT:
            name = f"{shape['name']} {types}"
            if until is not None and time.monotonic() > until:
                results.skip(name, NO_TIME_LEFT)
                is_cut = True
                continue
            try:
                gc.collect()  # optimizers that their hooks keep alive in reference cycles
                machine.empty_cache()
                group = Group(torch, machine, dual_adam, shape, types, is_core, results)
                results.add(time_group(machine, group, rounds, until))
            except Exception as error:
                results.fail(name, error)
            group = None
    if is_cut:
        print(f"the comparison with torch was cut: {NO_TIME_LEFT}")


class Group:
    """The tensors of a shape, each replica with its optimizers, and the variants that are timed."""

    def __init__(self, torch, machine, dual_adam, shape, types, is_core, results):
        self.shape, self.types, self.results = shape["name"], types, results
        self.lens = shape["lens"] * shape["repeat"]
        self.elements = sum(self.lens)
        self.peaks = {}
        self.left_out = {"foreach adam", "loop adam"} if is_core else set()
        if len(self.lens) > MOST_TENSORS_OF_LOOP:
            self.left_out.add("loop adam")
        dtype = {"f32_f32": torch.float32, "bf16_bf16": torch.bfloat16}[types]
        self.replicas = machine.replicas(4 * self.elements * dtype.itemsize)
        limit = machine.limit_of(self.elements * BYTES_PER_ELEMENT[types]["torch"], self.replicas)
        self.steps = []
        for replica in range(self.replicas):
            steps = {machine.limit: lambda replica=replica: limit(replica)}
            self.steps.append(steps | self.steps_of_replica(torch, machine, dual_adam, dtype))
        self.next = 0

    def variants(self):
        """For each variant that is not left out, a function that enqueues its next step; the limit
        first."""
        return {name: lambda name=name: self.enqueue(name) for name in self.steps[0] if name not in self.left_out}

    @contextmanager
    def attempt(self, variant):
        """Leaves a variant out from here on if it fails."""
        try:
            yield
        except Exception as error:
            self.left_out.add(variant)
            self.results.fail(f"{self.shape} {self.types}, {variant}", error)
            for steps in self.steps:
                steps.pop(variant, None)

    def steps_of_replica(self, torch, machine, dual_adam, dtype):
        """The steps of each kind, by variant. They share parameters and gradients; each has moments
        of its own."""
        params = [torch.full((length,), START, dtype=dtype, device=machine.device) for length in self.lens]
        for param in params:
            param.grad = torch.full_like(param, GRAD)
        # The most informative come first: the last may find no memory.
        contestants = {"fused adam": lambda: torch.optim.Adam(params, lr=LR, fused=True).step}
        if dual_adam:
            contestants["dual"] = lambda: dual_adam(params, lr=LR, weight_decay=0, switching_steps=SWITCHING_STEPS).step
        contestants |= {
            **machine.more_variants(params, LR),
            "foreach adam": lambda: torch.optim.Adam(params, lr=LR, foreach=True).step,
            "loop adam": lambda: torch.optim.Adam(params, lr=LR, foreach=False).step,
        }
        steps = {}
        for variant, make in contestants.items():
            if variant in self.left_out:
                continue
            with self.attempt(variant):
                steps[variant] = self.checked_step(torch, machine, variant, make, params)
            if variant in self.left_out:
                gc.collect()  # its moments
        return steps

    def checked_step(self, torch, machine, variant, make, params):
        before = machine.memory()
        step = make()
        for param in params:
            param.fill_(START)  # steps before this one have changed it
        step()
        self.peaks.setdefault(variant, machine.peak_since(before))
        self.check(torch, params, LR * (GRAD**2 if variant == "dual" else 1))
        return step

    def check(self, torch, params, moved):
        """First steps move a parameter: Adam by the learning rate, the inverse branch by lr * g *
        |g|."""
        tolerance = LR / 3 if self.types == "bf16_bf16" else LR * 1e-4
        for param in params[:3] + params[-3:]:
            ends = param.detach()[[0, -1]].float()
            torch.testing.assert_close(ends, torch.full_like(ends, START - moved), rtol=0.0, atol=tolerance)

    def enqueue(self, variant):
        replica, self.next = self.next, (self.next + 1) % self.replicas
        self.steps[replica][variant]()


def program(variant):
    return "dualadam" if variant == "dual" else "torch"


def time_group(machine, group, rounds, until):
    """Times at least LEAST_ROUNDS, and as many of the rounds as there is time for."""
    machine.warm_up(group.variants()[machine.limit])
    host_times = time_host(machine, group)
    plans = {}
    for variant, enqueue in group.variants().items():
        with group.attempt(variant):
            plans[variant] = machine.plan(enqueue, quartiles(host_times[variant])[1])
    times, late = [], Counter()
    while len(times) < rounds and (len(times) < LEAST_ROUNDS or until is None or time.monotonic() < until):
        times.append({})
        for variant, enqueue in group.variants().items():
            with group.attempt(variant):
                times[-1][variant], is_late = machine.seconds(plans[variant], enqueue)
                late[variant] += is_late
    return [row(machine, group, variant, times, late[variant], host_times[variant]) for variant in group.variants()]


def time_host(machine, group):
    """The host's times of a step. The variants take turns here too, since each evicts the others'
    data from the host's caches."""
    times, end = defaultdict(list), time.monotonic() + HOST_SECONDS
    for round in range(MOST_HOST_ROUNDS):
        for variant, enqueue in group.variants().items():
            with group.attempt(variant):
                times[variant].append(machine.host_seconds(enqueue))
        if round + 1 >= LEAST_ROUNDS and time.monotonic() > end:
            break
    return times


def row(machine, group, variant, times, late, host_times):
    low, median, high = quartiles([round[variant] for round in times])
    host_low, host, host_high = (seconds and seconds * 1e6 for seconds in quartiles(host_times))
    bytes_per_element = BYTES_PER_ELEMENT[group.types][program(variant)]
    # The limit was timed over the bytes that torch moves.
    more_bytes = bytes_per_element / BYTES_PER_ELEMENT[group.types]["torch"]
    peak = group.peaks.get(variant)
    flops = 0 if variant == machine.limit else FLOPS_PER_ELEMENT[program(variant)] * group.elements
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
        "rounds": len(times),
        "host_us": host,
        "host_us_low": host_low,
        "host_us_high": host_high,
        "host_bound": late > FEW_LATE * len(times),
        "host_bound_rounds": late,
        "bytes_per_element": bytes_per_element,
        "gb_per_s": bytes_per_element * group.elements / median * 1e-9,
        f"of_{machine.limit}": ratio(times, machine.limit, variant, more_bytes),
        "over_fused": ratio(times, variant, "fused adam"),
        # As if both moved the same bytes.
        "over_fused_a_byte": ratio(times, variant, "fused adam", 1 / more_bytes),
        "gflop_per_s": flops / median * 1e-9,
        "peak_bytes_per_element": peak and peak / group.elements,
        "replicas": group.replicas,
    }


def ratio(times, one, other, factor=1):
    """The median of the rounds' ratios. There is none if one of the two was left out."""
    if not all(one in round and other in round for round in times):
        return None
    return statistics.median(factor * round[one] / round[other] for round in times)


def quartiles(times):
    return [None] * 3 if None in times else statistics.quantiles(times, n=4, method="inclusive")


def host_bound(row):
    return " (host-bound)" if row["host_bound"] else ""


def print_group(rows, limit):
    """The table of a shape, and its key numbers."""
    if not rows:
        return
    print(f"\n{rows[0]['shape']} {rows[0]['types']}; tensors: {rows[0]['tensors']}, rounds: {rows[0]['rounds']}\n")
    print(
        f"| what | µs | host's µs | bytes | GB/s | of the {limit} | over fused | at equal bytes | GFLOP/s | peak bytes "
        "| over dualadam's dual |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for r in rows:
        columns = [(r["host_us"], 1), (r["bytes_per_element"], 0), (r["gb_per_s"], 1), (r[f"of_{limit}"], 3)]
        columns += [(r["over_fused"], 3), (r["over_fused_a_byte"], 3), (r["gflop_per_s"], 1)]
        columns += [(r["peak_bytes_per_element"], 2), (r["over_dual"], 2)]
        texts = ["" if number is None else f"{number:.{digits}f}" for number, digits in columns]
        print("|", " | ".join([r["variant"], f"{r['us']:.1f}{host_bound(r)}", *texts]), "|")
    print()
    fused = next((r for r in rows if r["variant"] == "fused adam"), None)
    for r in rows:
        if r["variant"] in KEY_VARIANTS:
            print(key_number(r, fused))


def key_number(r, fused):
    """A line of fewer than 105 characters. It lacks the ratio at equal bytes if a time is the
    host's."""
    shape, types, us = r["shape"], r["types"].split("_")[0], r["us"]
    text = f"key: Python, {shape} {types}, {KEY_VARIANTS[r['variant']]}: {us:.{0 if us >= 1e4 else 1}f} µs"
    if not fused:
        return f"{text} ({r['bytes_per_element']} bytes){', host-bound' if r['host_bound'] else ''}"
    ours, theirs = r["bytes_per_element"], fused["bytes_per_element"]
    text += f", {r['over_fused']:.3f} of fused"
    is_host_bound = (r["host_bound"], fused["host_bound"])
    if ours != theirs and not any(is_host_bound):
        return f"{text}, {r['over_fused_a_byte']:.3f} at equal bytes ({ours}, {theirs})"
    mark = {(True, True): ", both host-bound", (True, False): ", host-bound", (False, True): ", fused host-bound"}
    return f"{text} ({ours}, {theirs} bytes){mark.get(is_host_bound, '')}"


def ensure_drawable(file):
    """Ends the program before it has measured for minutes, if it could not draw then."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        sys.exit(f"--chart needs matplotlib: {error}")
    if not file.parent.is_dir():
        sys.exit(f"--chart: {file.parent} is not a folder")
    if file.suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        sys.exit(f"--chart: matplotlib cannot draw {file.name}; .svg and .png work")


def draw(results, file):
    import matplotlib

    matplotlib.use("Agg")
    # The same numbers make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "speed"
    from matplotlib import pyplot

    limit = results["limit"]
    rows = [r for r in results["rows"] if r["types"] == "f32_f32" and r["variant"] != limit]
    if not rows:
        print("no chart: no step in f32 was timed")
        return
    shapes, variants = list(dict.fromkeys(r["shape"] for r in rows)), list(dict.fromkeys(r["variant"] for r in rows))
    figure, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
    width = 0.8 / len(variants)
    for i, variant in enumerate(variants):
        of = {r["shape"]: r[f"of_{limit}"] for r in rows if r["variant"] == variant}
        label = "DualAdam (this library)" if variant == "dual" else f"torch, {variant}"
        at = [x + (i - len(variants) / 2 + 0.5) * width for x in range(len(shapes))]
        axes.bar(at, [of.get(s) or 0 for s in shapes], width, label=label, color=COLOURS[i % len(COLOURS)])
    axes.axhline(1, color="black", linewidth=0.8, label=f"{limit}, the limit")
    axes.set_xticks(range(len(shapes)), shapes)
    axes.set_ylabel(f"speed, as a fraction of the {limit}'s")
    programs = results["programs"]
    axes.set_title(f"f32, {results['device']}, torch {programs['torch'].split('+')[0]}")
    figure.legend(loc="outside lower center", ncols=len(variants) + 1)
    figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
