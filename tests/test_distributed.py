"""Training on several ranks: the weights of one process, files that one rank writes, jobs that end when they should.

Two ranks on NumPy arrays, and on the pretend GPU; no network and no GPU took part.
"""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import mpi
import numpy as np
import pretend_gpu
import pytest
from ranked import WIDE
from small import dataset, save_npz, without_times

from tinygrad_mnist import cli, distributed, serialize
from tinygrad_mnist.runs import CHECKPOINT, Run
from tinygrad_mnist.train import train

pytestmark = pytest.mark.usefixtures("no_numba")  # in this process: the ranks have no native loops anyway


def ranked(name, *arguments, n=2, **env):
    """What rank 0 of a job prints that does something of ranked.py."""
    done = mpi.run(n, mpi.TESTS / "ranked.py", name, json.dumps(arguments), **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def command(*arguments, n=2, **env):
    """The command line on n ranks: (exit code, stdout, stderr)."""
    done = mpi.run(n, "-m", "tinygrad_mnist", *arguments, **env)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp("distributed") / "digits.npz")


@pytest.fixture
def config(tmp_path, npz):
    path = tmp_path / "config.toml"
    path.write_text(replace(WIDE, data=str(npz)).to_toml(), encoding="utf-8")
    return path


# ---- the same numbers


CHANGES = {
    "200 steps": {"batch": 20, "epochs": 8},
    "last batch of 5": {"batch": 66, "validation": 0.198},
    "dropout": {"dropout": 0.3, "validation": 0.2},
    "distortions": {"elastic": 20.0, "rotation": 5.0, "scale": 0.1},
    "clip, l2, momentum": {"clip": 0.1, "l2": 1e-3, "optimizer": "sgd", "momentum": 0.9, "loss": "mse"},
}


@pytest.mark.parametrize("compile", [True, False], ids=["compiled", "as written"])
@pytest.mark.parametrize("case", CHANGES)
def test_ranks_find_the_weights_of_one_process(case, compile):
    weights, history, steps = ranked("weights", CHANGES[case], compile)
    assert weights < 1e-9
    assert history < 1e-9
    assert steps >= 200 or case != "200 steps"


def test_three_ranks_find_the_weights_of_one_process():
    weights, history, _ = ranked("weights", {"batch": 66}, True, n=3)
    assert weights < 1e-9
    assert history < 1e-9


@pytest.mark.parametrize("n", [2, 3])
def test_the_gradient_in_float32(n):
    gradient, loss, mine = ranked("gradient", n=n)
    assert gradient < 1e-5
    assert loss < 1e-5
    assert mine == 101 // n


@pytest.mark.parametrize("batch", [66, 4095])
def test_a_compiled_loop_of_ones_own(batch):
    for backend, reason, weights in ranked("own_loop", batch).values():
        assert backend == "numpy"
        assert "runs on the host at every step" in reason or "in a single call" in reason
        assert weights < 1e-9


def test_what_cannot_be_averaged_or_shared():
    assert ranked("refused") == {
        "gradient": "average: W2 has no gradient: give those that have one",
        "dtypes": "average: all must have one dtype, not float32 and float64",
        "rows": "random: this rank has 2 rows of the batch of 5, not (4, 2): call begin(batch) before",
        "numbers": True,
    }


def test_an_mpiexec_of_another_mpi_is_noticed(monkeypatch, capsys):
    mpi.command(1)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setenv("PMI_SIZE", "")
    assert cli.run(["train", "--distributed"]) == 2
    assert "mpiexec started 3 ranks, but mpi4py has another MPI, " in capsys.readouterr().err


# ---- what ranks must have in common


def test_what_differs_between_ranks_is_said():
    assert ranked("messages") == {
        "data": "the data of rank 1 differ from those of rank 0",
        "length": "the data of rank 1 differ from those of rank 0",
        "recipes": "the recipes of rank 1 differ from those of rank 0",
        "tests": "1 test images are fewer than 2 ranks: start fewer",
        "weights": "the weights of rank 1 differ from those of rank 0",
        "batch": "batch 33 cannot be shared evenly by 2 ranks: take 32 or 34",
        "small": "batch 1 cannot be shared evenly by 2 ranks: take 2",
        "last": "of 397 images in batches of 66, the last has 1, fewer than 2 ranks: take another batch",
        "agree": "rank 1: missing.npz: No such file or directory",
        "first": "missing.npz: No such file or directory",
        "fine": None,
    }


