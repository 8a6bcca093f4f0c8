"""The benchmark: what it accepts, refuses, says and writes. No test looks at how long something took."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from tinygrad_mnist import arrays, gpu
from tinygrad_mnist.bench import cli, compare, growth, measure, report, tools, works
from tinygrad_mnist.bench.tools import REFERENCE, TOOLS

TINY = works.Work("tiny", (784, 8, 10), 4, 30, 0.1, rows=64)


def losses_of(name, work=TINY):
    return measure.Server(name).ask("losses", work=asdict(works.checked(work)))["losses"]


def report_of(times, floor=1e-3):
    """A report of one row, with tools that have these samples."""
    entries = {
        name: {"samples": samples, "note": "", "threads": 1, "steps": 3, "ours": name.startswith("num")}
        for name, samples in {**times, compare.FLOOR: [floor] * 5, "peer": []}.items()
    }
    entries["peer"]["note"] = "peer is not installed: <b>pip</b> install it"
    row = {"key": "tiny", "title": TINY.title, "work": asdict(TINY), "tools": entries}
    measure.with_bars(row, [works.Bar("jax", 0.5), works.Bar("seconds", 99.0), works.Bar("torch", 1.0)])
    return {"provenance": report.provenance(options={}), "rows": [row], "growth": None}


STEADY = [0.010, 0.0101, 0.0102, 0.0099, 0.0100]
TWO = {"numpy eager": STEADY, "jax scan": [t / 2.5 for t in STEADY]}


@pytest.fixture(scope="module")
def full():
    """A report with every part, of figures that were made up."""
    found = report_of(TWO)
    x = list(growth.SWEEPS["batch"].works)
    lines = {name: {"x": x, "seconds": [k * 1e-6 * n for n in x], "samples": [], "note": "", "exponent": 1.0}
             for k, name in enumerate(("numpy eager", compare.FLOOR, "cupy eager"), start=1)}
    sweep = {"title": "Batch", "unit": "rows", "threads": [1, 2], "tools": lines, "crossing": 300.0}
    return {**found, "growth": {"batch": sweep}}


# ---- the check before a time


def test_the_same_problem_is_drawn_for_every_tool():
    one, other = works.problem(TINY), works.problem(TINY)
    assert one.order.tobytes() == other.order.tobytes()
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(one.weights, other.weights, strict=True))
    assert one.x.dtype == np.float32
    assert works.problem(works.checked(TINY)).x.dtype == np.float64


@pytest.mark.parametrize("key", works.WORKS)
def test_a_check_is_small_and_in_float64(key):
    work = works.checked(works.WORKS[key])
    assert work.dtype == "float64"
    assert work.batch * work.steps <= 512 * works.CHECK_STEPS
    order = works.problem(replace(work, dtype="float32")).order
    assert order.shape == (works.CHECK_STEPS, work.batch)


def wrong_rate(p):
    return TOOLS[REFERENCE].make(p._replace(work=replace(p.work, lr=p.work.lr * 1.001)))


def wrong_order(p):
    runner = TOOLS[REFERENCE].make(p)
    return tools.Runner(lambda order: runner.run(order[::-1]))


def wrong_weights(p):
    (weight, bias), *rest = p.weights
    return TOOLS[REFERENCE].make(p._replace(weights=[(weight * 1.0001, bias), *rest]))


def no_number(p):
    return tools.Runner(lambda order: np.full(len(order), np.nan))


@pytest.mark.parametrize("wrong", [wrong_rate, wrong_order, wrong_weights, no_number])
def test_a_planted_wrong_tool_gets_no_time(monkeypatch, wrong):
    monkeypatch.setitem(TOOLS, "wrong", tools.Tool(wrong))
    with pytest.raises(measure.ToolError, match="not timed: in 20 steps its losses differ by .* from numpy eager"):
        measure.agreement(TINY, "wrong", measure.Server("wrong").ask, losses_of(REFERENCE))


SLOW_TO_START = [pytest.param(name, marks=pytest.mark.slow) for name in ("mygrad", "jax jit", "torch compile")]


@pytest.mark.parametrize("name", ["torch eager", "jax scan", "autograd", *SLOW_TO_START])
def test_peers_compute_the_same(name):
    pytest.importorskip(name.partition(" ")[0])
    with measure.Worker(name) as worker:  # a process of its own: float64 is a setting of JAX's whole process
        for work in (replace(TINY, optimizer="adam"), replace(works.NOTEBOOK, sizes=(784, 8, 10))):
            difference = measure.agreement(work, name, worker.ask, losses_of(REFERENCE, work))
            assert difference is not None
            assert difference <= measure.TOLERANCE


def test_a_tool_that_is_not_installed_says_how_to_install_it():
    with pytest.raises(tools.Unavailable, match=r"nowhere is not installed: pip install 'tinygrad-mnist\[bench\]'"):
        tools.library("nowhere.at.all")


def test_a_process_that_ends_or_takes_too_long_is_a_note_and_no_end():
    with measure.Worker(REFERENCE) as worker:
        with pytest.raises(measure.ToolError, match="failed: AttributeError"):
            worker.ask("nothing")
        with pytest.raises(measure.ToolError, match="given up after 0 s"):
            worker.ask("losses", timeout=0.001, work=asdict(TINY))
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(measure.ToolError, match="failed: its process"):
            worker.ask("sample")


def test_a_row_is_measured(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0)
    monkeypatch.setattr(measure, "THREADS", (1,))
    said = []
    row = measure.measure(TINY, [REFERENCE, compare.FLOOR, "cupy eager"], 2, 0.01, said.append)
    assert [len(row["tools"][name]["samples"]) for name in (REFERENCE, compare.FLOOR)] == [2, 2]
    assert row["tools"][REFERENCE]["difference"] == 0
    assert row["tools"][REFERENCE]["peak_bytes"] > 2**24
    assert row["tools"]["cupy eager"]["note"]
    assert "repeat 2 of 2" in said[-1]


# ---- GPU rows


def test_gpu_rows_are_refused_on_what_only_stands_for_one(monkeypatch):
    from tinygrad_mnist.testing import strict

    arrays.register("strict", strict.xp)
    assert tools.gpu_refusal("strict") == "strict is emulated here: its times are not those of a GPU"
    monkeypatch.setattr(gpu, "probe", lambda: gpu.Probe())
    monkeypatch.setattr(gpu, "emulated", lambda device: True)
    for name in ("cupy eager", "cupy program"):
        with pytest.raises(tools.Unavailable, match="emulated"):
            TOOLS[name].make(works.problem(TINY))


def test_gpu_rows_say_what_to_do_where_there_is_none(monkeypatch):
    monkeypatch.setattr(gpu, "probe", lambda: gpu.Probe("missing", "CuPy is not installed"))
    assert tools.gpu_refusal() == tools.NO_GPU


# ---- compare


def test_the_same_samples_are_no_difference():
    lines = compare.compare(report_of(TWO), report_of(TWO))
    assert {line["tool"]: line["verdict"] for line in lines} == dict.fromkeys([*TWO, compare.FLOOR], "no difference")


def test_a_planted_slowdown_is_found_and_so_is_its_repair():
    slow = report_of({**TWO, "numpy eager": [1.1 * t for t in STEADY]})
    there, back = (compare.compare(*pair)[0] for pair in ((report_of(TWO), slow), (slow, report_of(TWO))))
    assert (there["tool"], there["verdict"], back["verdict"]) == ("numpy eager", "slower", "faster")
    assert there["low"] < 1.1 < there["high"]


def test_a_slower_hour_is_no_slowdown_to_the_floor():
    hour = report_of({name: [1.5 * t for t in samples] for name, samples in TWO.items()}, floor=1.5e-3)
    assert {line["verdict"] for line in compare.compare(report_of(TWO), hour)} == {"slower"}
    assert {line["verdict"] for line in compare.compare(report_of(TWO), hour, to_floor=True)} == {"no difference"}


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        a, b = rng.lognormal(0, 0.1, (2, 9))
        _, low, high = compare.ratio(a, b)
        covered += low <= 1 <= high
    assert covered >= 34


# ---- growth


def test_exponents_and_crossing_of_known_laws():
    x = [1, 10, 100, 1000, 10_000]
    assert growth.exponent(x, [3e-6 * n**1.5 for n in x]) == pytest.approx(1.5)
    assert growth.exponent(x[:3], x[:3]) is None
    cpu, device = ({"x": x, "seconds": seconds} for seconds in ([1e-6 * n for n in x], [3e-4] * 5))
    assert growth.crossing({"numpy eager": cpu, "cupy eager": device, "torch eager": device}) == pytest.approx(300)
    assert growth.crossing({"numpy eager": cpu}) is None
    assert growth.crossing({"numpy eager": device, "cupy eager": cpu}) == 1


@pytest.mark.parametrize("key", growth.SWEEPS)
def test_a_sweep_ends_in_finite_losses(key):
    work = list(growth.SWEEPS[key].works.values())[3]
    assert np.isfinite(losses_of(REFERENCE, replace(work, rows=512))).all()


# ---- what is shown and written


def test_bars_are_judged_in_the_row():
    met, absolute, missing = report_of(TWO)["rows"][0]["bars"]
    assert (met["tool"], met["other"], met["met"]) == ("numpy eager", "jax scan", False)
    assert met["interval"][0] < met["value"] < met["interval"][1]
    assert met["value"] == pytest.approx(2.5, rel=0.02)
    assert absolute["value"] == pytest.approx(0.010 * TINY.steps)
    assert missing["met"] is None


def test_a_table_has_the_fastest_tool_first_and_says_why_one_has_no_time():
    row = report_of(TWO)["rows"][0]
    heads, *lines = report.cells(row)
    assert [line[0] for line in lines] == [compare.FLOOR, "jax scan", "numpy eager"]
    assert report.untimed(row) == ["peer: peer is not installed: <b>pip</b> install it"]
    assert dict(zip(heads, lines[1], strict=True))["x bare"] == "4.00"


@pytest.mark.parametrize(("value", "text"), [(2.5, "2.5 s"), (0.01234, "12.3 ms"), (0.9999e-3, "1 ms"),
                                             (6.2e-6, "6.2 us"), (1234.0, "1234 s"), (3e-8, "0.03 us")])
def test_times_are_in_the_unit_that_suits_them(value, text):
    assert report.seconds(value) == text


def test_provenance_says_where_it_was_and_names_no_path():
    facts = report.provenance(options={"rows": ["adam128"]})
    assert {"date", "commit", "cpu", "cores", "memory_bytes", "load", "threads", "gpu", "blas", "python", "os",
            "versions", "options"} <= facts.keys()
    assert {"numpy", "tinygrad-mnist"} <= facts["versions"].keys()
    assert "message" in facts["gpu"]
    assert not re.search(r'"/\w+/', json.dumps(facts))


def test_the_page_needs_nothing_else(tmp_path, full):
    report.save(full, tmp_path)
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["bench.html", "bench.json", "bench.md", "growth-batch.png", "row-tiny.png"]
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")) == json.loads(json.dumps(full))
    assert not re.search(r"https?://|<script|<link|url\(|@import", page)
    assert re.findall(r'src="([^,"]*)', page) == ["data:image/png;base64"] * 2
    assert '<meta name="viewport"' in page
    assert "&lt;b&gt;pip" in page  # what a tool says is text, not markup


# ---- the command


def test_compare_command(tmp_path, capsys):
    for name, times in (("a", TWO), ("b", {**TWO, "numpy eager": [2 * t for t in STEADY]})):
        (tmp_path / f"{name}.json").write_text(json.dumps(report_of(times)))
    cli.compare(tmp_path / "a.json", tmp_path / "b.json")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if "numpy eager" in line] == ["slower"]
    cli.compare(tmp_path / "a.json", tmp_path / "b.json", as_json=True)
    assert json.loads(capsys.readouterr().out)["caveats"] == []
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json is no bench\.json"):
        cli.compare(tmp_path / "a.json", tmp_path / "b.json")


@pytest.mark.parametrize(("options", "message"), [({"rows": "adam"}, "--rows: 'adam' is none of adam128"),
                                                  ({"only": "torch"}, "--tools: 'torch' is none of numpy eager")])
def test_unknown_rows_and_tools_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cli.run(**options)


def test_the_command_has_the_rows_that_there_are():
    assert {*cli.ROWS} == {*works.WORKS, "train", "capture"}
    assert {*growth.TOOLS} <= {*TOOLS}


@pytest.mark.parametrize("arguments", [["--rows", "no"], ["run", "--rows", "no"]])
def test_run_is_the_default_command(arguments):
    from typer.testing import CliRunner

    done = CliRunner().invoke(cli.app, arguments)
    assert isinstance(done.exception, ValueError)
