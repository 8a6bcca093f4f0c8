"""What the ranks of a job do in tests/test_distributed.py: `python ranked.py NAME`. Rank 0 prints what it found, as
JSON."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from small import RECIPE, dataset

from tinygrad_mnist import Tensor, arrays, cli, compile, distributed, nn, optim, softmax_cross_entropy
from tinygrad_mnist import train as training_module
from tinygrad_mnist.train import Training, train

DATA = dataset()
WIDE = replace(RECIPE, dtype="float64", dropout=0.0, validation=0.0)


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def weights(ranks, changes, compile):
    """How far the weights of all ranks together are from those of one process, and the rest of the history too."""
    recipe = replace(WIDE, **changes)
    ours = train(recipe, DATA, ranks=ranks, compile=compile)
    if ranks.rank > 0:
        return None
    alone = train(recipe, DATA, compile=compile)
    names = [name for name in alone.history[0] if name not in ("seconds", "images_per_second")]
    rows = zip(ours.history, alone.history, strict=True)
    history = max(abs(a[name] - b[name]) for a, b in rows for name in names)
    return relative(ours.model.flat, alone.model.flat), history, ours.optimizer.steps


def gradient(ranks):
    """Of equal weights in float32, on a batch that the ranks cannot share evenly."""
    x, y = DATA[0][:101].reshape(-1, 784) / np.float32(255), DATA[1][:101]

    def derived(x, y):
        model = nn.MLP((784, 64, 10), rng=0)
        loss = softmax_cross_entropy(model(x), y)
        loss.backward()
        return model, loss

    mine = ranks.begin(len(y))
    model, loss = derived(x[mine], y[mine])
    loss, = ranks.average(model.parameters(), loss.data)
    alone, expected = derived(x, y)
    flat = [np.concatenate([p.grad.reshape(-1) for p in m.parameters()]) for m in (model, alone)]
    return relative(*flat), abs(float(loss) - float(expected)), mine.stop - mine.start


def messages(ranks):
    """What is said of data or weights that differ, of ranks with nothing to do, and of what fails on one rank."""
    def said(f):
        try:
            f()
        except distributed.AgreedError as error:
            return str(error)
        return None

    images, labels, *rest = DATA
    other = (images, np.roll(labels, ranks.rank), *rest)
    shorter = (images[: 500 - 51 * ranks.rank], labels[: 500 - 51 * ranks.rank], *rest)  # too few on rank 1 for a batch

    def apart():
        training = Training(RECIPE, DATA, ranks=ranks)
        training.optimizer.params[0].data[0, 0] += ranks.rank  # past the graph: it notices no such write
        training.run_epoch(training_module.Monitor())

    def missing():
        if ranks.rank == 1:
            Path("missing.npz").stat()

    return {
        "data": said(lambda: train(RECIPE, other, ranks=ranks)),
        "length": said(lambda: train(replace(RECIPE, validation=0.0), shorter, ranks=ranks)),
        "recipes": said(lambda: train(replace(RECIPE, dropout=0.1 * ranks.rank), DATA, ranks=ranks)),
        "tests": said(lambda: train(RECIPE, (*DATA[:2], *(a[:1] for a in rest)), ranks=ranks)),
        "weights": said(apart),
        "batch": said(lambda: train(replace(RECIPE, batch=33), DATA, ranks=ranks)),
        "small": said(lambda: train(replace(RECIPE, batch=1), DATA, ranks=ranks)),
        "last": said(lambda: train(replace(RECIPE, batch=66, validation=0.2062), DATA, ranks=ranks)),
        "agree": said(lambda: ranks.agree(missing)),
        "first": said(lambda: ranks.first(lambda: Path("missing.npz").stat())),
        "fine": said(lambda: ranks.agree(lambda: None)),
    }


def own_loop(ranks, batch):
    """How far from one process a compiled loop of one's own ends, with shares that are uneven, and of which some are
    large enough for native code; and what runs it."""
    x, y = DATA[0].reshape(-1, 784) / np.float64(255), DATA[1]
    x, y = np.concatenate([x] * 10), np.concatenate([y] * 10)

    def loop(ranks, scan):
        model = nn.MLP((784, 8, 10), rng=0, dtype="float64")
        optimizer = optim.Adam(model.parameters(), lr=1e-2)

        def step(x, y):
            loss = softmax_cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            if ranks:
                loss, = ranks.average(optimizer.params, loss)
            optimizer.step()
            return loss

        compiled = compile(step)
        for n in (batch, batch, batch - 1, batch, batch - 1, batch):
            mine = ranks.begin(n) if ranks else slice(n)
            if scan:
                compiled.scan((x, y), np.arange(n)[None, mine])
            else:
                compiled(x[mine], y[mine])
        return compiled.backend, compiled.reason, model.flat

    found = {}
    for scan in (False, True):
        backend, reason, ours = loop(ranks, scan)
        found["scan" if scan else "calls"] = backend, reason, relative(ours, loop(None, scan)[-1])
    return found


def refused(ranks):
    """What `average` and a shared generator say to what they cannot do."""
    def said(f):
        try:
            f()
        except (TypeError, ValueError) as error:
            return str(error)
        return None

    with_gradient = Tensor(np.ones(2), requires_grad=True)
    with_gradient.sum().backward()
    without = Tensor(np.ones(2), requires_grad=True, name="W2")
    rng = ranks.generator(np.random.default_rng(0))
    whole = np.random.default_rng(0).random(5)
    ranks.begin(5)
    return {
        "gradient": said(lambda: ranks.average([with_gradient, without])),
        "dtypes": said(lambda: ranks.average([with_gradient], np.float32(1))),
        "rows": said(lambda: rng.random((4, 2))),
        "numbers": np.array_equal(rng.random(ranks.mine.stop - ranks.mine.start), whole[ranks.mine]),
    }


def device(ranks, name, direct):
    """How far from the weights of one CPU those are that as many devices find."""
    import pretend_gpu

    pretend_gpu.load()
    ranks.direct = direct
    recipe = replace(RECIPE, epochs=2)
    ours = train(recipe, DATA, device=name.format(ranks.rank), ranks=ranks)
    alone = train(recipe, DATA)
    return arrays.device_of(ours.model.flat), relative(ours.model.flat.get(), alone.model.flat)


def train_until(ranks, arguments, end):
    """The command line on every rank, where something ends rank 1 in the third epoch: rank 0 is in it, or still writes
    what the second came to."""
    def run_epoch(self, monitor, run=Training.run_epoch):
        if ranks.rank == 1 and len(self.history) == 2:
            if end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            distributed.PATIENCE = 1
            raise {
                "memory": MemoryError("no room"), "bug": KeyError("a bug"), "diverged": FloatingPointError("alone"),
            }[end]
        run(self, monitor)

    Training.run_epoch = run_epoch
    sys.argv[1:] = arguments
    cli.main()


def fail(ranks):
    """What nobody catches, on one rank; the other waits for it."""
    if ranks.rank == 1:
        raise KeyError("a bug")
    ranks.check_same("the ranks", 0)


if __name__ == "__main__":
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    ranks = distributed.world()
    found = globals()[name](ranks, *arguments)
    if ranks.rank == 0:
        print(json.dumps(found))
