"""Data-parallel training: the time of a step on one rank and on two, what the all-reduce takes of it, and, on paper,
what many ranks would do.

    python benchmarks/scaling.py [--steps 200] [--repeats 5]    # all: runs itself without MPI, on 1 rank and on 2
    mpiexec -n 2 python benchmarks/scaling.py [--layers 784,128,64,10] [--batch 256] [--weak]    # one kind of step
    mpiexec -n 2 python benchmarks/scaling.py --fit             # the all-reduce alone: latency, and time for a byte
    python benchmarks/scaling.py --model [--flops 5e10] [--alpha 2e-6] [--beta 8e-11] [--gamma 1e-10]

Strong scaling: the batch is that of all ranks together. Weak scaling (`--weak`): that of each. Steps are those that
`train` runs, compiled, in float32, each process with one thread of the BLAS. Kinds of step take turns, each time in
processes of their own, so that a machine that speeds up or slows down does so for all. There is no bar.

`--model` prints the tables of docs/distributed.md. It measures nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygrad_mnist import data, distributed
from tinygrad_mnist.native import blas
from tinygrad_mnist.recipe import Recipe
from tinygrad_mnist.train import Training

Layers = tuple[int, ...]

NETWORKS: list[Layers] = [(784, 128, 64, 10), (784, 1024, 1024, 10)]
STARTED = "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"  # mpiexec sets one of them
LARGEST = 22  # the all-reduce alone is timed for 2^0 to 2^22 floats


def parameters(layers: Layers) -> int:
    return sum((n + 1) * m for n, m in itertools.pairwise(layers))


def flops(layers: Layers) -> int:
    """Operations on floats for an image in a step: 2 P forward and 4 P backward, for P parameters, without the
    2 n0 n1 of the gradient of the pixels, which nobody needs."""
    return 6 * parameters(layers) - 2 * layers[0] * layers[1]


# ---- one kind of step, in this process ----------------------------------------------------------------------------


class Timed(distributed.Ranks):
    """Ranks that count the seconds of the all-reduce, and of the whole average with its copies. Waiting for a rank that
    is late is part of both."""

    def __init__(self, comm: Any) -> None:
        super().__init__(comm)
        self.start()

    def start(self) -> None:
        """Count from 0, when all ranks have come here."""
        self._comm.Barrier()
        self.in_allreduce = self.in_average = 0.0

    def _average(self, *parts: Any) -> None:
        start = time.perf_counter()
        super()._average(*parts)
        self.in_average += time.perf_counter() - start

    def _allreduce(self, buffer: Any) -> None:
        start = time.perf_counter()
        super()._allreduce(buffer)
        self.in_allreduce += time.perf_counter() - start


class Sample(NamedTuple):
    """Seconds of a step, and of these in the all-reduce and in the average: means over some steps and all ranks."""

    step: float
    allreduce: float
    average: float

    @property
    def shares(self) -> tuple[float, float]:
        """Of the all-reduce, and of the average."""
        return self.allreduce / self.step, self.average / self.step


def started() -> Timed | None:
    """The ranks of the job, where mpiexec started this process."""
    if not any(name in os.environ for name in STARTED):
        return None
    from mpi4py import MPI

    return Timed(MPI.COMM_WORLD)


def step(layers: Layers, batch: int, steps: int, ranks: Timed | None) -> Sample:
    """A step of a training, over at least so many of them and after a few that are not counted."""
    images, labels, *test = data.mnist()
    whole = len(images) // batch * batch  # a short batch at the end of an epoch would be a kind of its own
    recipe = Recipe(layers=layers, batch=batch, lr=1e-3, schedule="constant")
    training = Training(recipe, (images[:whole], labels[:whole], *test), ranks=ranks)
    run(training, max(1, steps // 10))
    if ranks:
        ranks.start()
    start = time.perf_counter()
    done = run(training, steps)
    seconds = time.perf_counter() - start
    if ranks is None:
        return Sample(seconds / done, 0.0, 0.0)
    parts = np.array([[seconds, ranks.in_allreduce, ranks.in_average]]) / done
    return Sample(*ranks.joined(parts).mean(axis=0).tolist())


def run(training: Training, steps: int) -> int:
    """Take steps as the training does, some at a time, until there are enough; how many there were."""
    done, rng = 0, np.random.default_rng(0)
    while True:
        for _, losses, _ in training._steps(rng):
            done += losses.size
            if done >= steps:
                return done


# ---- the all-reduce alone -----------------------------------------------------------------------------------------


def allreduce_times(ranks: Timed, repeats: int) -> dict[int, list[float]]:
    """Of each number of bytes, the seconds of an all-reduce in place, on rank 0."""
    buffers = [np.zeros(1 << k, np.float32) for k in range(LARGEST + 1)]
    times: dict[int, list[float]] = {buffer.nbytes: [] for buffer in buffers}
    for _ in range(repeats + 1):
        for buffer in buffers:
            calls = max(4, min(1000, (1 << 24) // buffer.nbytes))
            ranks.start()
            start = time.perf_counter()
            for _ in range(calls):
                ranks._allreduce(buffer)
            times[buffer.nbytes].append((time.perf_counter() - start) / calls)
    return {n: found[1:] for n, found in times.items()}  # the first touched the memory


def hockney(times: dict[int, float]) -> tuple[float, float]:
    """alpha and beta of alpha + beta n seconds for n bytes, with the least sum of squares of relative errors.

    As these are of the whole all-reduce, to add the numbers is part of beta.
    """
    n, t = np.array(list(times)), np.array(list(times.values()))
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([1 / t, n / t], axis=1), np.ones(len(t)), rcond=None)
    return float(alpha), float(beta)


# ---- tables -------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms")) if seconds >= s), (1e-6, "us"))
    digits = max(0, 2 - int(math.log10(max(1, seconds / size))))
    return f"{seconds / size:.{digits}f} {unit}"


def percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def multiple(factor: float) -> str:
    return f"{factor:.2f}" if factor < 9.95 else f"{factor:.0f}"


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Median and range."""
    return f"{show(statistics.median(values))} ({show(min(values))} - {show(max(values))})"


