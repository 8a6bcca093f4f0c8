"""The trainings of the five notebooks: the shared loop, times, figures, and the command. No test looks at how long
something took. (Their forward passes and what they derived by hand: test_notebook_forwards.py.)"""

import importlib
import json
from functools import partial

import numpy as np
import pytest
from small import NOTEBOOKS, dataset, notebook

from tinygrad_mnist import arrays, cli, gpu, notebooks
from tinygrad_mnist.bench import measure
from tinygrad_mnist.notebooks import adam_128_64, batch_gd_sigmoid_mse, deep_500_250_100, digits_relu_softmax, loops
from tinygrad_mnist.notebooks.loops import Loop, Session, own_loop


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs a command, on a small part of MNIST: (exit code, stdout, stderr)."""
    part = dataset()
    monkeypatch.setattr(loops.data, "mnist", lambda: part)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.run(["notebooks", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def rows(letter):
    """(notebook, weights, samples as rows, how to take them)."""
    found, weights, samples = notebook(letter)
    samples = [a.T for a in samples.values()] if found.columns else [*samples.values()]
    return found, weights, [np.concatenate([a] * 5) for a in samples], found.columns


# ---- the loop


@pytest.mark.parametrize("letter", ["A", "C", "D", "E"])
def test_a_compiled_training_by_hand_is_the_notebooks_own_loop(letter, no_numba):
    found, weights, samples, columns = rows(letter)
    order = np.arange(20).reshape(-1, 1 if letter in "AC" else 5) % len(samples[0])
    loop = Loop(found.forward, weights, samples, 0.1, by_hand=found.backward, columns=columns)
    losses = loop.run(order)
    for name, W in own_loop(found.backward, weights, samples, 0.1)(order).items():
        np.testing.assert_allclose(loop.weights[name], W, rtol=1e-10, atol=1e-13)
    assert losses[0] == pytest.approx(float(found.forward(*weights.values(), *(a[order[0]].T for a in samples))))


def test_a_prime_compiled_is_its_own_loop_over_epochs_and_samples(no_numba):
    found, weights, samples, _ = rows("A'")
    order = np.arange(len(samples[0]))[None].repeat(4, axis=0)
    loop = Loop(found.forward, weights, samples, 0.2, by_hand=batch_gd_sigmoid_mse.at_once, columns=True)
    loop.run(order)
    for name, W in own_loop(found.backward, weights, samples, 0.2)(order).items():
        np.testing.assert_allclose(loop.weights[name], W, rtol=1e-10, atol=1e-13)


def test_a_native_training_by_the_derived_gradient_is_the_notebooks_own_loop_where_that_is_right():
    pytest.importorskip("numba")
    found, weights, samples, columns = rows("A")
    order = np.arange(20)[:, None] % len(samples[0])
    loop = Loop(found.forward, weights, samples, 0.1, columns=columns)
    loop.run(order)
    assert loop.compiled.backend == "numba"
    for name, W in own_loop(found.backward, weights, samples, 0.1)(order).items():
        np.testing.assert_allclose(loop.weights[name], W, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("letter", NOTEBOOKS)
def test_trainings_on_every_backend(backend, letter, no_numba):
    found, weights, samples, columns = rows(letter)
    order = np.arange(12).reshape(3, 4) % len(samples[0])
    order = order.reshape(-1, 1) if letter in "AC" else order
    by_hand = batch_gd_sigmoid_mse.at_once if letter == "A'" else None if letter in ("B", "B'") else found.backward
    for gradient in {None, by_hand}:
        here, there = (
            Loop(found.forward, weights, samples, 0.1, by_hand=gradient, columns=columns, device=device)
            for device in ("cpu", backend.device)
        )
        np.testing.assert_allclose(there.run(order), here.run(order), rtol=1e-9)
        for name, W in here.weights.items():
            np.testing.assert_allclose(there.weights[name], W, rtol=1e-9, atol=1e-12)


def test_watch_sees_what_the_loss_sees(no_numba):
    found, weights, samples, _ = notebook("B'")[0], *rows("B'")[1:]
    count = partial(adam_128_64.right, first="relu")
    loop = Loop(found.forward, weights, samples, 0.1, watch=count)
    before = loop.weights
    losses, right = loop.run(np.arange(20).reshape(4, 5))
    scores = adam_128_64.output(**before, X=samples[0][:5])
    assert right[0] == (scores.argmax(axis=1) == samples[1][:5]).sum()
    assert losses.shape == right.shape == (4,)


def test_initial_weights_and_samples_stay_as_they_are(no_numba):
    found, weights, samples, columns = rows("A")
    kept = [a.copy() for a in (*weights.values(), *samples)]
    Loop(found.forward, weights, samples, 0.1, columns=columns).run(np.arange(3)[:, None])
    own_loop(found.backward, weights, samples, 0.1)(np.arange(3)[:, None])
    assert all(np.array_equal(a, b) for a, b in zip(kept, (*weights.values(), *samples), strict=True))


# ---- figures and times


def test_a_figure_is_compared_with_what_was_reported():
    shown = []
    session = Session(quick=False, device="cpu", seed=0, show=shown.append)
    session.figure("loss", 0.5, 0.25)
    session.figure("digits", "0.1", "0.1")
    session.figure("digits", "0.1", "0.2")
    session.figure("nothing reported", None, 3.0)
    session.seconds("all", 100.0, 2.0)
    session.faster("a step", 2e-3, 1e-3, aim=60)
    assert [line.ratio for line in shown] == ["0.5", "same", "differs", "", "50 x", "2 x"]
    assert [(line.reported, line.ours) for line in shown[3:]] == [("-", "3"), ("100 s", "2 s"), ("2 ms", "1 ms")]
    assert session.lines == shown


def test_an_emulated_device_has_no_times(monkeypatch):
    monkeypatch.setattr(gpu, "emulated", lambda device: device != "cpu")
    session = Session(quick=False, device="gpu", seed=0)
    session.seconds("all", 100.0, 2.0)
    assert not session.lines
    with session.pytorch(None) as peers:
        assert peers == {}


def test_where_pytorch_is_missing_a_remark_says_how_to_install_it(monkeypatch):
    def missing(self, do, **request):
        raise measure.ToolError("torch is not installed: pip install 'tinygrad-mnist[bench]'")

    monkeypatch.setattr(measure.Worker, "ask", missing)
    session = Session(quick=False, device="cpu", seed=0)
    with session.pytorch(loops.Work("tiny", (784, 8, 10), 4, 30, 0.1)) as peers:
        assert peers == {}
    assert session.remarks == [
        "No comparison with PyTorch: torch is not installed: pip install 'tinygrad-mnist[bench]'"
    ]


@pytest.mark.slow
def test_pytorch_is_timed_beside_ours(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(measure, "PAUSE", 0)
    session = Session(quick=False, device="cpu", seed=0)
    with session.pytorch(loops.Work("tiny", (784, 8, 10), 4, 30, 0.1, rows=64)) as peers:
        taken = session.in_turns({"ours": lambda: 1e-3, **peers})
    session.against_pytorch("a step", taken, taken["ours"], 1)
    assert "PyTorch eager" in session.lines[-1].what


def test_cells_that_contradict_each_other_or_us_are_named():
    session = Session(quick=False, device="cpu", seed=0)
    for name, cells in deep_500_250_100.REPORTED.items():
        for (rate, count), reported in cells.items():
            off = 0.2 if (name, rate) == ("tanh", 0.04) else 0.0
            found = session.history.setdefault(f"{name}, {rate}, by hand", [{}] * 15)
            found[count - 1] = {"test_accuracy": reported - off, "raw_accuracy": reported - off}
    deep_500_250_100.judge(session)
    assert session.remarks == [
        "sigmoid, 0.01: with one seed 10 epochs are the beginning of 15, so 88.77% after 10 and 72.90% after 15 cannot "
        "both be: ours goes from 88.77% to 72.90%.",
        "tanh, 0.04 x 15: 85.25% is not what this training gives.",
    ]


# ---- the command


def test_list_names_all(run):
    code, out, _ = run("list")
    assert code == 0
    for letter, module in notebooks.MODULES.items():
        found = notebooks.load(letter)
        assert found is notebooks.load(found.name) is notebooks.load(letter.lower())
        assert found.name == module.replace("_", "-")
        assert any(line.split()[:2] == [letter, found.name] and found.said in line for line in out.splitlines())


def test_an_unknown_name_is_one_error(run):
    code, out, err = run("run", "F")
    assert (code, out) == (2, "")
    assert err.startswith("tinygrad-mnist: no notebook is called 'F'; there are sgd-sigmoid-mse (A), ")


@pytest.mark.parametrize("letter", notebooks.MODULES)
def test_a_quick_run_of_each(run, letter, no_numba, tmp_path):
    if letter == "C":
        pytest.importorskip("sklearn")
    code, out, err = run("run", letter, "--quick", "--seed", 3, "--out", tmp_path / "out")
    assert code == 0, err
    assert "A quick run: " in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["letter"], result["quick"], result["seed"], result["finished"]) == (letter, True, 3, True)
    assert result["provenance"]["versions"]["numpy"] == np.__version__
    assert all(line["what"] in out for line in result["lines"])
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    if letter != "B":
        assert result["history"]
        assert sum(name.startswith("curves") for name in pictures) == len(result["history"])
        assert sum(name.startswith("confusion") for name in pictures) == len(result["tests"]) > 0
        assert all(len(report["classes"]) == 10 for report in result["tests"].values())
    if letter == "B'":
        assert {"classes.png", "predictions-relu.png", "predictions-linear.png"} < pictures
        assert [line["ours"] for line in result["lines"] if line["what"] == "parameters"] == ["109386"]


def test_json_is_all_of_stdout_and_a_run_makes_a_folder_of_its_own(run, tmp_path):
    code, out, err = run("run", "mse-2-3-1", "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert (tmp_path / result["folder"]).parent == tmp_path / "runs"
    assert [line["ratio"] for line in result["lines"]] == ["same"] * 5  # the golden numbers
    assert json.loads((tmp_path / result["folder"] / "result.json").read_text())["lines"] == result["lines"]


def test_what_there_is_survives_an_interruption(run, monkeypatch, tmp_path):
    def interrupted(session):
        session.figure("loss", 0.5, 0.25)
        raise KeyboardInterrupt

    module = importlib.import_module("tinygrad_mnist.notebooks.mse_2_3_1")
    changed = {**vars(module.NOTEBOOK), "run": interrupted}
    monkeypatch.setattr(module, "NOTEBOOK", notebooks.Notebook(**changed))
    assert run("run", "B", "--out", "out")[0] == 130
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (len(result["lines"]), result["finished"]) == (1, False)


def test_without_scikit_learn_c_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr(digits_relu_softmax.importlib.util, "find_spec", lambda name: None)
    code, _, err = run("run", "C", "--quick")
    assert code == 2
    assert err.splitlines()[-1].endswith("needs scikit-learn's digits: pip install 'tinygrad-mnist[notebooks]'")


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
@pytest.mark.parametrize("letter", ["A", "B", "E"])
def test_the_command_computes_on_the_gpu(backend, run, letter, monkeypatch):
    monkeypatch.setattr(loops, "TICKS", 2)
    part = [a[:20] for a in dataset()]
    monkeypatch.setattr(loops.data, "mnist", lambda: part)
    code, out, _ = run("run", letter, "--quick", "--device", "gpu", "--json")
    result = json.loads(out)
    assert (code, result["device"], result["emulated"]) == (0, "gpu", True)
    assert not any(line["what"].startswith("a step") for line in result["lines"])
    assert arrays.gpu_number(result["device"]) is not None
