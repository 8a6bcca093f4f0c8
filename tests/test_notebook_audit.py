"""The notebooks beside the truth: the audit of what they derived by hand, `explain --notebook`, and the page."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from tinygrad_mnist import cli, notebooks
from tinygrad_mnist.notebooks import audits, beside, page, results
from tinygrad_mnist.notebooks.audits import LOSS, REPORTED
from tinygrad_mnist.notebooks.loops import Line

WIDE, NARROW = 160, 80
DEEP = {f"{kind}{k}" for kind in "Wb" for k in (1, 2, 3, 4)}
RIGHT = {  # parameters whose gradient is that of the cost, and quantities whose own lines are wrong
    ("A", LOSS, ""): ({"W1", "W2", "W3", "W4"}, []),
    ("A'", LOSS, ""): (set(), ["Z4"]),
    ("A'", REPORTED, ""): (set(), ["Z4"]),
    ("B", LOSS, ""): ({"W1", "b1", "W2", "b2"}, []),
    ("C", LOSS, ""): (set(), ["z3", "z2"]),
    ("D", LOSS, "sigmoid"): ({"W4", "b4"}, ["Z3", "Z2", "Z1"]),
    ("D", REPORTED, "sigmoid"): (set(), ["Z4", "Z3", "Z2", "Z1"]),
    ("D", LOSS, "tanh"): ({"W4", "b4"}, ["Z3", "Z2", "Z1"]),
    ("D", REPORTED, "tanh"): (set(), ["Z4", "Z3", "Z2", "Z1"]),
    ("D", LOSS, "relu"): (DEEP, []),
    ("D", REPORTED, "relu"): (set(), ["Z4"]),
    ("E", LOSS, ""): ({"W1", "b1", "W2", "b2", "W3", "b3"}, []),
}


@pytest.fixture(scope="module")
def audited():
    """Those of all notebooks, which take seconds."""
    pytest.importorskip("sklearn")
    return audits.all_audits()


@pytest.fixture
def run(audited, capsys, monkeypatch, tmp_path):
    """Runs a command: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audits, "audits", lambda notebook: audited[notebook.letter])

    def run(*arguments):
        code = cli.run([*map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def report(audited, letter, cost=LOSS, variant=""):
    (found,) = [one.report for one in audited[letter] if (one.cost, one.variant) == (cost, variant)]
    return found


# ---- what is right, and where it goes wrong


def test_every_gradient_derived_by_hand_is_judged(audited):
    found = {(letter, one.cost, one.variant): one.report for letter, several in audited.items() for one in several}
    assert found.keys() == RIGHT.keys()
    for key, (right, wrong) in RIGHT.items():
        claims = [claim for claim in found[key].claims if claim.kind == "parameter"]
        assert {claim.name for claim in claims if claim.ok} == right, key
        assert found[key].wrong == wrong, key
        assert {claim.verdict for claim in claims} <= {"pass", "fail"}, key
        assert found[key].numeric.verdict == "pass", key


SENTENCES = {
    ("A'", ""): "`E = 0; E = E + (Z4 - y); E = E / X.shape[1]` has shape (10, 1); Z4 has (10, 32), and so has",
    ("C", ""): "`delta3 = q / 10` with `q = softmax(a3); q = np.where(q == np.sum(q * y), q - 1, q)` is not the",
    ("D", "tanh"): "`dZ3 = np.dot(W4.T, dZ4) * d(A3)` is not the gradient by Z3: ",
}


@pytest.mark.parametrize(("letter", "variant"), SENTENCES)
def test_a_sentence_names_the_first_wrong_line(audited, letter, variant):
    first = report(audited, letter, variant=variant).sentences[0]
    assert SENTENCES[letter, variant] in first
    number = int(re.match(r"line (\d+): `", first)[1])
    module = notebooks.load(letter).backward.__code__.co_filename
    with open(module, encoding="utf-8") as file:
        line = file.read().splitlines()[number - 1].strip()
    assert f"`{line}" in first


def test_pitfalls_are_found(audited):
    def pitfalls(*which):
        return "\n".join(report(audited, *which).pitfalls)

    assert "`if False:` is never run: what it checks is switched off" in pitfalls("C")
    for which in (("E",), ("D", LOSS, "sigmoid"), ("D", LOSS, "tanh"), ("D", LOSS, "relu")):
        assert "X: trained on 0..1, tested on 0..255" in pitfalls(*which)
    assert re.search(r"overflow in tanh, .*, on what it was tested on", pitfalls("D", LOSS, "tanh"))
    assert re.search(r"overflow in forward, .*`A4 = np.exp\(Z4\).*, on what it was", pitfalls("D", LOSS, "relu"))
    assert not [*report(audited, "A").pitfalls, *report(audited, "B").pitfalls]


# ---- the command audit


def test_audit_prints_a_row_for_each_parameter_and_what_there_is_to_say(run, audited):
    code, out, err = run("notebooks", "audit", "C")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "C. digits-relu-softmax, gradient of the loss: fail"
    assert lines[1].split() == ["gradient", "by", "verdict", "error", "cosine", "factor"]
    verdicts = [line.split()[:2] for line in lines[2:8]]
    assert verdicts == [[name, "fail"] for name in ("W3", "b3", "W2", "b2", "W1", "b1")]
    assert all(remark in lines for remark in report(audited, "C").remarks)
    assert re.fullmatch(r"C +digits-relu-softmax +loss +0 of 6 +[\d.]+ +[\d.]+ +z3, z2", lines[-1])


def test_audit_of_all_ends_in_a_summary(run):
    code, out, _ = run("notebooks", "audit")
    assert code == 0
    summary = out.splitlines()[-len(RIGHT) - 2 :]
    assert summary[0].split()[:3] == ["notebook", "gradient", "of"]
    assert [line.split()[0] for line in summary[1:]] == ["A", "A'", "A'", "B", "B'", "C", *"DDDDDD", "E"]
    assert "B'. adam-128-64: Nothing in it is derived by hand: Keras derives it." in out


def test_audit_as_json(run):
    code, out, _ = run("notebooks", "audit", "D", "--json")
    found = json.loads(out)
    assert code == 0
    assert [(one["letter"], one["cost"], one["variant"]) for one in found] == [key for key in RIGHT if key[0] == "D"]
    assert [one["wrong"] for one in found] == [RIGHT[key][1] for key in RIGHT if key[0] == "D"]
    assert json.loads(run("notebooks", "audit", "B'", "--json")[1]) == [{"letter": "B'", "note": audits.NOTHING}]


def test_audit_of_an_unknown_name_is_one_error(run):
    code, out, err = run("notebooks", "audit", "F")
    assert (code, out) == (2, "")
    assert err.startswith("tinygrad-mnist: no notebook is called 'F'; there are sgd-sigmoid-mse (A), ")


# ---- the command explain --notebook


@pytest.mark.parametrize(("letter", "width"), [*((letter, WIDE) for letter in notebooks.MODULES), ("C", NARROW)])
def test_explain_is_the_derived_program_with_what_was_derived_by_hand(run, monkeypatch, audited, letter, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run("explain", "--notebook", letter)
    assert code == 0
    found = notebooks.load(letter)
    weights, samples = audits.point(found)
    programs = out.split("import numpy as np\n")[1:]
    assert len(programs) == len(found.variants)
    for text, options in zip(programs, found.variants.values(), strict=True):
        inputs = *weights.values(), *samples.values(), *options.values()
        space = {"np": np}
        exec(text, space)
        loss, gradients = space["forward_and_gradients"](*inputs)
        assert float(loss) == pytest.approx(float(found.forward(*inputs)))
        assert [g.shape for g in gradients] == [W.shape for W in weights.values()]
    marks = sum(len(one.report.wrong) for one in audited[letter] if one.cost == LOSS)
    assert out.count(beside.MARK) == marks
    assert (audits.NOTHING in out) == (letter == "B'")
    assert ("# by hand: " in out) == (width == NARROW and letter != "B'")
    assert max(len(line) for line in out.splitlines()) <= (WIDE if width == WIDE else 120)


def test_what_was_derived_by_hand_stands_beside_the_line_for_the_same(run):
    lines = run("explain", "--notebook", "B")[1].splitlines()
    for name in ("P", "Z2", "W2", "b2", "H", "Z1", "W1", "b1"):
        (line,) = [line for line in lines if re.match(rf"    d{name} = ", line)]
        assert f"  # d{name} = " in line


def test_explain_writes_a_notebook_for_cupy(run):
    code, out, _ = run("explain", "--notebook", "B", "--cupy")
    assert code == 0
    assert out.startswith("import cupy as cp\n")
    assert "cp.exp(-Z1)" in out


def test_explain_takes_a_file_or_a_notebook(run):
    code, _, err = run("explain", "loss.py:f", "--notebook", "B")
    assert code == 2
    assert err == "tinygrad-mnist: explain takes FILE.py:FUNCTION or --notebook, not both\n"
    assert run("explain", "--notebook", "F")[0] == 2


# ---- the command report

TITLE, NOTE = "tanh, 0.01, by hand", "0.2881 to 0.2950 for 3 seeds, 6000 images"


@pytest.fixture
def trained(monkeypatch):
    """Letters of the notebooks that were run. What they do in a run takes no time."""
    letters = []

    def training(letter, real):
        def train(session):
            letters.append(letter)
            if letter == "B":
                return real(session)  # digits that fill the line
            rng = np.random.default_rng(0)
            session.figure("loss at iteration 1000", 0.2916, 0.29, NOTE)
            session.remark("dense_1 (Dense)  (None, 128)   100480")
            for epoch in (1, 2, 3):
                session.row(TITLE, epoch, train_loss=1 / epoch, test_accuracy=1 - 0.1 / epoch)
            session.compare(TITLE, rng.integers(0, 10, 500), rng.random((10, 500)))

        return train

    for letter, name in notebooks.MODULES.items():
        found = notebooks.load(letter)
        changed = replace(found, run=training(letter, found.run))
        monkeypatch.setattr(f"tinygrad_mnist.notebooks.{name}.NOTEBOOK", changed)
    return letters


def test_the_page_has_everything_and_needs_nothing_else(run, trained, tmp_path):
    code, out, err = run("notebooks", "report", "--quick", "--out", tmp_path / "of")
    assert code == 0, err
    assert out == f"Report: {tmp_path / 'of' / 'notebooks.html'}\n"
    assert trained == [*notebooks.MODULES]
    text = (tmp_path / "of" / "notebooks.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|url\(|@import", text)
    assert re.findall(r'src="([^,"]*)', text) == ["data:image/png;base64"] * 2 * 6
    words = html.unescape(text)
    for letter in notebooks.MODULES:
        assert f"<h2>{html.escape(letter)}. {notebooks.load(letter).name}</h2>" in text
    assert words.count(results.QUICK) == 7
    assert "curves tanh 0.01 by hand" in words
    assert NOTE in words
    assert "`delta3 = q / 10` with `q = softmax(a3);" in words
    assert audits.NOTHING in words


BROKEN = {
    "nothing": lambda folder: shutil.rmtree(folder),
    "no JSON": lambda folder: (folder / "result.json").write_text("{"),
    "no text": lambda folder: (folder / "result.json").write_bytes(b"\xff\xfe\x00"),
    "another JSON": lambda folder: (folder / "result.json").write_text('[{"lines": 3}]'),
    "half a line": lambda folder: edit(folder, lines=[{"what": "loss"}]),
    "interrupted": lambda folder: edit(folder, finished=False),
    "another notebook's": lambda folder: edit(folder, letter="E"),
    "a picture gone": lambda folder: (folder / "confusion-tanh-0.01-by-hand.png").unlink(),
}


def edit(folder, **changes):
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_there_is_taken_and_what_is_broken_is_run_again(run, trained, tmp_path):
    assert run("notebooks", "run", "D", "--out", tmp_path / "D")[0] == 0
    arguments = "notebooks", "report", "--quick", "--out", tmp_path
    for expected in ([letter for letter in notebooks.MODULES if letter != "D"], []):
        trained.clear()
        assert run(*arguments)[0] == 0
        assert trained == expected
    text = (tmp_path / "notebooks.html").read_text(encoding="utf-8")
    assert html.unescape(text).count(results.QUICK) == 6


@pytest.mark.parametrize("how", BROKEN)
def test_broken_results_are_not_read(trained, tmp_path, how):
    found = notebooks.load("D")
    results.train(found, tmp_path / "D", quick=True, device="cpu", seed=0)
    line = Line("loss at iteration 1000", "0.2916", "0.29", "0.995", NOTE)
    assert results.read(found, tmp_path / "D").lines == [line]
    BROKEN[how](tmp_path / "D")
    assert results.read(found, tmp_path / "D") is None


def test_pictures_of_an_earlier_run_are_left_out(trained, tmp_path):
    found = notebooks.load("D")
    results.train(found, tmp_path, quick=True, device="cpu", seed=0)
    for name in ("curves-1000-images.png", "classes.png"):
        (tmp_path / name).write_bytes(b"PNG")
    names = {"curves-tanh-0.01-by-hand.png", "confusion-tanh-0.01-by-hand.png", "classes.png"}
    assert results.read(found, tmp_path).pictures.keys() == names


def test_the_page_fits_a_phone_and_a_screen(audited, trained, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    found = {}
    for letter in notebooks.MODULES:
        of = notebooks.load(letter)
        found[letter] = results.read_or_run(of, tmp_path / letter, quick=True, device="cpu", say=print)
    inner = html.escape(page.page(found, audited))
    frame = '<iframe style="width:{}px;height:800px;border:0" srcdoc="{}"></iframe>'  # no window is narrower than 500
    measured = "[w.innerWidth, w.document.documentElement.scrollWidth, w.document.images.length]"
    (tmp_path / "frames.html").write_text(
        frame.format(390, inner) + frame.format(1200, inner) + '<p id="found"></p><script>onload = () => '
        f'document.getElementById("found").textContent = Array.from(frames).map(w => {measured})</script>',
        encoding="utf-8",
    )
    options = "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"
    command = [browser, *options, f"file://{tmp_path}/frames.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (values,) = re.findall(r'<p id="found">([\d,]+)</p>', done.stdout)
    numbers = [int(value) for value in values.split(",")]
    for width, (inside, needed, pictures) in zip((390, 1200), (numbers[:3], numbers[3:]), strict=True):
        assert inside == width
        assert needed <= inside
        assert pictures == 12