def shares(samples: Sequence[Sample]) -> list[str]:
    """Medians, of the all-reduce and of the average."""
    return [percent(statistics.median(found)) for found in zip(*(s.shares for s in samples), strict=True)]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Kind(NamedTuple):
    """A kind of step: its name, on how many ranks (0: without MPI), its batch in batches of one rank."""

    name: str
    ranks: int
    batches: int


ONE = Kind("1 rank", 1, 1)
KINDS = Kind("without MPI", 0, 1), ONE, Kind("2 ranks, strong", 2, 1), Kind("2 ranks, weak", 2, 2)


def step_table(layers: Layers, batch: int, found: dict[Kind, list[Sample]]) -> str:
    """Speed-up, in images a second, and efficiency are against one rank in the same round; operations are those of the
    products as written, of which a native loop leaves some out."""
    rows = []
    for kind, samples in found.items():
        images, processes = kind.batches * batch, max(1, kind.ranks)
        rate = images / statistics.median(s.step for s in samples)
        faster = [kind.batches * one.step / s.step for one, s in zip(found[ONE], samples, strict=True)]
        efficiency = percent(statistics.median(faster) / processes)
        rows.append([
            kind.name, str(images), spread([s.step for s in samples], duration),
            f"{rate:.0f}", spread(faster, multiple),
            *([efficiency, *shares(samples)] if kind.ranks else ["", "", ""]),
            f"{flops(layers) * rate / processes / 1e9:.0f}",
        ])
    heads = ["", "batch", "a step", "images/s", "speed-up", "efficiency", "all-reduce", "average", "GFLOP/s a process"]
    return table(heads, rows)


