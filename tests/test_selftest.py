"""`selftest` holds what is right and finds what is not: mistakes are planted in kernels, rules, optimizers and more."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pretend_gpu
import pytest

from tinygrad_mnist import Tensor, arrays, cli, gpu, nn, selftest, serialize
from tinygrad_mnist import train as training_module
from tinygrad_mnist.core import F
from tinygrad_mnist.selftest import Report, Result
from tinygrad_mnist.testing import OPS, DeviceBackend, Op, strict
from tinygrad_mnist.testing.optable import shaped

GROUPS = (
    "values", "gradients", "second order", "NumPy's functions", "optimizers", "training", "random numbers", "files",
    "indices",
)
FEW = (
    "tanh(a)", "a @ b", "sum(a)", "softmax_cross_entropy(a, b)", "SGD, momentum", "AdamW", "a seed", "load",
    "out of range",
)
TANH = ("tanh(a)",)
ROWS = sum("tanh(a)" in check.name for check in selftest.checks())  # arctanh too


def names(report):
    return {result.name for result in report.failures}


def groups(report):
    return {result.group for result in report.failures}


# ---- what is right ------------------------------------------------------------------------------------------------


def test_what_is_right_holds(backend):
    report = selftest.run(backend.device, FEW)
    assert report.ok, report.failures
    assert report.done == report.planned > len(FEW)
    assert not report.cannot
    found = {group["group"] for group in report.groups()}
    assert found == {*GROUPS} - {"training"}


def complete(device):
    report = selftest.run(device)
    assert report.ok, report.failures
    assert {op.name for op in OPS} <= {result.name for result in report.results.values()}
    assert {group["group"] for group in report.groups()} == {*GROUPS}
    assert max(result.ratio for result in report.results.values()) < 0.5, report.operations[:3]


def test_everything_holds_on_the_double():
    complete("strict")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "cupy-pretend"], indirect=True)
def test_everything_holds(backend):
    complete(backend.device)


def test_a_seed_decides_the_numbers_and_the_rows_beside_it_do_not(backend):
    alone, again, among, other = (
        {key: result.error for key, result in selftest.run(backend.device, ops, seed).results.items()}
        for ops, seed in ((TANH, 0), (TANH, 0), ((*TANH, "exp(a)"), 0), (TANH, 1))
    )
    assert alone == again == {key: r.error for key, r in selftest.run(backend.device, *TANH).results.items()}
    assert alone.items() <= among.items()
    assert alone != other


def test_operands_and_results_that_are_no_floats(backend, monkeypatch):
    rows = [
        Op("of counts", lambda xp, a, b: a + b * xp.argmax(a), lambda _: [(np.array([3, 1]), np.array([2, 2]))]),
        Op("chosen", lambda xp, a, b: xp.where(a, b, 0), lambda _: [(np.array([True, False]), np.array([0.5, 1.5]))]),
        Op("argmax", lambda xp, a: xp.argmax(a, axis=0), shaped((2, 3))),
        Op("positive", lambda xp, a: a > 0, shaped((2, 3), ())),
        Op("a count", lambda xp, a: a.astype("int32"), shaped((2, 3))),
        Op("nothing", lambda xp, a: xp.sum(a), lambda _: [(np.zeros((0, 2), np.uint8),)]),
    ]
    monkeypatch.setattr(selftest, "OPS", rows)
    report = selftest.run(backend.device, [row.name for row in rows])
    assert report.ok, report.failures
    assert report.planned == len(rows)


# ---- planted mistakes ---------------------------------------------------------------------------------------------


def spoiled(y, value):
    y = y.copy()
    y.reshape(-1)[:1] = value
    return y


def in_half(xp, a):
    return xp.tanh(a.astype("float16")).astype(a.dtype) if a.dtype == "float32" else xp.tanh(a)


def raising(error):
    def kernel(xp, a):
        raise error

    return kernel


KERNELS = {  # of tanh: the kernel, and what the report says of it
    "off by 1e-5": (lambda xp, a: xp.tanh(a * (1 + 1e-5)), "error .*, allowed "),
    "another function": (lambda xp, a: xp.sin(a), "error .*, allowed "),
    "one element is garbage": (lambda xp, a: spoiled(xp.tanh(a), 1e3), "error .*, allowed "),
    "one element is NaN": (lambda xp, a: spoiled(xp.tanh(a), np.nan), "error nan, allowed "),
    "one element is infinite": (lambda xp, a: spoiled(xp.tanh(a), np.inf), "error (inf|nan), allowed "),
    "one element is exchanged for another": (lambda xp, a: xp.roll(xp.tanh(a), 1), "error .*, allowed "),
    "another shape": (lambda xp, a: xp.tanh(a)[None], r"ValueError: .* the result \(1, "),
    "another dtype": (lambda xp, a: xp.tanh(a).astype("float64"), r"float64 \(.*, expected float(32|16) \("),
    "raises": (raising(RuntimeError("no such kernel\n\nlog")), "RuntimeError: no such kernel$"),
    "raises what is no error of Python": (raising(type("CUDAError", (Exception,), {})("")), "CUDAError: $"),
    "asks for too much": (
        raising(MemoryError("Out of memory allocating 1,024 bytes (allocated so far: 0 bytes).")),
        "MemoryError: tanh.*: out of memory on .* asked for",
    ),
}


@pytest.fixture
def plant(monkeypatch):
    """Puts a kernel in the place of that of tanh, for the arrays of one backend alone."""

    def plant(backend, kernel):
        cls = type(backend.array(np.zeros(1)))
        xp = arrays.namespace(cls)._module
        monkeypatch.setitem(F.tanh.prim.kernels, cls, lambda a: kernel(xp, a))

    return plant


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("backend", ["strict", "cupy-pretend"], indirect=True)
def test_a_wrong_kernel_of_the_device_is_found(backend, plant, name):
    kernel, told = KERNELS[name]
    plant(backend, kernel)
    report = selftest.run(backend.device, TANH)
    assert not report.ok
    assert {"tanh(a)"} <= names(report) <= {"tanh(a)", "a.tanh()"}
    assert any(re.search(told, str(result)) for result in report.failures), report.failures
    assert report.done == report.planned == ROWS, "the run goes on"


def test_float32_in_float16_is_found(device, plant):
    plant(DeviceBackend("there", device), in_half)
    failures = selftest.run(device, TANH).failures
    assert {(result.name, result.dtype) for result in failures} == {("tanh(a)", "float32")}
    assert all(1e-5 < result.error < 1e-2 and result.allowed < 1e-5 for result in failures if result.group == "values")


@pytest.mark.parametrize("roundings", [1, 1000])
def test_a_rounding_is_allowed_and_a_thousand_are_not(backend, plant, roundings):
    plant(backend, lambda xp, a: xp.tanh(a) * (1 + roundings * float(np.finfo(a.dtype).eps)))
    if backend.device == "cpu":  # the reference has it too
        assert selftest.run("cpu", TANH).ok
    else:
        failures = selftest.run(backend.device, TANH).failures
        found = {result.dtype for result in failures if result.group == "values"}
        assert found == ({"float64", "float32", "float16"} if roundings == 1000 else set())


def test_a_kernel_that_is_wrong_on_numpy_too_is_found(backend, monkeypatch):
    for cls in {np.ndarray, type(backend.array(np.zeros(1)))}:
        xp = arrays.namespace(cls)._module
        monkeypatch.setitem(F.tanh.prim.kernels, cls, lambda a, xp=xp: xp.sin(a))
    report = selftest.run(backend.device, TANH)
    assert groups(report) == {"NumPy's functions"}


RULES = {  # of tanh, and the groups in which they are found on a device
    "off by 0.001": (lambda xp, g, y, *_: g * (1 - y * y) * 1.001, {"NumPy's functions"}),
    "without the cotangent": (lambda xp, g, y, *_: 1 - y * y + 0 * g, {"NumPy's functions"}),
    "no array": (lambda xp, g, y, *_: None, {"values"}),
    "of another shape": (lambda xp, g, y, *_: xp.concatenate([xp.ravel(g), xp.ravel(g)]), {"values"}),
    "raises": (lambda xp, g, y, *_: g.no_such_attribute, {"values"}),
}


@pytest.mark.parametrize("name", RULES)
def test_a_wrong_rule_is_found(backend, monkeypatch, name):
    rule, where = RULES[name]
    monkeypatch.setattr(F.tanh.prim, "rules", (rule,))
    report = selftest.run(backend.device, TANH)
    assert names(report) == {"tanh(a)"}
    assert where <= groups(report)


def test_a_rule_that_is_wrong_on_the_device_alone_is_found(device, monkeypatch):
    def first(xp, g, y, *_):
        return g * (1 - y * y) * (1 if isinstance(y, (Tensor, np.ndarray)) else 1.001)

    def second(xp, g, y, *_):
        y = y.detach() if isinstance(y, Tensor) and y.device != "cpu" else y
        return g * (1 - y * y)

    for rule, where in ((first, {"gradients", "second order", "NumPy's functions"}), (second, {"second order"})):
        with monkeypatch.context() as patch:
            patch.setattr(F.tanh.prim, "rules", (rule,))
            assert groups(selftest.run(device, TANH)) == where


@pytest.mark.parametrize(("name", "text"), [("divide", "{} / {} * (T)1.01"), ("sqrt", "sqrt({}) + c0")])
def test_a_wrong_kernel_of_an_optimizer_is_found(device, monkeypatch, name, text):
    if device == "strict":  # it reads less of C
        text = {"divide": "{} / {} * 1.01", "sqrt": "sqrt({}) + c0"}[name]
    monkeypatch.setitem(arrays._C, name, text)
    report = selftest.run(device, ["Adam", "SGD"])
    assert {"Adam", "AdamW", "Adam, weight decay"} <= names(report) < {check.name for check in selftest.checks()}
    assert "optimizers" in groups(report)
    assert not any("SGD" in name for name in names(report))


def wrong_batches(patch):
    right = training_module.Training._chunks

    def chunks(self, order):
        return right(self, order if self.device == "cpu" else order[::-1].copy())

    patch.setattr(training_module.Training, "_chunks", chunks)


def wrong_move(patch):
    right = nn.Module.to

    def to(self, device):
        right(self, device)
        if device != "cpu":
            self.flat[:1] += 1
        return self

    patch.setattr(nn.Module, "to", to)


def wrong_upload(patch):
    right = arrays.from_host
    patch.setattr(arrays, "from_host", lambda a, like: right(a, like) if isinstance(like, np.ndarray) else 0 * like)


def wrong_file(patch):
    right = serialize.save

    def save(path, model):
        model.flat[:1] = 7
        right(path, model)

    patch.setattr(serialize, "save", save)


def unchecked_labels(patch):
    patch.setattr(arrays, "check_labels", lambda labels, classes: None)


ELSEWHERE = {  # the mistake, what runs, where it is found
    "batches in another order": (wrong_batches, "training", "training"),
    "weights that change when they move": (wrong_move, "training", "training"),
    "weights that differ": (wrong_move, "a seed", "random numbers"),
    "masks that differ": (wrong_upload, "a seed", "random numbers"),
    "a file that differs": (wrong_file, "load", "files"),
    "a label that is not checked": (unchecked_labels, "out of range", "indices"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_mistakes_elsewhere_are_found(device, monkeypatch, name):
    mistake, text, group = ELSEWHERE[name]
    with monkeypatch.context() as patch:
        mistake(patch)
        assert groups(selftest.run(device, [text])) == {group}


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_an_index_that_wraps_is_found(backend, monkeypatch):
    right = arrays.index

    def unchecked(value, a):
        if isinstance(a, np.ndarray):
            return right(value, a)
        parts = (np.asarray(part) if isinstance(part, list) else part for part in value)
        return tuple(arrays.place(part, a) for part in parts)

    monkeypatch.setattr(arrays, "index", unchecked)
    found = selftest.run(backend.device, ["out of range"]).failures
    assert {result.problem for result in found} == {"no IndexError"}
    assert {"t[[0, 3]]", "t[array([-4])]", "t[:, [4]]"} <= {result.what for result in found}


def test_a_row_that_cannot_even_begin_is_a_failure(monkeypatch):
    def samples(rng):
        raise ZeroDivisionError("nothing there")

    monkeypatch.setattr(selftest, "OPS", [Op("none", lambda xp, a: a, samples), *OPS[:2]])
    report = selftest.run("cpu", [row.name for row in selftest.OPS])
    assert [str(result) for result in report.failures] == ["none: ZeroDivisionError: nothing there"]
    assert report.done >= 3


# ---- emulated devices ---------------------------------------------------------------------------------------------

TIME = re.compile(r"\d\s?(s|ms|us|sec|seconds|min)\b")


def test_an_emulated_device_says_so_and_reports_no_time(device):
    report = selftest.run(device, FEW)
    text = str(report)
    assert report.emulated
    assert text.startswith("EMULATED: ")
    assert "No GPU has computed this, and no time is that of a GPU." in text.splitlines()[0]
    block = text[text.index("```text") :]
    assert block.splitlines()[1] == text.splitlines()[0]
    assert re.search(r"^time: +not reported, emulated$", block, re.M)
    assert not TIME.search(text)
    found = report.to_json()
    assert found["emulated"] is True
    assert found["note"].startswith("EMULATED: ")
    assert found["seconds"] is None


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_a_device_that_is_not_emulated_reports_the_time_of_the_run(backend, monkeypatch):
    monkeypatch.setattr(gpu, "PRETEND", "the name of another device")
    report = selftest.run("gpu", TANH)
    assert not report.emulated
    assert "EMULATED" not in str(report)
    assert re.search(r"^time: +\d+\.\d s$", str(report), re.M)
    assert report.to_json()["seconds"] > 0


def test_the_cpu_says_that_it_is_numpy_against_itself():
    text = str(selftest.run("cpu", TANH))
    assert text.startswith("On the CPU this holds NumPy to itself: ")
    assert re.search(r"^time: +\d+\.\d s$", text, re.M)


def test_auto_says_why_it_took_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "probe", lambda number=0: gpu.Probe("missing", "CuPy is not installed"))
    report = selftest.run("auto", TANH)
    assert report.device == "cpu"
    assert report.note.endswith(" from differences. There is no GPU: CuPy is not installed.")


CANNOT = {"strict": strict.Unmodelled("no tanh here"), "gpu": ImportError("the pretend GPU: no tanh here")}


def test_what_an_emulated_device_cannot_run_is_listed_and_is_no_failure(backend, plant):
    if backend.device == "cpu":
        plant(backend, raising(CANNOT["strict"]))
        assert names(selftest.run("cpu", TANH)) == {"tanh(a)"}, "NumPy emulates nothing"
        return
    plant(backend, raising(CANNOT[backend.device]))
    report = selftest.run(backend.device, TANH)
    assert report.ok
    assert list(report.cannot) == ["tanh(a)"]
    assert re.search(r"^cannot run here \(1\):\n  tanh\(a\): .*no tanh here$", str(report), re.M)
    assert report.to_json()["cannot"] == report.cannot


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_what_a_real_device_cannot_run_is_a_failure(backend, plant, monkeypatch):
    monkeypatch.setattr(gpu, "PRETEND", "the name of another device")
    plant(backend, raising(CANNOT["gpu"]))
    report = selftest.run("gpu", TANH)
    assert names(report) == {"tanh(a)"}
    assert not report.cannot


# ---- the report ---------------------------------------------------------------------------------------------------


def test_the_block_has_what_a_bug_report_needs(device, monkeypatch):
    monkeypatch.setenv("CUPY_TF32", "1")
    report = selftest.run(device, (*FEW, "exp(a)"), seed=7)
    lines = str(report).splitlines()
    block = lines[lines.index("```text") + 1 : -1]
    assert lines[-1] == "```"
    facts = dict(re.split(": +", line, maxsplit=1) for line in block if re.match("[a-z][-\\w ]+: ", line))
    assert facts["selftest"] == shlex.join([*FEW, "exp(a)", "--device", device, "--seed", "7"])
    assert facts["result"] == "all that ran agrees with NumPy"
    assert facts["checks"] == f"{report.planned} of {report.planned}; 0 failures, 0 cannot run here"
    assert facts["numpy"] == np.__version__
    assert facts.keys() >= {"tinygrad-mnist", "python", "platform", "device"}
    worst = block[block.index("worst errors, as multiples of what is allowed:") + 1 :]
    assert len(worst) == 10
    ratios = [float(line.split()[0]) for line in worst]
    assert ratios == sorted(ratios, reverse=True)
    if device == "gpu":
        assert facts.keys() >= {"cupy", "driver", "compute capability", "memory"}
        assert facts["device"] == pretend_gpu.DEVICE_NAME
        assert "CUPY_TF32:          1" in block


def test_failures_come_first_with_name_dtype_shapes_error_and_allowed(device, plant):
    plant(DeviceBackend("there", device), KERNELS["another function"][0])
    report = selftest.run(device, TANH)
    lines = str(report).splitlines()[2:]
    assert lines[0].startswith(f"FAILED ({len(report.failures)}); errors are relative to the largest magnitude")
    assert re.fullmatch(r"  tanh\(a\): float64 result on \(.*\): error \d\.\de[-+]\d\d, allowed \d\.\de-1\d", lines[1])
    assert re.search(r"^result: +FAILED$", "\n".join(lines), re.M)
    assert sum(line.startswith("failed: tanh(a): ") for line in lines) == len(report.failures)
    table = next(line for line in lines if line.startswith("values  "))
    assert float(table.split()[2]) > 1
    assert (table.split()[1], table.split()[-1]) == (str(ROWS), "1")


def report_of(*results):
    report = Report("gpu", (), 0, {}, "", False, 1)
    for result in results:
        report.add(result)
    return report


def test_many_failures_are_cut_off_in_print_alone():
    report = report_of(*(Result("values", f"row {i}", problem="wrong") for i in range(30)))
    assert str(report).count("  row ") == selftest.SHOWN
    assert "  and 10 more, which --json lists\n" in str(report)
    assert len(report.to_json()["failures"]) == 30


def test_of_each_name_the_worst_result_is_kept():
    fine, worse, bad, worst, nan = (
        Result("values", "row", f"{error}", "float32", error, 1.0) for error in (0.1, 0.5, 2.0, 3.0, np.nan)
    )
    for results, kept in (
        ((fine, worse), worse),
        ((worse, fine), worse),
        ((worse, bad, fine), bad),
        ((worst, bad), worst),
        ((worst, nan), nan),
    ):
        assert list(report_of(*results).results.values()) == [kept]
    raised = Result("values", "row", "", "float32", problem="raised")
    assert report_of(worse, raised).failures == [raised]
    assert report_of(raised, worse).failures == [raised]


def test_json_is_json_whatever_was_found(device, plant):
    plant(DeviceBackend("there", device), KERNELS["one element is NaN"][0])
    found = json.loads(json.dumps(selftest.run(device, TANH).to_json(), allow_nan=False))
    assert found["ok"] is False
    assert (found["device"], found["planned"], found["done"], found["interrupted"]) == (device, ROWS, ROWS, False)
    failure = found["failures"][0]
    assert (failure["group"], failure["name"], failure["dtype"]) == ("values", "tanh(a)", "float64")
    assert failure["error"] is None
    assert 0 < failure["allowed"] < 1e-12
    values = next(group for group in found["groups"] if group["group"] == "values")
    assert (values["rows"], values["failed"], values["worst"]["float64"]) == (ROWS, 1, None)
    assert {entry["name"] for entry in found["operations"]} >= {"tanh(a)", "arctanh(a)"}


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys):
    """Runs the command: (exit code, stdout, stderr)."""

    def command(*arguments):
        code = cli.run(["selftest", *arguments])
        return code, *capsys.readouterr()

    return command


def test_the_command_prints_the_report_and_its_progress(command, device):
    code, out, err = command(*FEW, "--device", device, "--seed", "3")
    assert code == 0
    assert out.startswith("EMULATED: ")
    assert out.endswith("\n```\n")
    assert f" --device {device} --seed 3\n" in out
    assert re.fullmatch(r"(selftest: \d+ of (\d+) checks\n){3,10}", err)
    assert not TIME.search(out + err)


def test_the_command_as_json(command, device):
    code, out, _ = command("tanh(a)", "--device", device, "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True


def test_a_difference_is_exit_code_1(command, device, plant):
    plant(DeviceBackend("there", device), KERNELS["another function"][0])
    assert command("tanh(a)", "--device", device)[0] == 1
    code, out, _ = command("tanh(a)", "--device", device, "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "gpu:99"), "--device gpu:99: "),
        (("--device", "tpu"), "--device must be cpu, gpu, gpu:N or auto, got 'tpu'"),
        (("no such", "nor this"), "no check has 'no such' or 'nor this' in its name, such as 'matmul' or 'Adam'"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
    ],
)
def test_what_cannot_be_tested_is_one_line_and_exit_code_2(command, arguments, message):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"tinygrad-mnist: {message}")
    assert err.count("\n") == 1


def test_without_a_gpu_one_line_says_what_is_missing(command, monkeypatch):
    monkeypatch.setattr(gpu, "probe", lambda number=0: gpu.Probe("missing", "CuPy is not installed", "install it"))
    assert command("--device", "gpu") == (
        2, "", "tinygrad-mnist: --device gpu: CuPy is not installed: install it\n"
    )  # fmt: skip


def test_ctrl_c_prints_what_was_found_and_is_exit_code_130(command, device, plant):
    plant(DeviceBackend("there", device), raising(KeyboardInterrupt()))
    code, out, _ = command("exp(a)", "tanh(a)", "--device", device)
    assert code == 130
    assert re.search(r"^result: +interrupted$", out, re.M)
    found = re.search(r"^checks: +(\d+) of (\d+); 0 failures", out, re.M)
    assert 0 < int(found[1]) < int(found[2])
    assert "exp(a): float" in out


def test_a_terminal_shows_a_bar(command, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    code, out, err = command("tanh(a)", "--device", "strict")
    assert code == 0
    assert "\x1b[2K" in err
    assert f"1/{ROWS}" in err
    assert "arctanh(a)" in err
    assert "\x1b" not in out
    assert not TIME.search(err)


@pytest.mark.parametrize("backend", ["cupy-pretend"], indirect=True)
def test_it_runs_on_the_pretend_gpu_from_the_shell(backend):
    root = Path(__file__).parent.parent
    line = [sys.executable, "tests/pretend_gpu", "-m", "tinygrad_mnist", "selftest", "a @ b", "--device", "gpu"]
    answer = subprocess.run(line, capture_output=True, text=True, check=False, cwd=root)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("EMULATED: CuPy on a pretend device, whose kernels run on the CPU.")
    assert pretend_gpu.DEVICE_NAME in answer.stdout
