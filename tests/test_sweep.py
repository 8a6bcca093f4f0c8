"""Sweeps: what a config means or why it is none, that runs are done once, wherever they are done, and the table."""

import csv
import io
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mpi
import numpy as np
import pytest
from PIL import Image
from small import save_npz

from tinygrad_mnist import cli, plots, pool, sweep
from tinygrad_mnist.recipe import RECIPES, Recipe
from tinygrad_mnist.runs import REPORT, Run
from tinygrad_mnist.sweep import Sweep
from tinygrad_mnist.train import Monitor, train

CONFIG = """
seeds = [0, 1]
[options]
data = "digits.npz"
layers = [784, 16, 10]
epochs = 2
batch = 125
[grid]
lr = [0.001, 0.03]
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs `sweep` in a folder with a data set and a config, c.toml: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    save_npz(tmp_path / "digits.npz")
    (tmp_path / "c.toml").write_text(CONFIG)
    sweep._dataset.cache_clear()
    for picture in ("curves", "confusion", "mistakes"):  # of each run: most of its time here
        monkeypatch.setattr(plots, picture, lambda *args: b"")

    def run(*arguments):
        code = cli.run(["sweep", "c.toml", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def results(folder):
    """Of each run, all that its recipe decides."""
    with (folder / sweep.RESULTS).open(encoding="utf-8") as file:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]


# ---- configs


def test_a_grid_has_every_combination():
    config = "recipe = 'best'\n[options]\nepochs = 1\n[grid]\nlr = [1, 0.1]\nlayers = [[784, 10], [784, 5, 10]]\n"
    found = Sweep.from_toml(config)
    assert found.base == replace(RECIPES["best"], epochs=1)
    assert found.seeds == (0,)
    layers = (784, 10), (784, 5, 10)
    assert found.settings == tuple({"lr": lr, "layers": sizes} for lr in (1.0, 0.1) for sizes in layers)


def test_a_run_of_a_sweep_is_a_recipe_with_a_name_that_says_its_setting(tmp_path):
    found = Sweep.from_toml("seeds = [3, 4]\n[grid]\nlayers = [[784, 10], [784, 5, 10]]\ninit = ['normal(0.1)']\n")
    jobs = found.jobs(tmp_path)
    assert [job.folder.name for job in jobs[1:3]] == [
        "1-layers=784-10-init=normal_0.1_-seed=4", "2-layers=784-5-10-init=normal_0.1_-seed=3",
    ]  # fmt: skip
    assert jobs[2].recipe == Recipe(layers=(784, 5, 10), init="normal(0.1)", seed=3)
    assert [job.setting for job in jobs] == [0, 0, 1, 1]


def test_names_of_runs_are_their_own_and_no_longer_than_a_file_system_bears(tmp_path):
    paths = [f"{'x/é' * 100}{i}" for i in range(11)]
    names = [job.folder.name for job in Sweep.from_toml(f"[grid]\ndata = {json.dumps(paths)}\n").jobs(tmp_path)]
    assert len(set(names)) == 11
    assert max(map(len, names)) < 120
    assert "/" not in "".join(names)


RANDOM = """
samples = 200
draw_seed = {}
[random]
lr = {{ low = 1e-4, high = 1, log = true }}
dropout = {{ low = 0, high = 0.5 }}
batch = {{ low = 3, high = 5 }}
epochs = {{ low = 1, high = 100, log = true }}
activation = ["relu", "tanh"]
"""


def test_random_settings_come_from_their_ranges_and_from_the_seed():
    settings = Sweep.from_toml(RANDOM.format(5)).settings
    assert len({sweep.label(setting) for setting in settings}) == 200
    assert all(1e-4 <= s["lr"] <= 1 and 0 <= s["dropout"] <= 0.5 for s in settings)
    assert {s["batch"] for s in settings} == {3, 4, 5}
    assert {s["activation"] for s in settings} == {"relu", "tanh"}
    for name, middle in (("lr", -2), ("epochs", 1)):  # as many below as above, in the logarithm
        below = sum(math.log10(s[name]) < middle for s in settings)
        assert 70 < below < 130
    assert all(len(f"{s['lr']:.10g}".lstrip("0.")) <= 5 or s["lr"] < 1e-3 for s in settings)
    assert Sweep.from_toml(RANDOM.format(5)).settings == settings != Sweep.from_toml(RANDOM.format(6)).settings


def test_the_config_in_the_readme_is_one():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    text, = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    assert len(Sweep.from_toml(text).jobs(Path())) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a sweep has a table [grid] or [random]: add one"),
        ("[grid]\nlr = [1]\n[random]\nlr = [1]", "a sweep has a table [grid] or [random]: leave one out"),
        ("lr = [1]\n[grid]\nlr = [1]", "unknown key 'lr'; beside [grid] there may be seeds, recipe, options"),
        ("samples = 3\n[grid]\nlr = [1]", "unknown key 'samples'; beside [grid]"),
        ("[grid]", "[grid] is empty: name the options to vary, such as lr"),
        ("grid = 3", "grid must be a table, [grid]; got 3"),
        ("[grid]\nlr = []", "[grid] lr must be a list of one value or more; got []"),
        ("[grid]\nlr = 0.1", "[grid] lr must be a list of one value or more; got 0.1"),
        ("[grid]\nlr = [1, 1.0]", "[grid] lr has 1.0 twice"),
        ("[grid]\nlr = [-1]", "[grid] lr must be a number above 0; got -1"),
        ("[grid]\nrate = [1]", "[grid] unknown option 'rate'; the options are data,"),
        ("[grid]\nmomentum = [0.5]", "[grid] momentum is an option of optimizer sgd"),
        ("[grid]\nseed = [1]", "seed in [grid]: write seeds = [0, 1, 2], say, above the tables"),
        ("[options]\nlr = 'x'\n[grid]\nbatch = [1]", "[options] lr must be a number above 0; got 'x'"),
        ("[options]\nlr = 1\n[grid]\nlr = [1]", "lr is in [options] and in [grid]: leave one out"),
        ("seeds = 3\n[grid]\nlr = [1]", "seeds must be a list of one value or more; got 3"),
        ("seeds = [-1]\n[grid]\nlr = [1]", "seed must be a whole number, 0 or more; got -1"),
        ("recipe = 'worst'\n[grid]\nlr = [1]", "recipe must be best or record; got 'worst'"),
        ("[random]\nlr = [1]", "samples must be a whole number, 1 or more; got None"),
        ("samples = 2\n[random]\nlr = [1]", "samples = 2, but what [random] draws is 1 at most: lower samples"),
        ("samples = 1\ndraw_seed = -1\n[random]\nlr = [1]", "draw_seed must be a whole number, 0 or more; got -1"),
        ("samples = 1\n[random]\nlr = 1", "[random] lr must be a list of one value or more; got 1"),
        ("samples = 1\n[random]\nlr = { low = 1 }", "[random] lr needs high = a number; got None"),
        ("samples = 1\n[random]\nlr = { low = 1, high = inf }", "[random] lr needs high = a number; got inf"),
        ("samples = 1\n[random]\nlr = { low = 2, high = 1 }", "[random] lr needs low below high; got 2 and 1"),
        ("samples = 1\n[random]\nlr = { low = 0, high = 1, log = true }", "low below high, and above 0; got 0 and 1"),
        ("samples = 1\n[random]\nlr = { low = 1, high = 2, log = 1 }", "[random] lr needs log = true or false; got 1"),
        ("samples = 1\n[random]\nlr = { low = 1, high = 2, step = 1 }", "[random] lr has an unknown key 'step'"),
        ("samples = 1\n[random]\nbatch = { low = 1.5, high = 2 }", "batch needs low = a whole number; got 1.5"),
        ("samples = 1\n[random]\ninit = { low = 1, high = 2 }", "[random] init must be a list of values"),
        ("samples = 1\n[random]\nrate = { low = 1, high = 2 }", "[random] rate must be a list of values"),
        ("[grid", "not a TOML file: "),
        ("[grid]\nlayers = [[784, 16, 3]]", "with layers=784-16-3, layers must end with 10 or more"),
    ],
)
def test_what_is_wrong_with_a_config_is_one_line_that_names_it(run, tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("tinygrad-mnist: c.toml: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sweeps").exists()


# ---- running


def test_a_sweep_leaves_its_config_its_runs_a_table_and_a_plot(run, tmp_path):
    code, out, err = run()
    folder = tmp_path / "sweeps" / "c"
    assert code == 0
    names = [f"{i}-lr={lr}-seed={seed}" for i, lr in ((1, 0.001), (2, 0.03)) for seed in (0, 1)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "results.csv", "sweep.png", "sweep.toml"]
    assert (folder / "sweep.toml").read_text() == CONFIG
    assert [row["run"] for row in results(folder)] == names
    assert len(err.splitlines()) == 2 + 4
    assert err.splitlines()[2].startswith("run 1 of 4: 1-lr=0.001-seed=0: test accuracy ")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["lr", "0.03", "0.001"]  # the best first
    assert "by test accuracy" in lines[3]
    assert "is not to be reported as its test accuracy" in lines[4]
    assert lines[5] == f"Runs, results.csv and sweep.png: {os.path.join('sweeps', 'c')}"
    assert Run.open(folder / names[1]).recipe.seed == 1


def test_held_out_images_choose_where_there_are_some(run, tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG.replace("epochs", "validation = 0.2\nepochs"))
    code, out, _ = run("--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (code, found["chosen_by"]) == (0, "validation_accuracy")
    first, second = found["settings"]
    assert (first["options"], second["options"]) == ({"lr": 0.03}, {"lr": 0.001})
    for figure in ("validation_accuracy", "test_accuracy", "test_cross_entropy", "seconds"):
        assert len(first[figure]["values"]) == 2
        assert first[figure]["mean"] == pytest.approx(np.mean(first[figure]["values"]))
    out = run()[1]
    assert "by validation accuracy" in out
    assert "reported" not in out


def test_what_is_done_is_not_repeated(run, tmp_path):
    run()
    folder = tmp_path / "sweeps" / "c"
    before, times = results(folder), {path: path.stat().st_mtime_ns for path in folder.glob(f"*/{REPORT}")}
    (folder / "sweep.png").unlink()
    code, out, err = run()
    assert code == 0
    assert "runs: 4, of which are done: 4" in err
    assert len(err.splitlines()) == 2
    assert {path: path.stat().st_mtime_ns for path in folder.glob(f"*/{REPORT}")} == times
    assert len(times) == 4
    assert results(folder) == before
    assert (folder / "sweep.png").exists()
    assert out.startswith("  ")


class Stops(Monitor):
    """Ctrl-C after the first epoch."""

    def epoch(self, row):
        raise KeyboardInterrupt


def test_a_run_that_was_interrupted_goes_on(run, tmp_path):
    run("--out", "whole")
    sweep.prepare(tmp_path / "c.toml", tmp_path / "parts")
    job = Sweep.read(tmp_path / "c.toml").jobs(tmp_path / "parts")[1]
    with pytest.raises(KeyboardInterrupt):
        train(job.recipe, run=Run.create(job.recipe, job.folder), monitor=Stops())
    assert json.loads((job.folder / REPORT).read_text())["epochs"] == 1
    first = (job.folder / "metrics.jsonl").read_text().splitlines()[0]
    code, _, err = run("--out", "parts")
    assert (code, "of which are done: 0" in err) == (0, True)
    assert (job.folder / "metrics.jsonl").read_text().splitlines()[0] == first  # its time too
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_ctrl_c_says_how_to_go_on(run, tmp_path, monkeypatch):
    do = sweep.run
    done = []

    def interrupted(job, device):
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return do(job, device)

    monkeypatch.setattr(sweep, "run", interrupted)
    code, out, err = run()
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "stopped after 1 of 4 runs; to go on, start the same command again"
    assert len(results(tmp_path / "sweeps" / "c")) == 1
    monkeypatch.setattr(sweep, "run", do)
    code, _, err = run()
    assert (code, "of which are done: 1" in err) == (0, True)


def test_a_run_that_diverges_is_a_row_that_says_so_and_is_not_repeated(run, tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG.replace("[grid]", "optimizer = 'sgd'\n[grid]").replace("0.001", "1e30"))
    for times in range(2):
        code, out, err = run()
        assert code == 0
        assert err.count("failed: the loss became") == 2 * (times == 0)
        lines = [line.split() for line in out.splitlines()[:3]]
        assert lines[0][:2] == ["lr", "failed"]
        assert lines[1][0] == "0.03"
        assert lines[2] == ["1e+30", "2", "of", "2"]
    rows = results(tmp_path / "sweeps" / "c")
    assert [bool(row["test_accuracy"]) for row in rows] == [False, False, True, True]
    assert all("lower lr" in row["failed"] for row in rows[:2])


def test_where_all_diverge_the_exit_code_says_so(run, tmp_path):
    config = CONFIG.replace("[grid]", "optimizer = 'sgd'\n[grid]").replace("0.001, 0.03", "1e30")
    (tmp_path / "c.toml").write_text(config)
    code, out, _ = run()
    assert code == 1
    assert out.splitlines()[1].split() == ["1e+30", "2", "of", "2"]


def test_lack_of_memory_is_a_row_too_and_is_tried_again(run, monkeypatch):
    def lacking(*args, **options):
        raise MemoryError("out of memory")

    do = sweep.train
    monkeypatch.setattr(sweep, "train", lacking)
    code, _, err = run()
    assert (code, err.count("failed: out of memory")) == (1, 4)
    monkeypatch.setattr(sweep, "train", do)
    assert run()[0] == 0


def test_another_config_another_recipe_and_another_folder_are_errors(run, tmp_path):
    run()
    config = tmp_path / "c.toml"
    config.write_text(f"# the same\n{CONFIG}")
    assert run()[0] == 0
    config.write_text(CONFIG.replace("0.03", "0.02"))
    code, _, err = run()
    assert (code, err.count("\n")) == (2, 1)
    assert "has the sweep of another config: choose another --out" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for name in ("other", "digits.npz"):
        assert f"{name} exists and is no sweep: choose another --out" in run("--out", name)[2]
    config.write_text(CONFIG)
    folder = tmp_path / "sweeps" / "c" / "1-lr=0.001-seed=0"
    (folder / REPORT).unlink()
    (folder / "config.toml").write_text(Recipe(epochs=1).to_toml())
    assert "has another recipe than its sweep" in run()[2]


def test_two_workers_and_two_ranks_do_what_one_process_does(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # products round otherwise where threads share them
    alone = [sys.executable, "-m", "tinygrad_mnist", "sweep", "c.toml", "--out", "one"]
    subprocess.run(alone, capture_output=True, check=True)
    code, out, err = run("--out", "two", "--workers", 2, "--device", "cpu")
    assert code == 0
    assert len([line for line in err.splitlines() if line.startswith("run ")]) == 4
    assert results(tmp_path / "two") == results(tmp_path / "one")
    done = mpi.run(3, "-m", "tinygrad_mnist", "sweep", "c.toml", "--out", "three")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == out.splitlines()[0]
    assert len(done.stdout.splitlines()) == len(out.splitlines())  # rank 0 alone reports
    assert results(tmp_path / "three") == results(tmp_path / "one")


def test_under_mpiexec_an_error_is_said_once(run, tmp_path):
    for arguments, text in ((("gone.toml",), "gone.toml: No such file"), (("c.toml", "--workers", 2), "without it")):
        done = mpi.run(2, "-m", "tinygrad_mnist", "sweep", *arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("tinygrad-mnist: ") == 1
        assert text in done.stderr


def test_values_are_in_the_order_of_the_seeds_whichever_run_was_done_first(tmp_path):
    found = Sweep.from_toml("seeds = [2, 0, 1]\n[grid]\nlr = [1]")
    jobs = found.jobs(tmp_path)
    outcomes = {job: sweep.Outcome(test_accuracy=job.recipe.seed / 10) for job in jobs[::-1]}
    row, = sweep.summary(found, outcomes)
    assert row["test_accuracy"]["values"] == [0.2, 0.0, 0.1]


def test_a_setting_of_which_a_run_failed_comes_after_those_that_never_did(tmp_path):
    found = Sweep.from_toml("seeds = [0, 1]\n[grid]\nlr = [1, 2, 3]")
    figures = {1: (0.99, None), 2: (0.5, 0.5), 3: (0.4, 0.7)}
    outcomes = {}
    for job in found.jobs(tmp_path):
        accuracy = figures[job.recipe.lr][job.recipe.seed]
        outcomes[job] = sweep.Outcome(test_accuracy=accuracy, failed="" if accuracy else "the loss became nan")
    assert [row["options"]["lr"] for row in sweep.summary(found, outcomes)] == [3, 2, 1]


# ---- the pool


def test_a_pool_gives_results_in_order_or_as_they_are_done():
    def work(found):
        assert list(found.map(abs, range(-3, 1))) == [3, 2, 1, 0]
        assert sorted(found.as_done(abs, range(-3, 1))) == [(-3, 3), (-2, 2), (-1, 1), (0, 0)]
        assert not found.busy
        return 7

    assert [pool.run(work, workers) for workers in (None, 1, 2)] == [7, 7, 7]


def test_what_is_not_done_when_the_work_ends_is_dropped():
    def work(found):
        next(found.as_done(time.sleep, [0, 100, 100]))
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.run(work, 2)
    assert time.monotonic() - start < 60
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_an_error_that_says_so():
    with pytest.raises(OSError, match="a worker process was killed, as happens where memory runs out"):
        pool.run(lambda found: list(found.map(os._exit, [3])), 2)


# ---- the picture


def png(points, x):
    return np.asarray(Image.open(io.BytesIO(plots.settings(points, x))).convert("RGB"))


def point(x, *accuracies, failed=0):
    return {"label": f"lr={x}", "x": x, "test": list(accuracies), "validation": [], "failed": failed}


def test_the_picture_bears_odd_sweeps():
    points = [point(0.1, 0.9, 0.8), point(10, 0.7, 0.6), point(1000, failed=2)]
    assert png(points, "lr").shape == (500, 800, 3)
    assert png(points, None).shape == (220, 960, 3)
    assert png(points[2:], None).shape == (160, 960, 3)  # no run at all
    assert png([point(0, 0.5)], "dropout").shape == (500, 800, 3)
    many = [{**point(i, 0.5), "label": "x" * 200} for i in range(200)]
    assert png(many, None).shape == (1930, 960, 3)


@pytest.mark.parametrize(
    ("config", "x"),
    [
        ("lr = [1, 2]\nbatch = [5]", "lr"),
        ("lr = [1, 2]\nbatch = [5, 6]", None),
        ("activation = ['relu', 'tanh']", None),
        ("optimizer = ['sgd']", None),
    ],
)
def test_one_number_that_varies_is_what_accuracies_are_drawn_over(monkeypatch, tmp_path, config, x):
    monkeypatch.setattr(plots, "settings", lambda points, over: (points, over))
    found = Sweep.from_toml(f"[grid]\n{config}")
    outcomes = {job: sweep.Outcome(test_accuracy=0.5) for job in found.jobs(tmp_path)}
    points, over = sweep.plot(sweep.summary(found, outcomes))
    assert over == x
    assert len({point["label"] for point in points}) == len(found.settings)
