"""The folder of a run: whole at every moment, and enough to go on bit for bit."""

import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import RECIPE, dataset, save_npz, without_times

from tinygrad_mnist import serialize
from tinygrad_mnist import train as training_module
from tinygrad_mnist.inference import load_model
from tinygrad_mnist.recipe import Recipe
from tinygrad_mnist.runs import CHECKPOINT, CONFIG, MODEL, REPORT, Run, fingerprint
from tinygrad_mnist.train import Monitor, train

RESULTS = {
    CONFIG, CHECKPOINT, "metrics.csv", "metrics.jsonl", MODEL, REPORT, "curves.png", "confusion.png", "mistakes.png"
}


def names(folder):
    return {path.name for path in folder.iterdir()}


pytestmark = pytest.mark.usefixtures("no_numba")  # but for the commands that tests start


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes most of the time of a small run."""
    for name in ("curves", "confusion", "mistakes"):
        monkeypatch.setattr(f"tinygrad_mnist.plots.{name}", lambda *args: b"")


def assert_same_results(one, two):
    """The weights bit by bit, by the file, and the histories but for their times."""
    assert (one / MODEL).read_bytes() == (two / MODEL).read_bytes()
    assert (one / REPORT).read_bytes() == (two / REPORT).read_bytes()
    states = [Run.open(path).load_checkpoint() for path in (one, two)]
    assert without_times(states[0][1]) == without_times(states[1][1])
    for name, array in states[0][0].items():
        assert array.tobytes() == states[1][0][name].tobytes(), name


# ---- making the folder --------------------------------------------------------------------------------------------


def test_a_new_folder_holds_the_config_that_reproduces_the_run(tmp_path):
    run = Run.create(RECIPE, tmp_path / "deep" / "down")
    assert names(run.path) == {CONFIG}
    assert Run.open(run.path).recipe == RECIPE


def test_the_default_name_is_date_and_time_and_never_one_that_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20240229-123456")
    paths = [Run.create(RECIPE).path.as_posix() for _ in range(3)]
    assert paths == ["runs/20240229-123456", "runs/20240229-123456-2", "runs/20240229-123456-3"]


def test_runs_that_start_in_the_same_second_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20240229-123456")
    rename, paths = Path.rename, []

    def slow(draft, target):
        monkeypatch.setattr(Path, "rename", rename)
        paths.append(Run.create(RECIPE).path)
        return rename(draft, target)

    monkeypatch.setattr(Path, "rename", slow)
    paths.append(Run.create(RECIPE).path)
    assert [path.name for path in paths] == ["20240229-123456", "20240229-123456-2"]
    assert names(tmp_path / "runs") == {path.name for path in paths}


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
@pytest.mark.parametrize("where", ["run", ".", "link"])
def test_an_empty_folder_is_taken(tmp_path, monkeypatch, where):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path / "run" if where == "." else tmp_path)
    Run.create(RECIPE, where)
    assert names(tmp_path / "run") == {CONFIG}
    assert names(tmp_path) == {"run", "link"}
    assert os.path.samefile(os.curdir if where == "." else where, tmp_path / "run")


@pytest.mark.skipif(os.name == "nt", reason="no locks")
def test_one_process_at_a_time_has_a_run(tmp_path):
    path = tmp_path / "run"
    holder = "import sys; from tinygrad_mnist.runs import Run; run = Run.open(sys.argv[1]); print('open', flush=True)"
    run = Run.create(RECIPE, path)  # within one process, several may
    assert Run.open(path).recipe == run.recipe
    arguments = [sys.executable, "-c", f"{holder}; input()", path]
    denied = subprocess.run(arguments, capture_output=True, text=True)
    assert denied.stderr.endswith(f"BlockingIOError: {path}: another process is at work on this run\n")
    del run
    (path / ".0123456789abcdef.part").write_text("half a fi")  # of a process that was killed
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        assert names(path) == {CONFIG}
        with pytest.raises(BlockingIOError, match=f"^{path}: another process is at work on this run$"):
            Run.open(path)
        process.kill()
    Run.open(path)


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: (path / "sub").mkdir(parents=True)])
def test_what_exists_is_not_touched(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"run exists: choose another folder, or go on with .* by --resume"):
        Run.create(RECIPE, tmp_path / "run")


def test_too_little_space_is_one_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2 << 20))
    with pytest.raises(OSError, match="run: the run needs about 7 MB, and 2 MB are free"):
        Run.create(Recipe(), tmp_path / "run")
    assert not names(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"file/deep/run cannot be made: .*/file is not a folder$"):
        Run.create(RECIPE, tmp_path / "file" / "deep" / "run")
    with pytest.raises(ValueError, match="^the folder of a run needs a name, not ''$"):
        Run.create(RECIPE, "")


def test_a_disk_that_fills_while_the_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", disk_full_after(0))
    with pytest.raises(OSError, match="No space left on device: '.*config.toml'"):
        Run.create(RECIPE, tmp_path / "run")
    assert not names(tmp_path)


def test_a_folder_without_a_config_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is no run folder: it has no config.toml"):
        Run.open(tmp_path)


# ---- what a run leaves --------------------------------------------------------------------------------------------


def test_a_run_leaves_its_results(tmp_path):
    run = Run.create(RECIPE, tmp_path / "run")
    training = train(RECIPE, dataset(), run=run)
    assert names(run.path) == RESULTS
    with (run.path / "metrics.csv").open(newline="") as file:
        table = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert table == lines == training.history
    model, preprocess = load_model(run.path)
    assert np.array_equal(model.flat, training.model.flat)
    assert preprocess == training.preprocess
    assert json.loads(serialize.metadata(run.path / MODEL)["versions"])["numpy"] == np.__version__
    report = json.loads((run.path / REPORT).read_text())
    assert report["accuracy"] == training.history[-1]["test_accuracy"]
    assert report["epochs"] == RECIPE.epochs


def test_the_same_recipe_makes_the_same_files(tmp_path, no_pictures):
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        train(RECIPE, dataset(), run=Run.create(RECIPE, path))
    assert_same_results(*paths)


# ---- going on -----------------------------------------------------------------------------------------------------


class StopAfter(Monitor):
    """Raises an exception when it has been told of this many steps, or chunks of them."""

    def __init__(self, steps, exception):
        self.steps, self.exception = steps, exception

    def batch(self, images, score):
        self.steps -= 1
        if self.steps == 0:
            raise self.exception


@pytest.fixture
def step_by_step(monkeypatch):
    """The monitor is told of every step of a compiled training."""
    monkeypatch.setattr(training_module, "CHUNK", 0)


@pytest.fixture
def whole(tmp_path, no_pictures):
    """A run that nothing interrupted."""
    train(RECIPE, dataset(), run=Run.create(RECIPE, tmp_path / "whole"))
    return tmp_path / "whole"


@pytest.mark.usefixtures("step_by_step")
@pytest.mark.parametrize(("before", "after"), [(True, True), (False, False), (True, False)], ids="compiled {}".format)
@pytest.mark.parametrize("steps", [1, 7, 8, 20, 28])  # an epoch has 7
def test_a_resumed_run_ends_bit_identical(tmp_path, whole, steps, before, after):
    run = Run.create(RECIPE, tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        train(RECIPE, dataset(), run=run, monitor=StopAfter(steps, ZeroDivisionError()), compile=before)
    assert names(run.path) == {CONFIG} | ({CHECKPOINT, "metrics.csv", "metrics.jsonl"} if steps > 7 else set())
    train(RECIPE, dataset(), run=Run.open(run.path), compile=after)
    assert_same_results(run.path, whole)


def test_a_run_leaves_the_report_of_its_last_epoch_without_evaluating_again(tmp_path, whole, monkeypatch):
    calls, evaluate = [], training_module.evaluate
    monkeypatch.setattr(training_module, "evaluate", lambda *args: calls.append(args) or evaluate(*args))
    run = Run.create(RECIPE, tmp_path / "run")
    train(RECIPE, dataset(), run=run)
    assert len(calls) == 2 * RECIPE.epochs  # validation and test images
    (run.path / REPORT).unlink()
    train(RECIPE, dataset(), run=run)  # there is nothing left to train
    assert_same_results(run.path, whole)


def test_a_finished_run_gets_its_results_again(whole):
    before = (whole / MODEL).read_bytes()
    for name in (MODEL, REPORT, "curves.png", "metrics.csv"):
        (whole / name).unlink()
    train(RECIPE, dataset(), run=Run.open(whole))
    assert (whole / MODEL).read_bytes() == before
    assert names(whole) == RESULTS


def test_metrics_that_lag_behind_the_checkpoint_are_written_anew(whole):
    complete = (whole / "metrics.csv").read_text()
    (whole / "metrics.csv").write_text(complete.splitlines()[0])
    train(RECIPE, dataset(), run=Run.open(whole))
    assert (whole / "metrics.csv").read_text() == complete


def test_a_config_that_was_changed_since_the_checkpoint_is_refused(whole):
    (whole / CONFIG).write_text(replace(RECIPE, lr=0.5).to_toml())
    run = Run.open(whole)
    with pytest.raises(ValueError, match=r"config.toml was changed since checkpoint.safetensors was"):
        train(run.recipe, dataset(), run=run)


def test_data_that_was_changed_since_the_checkpoint_is_refused(whole):
    run = Run.open(whole)
    state, history = run.load_checkpoint()
    run.save_checkpoint(state, history, fingerprint(dataset()))
    assert run.load_checkpoint(fingerprint(dataset()))[1] == history
    changed = [array.copy() for array in dataset()]
    changed[1][7] ^= 1
    with pytest.raises(ValueError, match=r"^mnist was changed since .*safetensors was written, so the run"):
        run.load_checkpoint(fingerprint(changed))


def with_arrays(**changes):
    return lambda state, notes: ({**state, **{name.replace("__", "."): a for name, a in changes.items()}}, notes)


def with_history(change):
    def damage(state, notes):
        history = change(json.loads(notes["history"]))
        return state, {**notes, "history": history if isinstance(history, str) else json.dumps(history)}

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state, notes: (state, {}), "not a checkpoint: it has no recipe"),
        (lambda state, notes: (state, {"recipe": notes["recipe"]}), "not a checkpoint: it has no history"),
        (lambda state, notes: (state, {**notes, "recipe": "a=" + "[" * 10**4}), ".*nested too deeply"),
        (with_history(lambda rows: "[" * 10**5), "maximum recursion depth"),
        (with_history(lambda rows: []), "its history is no list of 1 to 4 epochs"),
        (with_history(lambda rows: 5), "its history is no list of 1 to 4 epochs"),
        (with_history(lambda rows: None), "its history is no list of 1 to 4 epochs"),
        (with_history(lambda rows: {}), "its history is no list of 1 to 4 epochs"),
        (with_history(lambda rows: [*rows, rows[0]]), "its history is no list of 1 to 4 epochs"),
        (with_history(lambda rows: [1, 2]), "row 1 of its history is no record of epoch 1"),
        (with_history(lambda rows: rows[1:]), "row 1 of its history is no record of epoch 1"),
        (with_history(lambda rows: [rows[0], {"epoch": 2}]), "row 2 of its history is no record of epoch 2"),
        (with_history(lambda rows: [{**rows[0], "lr": "x"}]), "row 1 of its history holds what is no finite number"),
        (
            with_history(lambda rows: [{**rows[0], "lr": 10**400}]),
            "row 1 of its history holds what is no finite number",
        ),
        (with_history(lambda rows: [{"epoch": 1}]), "row 1 of its history has no lr"),
        (with_arrays(optimizer__steps=np.ones(2, int)), r"optimizer.steps is int64 \(2,\), not int64 \(\)"),
        (with_arrays(optimizer__steps=np.array(-1)), "optimizer.steps is -1"),
        (with_arrays(optimizer__lr=np.array(-1.0)), "optimizer.lr is -1.0"),
        (with_arrays(optimizer__lr=np.array(np.nan)), "optimizer.lr is nan"),
        (with_arrays(optimizer__lr=np.array(1, "complex64")), r"optimizer.lr is complex64 \(\), not float64 \(\)"),
        (with_arrays(model__layers__0__bias=np.ones(16, "int8")), r"model.layers.0.bias is int8 \(16,\), not float32"),
        (with_arrays(optimizer__m=np.ones(3, "float32")), r"optimizer.m is float32 \(3,\), not float32 \(12730,\)"),
        (with_arrays(more=np.ones(3)), "it holds 'more', which is no part of this run"),
        (lambda state, notes: ({}, notes), "model.layers.0.weight is missing"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(whole, damage, message):
    path = whole / CHECKPOINT
    state, notes = damage(serialize.load(path), serialize.metadata(path))
    serialize.save(path, state, metadata=notes)
    with pytest.raises(ValueError, match=f"^{path}: (a damaged checkpoint: )?{message}"):
        Run.open(whole).load_checkpoint()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_checkpoint_that_is_a_dangling_link_is_no_new_beginning(whole):
    (whole / CHECKPOINT).unlink()
    (whole / CHECKPOINT).symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="a link to what does not exist"):
        Run.open(whole).load_checkpoint()


@pytest.mark.usefixtures("no_pictures", "step_by_step")
def test_ctrl_c_saves_the_results_of_the_whole_epochs_and_goes_on_its_way(tmp_path):
    run = Run.create(RECIPE, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, dataset(), run=run, monitor=StopAfter(17, KeyboardInterrupt()))
    assert json.loads((run.path / REPORT).read_text())["epochs"] == 2
    state, history = run.load_checkpoint()
    assert len(history) == 2
    assert np.array_equal(load_model(run.path)[0].state_dict()["layers.0.weight"], state["model.layers.0.weight"])


def test_ctrl_c_between_two_chunks_of_steps(tmp_path, whole):
    run = Run.create(RECIPE, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, dataset(), run=run, monitor=StopAfter(3, KeyboardInterrupt()))  # an epoch has 2
    assert json.loads((run.path / REPORT).read_text())["epochs"] == 1
    train(RECIPE, dataset(), run=run)
    assert_same_results(run.path, whole)


@pytest.mark.usefixtures("step_by_step")
def test_ctrl_c_in_the_first_epoch_leaves_a_run_that_can_start_again(tmp_path, whole):
    run = Run.create(RECIPE, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, dataset(), run=run, monitor=StopAfter(3, KeyboardInterrupt()))
    assert names(run.path) == {CONFIG}
    train(RECIPE, dataset(), run=run)
    assert_same_results(run.path, whole)


# ---- a full disk --------------------------------------------------------------------------------------------------


def disk_full_after(files):
    """In place of os.fsync: the disk takes this many files, and then no more."""
    left = iter(range(files))

    def fsync(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fsync


@pytest.mark.parametrize("files", range(17))  # an epoch writes three, and the end of this run five
def test_a_disk_that_fills_is_one_error_and_the_checkpoint_before_it_stays(tmp_path, whole, files):
    run = Run.create(RECIPE, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", disk_full_after(files))
        with pytest.raises(OSError, match=f"No space left on device: '{run.path}/"):
            train(RECIPE, dataset(), run=run)
    assert names(run.path) <= RESULTS  # no half file
    checkpoint = run.load_checkpoint()
    assert (len(checkpoint[1]) if checkpoint else 0) == min(RECIPE.epochs, -(-files // 3))
    train(RECIPE, dataset(), run=Run.open(run.path))
    assert_same_results(run.path, whole)


# ---- killed -------------------------------------------------------------------------------------------------------

KILLED = replace(RECIPE, epochs=40)


@pytest.fixture(scope="module")
def killed_reference(tmp_path_factory):
    """(the folder of the uninterrupted run, its recipe, seconds from the folder's appearance to the process's end)"""
    folder = tmp_path_factory.mktemp("killed")
    recipe = replace(KILLED, data=str(save_npz(folder / "data.npz")))
    with start(recipe, folder) as process:
        begin = time.perf_counter()
        process.communicate()
    assert process.returncode == 0
    return folder / "run", recipe, time.perf_counter() - begin


def command(*arguments):
    """A process of `train`. One thread of BLAS: two that share a busy machine wait for each other."""
    return subprocess.Popen(
        [sys.executable, "-m", "tinygrad_mnist", "train", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def start(recipe, folder):
    """A run in `folder / "run"`; returns when that is there."""
    (folder / "recipe.toml").write_text(recipe.to_toml())
    process = command("--config", folder / "recipe.toml", "--out", folder / "run")
    while not (folder / "run").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    return process


def assert_resumes(path, reference):
    with command("--resume", path) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_same_results(path, reference)
    assert names(path) == RESULTS


def check_kill(tmp_path, killed_reference, moment):
    reference, recipe, seconds = killed_reference
    with start(recipe, tmp_path) as process:
        time.sleep(moment * seconds)
        process.kill()
    assert_resumes(tmp_path / "run", reference)


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.8])
def test_a_killed_run_resumes(tmp_path, killed_reference, moment):
    check_kill(tmp_path, killed_reference, moment)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_a_random_moment_resumes(tmp_path, killed_reference, seed):
    check_kill(tmp_path, killed_reference, random.Random(seed).random())


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_at_the_terminal(tmp_path, killed_reference):
    reference, recipe, _ = killed_reference
    with start(recipe, tmp_path) as process:
        while not process.stderr.readline().startswith("epoch 3/40"):
            pass
        process.send_signal(signal.SIGINT)
        *_, last = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert last == f"stopped; to go on: tinygrad-mnist train --resume {tmp_path / 'run'}"
    assert 3 <= json.loads((tmp_path / "run" / REPORT).read_text())["epochs"] < KILLED.epochs
    assert_resumes(tmp_path / "run", reference)
