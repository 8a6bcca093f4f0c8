"""`tinygrad-mnist gradcheck`: operations, functions of a user's file, exit codes, and errors of one line."""

import doctest
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import mpi
import numpy as np
import pytest

from tinygrad_mnist import cli, primitive
from tinygrad_mnist.core import F
from tinygrad_mnist.gradcheck import campaign
from tinygrad_mnist.gradcheck.strategies import op_cases

FILE = '''
import numpy as np
print("run")

def cross_entropy(logits, labels):
    z = logits - np.max(logits, axis=1, keepdims=True)
    return np.mean(np.log(np.sum(np.exp(z), axis=1)) - z[np.arange(len(labels)), labels])

def cross_entropy_inputs(rng):
    return rng.normal(size=(5, 3)), rng.integers(0, 3, 5)

def layer(x, W, b):
    return np.tanh(x @ W + b)

def layer_vjp(g, x, W, b):
    g = g * (1 - layer(x, W, b) ** 2)
    return g @ W.T, x.T @ g, g.mean(axis=0)

def layer_inputs(rng):
    return {"b": rng.normal(size=2), "x": rng.normal(size=(4, 3)), "W": rng.normal(size=(3, 2))}

inputs = (np.linspace(0.1, 1, 4),)

def sine(x):
    print("called")
    return np.sin(x)

def relu(x):
    return np.maximum(x, 0)

relu_inputs = np.zeros(3)

def flat(x):
    return 1e20 + x

def noisy(x, rng=np.random.default_rng(0)):
    return x * rng.normal()

def number(x):
    return float(np.sum(x.data))

def raises(x):
    y = x + 1
    return np.dot(y, np.ones(3))

def no_inputs():
    return [1.0, 2.0]

no_inputs_inputs = {"x": 1.0}

def bad_inputs(x):
    return x

def bad_inputs_inputs(rng):
    return rng.normal(size="three")

def seen(x):
    return x * 1.0

def seen_inputs():
    return 2.0
'''


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs `gradcheck` in a folder with a file of functions: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "loss.py").write_text(FILE)

    def run(*arguments):
        code = cli.run(["gradcheck", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def wrong_sine(monkeypatch):
    monkeypatch.setattr(F, "__dict__", dict(vars(F)))

    @primitive(lambda xp, g, y, a: 1.001 * g * xp.cos(a))
    def sine(xp, a):
        return xp.sin(a)


def rows(out):
    """The lines of the table, as dicts."""
    head, *lines = [line for line in out.splitlines() if "  " in line and not line.startswith((" ", "FAIL"))]
    names = head.replace("f calls", "calls").split()
    return [dict(zip(names, line.split(), strict=False)) for line in lines]


def line(text):
    """Where it is in FILE."""
    return next(number for number, line in enumerate(FILE.splitlines(), start=1) if text in line)


def one_line(err):
    err = err.removeprefix("run\n")  # which the file printed
    assert err.startswith("tinygrad-mnist: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


# ---- operations


def test_right_operations_pass_in_every_dtype_and_on_the_strict_double(run):
    code, out, err = run("multiply", "add", "--examples", 5)
    assert code == 0
    found = rows(out)
    places = [("float64", "cpu"), ("float32", "cpu"), ("float16", "cpu"), ("float64", "strict")]
    assert [(row["dtype"], row["device"]) for row in found[:8]] == 2 * places
    assert [row["op"] for row in found[:8]] == 4 * ["multiply"] + 4 * ["add"]
    assert {row["checks"] for row in found[:8]} == {"5"}
    assert err.splitlines()[-1] == "gradcheck: 8 of 8 rows"
    assert out.splitlines()[-1].startswith("8 rows: ")


def test_dtypes_and_devices_are_chosen(run):
    _, out, _ = run("tanh", "--examples", 3, "--dtype", "float64, float32", "--device", "strict,cpu")
    found = [(row["dtype"], row["device"]) for row in rows(out)[:4]]
    assert found == [("float64", "strict"), ("float64", "cpu"), ("float32", "strict"), ("float32", "cpu")]


def test_a_wrong_rule_fails_and_its_report_runs_it_again(run, wrong_sine):
    code, out, _ = run("sine", "--examples", 5, "--dtype", "float64", "--seed", 3)
    assert code == 1
    for part in ("FAIL  sine(a)", "analytic", "numeric", "+-", "Taylor slope"):
        assert part in out
    command = next(line for line in out.splitlines() if line.startswith("reproduce: "))
    program, name, *arguments = command.removeprefix("reproduce: ").split()
    assert (program, name) == ("tinygrad-mnist", "gradcheck")
    assert "--case" in arguments
    code, again, _ = run(*arguments)
    assert code == 1
    shown = [text.partition("FAIL  sine")[2].partition("\n1 row")[0] for text in (out, again)]
    assert shown[0] == shown[1] != ""


def test_what_is_undecided_is_said_and_can_be_looked_at(run, monkeypatch):
    monkeypatch.setattr(F, "__dict__", dict(vars(F)))

    @primitive(lambda xp, g, *_: g)
    def flat(xp, a):
        return a + 1e30

    code, out, _ = run("flat", "add", "--examples", 5, "--dtype", "float64")
    assert code == 3
    shown = next(line for line in out.splitlines() if line.startswith("ILL  flat float64 cpu: to see it, "))
    code, out, _ = run(*shown.partition("gradcheck ")[2].split())
    assert code == 3
    assert "gradient check: ILL: " in out
    assert "reproduce: tinygrad-mnist gradcheck flat" in out


def test_json_of_operations(run, wrong_sine):
    code, out, _ = run("sine", "tanh", "--examples", 3, "--dtype", "float64", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (code, found["exit"], found["seed"]) == (1, 1, 0)
    assert [(row["op"], row["verdict"]) for row in found["rows"]] == [("sine", "fail"), ("tanh", "pass")]
    assert found["rows"][0]["worst"]["report"]["items"][0]["verdict"] == "fail"


def without_times(out):
    """The lines of a table but for what each row took."""
    return re.sub(r" +[\d,]+( +\d+)$", r"\1", out, flags=re.MULTILINE)


def test_each_seed_has_its_row(run):
    _, out, err = run("tanh", "exp", "--examples", 3, "--dtype", "float64", "--seed", 5, "--seeds", 2)
    assert [(row["op"], row["seed"]) for row in rows(out)[:4]] == [(op, n) for op in ("tanh", "exp") for n in "56"]
    assert err.splitlines()[-1] == "gradcheck: 4 of 4 rows"
    alone = run("tanh", "--examples", 3, "--dtype", "float64", "--seed", 6)[1]
    assert without_times(alone).splitlines()[1] == without_times(out).splitlines()[2]


def test_workers_and_ranks_print_what_one_process_does(run):
    arguments = ["scatter_add", "tanh", "--examples", 5, "--device", "cpu,strict", "--seeds", 2]
    code, out, err = run(*arguments)
    shared = run(*arguments, "--workers", 2)
    assert (shared[0], without_times(shared[1]), shared[2]) == (code, without_times(out), err)
    done = mpi.run(3, "-m", "tinygrad_mnist", "gradcheck", *arguments)
    assert (done.returncode, without_times(done.stdout)) == (code, without_times(out))
    assert done.stderr.splitlines() == err.splitlines()


def test_a_report_that_was_pickled_says_the_same(wrong_sine):
    report = campaign.check_op("sine", examples=20)
    assert report.verdict == "fail"
    again = pickle.loads(pickle.dumps(report))
    assert (str(again), again.to_json()) == (str(report), report.to_json())


def test_a_case_whose_function_and_strides_do_not_pickle_is_drawn_again():
    draw = campaign.sampler(op_cases("scatter_add", np.dtype("float32")))
    number = next(n for n in range(100) if not all(a.flags.c_contiguous for a in draw(7, n).arrays))
    report = campaign.check_op("scatter_add", dtype="float32", seed=7, case=number)
    report.worst = campaign.Failure(number, draw(7, number), "fail", None, "KeyError: 'x'")
    again = pickle.loads(pickle.dumps(report))
    assert ", strides (" in str(report)
    assert (str(again), again.to_json()) == (str(report), report.to_json())


def test_mutants_of_one_rule(run, monkeypatch):
    code, out, err = run("negative", "--mutants", "--examples", 20)
    assert out.splitlines()[0].split() == ["op", "mutants", "killed", "same", "choice", "survivors"]
    assert out.splitlines()[1].split()[0] == "negative"
    assert code == (1 if "SURVIVED" in out or "STALE" in out else 0)
    assert "gradcheck: negative" in err
    code, out, _ = run("negative", "--mutants", "--examples", 20, "--json")
    assert json.loads(out)["rows"][0]["op"] == "negative"


# ---- functions of a file


def test_a_right_function_of_tensors_passes_at_drawn_inputs(run):
    code, out, err = run("loss.py:cross_entropy", "--seed", 7)
    assert code == 0
    assert out.startswith("gradient check: PASS: 15 of 15 elements pass\n")
    assert out.endswith("10 cases: 10 pass; shown is the first\n")
    assert "run" in err
    fewer = run("loss.py:cross_entropy", "--seed", 7, "--examples", 3)[1]
    assert fewer.endswith("3 cases: 3 pass; shown is the first\n")


def test_a_wrong_rule_of_arrays_fails_and_its_report_runs_it_again(run):
    code, out, _ = run("loss.py:layer", "--seed", 4)
    assert code == 1
    assert "input 2 (b)" in out
    assert "a mean for a sum? (4 = size of axis 0" in out
    command = next(line for line in out.splitlines() if line.startswith("reproduce: "))
    _, _, *arguments = command.removeprefix("reproduce: ").split()
    again = run(*arguments)[1]
    assert out.startswith(again)


@pytest.mark.parametrize(
    ("name", "code", "verdict"),
    [("sine", 0, "PASS"), ("relu", 0, "KINK"), ("noisy", 1, "NONDET"), ("flat", 3, "ILL"), ("seen", 0, "PASS")],
)
def test_the_exit_code_tells_the_verdict(run, name, code, verdict):
    found, out, _ = run(f"loss.py:{name}")
    assert found == code, out
    assert out.startswith(f"gradient check: {verdict}")


def test_both_orders_a_dtype_and_a_device(run):
    code, out, err = run("loss.py:sine", "--order", 2, "--dtype", "float32", "--device", "strict")
    assert code == 0
    assert "12 of 12 elements" in out
    assert "called" not in out
    assert "called" in err  # what the function prints is no result


def test_json_of_a_function(run):
    code, out, _ = run("loss.py:layer", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (code, found["verdict"], found["cases"], found["function"]) == (1, "fail", 10, "loss.py:layer")
    assert sum(found["verdicts"].values()) == 10
    assert found["items"][0]["input"] == 2


def test_a_file_may_import_its_neighbours_and_bear_the_name_of_a_module(run, tmp_path):
    folder = tmp_path / "of"
    folder.mkdir()
    (folder / "helper_of_json.py").write_text("import numpy as np\nhalf = lambda x: np.exp(x) / 2\n")
    (folder / "json.py").write_text("from helper_of_json import half\ninputs = [1.0]\ndef f(x):\n    return half(x)\n")
    assert run(f"{folder / 'json.py'}:f")[0] == 0
    assert "dumps" in dir(json)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("loss.py", "loss.py: name a function, as in loss.py:FUNCTION; it has cross_entropy, layer, sine"),
        ("loss.py:nothing", "there is no function nothing, as in loss.py:FUNCTION; it has cross_entropy"),
        ("gone.py:f", "gone.py: there is no such file"),
        ("empty.py:f", "declare the inputs of f: f_inputs = (x, ...), or def f_inputs(rng)"),
        ("none.py:f", "it has none"),
        ("loss.py:raises", f"loss.py:{line('np.dot(y')}: ValueError"),
        ("loss.py:number", "loss.py:number: the function returns float, not a Tensor"),
        ("loss.py:no_inputs", "loss.py:no_inputs: got an unexpected keyword argument 'x'"),
        ("loss.py:bad_inputs", f"loss.py:{line('three')}: TypeError"),
        ("syntax.py:f", "syntax.py:2: SyntaxError"),
        ("error.py:f", "error.py:3: ZeroDivisionError: division by zero"),
        ("quits.py:f", "quits.py:2: SystemExit: 4"),
        ("missing.py:f", "missing.py:1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ],
)
def test_errors_of_a_file_are_one_line_with_file_and_line(run, tmp_path, target, text):
    (tmp_path / "empty.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "none.py").write_text("x = 1\n")
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "error.py").write_text("x = 1\n\ny = x / 0\n")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(4)\n")
    (tmp_path / "missing.py").write_text("import nowhere_to_be_found\n")
    code, out, err = run(target)
    assert (code, out) == (2, "")
    assert text in one_line(err)


# ---- usage


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["sofmax"], "no operation 'sofmax': did you mean 'softmax'?"),
        (["tanh", "--dtype", "float8"], "--dtype must be float64, float32 or float16, not 'float8'"),
        (["tanh", "--device", "tpu"], "--device must be"),
        (["tanh", "--case", 3], "add --dtype and --device as the report says"),
        (["tanh", "add", "--case", 3], "--case is that of one operation or function"),
        (["--case", 3], "--case is that of one operation or function"),
        (["tanh", "loss.py:sine"], "loss.py:sine: a function of a file is checked alone"),
        (["loss.py:sine", "--mutants"], "without --mutants"),
        (["loss.py:sine", "--order", 3], "--order"),
        (["loss.py:sine", "--dtype", "float64,float32"], "are one each"),
        (["loss.py:layer", "--order", 2], "are for functions of Tensors, but layer_vjp takes arrays"),
        (["tanh", "--examples", 0], "--examples"),
        (["tanh", "--workers", 0], "--workers"),
        (["tanh", "--mutants", "--workers", 2], "--seeds and --workers are for rows of operations: leave them out"),
        (["loss.py:sine", "--seeds", 2], "--seeds and --workers are for rows of operations: leave them out"),
    ],
)
def test_wrong_usage_is_one_line(run, arguments, text):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert text in one_line(err)


def test_without_hypothesis_it_names_the_extra_and_functions_of_files_still_work(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "hypothesis" else find(name))
    for arguments in (["tanh"], ["tanh", "--mutants"]):
        code, _, err = run(*arguments)
        assert code == 2
        assert "pip install 'tinygrad-mnist[check]'" in one_line(err)
    assert run("loss.py:sine")[0] == 0


# ---- the screens of the documentation

PAGE = Path(__file__).parent.parent / "docs" / "gradient-checking.md"
SCREEN = r"```python\n((?:(?!```).)*?)```(?:(?!```).)*```console\n\$ (.*?)\n(.*?)```"
SCREENS = re.findall(SCREEN, PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("code", "command", "screen"), SCREENS, ids=[command for _, command, _ in SCREENS])
def test_a_screen_of_the_page_is_what_its_reader_will_see(code, command, screen, tmp_path):
    """The Python block above a screen is the file that its command names."""
    program, *arguments = command.split()
    (tmp_path / next(word for word in arguments if ".py" in word).partition(":")[0]).write_text(code)
    module = {"pytest": "pytest", "tinygrad-mnist": "tinygrad_mnist"}[program]
    environment = {**os.environ, "COLUMNS": "80", "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert doctest.OutputChecker().check_output(screen, done.stdout.lstrip("\n"), doctest.ELLIPSIS), done.stdout


def test_the_page_has_both_screens():
    assert [command.split()[0] for _, command, _ in SCREENS] == ["pytest", "tinygrad-mnist"]
