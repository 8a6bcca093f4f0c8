"""Taking the times: one process for each tool and number of threads, which wait and are told in turn to run.

So the tools do not disturb each other's threads, caches and allocators, and what slows the machine for a while slows
all of them. A tool is timed after its losses in float64 were those of the reference.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import tools
from .compare import ratio
from .works import CAPTURE_BARS, CHECK_STEPS, TRAIN_BARS, WORKS, Bar, Work, checked, problem

TOLERANCE = 1e-6
"""Largest relative difference of a loss in float64."""
PAUSE = 0.2
"""Seconds between two samples: the threads of some libraries spin for a while before they sleep."""
TIMEOUT = 300.0
TRIALS, CLEARLY = 3, 1.3
"""Samples of each number of threads before the measurement, and how many times slower is given up then."""
SLOW = 10.0
"""A step that takes longer than so many samples is measured once."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = (1, CORES) if CORES > 1 else (1,)

Say = Callable[[str], None]
Facts = dict[str, Any]


class ToolError(Exception):
    """A tool that cannot run, in one line."""


# ---- in the tool's process ----------------------------------------------------------------------------------------


class Server:
    """Answers what `measure` asks of one tool."""

    def __init__(self, tool: str) -> None:
        self.tool = tools.TOOLS[tool]

    def ask(self, do: str, **request: Any) -> Facts:
        """Do one of the methods below."""
        return getattr(self, do)(**request)

    def losses(self, work: Mapping[str, Any]) -> Facts:
        """The losses of the first steps."""
        p = problem(_work(work))
        return {"losses": [float(value) for value in self.tool.make(p).run(p.order)]}

    def make(self, work: Mapping[str, Any], budget: float) -> Facts:
        """Prepare for samples of at most `budget` seconds; how many steps that is, and what one takes."""
        self.runner = None  # frees the one before
        p = problem(_work(work))
        self.runner, self.order = self.tool.make(p), p.order
        del p
        step = 0.0
        for count, calls in ((1, 3), (10, 1)):  # a program is captured in its first calls, a scan at each length
            if count * step > budget:
                break
            few = self.order[:count]
            for _ in range(calls):
                if self._time(few) > SLOW * budget:
                    break
            step = self._time(few) / len(few)
        steps = max(1, min(len(self.order), int(budget / max(step, 1e-9))))
        self.order = self.order[:steps]
        if steps != len(few):
            self._time(self.order)  # a scan is compiled for its length
        return {"steps": steps, "step_seconds": step, **self.runner.facts}

    def sample(self) -> Facts:
        """The seconds of a step, as the mean over a run of all steps; the last loss; the peak of memory so far."""
        seconds = self._time(self.order) / len(self.order)
        return {"seconds": seconds, "loss": self.last, "peak_bytes": _peak_memory()}

    def first_calls(self) -> Facts:
        """What the first calls of a program take beyond the steps that they do: capture, planning, compilation."""
        p = problem(replace(WORKS["adam128"], rows=4096, steps=20))
        runner = self.tool.make(p)
        first = sum(self._timed(runner, p.order[i : i + 1]) for i in range(3))
        replays = [self._timed(runner, p.order[i : i + 1]) for i in range(3, 20)]
        return {"seconds": max(0.0, first - 3 * statistics.median(replays))}

    def _time(self, order: Any) -> float:
        return self._timed(self.runner, order)

    def _timed(self, runner: Any, order: Any) -> float:
        losses, seconds = runner.clock(lambda: runner.run(order))
        self.last = float(losses[-1])
        return float(seconds)


def _peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage's figure, not inherited from the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _work(fields: Mapping[str, Any]) -> Work:
    """A work from JSON. Its bars are of no interest to a tool."""
    return Work(**{**fields, "sizes": tuple(fields["sizes"]), "bars": ()})


def serve() -> None:
    """Answer each line of stdin, JSON, by one on stdout; what libraries print there goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server(sys.argv[1])
    for line in sys.stdin:
        try:
            reply = server.ask(**json.loads(line))
        except tools.Unavailable as error:
            reply = {"error": str(error)}
        except Exception as error:  # whatever a peer raises is its row's note, not the end of the measurement
            reply = {"error": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(reply), file=out, flush=True)


# ---- in the process that measures ---------------------------------------------------------------------------------


class Process(Protocol):
    """What `measure` needs of a tool's process; `Server` itself will do where it need not be one."""

    def ask(self, do: str, **request: Any) -> Facts: ...