# ---- the command line


def test_train_writes_one_run_with_the_results_of_one_process(tmp_path, config):
    run = tmp_path / "run"
    code, out, err = command("train", "--distributed", "--config", config, "--out", run)
    assert code == 0, err
    assert out.count("Test accuracy") == 1
    assert re.search(r"^2 ranks: 0 is process \d+ on \S+, 1 is process \d+ on \S+$", err, re.M)
    assert err.count("epoch 1/4") == 1
    assert "steps: numpy (each has a sum over the ranks)" in err
    ours = json.loads((run / "report.json").read_text())
    alone = train(Run.open(run).recipe, dataset())
    assert ours["accuracy"] == alone.history[-1]["test_accuracy"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, expected in zip(without_times(rows), without_times(alone.history), strict=True):
        assert row == pytest.approx(expected, rel=1e-9)


def interrupted_run(path, config):
    """A run of which one process has done two of four epochs."""
    run = Run.create(cli.Recipe.read(config), path)
    training = training_at(2, run.recipe)
    run.save_checkpoint(training.state(), training.history, training.fingerprint)


def training_at(epochs, recipe):
    from tinygrad_mnist.train import Monitor, Training

    training = Training(recipe, dataset())
    for _ in range(epochs):
        training.run_epoch(Monitor())
    return training


@pytest.mark.parametrize("n", [2, 3])
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, config, n):
    config.write_text(config.read_text().replace("batch = 64", "batch = 66"))
    run = tmp_path / "run"
    interrupted_run(run, config)
    code, _, err = command("train", "--distributed", "--resume", run, n=n)
    assert code == 0, err
    assert "epoch 3/4" in err
    assert "epoch 2/4" not in err
    found = serialize.load(run / CHECKPOINT)
    expected = training_at(4, Run.open(run).recipe).state()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_run_of_ranks_goes_on_in_one_process(tmp_path, config):
    run = tmp_path / "run"
    job = mpi.run(2, mpi.TESTS / "ranked.py", "train_until", json.dumps([
        ["train", "--distributed", "--config", str(config), "--out", str(run)], "memory",
    ]))
    assert job.returncode != 0
    assert cli.run(["train", "--resume", str(run)]) == 0
    found = serialize.load(run / CHECKPOINT)
    for name, array in training_at(4, Run.open(run).recipe).state().items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(("end", "message"), [
    ("memory", "tinygrad-mnist: rank 1: no room"), ("bug", "tinygrad-mnist: rank 1: KeyError: 'a bug'"),
    ("diverged", "rank 1 has waited for the others for 1 s"), ("killed", None),
])
def test_a_rank_that_dies_ends_the_job(tmp_path, config, end, message):
    arguments = ["train", "--distributed", "--config", str(config), "--out", str(tmp_path / "run")]
    start = time.monotonic()
    done = mpi.run(2, mpi.TESTS / "ranked.py", "train_until", json.dumps([arguments, end]))
    assert time.monotonic() - start < 60  # and not for ever: of it, most is the start
    assert done.returncode != 0
    assert (tmp_path / "run" / CHECKPOINT).exists()
    if message is None:  # MPI says which process it was, and rank 0 has said which rank that is
        process = re.search(r"1 is process (\d+)", done.stderr)[1]
        assert re.search(rf"\b{process}\b", done.stdout + done.stderr.replace(f"1 is process {process}", ""))
    else:
        assert message in done.stderr


def test_an_error_that_nobody_catches_ends_the_job():
    done = mpi.run(2, mpi.TESTS / "ranked.py", "fail", "[]")
    assert done.returncode != 0
    assert "rank 1 of 2 ended: KeyError: 'a bug'" in done.stderr
    assert "Traceback" in done.stderr


