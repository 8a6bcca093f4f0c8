"""The command line as its user meets it: examples that parse, results, one-line errors, exit codes."""

import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pretend_gpu
import pytest
import typer
from PIL import Image
from small import dataset, save_npz

from tinygrad_mnist import cli, nn, progress
from tinygrad_mnist import train as training_module
from tinygrad_mnist.data import Preprocess
from tinygrad_mnist.inference import save_model
from tinygrad_mnist.recipe import RECIPES, Recipe
from tinygrad_mnist.runs import MODEL, Run

COMMANDS = typer.main.get_command(cli.app).commands


pytestmark = pytest.mark.usefixtures("no_numba")  # but for the commands that tests start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def npz(folder):
    return save_npz(folder / "digits.npz")


@pytest.fixture(scope="module")
def model(folder):
    path = folder / "model.safetensors"
    save_model(path, nn.MLP((784, 10), rng=0), Preprocess())
    return path


@pytest.fixture
def run(capsys):
    """Runs a command: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def train(run, npz):
    """Runs a small training."""
    return lambda *arguments: run("train", "--data", npz, "--layers", "784,16,10", "--epochs", 2, *arguments)


# ---- help ---------------------------------------------------------------------------------------------------------


def examples(command):
    lines = [line.strip() for line in COMMANDS[command].help.splitlines()]
    return [line for line in lines if line.startswith("tinygrad-mnist ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_parse(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert examples(command)
    for example in examples(command):
        assert example in out
        _, name, *arguments = shlex.split(example)
        assert name == command
        COMMANDS[command].make_context(name, arguments)


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"\n  {command} " in out for command in ("train", "evaluate", "predict", "info"))


def test_train_has_every_option_of_a_recipe_with_what_it_allows_and_its_default(run):
    _, out, _ = run("train", "--help")
    text = " ".join(out.split())
    for option in fields(Recipe):
        assert f"--{option.name.replace('_', '-')} " in text
        if option.default is not False:
            assert option.metadata["allowed"].words in text
    assert "[default: 784,128,64,10]" in text
    assert "[default: 0.01]" in text


# ---- train --------------------------------------------------------------------------------------------------------


def test_train_prints_progress_then_results_and_where_they_lie(train, tmp_path):
    code, out, err = train("--out", tmp_path / "run", "--validation", "0.2", "--batch", 50)
    assert code == 0
    device, steps, first, second = err.splitlines()
    assert device.startswith("device: cpu (no GPU: ")
    assert steps == "steps: numpy (Numba is not installed: ...)"
    assert first.startswith("epoch 1/2: loss ")
    assert all(word in second for word in ("epoch 2/2", "accuracy", "validation", "test", "images/s"))
    assert out.splitlines()[0].split() == ["class", "precision", "recall", "F1", "images"]
    assert out.splitlines()[-2].startswith("Test accuracy: ")
    assert out.splitlines()[-1] == f"Model, metrics and pictures: {tmp_path / 'run'}"
    assert (tmp_path / "run" / MODEL).exists()


def test_train_makes_a_folder_of_its_own(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = train("--json")
    assert code == 0
    assert [str(path) for path in (tmp_path / "runs").iterdir()] == [str(tmp_path / json.loads(out)["run"])]


def test_options_override_the_config_file_and_both_the_defaults(train, tmp_path):
    (tmp_path / "c.toml").write_text("epochs = 1\nbatch = 50\nnesterov = true\noptimizer = 'sgd'\nmomentum = 0.5\n")
    code, _, _ = train("--config", tmp_path / "c.toml", "--out", tmp_path / "run", "--lr", "1e-3", "--no-nesterov")
    recipe = Run.open(tmp_path / "run").recipe
    assert code == 0
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.nesterov, recipe.momentum) == (2, 50, 1e-3, False, 0.5)
    assert recipe.layers == (784, 16, 10)


def test_options_override_the_config_file_and_both_a_named_recipe(train, tmp_path):
    (tmp_path / "c.toml").write_text("epochs = 1\nbatch = 50\nrotation = 5\n")
    options = ("--config", tmp_path / "c.toml", "--rotation", "6", "--dtype", "float64")
    code, _, _ = train("--out", tmp_path / "run", "--recipe", "best", *options)
    recipe = Run.open(tmp_path / "run").recipe
    assert code == 0
    assert (recipe.epochs, recipe.layers, recipe.batch, recipe.rotation) == (2, (784, 16, 10), 50, 6.0)
    same = {"data": recipe.data, "epochs": 2, "layers": (784, 16, 10), "batch": 50, "rotation": 6.0, "dtype": "float64"}
    assert recipe == replace(RECIPES["best"], **same)


def test_the_config_that_a_run_wrote_reproduces_it(train, run, tmp_path):
    assert train("--out", tmp_path / "one", "--dropout", "0.1", "--seed", "7")[0] == 0
    assert run("train", "--config", tmp_path / "one" / "config.toml", "--out", tmp_path / "two")[0] == 0
    assert (tmp_path / "one" / MODEL).read_bytes() == (tmp_path / "two" / MODEL).read_bytes()


def test_the_path_of_the_data_is_recorded_so_that_a_run_resumes_from_anywhere(run, npz, tmp_path, monkeypatch):
    monkeypatch.chdir(npz.parent)
    assert run("train", "--data", npz.name, "--layers", "784,10", "--epochs", 1, "--out", tmp_path / "run")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert run("train", "--resume", "run")[0] == 0


def test_train_json_is_all_of_stdout(train, tmp_path):
    code, out, err = train("--out", tmp_path / "run", "--batch", 50, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["run"] == str(tmp_path / "run")
    assert (result["epochs"], result["device"], result["backend"]) == (2, "cpu", "numpy")
    assert 0 <= result["accuracy"] <= 1
    assert len(result["classes"]) == 10
    assert len(err.splitlines()) == 2


def test_no_compile_runs_the_steps_as_they_are_written(train, run, tmp_path, monkeypatch):
    assert "--no-compile" in run("train", "--help")[1]
    assert train("--out", tmp_path / "one")[0] == 0
    monkeypatch.setattr("tinygrad_mnist.compiled.compile", None)
    code, _, err = train("--out", tmp_path / "two", "--no-compile")
    assert (code, err.splitlines()[1]) == (0, "steps: eager (not compiled)")
    assert (tmp_path / "one" / MODEL).read_bytes() == (tmp_path / "two" / MODEL).read_bytes()
    assert json.loads(train("--out", tmp_path / "three", "--no-compile", "--json")[1])["backend"] == "eager"


def test_a_run_goes_on_compiled_or_not(train, run, tmp_path):
    assert train("--out", tmp_path / "run")[0] == 0
    assert run("train", "--resume", tmp_path / "run", "--no-compile")[0] == 0


def test_train_opens_no_socket(train, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    assert train("--out", tmp_path / "run")[0] == 0


def test_divergence_is_exit_code_1(train, tmp_path):
    code, out, err = train("--out", tmp_path / "run", "--optimizer", "sgd", "--lr", "1e30", "--layers", "784,9,9,10")
    assert (code, out) == (1, "")
    assert err.splitlines()[1].startswith("tinygrad-mnist: the loss became ")


def test_a_full_disk_is_one_line_that_says_how_to_go_on(train, run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tinygrad_mnist.plots.curves", full_disk)
        code, out, err = train("--out", tmp_path / "run")
    assert (code, out) == (2, "")
    remedy = f"to go on: tinygrad-mnist train --resume {tmp_path / 'run'}"
    assert err.splitlines()[-1] == f"tinygrad-mnist: curves.png: No space left on device; {remedy}"
    assert run("train", "--resume", tmp_path / "run")[0] == 0


def full_disk(*args):
    raise OSError(28, "No space left on device", "curves.png")


# ---- progress -----------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar(train, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "REFRESH", 0)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    code, out, err = train("--out", tmp_path / "run")
    assert code == 0
    assert "\x1b[2K" in err  # the bar is drawn over itself
    for words in ("epoch 1/2: loss ", ", accuracy ", " images/s ", "0:00:", "; test "):
        assert words in err
    assert "\x1b" not in out


# ---- evaluate, predict, info --------------------------------------------------------------------------------------


def test_evaluate_prints_accuracy_classes_and_preprocessing(run, model, npz):
    code, out, err = run("evaluate", model, "--data", npz)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1 + 10 + 3
    assert out.splitlines()[-2].startswith("Device: cpu (no GPU: ")
    assert "Test accuracy: " in out
    assert "of 200" in out
    assert out.splitlines()[-1].startswith("Preprocessing, as in training: Pixels (0 to 255) are divided by 255")


def test_evaluate_takes_the_folder_of_a_run_and_agrees_with_it(run, train, npz, tmp_path):
    trained = json.loads(train("--out", tmp_path / "run", "--json")[1])
    evaluated = json.loads(run("evaluate", tmp_path / "run", "--data", npz, "--json")[1])
    for key in ("accuracy", "cross_entropy", "classes", "confusion"):
        assert evaluated[key] == trained[key]
    assert evaluated["preprocessing"].startswith("Pixels")


def test_predict_reads_pictures_and_sets_alike(run, model, npz, folder):
    image = dataset()[2][0]
    Image.fromarray(image).save(folder / "same.png")
    Image.fromarray(255 - image).resize((280, 280)).save(folder / "page.jpg")
    idx = folder / "images.idx"
    idx.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + dataset()[2][:2].tobytes())
    code, out, err = run("predict", model, folder / "same.png", folder / "page.jpg", npz, idx, "--json")
    assert (code, err) == (0, "")
    predictions = json.loads(out)["predictions"]
    assert len(predictions) == 2 + 200 + 2
    same, page, first, *_, idx_first, _ = predictions
    assert (first["image"], idx_first["image"]) == (f"{npz}[0]", f"{idx}[0]")
    assert same["class"] == first["class"] == idx_first["class"]
    np.testing.assert_allclose(same["probabilities"], first["probabilities"], rtol=1e-4)
    assert same["probability"] == max(same["probabilities"])
    assert "left as it is" in same["steps"]
    assert "inverted the light background" in page["steps"]
    assert first["steps"] == "as it is stored"


def test_predict_says_what_was_done_to_each_image(run, model, folder):
    Image.fromarray(dataset()[2][0]).save(folder / "digit.png")
    code, out, err = run("predict", model, folder / "digit.png")
    first, last = out.splitlines()
    assert (code, err) == (0, "")
    assert first.startswith(f"{folder / 'digit.png'}: ")
    assert first.endswith("%; left as it is: 28 x 28 on a dark background)")
    assert last.startswith("Preprocessing, as in training: ")


def test_predict_reads_a_folder_of_idx_files(run, model, tmp_path):
    for part, (images, labels) in zip(("train", "t10k"), (dataset()[:2], dataset()[2:]), strict=True):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    assert len(run("predict", model, tmp_path)[1].splitlines()) == 200 + 1
    assert run("evaluate", model, "--data", tmp_path)[0] == 0


def test_info(run, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    code, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["numpy"] == np.__version__
    assert facts["threads"] == "3 (OPENBLAS_NUM_THREADS)"
    assert facts["devices"].split(", ")[0] == "cpu"
    assert facts["gpu"]["message"]  # test_gpu_detection.py knows which
    assert facts["blas"]
    assert len(run("info")[1].splitlines()) == len(facts)


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing command; see tinygrad-mnist --help"),
        ("trian", "No such command 'trian'"),
        ("train --epochs", "Option '--epochs' requires an argument; see tinygrad-mnist --help"),
        ("train --epoch 3", "No such option: --epoch"),
        ("train --epochs five", "epochs must be a whole number, 1 or more; got 'five'"),
        ("train --epochs 1.5", "epochs must be a whole number, 1 or more; got '1.5'"),
        ("train --lr fast", "lr must be a number above 0; got 'fast'"),
        ("train --lr -1", "lr must be a number above 0; got -1.0"),
        ("train --layers 784-10", "layers must be two or more whole numbers from 1, such as 784,128,64,10; got '784-"),
        ("train --layers 700,10", "layers must begin with 784, for images of 28 x 28; got 700"),
        ("train --optimizer adan", "optimizer must be sgd, adam or adamw; got 'adan'"),
        ("train --data ", "data must be 'mnist' or a path; got ''"),
        ("train --data nowhere", "{here}/nowhere: expected a readable file, found No such file or directory"),
        ("train --config nowhere.toml", "nowhere.toml: No such file or directory"),
        ("train --recipe bset", "recipe must be best or record; got 'bset'"),
        ("train --resume r --recipe best", "--resume goes on as the run began: leave out --recipe"),
        ("train --resume nowhere", "nowhere is no run folder: it has no config.toml"),
        ("train --resume r --weight-decay 1", "--resume goes on as the run began: leave out --weight-decay"),
        ("train --resume r --no-nesterov", "--resume goes on as the run began: leave out --nesterov"),
        ("train --resume r --config c", "--resume goes on as the run began: leave out --config"),
        ("train --resume r --out c", "--resume goes on as the run began: leave out --out"),
        ("train --out full", "full exists: choose another folder, or go on with the run in it by --resume"),
        ("train --device gpu:99", "--device gpu:99: "),
        ("train --device cuda", "--device must be cpu, gpu, gpu:N or auto, got 'cuda'"),
        ("evaluate nowhere", "nowhere: no such model file"),
        ("evaluate full", "full/model.safetensors: no such model file"),
        ("evaluate full/x", "full/x: not a safetensors file"),
        ("evaluate {model} --data full/x", "full/x: expected a folder of IDX files or an .npz file"),
        ("evaluate {model} --device gpu:99", "--device gpu:99: "),
        ("predict {model} nowhere.png --device gpu:99", "--device gpu:99: "),
        ("predict {model}", "Missing argument 'images'; see tinygrad-mnist --help"),
        ("predict {model} nowhere.png", "nowhere.png: expected a readable file, found No such file or directory"),
        ("predict {model} full/x", "full/x: expected a PNG or JPEG picture, found another kind of file"),
        ("predict {model} full", "full: expected IDX files such as "),
    ],
)
def test_errors_are_one_line_on_stderr_and_exit_code_2(run, model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("not what you think")
    given = [word.format(model=model) for word in arguments.split(" ")] if arguments else []
    code, out, err = run(*given)
    assert (code, out) == (2, "")
    assert err.startswith("tinygrad-mnist: " + message.format(here=os.getcwd()))
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_too_little_memory_is_one_line(train, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise MemoryError("Unable to allocate 1 TiB for an array")

    monkeypatch.setattr(nn, "MLP", refuse)
    code, _, err = train("--out", tmp_path / "run")
    assert (code, err.splitlines()[1:]) == (2, ["tinygrad-mnist: Unable to allocate 1 TiB for an array"])


def test_python_m_and_the_exit_code_of_a_process(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-m", "tinygrad_mnist", "train", "--lr", "0"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert answer.stderr == "tinygrad-mnist: lr must be a number above 0; got 0.0\n"


def test_recipes_of_python_and_of_the_command_line_are_one(train, tmp_path, npz):
    train("--out", tmp_path / "run")
    assert Run.open(tmp_path / "run").recipe == Recipe(data=str(npz), layers=(784, 16, 10), epochs=2)


# ---- streams ------------------------------------------------------------------------------------------------------

SHELL = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


def shell(line, **variables):
    """Runs a line of sh in which $TM is the command: (exit code, stdout, stderr)."""
    environment = {**os.environ, "TM": f"{sys.executable} -m tinygrad_mnist", **variables}
    answer = subprocess.run(["sh", "-c", line], capture_output=True, env=environment, check=False)
    return answer.returncode, answer.stdout.decode(), answer.stderr.decode()


@SHELL
@pytest.mark.parametrize("streams", ["2>&1 >/dev/null | true", "2>/dev/full", "2>&-"])
def test_a_stderr_that_cannot_be_written_does_not_stop_a_training(npz, tmp_path, streams):
    command = f"$TM train --data {npz} --layers 784,10 --epochs 2 --out {tmp_path}/run"
    assert shell(f"({command}; echo $? >{tmp_path}/code) {streams}")[2] == ""
    assert (tmp_path / "code").read_text() == "0\n"
    assert (tmp_path / "run" / MODEL).exists()


@SHELL
def test_an_error_that_cannot_be_written_keeps_its_exit_code(model):
    assert shell("$TM evaluate nowhere 2>&-") == (2, "", "")
    assert shell("$TM evaluate nowhere 2>/dev/full") == (2, "", "")


@SHELL
@pytest.mark.parametrize("command", ["info", "predict {model} {npz}", "train --help"])
def test_a_stdout_that_nobody_reads_is_exit_code_141_without_a_word(model, npz, tmp_path, command):
    line = f"($TM {command}; echo $? >{tmp_path}/code) | true".format(model=model, npz=npz)
    assert shell(line) == (0, "", "")
    assert (tmp_path / "code").read_text() == "141\n"


@SHELL
def test_a_full_disk_under_stdout_is_one_line():
    assert shell("$TM info >/dev/full") == (2, "", "tinygrad-mnist: [Errno 28] No space left on device\n")


@SHELL
def test_a_path_that_the_terminal_cannot_show(npz, tmp_path):
    out = tmp_path / "r\u00e9seau"
    line = f"$TM train --data {npz} --layers 784,10 --epochs 1 --out {out}"
    code, text, _ = shell(line, PYTHONIOENCODING="ascii")
    assert code == 0
    assert text.endswith("r\\xe9seau\n")


def test_a_bar_survives_a_terminal_that_is_gone(train, tmp_path, monkeypatch):
    class Gone:
        encoding = "utf-8"

        def isatty(self):
            return True

        def write(self, text=""):
            raise BrokenPipeError

        def fileno(self):
            return 2

        flush = write

    monkeypatch.setattr(progress, "REFRESH", 0)
    monkeypatch.setattr(sys, "stderr", Gone())
    assert train("--out", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / MODEL).exists()


@pytest.mark.parametrize("command", ["info", "predict"])
def test_ctrl_c_is_exit_code_130_without_a_traceback(run, model, npz, monkeypatch, command):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "predict", interrupt)
    monkeypatch.setattr(cli, "versions", interrupt)
    assert run(command, *([model, npz] if command == "predict" else [])) == (130, "", "")


def test_ctrl_c_while_importing_is_exit_code_130_without_a_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    answer = subprocess.run(
        [sys.executable, "-m", "tinygrad_mnist", "info"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        check=False,
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, b"", b"")


# ---- numbers that are not finite, and other halves ----------------------------------------------------------------


@pytest.mark.parametrize("command", ["evaluate {model} --data {npz}", "predict {model} {npz}"])
def test_a_model_that_diverged_is_one_error(run, npz, tmp_path, command):
    network = nn.MLP((784, 10), rng=0)
    network.flat[:] = np.inf
    save_model(tmp_path / "m.safetensors", network, Preprocess())
    arguments = command.format(model=tmp_path / "m.safetensors", npz=npz).split()
    assert run(*arguments) == (1, "", "tinygrad-mnist: the output of the model became inf or nan\n")


def test_a_divergence_prints_the_results_that_are_saved(train, tmp_path, monkeypatch):
    evaluate, calls = training_module.evaluate, []

    def second_is_bad(*args):
        calls.append(args)
        if len(calls) == 2:
            raise FloatingPointError("the output of the model became inf or nan")
        return evaluate(*args)

    monkeypatch.setattr(training_module, "evaluate", second_is_bad)
    code, out, err = train("--out", tmp_path / "run")
    assert code == 1
    assert err.splitlines()[-1] == (
        "tinygrad-mnist: the output of the model became inf or nan in epoch 2: lower lr, or set clip; "
        "the results of epoch 1 are saved"
    )
    assert out.splitlines()[-1] == f"Model, metrics and pictures: {tmp_path / 'run'}"


def test_predict_prints_what_it_found_before_an_error(run, model, tmp_path):
    Image.fromarray(dataset()[2][0]).save(tmp_path / "good.png")
    Image.new("L", (28, 28)).save(tmp_path / "blank.png")
    code, out, err = run("predict", model, tmp_path / "good.png", tmp_path / "blank.png")
    assert code == 2
    assert out.startswith(f"{tmp_path / 'good.png'}: ")
    assert err.startswith(f"tinygrad-mnist: {tmp_path / 'blank.png'}")
    code, out, _ = run("predict", model, tmp_path / "good.png", tmp_path / "blank.png", "--json")
    assert (code, len(json.loads(out)["predictions"])) == (2, 1)


def test_the_hint_how_to_go_on_is_quoted_for_the_shell(train, tmp_path, monkeypatch):
    monkeypatch.setattr("tinygrad_mnist.plots.curves", full_disk)
    _, _, err = train("--out", tmp_path / "my run")
    assert err.endswith(f"train --resume '{tmp_path / 'my run'}'\n")


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_commands_compute_on_the_gpu(backend, train, run, npz, tmp_path):
    with pretend_gpu.record() as events:
        code, out, err = train("--device", "gpu", "--out", tmp_path / "run")
    assert code == 0
    assert err.startswith("device: gpu (emulated, its times are not those of a GPU: ")
    assert "images/s" not in err
    assert "Test accuracy: " in out
    assert sum(event.kind == "launch" for event in events) > 100
    for command in ("evaluate", tmp_path / "run", "--data", npz), ("predict", tmp_path / "run", npz):
        with pretend_gpu.record() as events:
            code, out, _ = run(*command, "--device", "gpu", "--json")
        assert (code, json.loads(out)["device"]) == (0, "gpu")
        assert any(event.kind == "launch" for event in events)
        code, _, err = run(*command, "--device", "gpu:5")
        assert (code, err.count("\n")) == (2, 1)