def fit_table(found: dict[int, list[float]]) -> str:
    medians = {n: statistics.median(seconds) for n, seconds in found.items()}
    alpha, beta = hockney(medians)
    rows = [[str(n), spread(seconds, duration), duration(alpha + beta * n)] for n, seconds in found.items()]
    end = f"alpha = {duration(alpha)}, beta = {beta:.2e} s/byte, which is {1e-9 / beta:.2f} GB/s"
    return f"{table(['bytes', 'all-reduce', 'alpha + beta n'], rows)}\n\n{end}"


# ---- all kinds, by turns ------------------------------------------------------------------------------------------


def child(ranks: int, *options: str) -> Any:
    """What this script measures on so many ranks."""
    command = [sys.executable, __file__, "--json", *options]
    if ranks:
        # Rather the MPI that was installed with this interpreter than another one
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        mpiexec = shutil.which("mpiexec", path=path)
        if mpiexec is None:
            raise SystemExit(f"there is no mpiexec: {distributed.INSTALL}")
        command = [mpiexec, "-n", str(ranks), *command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    return json.loads(done.stdout)


def measure_all(networks: Sequence[Layers], batch: int, steps: int, repeats: int) -> None:
    found: dict[Layers, dict[Kind, list[Sample]]] = {layers: {kind: [] for kind in KINDS} for layers in networks}
    for turn in range(repeats):
        for layers, kinds in found.items():
            for kind, samples in kinds.items():
                size = ",".join(map(str, layers))
                options = ["--layers", size, "--batch", str(batch * kind.batches), "--steps", str(steps)]
                samples += (Sample(*sample) for sample in child(kind.ranks, *options, "--repeats", "1"))
                print(f"round {turn}: {size}, {kind.name}: {duration(samples[-1].step)}", file=sys.stderr, flush=True)
    alone = child(2, "--fit", "--repeats", str(repeats))
    for layers, kinds in found.items():
        print(f"\n### {'-'.join(map(str, layers))}\n\n{step_table(layers, batch, kinds)}")
    print(f"\n### The all-reduce of 2 ranks\n\n{fit_table({int(n): seconds for n, seconds in alone.items()})}")


# ---- on paper -----------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """What a rank and its network are, of which nothing is measured here."""

    flops: float  # F: operations a second that a rank sustains in its steps
    alpha: float  # seconds until a message arrives, however short
    beta: float   # seconds more for each byte of it
    gamma: float  # seconds to add a byte of a message to what is there


CORE = Machine(50e9, 2e-6, 8e-11, 1e-10)
GPU = CORE._replace(flops=10e12)
MANY = 8, 64, 1024
BATCHES = 256, 4096, 65536
HIDDEN = (128, 64), (1024, 1024), (4096, 4096)


def compute(rows: float, layers: Layers, machine: Machine) -> float:
    """rows (6 P - 2 n0 n1) / F, of the rows of a batch that one rank has."""
    return rows * flops(layers) / machine.flops


def allreduce(p: int, layers: Layers, machine: Machine) -> float:
    """Of n bytes on p ranks, a power of 2, what takes less time: recursive doubling,

        log2(p) (alpha + n beta + n gamma)

    or Rabenseifner's algorithm,

        2 log2(p) alpha + 2 (p - 1) / p n beta + (p - 1) / p n gamma.

    n = 4 (P + 2): float32 gradients, and with them the loss and the share of right answers.
    """
    _, alpha, beta, gamma = machine
    n, log2 = 4 * (parameters(layers) + 2), p.bit_length() - 1
    return min(log2 * (alpha + n * beta + n * gamma), 2 * log2 * alpha + (p - 1) / p * n * (2 * beta + gamma))


def rows_for(share: float, p: int, layers: Layers, machine: Machine) -> int:
    """Of a batch, the rows for each rank from which on the all-reduce takes at most this share of a step."""
    return math.ceil((1 - share) / share * allreduce(p, layers, machine) / compute(1, layers, machine))


def overtaken(batch: int, layers: Layers, machine: Machine) -> str:
    """On how many ranks, of the powers of 2, the all-reduce begins to take longer than the compute."""
    for p in (1 << k for k in range(1, batch.bit_length())):
        if allreduce(p, layers, machine) > compute(batch / p, layers, machine):
            return str(p)
    return "never"


def on_paper(p: int, batch: int, layers: Layers, machine: Machine) -> str:
    """Time of a step, the share of the all-reduce, and the speed-up against one rank."""
    if batch < p:
        return "-"  # a rank without a row
    comm, alone = allreduce(p, layers, machine), compute(batch, layers, machine)
    total = alone / p + comm
    return f"{duration(total)}, {percent(comm / total)}, {multiple(alone / total)}x"


def model(name: str, machine: Machine) -> str:
    networks = {"-".join(map(str, hidden)): (784, *hidden, 10) for hidden in HIDDEN}
    f, alpha, beta, gamma = machine
    inputs = f"F = {f / 1e9:g} GFLOP/s, alpha = {alpha * 1e6:g} us, beta = {beta * 1e9:g} ns/byte, "
    inputs += f"gamma = {gamma * 1e9:g} ns/byte.\nIn a cell: a step, the all-reduce's share of it, and the speed-up; "
    inputs += "last, on how many ranks,\nof the powers of 2, the all-reduce begins to take longer than the compute."
    strong = table(
        ["hidden", "batch", "1 rank", *(f"{p} ranks" for p in MANY), "overtakes at"],
        [[hidden, str(batch), duration(compute(batch, layers, machine)),
          *(on_paper(p, batch, layers, machine) for p in MANY), overtaken(batch, layers, machine)]
         for hidden, layers in networks.items() for batch in BATCHES],
    )
    least = table(
        ["hidden", "P", "ranks", "all-reduce", "rows a rank: half", "a tenth", "batch: half", "a tenth"],
        [[hidden, str(parameters(layers)), str(p), duration(allreduce(p, layers, machine)),
          *(str(each * rows_for(share, p, layers, machine)) for each in (1, p) for share in (1 / 2, 1 / 10))]
         for hidden, layers in networks.items() for p in MANY],
    )
    what = "The least rows a rank, and so the least batch, with which the all-reduce takes at most half or a tenth:"
    return "\n\n".join([f"### Model: a rank is {name}", inputs, strong, what, least])


# ---- the command --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=lambda text: tuple(map(int, text.split(","))), help="default: two networks")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200, help="in a sample")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each kind")
    parser.add_argument("--weak", action="store_true", help="under mpiexec: the batch is that of each rank")
    parser.add_argument("--fit", action="store_true", help="under mpiexec: time the all-reduce alone")
    parser.add_argument("--json", action="store_true", help="print the samples, without MPI too")
    parser.add_argument("--model", action="store_true", help="print what a model says of many ranks")
    for name in Machine._fields:
        parser.add_argument(f"--{name}", type=float, help="of the model, where it is not one of its two machines")
    args = parser.parse_args()
    if args.model:
        given = {name: value for name in Machine._fields if (value := getattr(args, name)) is not None}
        machines = {"as given": CORE._replace(**given)} if given else {"a core": CORE, "a GPU": GPU}
        print("\n\n".join(model(*machine) for machine in machines.items()))
        return
    ranks = started()
    if ranks is None and args.fit:
        parser.error("--fit needs mpiexec -n 2, or more")
    if ranks is None and not args.json:
        measure_all([args.layers] if args.layers else NETWORKS, args.batch, args.steps, args.repeats)
        return
    blas.limit_threads(1)
    found: Any
    if args.fit:
        found = allreduce_times(ranks, args.repeats)
        text = fit_table(found)
    else:
        batch = args.batch * (ranks.size if ranks and args.weak else 1)
        found = [step(args.layers or NETWORKS[0], batch, args.steps, ranks) for _ in range(args.repeats)]
        parts = "all-reduce {}, average {}".format(*shares(found))
        text = f"batch {batch}: {spread([s.step for s in found], duration)} a step; {parts}"
    if ranks is None or ranks.rank == 0:
        print(json.dumps(found) if args.json else text)


if __name__ == "__main__":
    main()