def test_an_error_of_all_is_said_once(tmp_path, config, npz):
    for arguments, message in (
        (["--batch", 1], "batch 1 cannot be shared evenly by 2 ranks: take 2"),
        (["--data", tmp_path / "nothing"], f"{tmp_path / 'nothing'}: expected a readable file"),
        (["--resume", tmp_path / "nothing"], "is no run folder"),
        (["--lr", 1e30, "--dtype", "float32"], "in epoch 1: lower lr"),
        (["--device", "gpu:7"], "--device gpu:7: "),
    ):
        config_or_not = [] if "--resume" in arguments else ["--config", config, "--out", tmp_path / "run" / message[:9]]
        code, _, err = command("train", "--distributed", *config_or_not, *arguments)
        assert code == (1 if "lower lr" in message else 2), err
        assert err.count("tinygrad-mnist: ") == 1, err
        assert "lower lr" in message or not (tmp_path / "run" / message[:9]).exists()
        assert message in err


def test_ctrl_c_saves_what_is_done(tmp_path, config):
    run = tmp_path / "run"
    config.write_text(config.read_text().replace("epochs = 4", "epochs = 100000"))
    arguments = ["-m", "tinygrad_mnist", "train", "--distributed", "--config", config, "--out", run]
    job = subprocess.Popen(
        mpi.command(2, *arguments), env=mpi.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (run / CHECKPOINT).exists():
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert f"to go on: tinygrad-mnist train --resume {run}" in err
    assert (run / "report.json").exists(), out + err  # Open MPI 5 kills too soon for that


def test_one_process_is_a_job_of_one_rank(tmp_path, config):
    mpi.command(1)
    done = subprocess.run(
        [sys.executable, "-m", "tinygrad_mnist", "train", "--distributed", "--config", config, "--out", tmp_path / "x"],
        env=mpi.environment(), capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 rank: 0 is process" in done.stderr


def test_without_mpi4py(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert cli.run(["train", "--distributed"]) == 2
    assert "pip install 'tinygrad-mnist[mpi]'" in capsys.readouterr().err


# ---- one rank a device


@pytest.mark.parametrize("direct", [False, True], ids=["staged", "direct"])
def test_each_rank_has_a_device_of_its_own(direct):
    try:
        pretend_gpu.folder()
    except pretend_gpu.Unavailable as reason:
        pytest.skip(str(reason))
    where, weights = ranked("device", "gpu:{}", direct, PRETEND_GPU_DEVICES="2")
    assert where == "gpu"
    assert weights < 1e-5


def test_ranks_share_out_the_devices(monkeypatch):
    class Two:
        rank = 1

        def alike(self, what):
            return 1, 2

        def agree(self, f):
            return f()

    monkeypatch.setattr(cli.gpu, "choose", lambda device: (device, "because"))
    assert cli._own_device("gpu", Two()) == ("gpu:1", "because")
    assert cli._own_device("gpu:0", Two()) == ("gpu:0", "because")
    assert cli._own_device("cpu", Two()) == ("cpu", "because")


def test_a_batch_is_shared_out_whole():
    class Comm:
        def __init__(self, rank, size):
            self.Get_rank, self.Get_size = (lambda: rank), (lambda: size)

    for size in (1, 2, 3, 7):
        ranks = [distributed.Ranks(Comm(rank, size)) for rank in range(size)]
        for batch in range(size, 3 * size):
            parts = [range(batch)[r.begin(batch)] for r in ranks]
            assert [i for part in parts for i in part] == list(range(batch))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        with pytest.raises(distributed.AgreedError, match=f"0 rows are too few for {size} ranks"):
            ranks[0].begin(0)


def test_the_page_has_what_the_model_says():
    root = mpi.TESTS.parent
    program = [sys.executable, root / "benchmarks" / "scaling.py", "--model"]
    said = subprocess.run(program, env=mpi.environment(), capture_output=True, text=True, check=True).stdout
    assert said in (root / "docs" / "distributed.md").read_text(encoding="utf-8")
