"""How the time of a step grows with batch, width, depth and size of the graph, and where a GPU overtakes the CPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from . import tools
from .measure import PAUSE, THREADS, TRIALS, Facts, Say, ToolError, Worker, agreement, reference_losses
from .works import NET, Work

TOOLS = (
    "bare products", "numpy eager", "numpy program", "numba loop", "cupy eager", "cupy program", "torch eager",
    "jax scan",
)
PATIENCE = 60.0
"""Seconds that a tool may take to prepare one size; one that needs longer has no larger sizes."""


class Sweep(NamedTuple):
    """Works of growing size, and what the size is."""

    title: str
    unit: str
    works: dict[int, Work]


def _work(sizes: Sequence[int], batch: int, rate: float = 1e-3) -> Work:
    return Work("", tuple(sizes), batch, 2000, rate, near_identity=len(set(sizes[1:-1])) == 1)


LAYERS = (1, 3, 10, 30, 100, 300, 1000)
SWEEPS = {
    "batch": Sweep(
        "Batch: 784-128-64-10, SGD", "rows in a batch",
        {n: _work(NET, n) for n in (1, 4, 16, 64, 256, 1024, 4096, 16384, 60_000)},
    ),
    "width": Sweep(
        "Width: 784-n-n-10, batch 64, SGD", "units n in a hidden layer",
        {n: _work((784, n, n, 10), 64) for n in (8, 32, 64, 128, 256, 512, 1024, 2048)},
    ),
    "depth": Sweep(
        "Depth: n hidden layers of 64 units, batch 64, SGD", "hidden layers n",
        {n: _work((784, *[64] * n, 10), 64, 1e-6) for n in LAYERS},
    ),
    "graph": Sweep(
        "Graph: layers of 8 units, batch 1, SGD: what an operation costs where arithmetic costs nothing",
        "operations forward (3 a layer)",
        {3 * n + 3: _work((784, *[8] * n, 10), 1, 1e-6) for n in LAYERS},
    ),
}


def measure(names: Iterable[str], budget: float, say: Say, sweeps: Mapping[str, Sweep] = SWEEPS) -> dict[str, Facts]:
    """Each sweep with each tool, the tools in turns at each size, the better number of threads at each."""
    return {key: _sweep(key, sweep, list(names), budget, say) for key, sweep in sweeps.items()}


def _sweep(key: str, sweep: Sweep, names: list[str], budget: float, say: Say) -> Facts:
    found: dict[str, Facts] = {name: {"x": [], "seconds": [], "samples": [], "note": ""} for name in names}
    first = next(iter(sweep.works.values()))
    reference = reference_losses(first)
    with ExitStack() as stack:
        workers: dict[str, list[Worker]] = {}
        for name in names:
            say(f"{key}: {name}, check")
            try:
                with Worker(name) as worker:
                    agreement(first, name, worker.ask, reference)
            except ToolError as error:
                found[name]["note"] = str(error)
                continue
            counts = THREADS if tools.TOOLS[name].threads else (1,)
            workers[name] = [stack.enter_context(Worker(name, threads)) for threads in counts]
        for size, work in sweep.works.items():
            say(f"{key}: {size}")
            samples: dict[str, list[list[float]]] = {}
            for name, each in list(workers.items()):
                try:
                    for worker in each:
                        worker.ask("make", PATIENCE, work=asdict(work), budget=budget)
                    samples[name] = [[] for _ in each]
                except ToolError as error:
                    found[name]["note"] = f"from {size} on: {error}"
                    del workers[name]
            for _ in range(TRIALS):
                for name in samples:
                    for worker, values in zip(workers[name], samples[name], strict=True):
                        time.sleep(PAUSE / 4)
                        values.append(worker.ask("sample")["seconds"])
            for name, tried in samples.items():
                best = min(tried, key=statistics.median)
                found[name]["x"].append(size)
                found[name]["seconds"].append(statistics.median(best))
                found[name]["samples"].append(tried)
    for one in found.values():
        one["exponent"] = exponent(one["x"], one["seconds"])
    title, unit = sweep.title, sweep.unit
    return {"title": title, "unit": unit, "threads": list(THREADS), "tools": found, "crossing": crossing(found)}


def exponent(x: Sequence[float], seconds: Sequence[float]) -> float | None:
    """The p of seconds ~ x^p at the larger sizes: the least-squares slope of the logarithms over the upper half."""
    if len(x) < 4:
        return None
    upper = len(x) // 2
    return float(np.polyfit(np.log(x[upper:]), np.log(seconds[upper:]), 1)[0])


def crossing(found: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The size from which the fastest of our tools on the GPU is faster than the fastest of ours on the CPU.

    Between two sizes that were measured, by a straight line through the logarithms; None where there is none.
    """

    def fastest(names: Iterable[str]) -> dict[int, float]:
        best: dict[int, float] = {}
        for name in names:
            for x, seconds in zip(found[name]["x"], found[name]["seconds"], strict=True):
                best[x] = min(seconds, best.get(x, math.inf))
        return best

    on_gpu = {name for name in found if name.startswith("cupy")}
    cpu = fastest(name for name in found if tools.TOOLS[name].ours and name not in on_gpu)
    device = fastest(on_gpu)
    before = None
    for x in sorted(cpu.keys() & device.keys()):
        gap = math.log(device[x] / cpu[x])
        if gap < 0:
            if before is None:
                return float(x)
            share = before[1] / (before[1] - gap)
            return math.exp(math.log(before[0]) + share * math.log(x / before[0]))
        before = x, gap
    return None