class Worker:
    """A tool in a process of its own, with this number of threads."""

    def __init__(self, tool: str, threads: int = 1, env: Mapping[str, str] | None = None) -> None:
        names = ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")
        flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        limits = {f"{name}_NUM_THREADS": str(threads) for name in names}
        # JAX takes the size of its pool from NPROC
        limits |= {"NPROC": str(threads), "XLA_FLAGS": flags, "NUM_CPU_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tinygrad_mnist.bench.measure import serve; serve()", tool],
            env={**os.environ, **limits, **(env or {})}, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )

    def ask(self, do: str, timeout: float = TIMEOUT, **request: Any) -> Facts:
        """Have the process do something. Raises ToolError where it cannot, ends, or takes too long."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise ToolError("failed: its process has ended") from error
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.process.kill()  # or its answer would come in place of the next
            raise ToolError(f"given up after {timeout:.0f} s")
        if not (line := self.process.stdout.readline()):
            raise ToolError(f"failed: its process ended with code {self.process.wait()}")
        reply: Facts = json.loads(line)
        if "error" in reply:
            raise ToolError(reply["error"])
        return reply

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """The largest relative difference; infinite where they are not as many, or not numbers."""
    a, b = np.array(losses, float), np.array(reference, float)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.max(np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-300)))


def agreement(work: Work, tool: str, ask: Callable[..., Facts], reference: Sequence[float]) -> float | None:
    """The difference of a tool's losses from the reference's, None for what has no loss; ToolError if it is too large.

    Over the first steps in float64, with the batch cut to a size that every tool can do.
    """
    if not tools.TOOLS[tool].loss:
        return None
    losses = ask("losses", work=asdict(checked(work)))["losses"]
    worst = difference(losses, reference)
    if not worst <= TOLERANCE:
        raise ToolError(f"not timed: in {CHECK_STEPS} steps its losses differ by {worst:.1e} from {tools.REFERENCE}")
    return worst


def reference_losses(work: Work) -> list[float]:
    """What the losses of a work should be."""
    with Worker(tools.REFERENCE) as worker:
        losses: list[float] = worker.ask("losses", work=asdict(checked(work)))["losses"]
        return losses


def measure(work: Work, names: Iterable[str], repeats: int, budget: float, say: Say) -> Facts:
    """A row: each tool checked, then all of them timed in turns, at each number of threads that may be its best."""
    row: Facts = {"key": work.key, "title": work.title, "work": asdict(replace(work, bars=())), "tools": {}}
    reference = reference_losses(work)
    with ExitStack() as stack:
        alive: list[tuple[Facts, int, Worker]] = []
        for name in names:
            say(f"{work.key}: {name}, check")
            entry: Facts = {"note": "", "samples": [], "ours": tools.TOOLS[name].ours}
            row["tools"][name] = entry
            try:
                with Worker(name) as worker:
                    entry["difference"] = agreement(work, name, worker.ask, reference)
                say(f"{work.key}: {name}, preparation")
                alive += _candidates(work, name, budget, entry, stack)
            except ToolError as error:
                entry["note"] = str(error)
        for repeat in range(repeats):
            say(f"{work.key}: repeat {repeat + 1} of {repeats}")
            for entry, threads, worker in alive:
                time.sleep(PAUSE)
                try:
                    found = worker.ask("sample")
                except ToolError as error:
                    entry["note"] = str(error)
                    continue
                entry["tried"][threads]["samples"].append(found.pop("seconds"))
                entry["tried"][threads].update(found)
    for entry in row["tools"].values():
        tried = {threads: one for threads, one in entry.get("tried", {}).items() if one["samples"]}
        if tried:
            best = min(tried, key=lambda threads: statistics.median(tried[threads]["samples"]))
            entry.update(tried[best], threads=best)
    return with_bars(row, work.bars)


def _candidates(
    work: Work, name: str, budget: float, entry: Facts, stack: ExitStack
) -> list[tuple[Facts, int, Worker]]:
    """The tool in a process for each number of threads, ready to be timed, but not where that is clearly the worse."""
    started: dict[int, tuple[ExitStack, Worker]] = {}
    trial: dict[int, list[float]] = {}
    entry["tried"] = tried = {}
    fields = asdict(replace(work, bars=()))
    for threads in THREADS if tools.TOOLS[name].threads else (1,):
        own = stack.enter_context(ExitStack())
        started[threads] = own, own.enter_context(Worker(name, threads))
        made = started[threads][1].ask("make", work=fields, budget=budget)
        trial[threads] = [made.pop("step_seconds")]
        tried[threads] = {"samples": [], **made}
    slow = min(min(trial.values())) > SLOW * budget
    for _ in range(0 if slow else TRIALS):
        for threads, (_, worker) in started.items():
            time.sleep(PAUSE)
            trial[threads].append(worker.ask("sample")["seconds"])
    if slow:
        entry["note"] = "slow: timed once"
    for threads, (own, _) in started.items():
        tried[threads]["trial"] = trial[threads]
        if slow:
            tried[threads]["samples"] = trial[threads]
        if slow or min(trial[threads]) > CLEARLY * min(map(min, trial.values())):
            own.close()
    return [(entry, threads, worker) for threads, (_, worker) in started.items() if worker.process.poll() is None]


# ---- rows that are no training loop: a whole process, the first calls -----------------------------------------------


def measure_train(repeats: int, say: Say) -> Facts:
    """`tinygrad-mnist train` from process start to exit, with the caches of earlier runs and without any."""
    row: Facts = {"key": "train", "title": "tinygrad-mnist train, process start to exit", "work": None, "tools": {}}
    with tempfile.TemporaryDirectory() as folder:

        def train(name: str, number: int, env: Mapping[str, str]) -> float:
            say(f"train: {name}, call {number + 1}")
            out = Path(folder, f"{name}-{number}")
            command = [sys.executable, "-m", "tinygrad_mnist", "train", "--json", "--out", str(out), "--device", "cpu"]
            done, seconds = tools.wall(partial(subprocess.run, command, env=env, capture_output=True, text=True))
            if done.returncode:
                raise ToolError(f"failed: {done.stderr.strip()[-200:]}")
            row["tools"][name].setdefault("accuracies", []).append(json.loads(done.stdout)["accuracy"])
            return seconds

        _in_turns(row, repeats, {"train, cached": train, "train, first run": train}, Path(folder))
    for entry in row["tools"].values():
        if entry["samples"]:
            entry["note"] = f"test accuracy {statistics.median(entry['accuracies']):.2%}"
    return with_bars(row, TRAIN_BARS)


def measure_capture(repeats: int, say: Say) -> Facts:
    """What the first calls of a program take beyond the steps that they do, in fresh processes."""
    title = "the first three calls of adam128's program, less three later ones"
    row: Facts = {"key": "capture", "title": title, "work": None, "tools": {}}

    def first(tool: str, name: str, number: int, env: Mapping[str, str]) -> float:
        say(f"capture: {name}, call {number + 1}")
        with Worker(tool, env=env) as worker:
            return float(worker.ask("first_calls")["seconds"])

    native = partial(first, "numba loop")
    with tempfile.TemporaryDirectory() as folder:
        names = {
            "capture, numpy": partial(first, "numpy program"),
            "native compile, cached": native,
            "native compile, cold": native,
        }
        _in_turns(row, repeats, names, Path(folder))
    return with_bars(row, CAPTURE_BARS)


def _in_turns(row: Facts, repeats: int, calls: Mapping[str, Callable[..., float]], folder: Path) -> None:
    """Samples of calls(name, number, env); those named first or cold find no cache, the others one that is filled."""
    for name in calls:
        row["tools"][name] = {"note": "", "samples": [], "steps": 1, "threads": None, "ours": True}
    for number in range(repeats + 1):
        for name, call in calls.items():
            entry = row["tools"][name]
            fresh = "first" in name or "cold" in name
            cache = str(folder / (f"cache-{name}-{number}" if fresh else "cache"))
            if entry["note"] or (fresh and number == repeats):
                continue
            try:
                seconds = call(name, number, {**os.environ, "XDG_CACHE_HOME": cache, "NUMBA_CACHE_DIR": cache})
            except ToolError as error:
                entry["note"] = str(error)
                continue
            if fresh or number:  # the first call of the others fills their cache
                entry["samples"].append(seconds)


# ---- bars ---------------------------------------------------------------------------------------------------------


def with_bars(row: Facts, bars: Iterable[Bar]) -> Facts:
    """The row with what was asked of it, and whether it is so."""
    row["bars"] = [_judged(row, bar) for bar in bars]
    return row


def _judged(row: Facts, bar: Bar) -> Facts:
    def value(name: str) -> float:
        entry = row["tools"][name]
        if bar.quantity == "memory":
            return float(entry["peak_bytes"])
        return statistics.median(entry["samples"]) * (row["work"]["steps"] if row["work"] else 1)

    needed = "peak_bytes" if bar.quantity == "memory" else "samples"
    measured = [name for name, entry in row["tools"].items() if entry["samples"] and needed in entry]
    ours = [n for n in measured if n.startswith(bar.tool) and row["tools"][n]["ours"]]
    others = [n for n in measured if n.startswith(bar.against)]
    found: Facts = {**bar._asdict(), "tool": bar.tool, "value": None, "met": None, "interval": None}
    fastest = partial(min, key=lambda name: statistics.median(row["tools"][name]["samples"]))
    if ours and (others or bar.against == "seconds"):
        best = fastest(ours)
        other = fastest(others) if others else None
        quotient = value(best) / (value(other) if other else 1.0)
        found.update(tool=best, other=other, value=quotient, met=quotient <= bar.limit)
        if other and bar.quantity == "time":
            found["interval"] = ratio(row["tools"][other]["samples"], row["tools"][best]["samples"])[1:]
    return found
