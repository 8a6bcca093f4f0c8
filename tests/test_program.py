"""The passes over captured programs, each on programs made by hand, and the text that replays them."""

import enum
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compile_programs import INSTRUCTIONS, run

import tinygrad_mnist
from tinygrad_mnist import Tensor, nn, optim
from tinygrad_mnist.capture import record
from tinygrad_mnist.core import F
from tinygrad_mnist.program import (
    Instruction,
    Program,
    Replay,
    Value,
    assign_buffers,
    constant_text,
    eliminate,
    literal,
    naming,
)


def value(kind="result", shape=(2, 3), dtype=float, **options):
    return Value(kind, np.empty(shape, dtype), **options)


def memory(array, **options):
    return Value("memory", array, array=array, **options)


def made(op, *args, shape=(2, 3), root=None, **params):
    """An instruction and its result."""
    out = value(shape=shape, root=root)
    return Instruction(op, args, params, (out,)), out


def into(op, target, *args, **params):
    return Instruction(op, args, params, (), (target,))


def ops(program):
    return [i.op for i in program.instructions]


def replayed(program, *inputs, plan=True):
    return [np.array(a) for a in Replay(program, plan=plan)(*inputs)]


# ---- dead code


def test_dead_code_goes_and_effects_stay():
    x, m, n = value("input"), memory(np.zeros((2, 3))), Value("number")
    labels = value("input", (2,), int)
    dead, a = made("exp", x)
    dead_too, _ = made("add", a, 1)
    live, y = made("tanh", x)
    effects = [
        Instruction("random", (), {"rng": np.random.default_rng(0)}, (value(),)),
        Instruction("check_labels", (labels,), {"call": None, "classes": 3}),
        Instruction("check_mask", (labels,), {"call": None}),
        Instruction("advance", (), {"call": None}, (n,)),
        Instruction("call", (m,), {"call": None}, (value(shape=()),), (m,)),
        into("multiply", m, m, 2),
        into("setitem", m, m, 1, index=(0,)),
        into("assign", m, x),
    ]
    program = eliminate(Program([x, labels], [dead, *effects[:3], dead_too, live, *effects[3:]], [y]))
    assert ops(program) == [*(i.op for i in effects[:3]), "tanh", *(i.op for i in effects[3:])]


def test_what_a_gradient_needs_is_alive():
    x = value("input")
    first, a = made("exp", x)
    assert ops(eliminate(Program([x], [first], [], [("leaf", a)]))) == ["exp"]


# ---- common subexpressions


def test_common_subexpressions_are_computed_once():
    x = value("input")
    pairs = [made("exp", x), made("exp", x)]
    second = [made("add", pairs[0][1], 1), made("add", pairs[1][1], 1)]
    program = eliminate(Program([x], [i for i, _ in (*pairs, *second)], [second[0][1], second[1][1]]))
    assert ops(program) == ["exp", "add"]
    assert program.outputs[0] is program.outputs[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0.0, -0.0), (np.float32(1), np.float64(1)), (np.float32(1), 1.0), (float("nan"), 1.0)],
)
def test_numbers_of_another_type_or_sign_are_another_operand(one, other):
    x = value("input")
    (i, a), (j, b) = made("multiply", x, one), made("multiply", x, other)
    assert len(eliminate(Program([x], [i, j], [a, b])).instructions) == 2


def test_other_parameters_are_another_expression():
    x = value("input")
    (i, a), (j, b) = made("sum", x, axis=0, shape=(3,)), made("sum", x, axis=1, shape=(2,))
    assert len(eliminate(Program([x], [i, j], [a, b])).instructions) == 2


@pytest.mark.parametrize("op", ["random", "advance", "call"])
def test_effects_are_not_merged(op):
    (i, a), (j, b) = made(op, rng=1, call=2), made(op, rng=1, call=2)
    assert len(eliminate(Program([], [i, j], [a, b])).instructions) == 2


def test_memory_read_before_and_after_an_update():
    array = np.ones((2, 3))
    m = memory(array)
    (i, a), (j, b) = made("exp", m), made("exp", m)
    program = eliminate(Program([], [i, into("multiply", m, m, 2), j], [a, b]))
    assert ops(program) == ["exp", "multiply", "exp"]
    before, after = replayed(program)
    np.testing.assert_array_equal(before, np.exp(np.ones((2, 3))))
    np.testing.assert_array_equal(after, np.exp(np.full((2, 3), 2.0)))


def test_memory_updated_through_a_view():
    m = memory(np.ones((2, 3)))
    look, v = made("transpose", m, axes=(1, 0), shape=(3, 2), root=m)
    (i, a), (j, b) = made("exp", m), made("exp", m)
    program = eliminate(Program([], [look, i, into("multiply", v, v, 2), j], [a, b]))
    assert ops(program).count("exp") == 2
    before, after = replayed(program)
    assert before[0, 0] != after[0, 0]


@pytest.mark.parametrize("kinds", [("input", "memory"), ("memory", "input"), ("grad", "memory"), ("input", "other")])
def test_arguments_may_lie_in_the_memory_that_is_updated(kinds):
    read, written = (
        memory(np.ones((2, 3))) if kind == "memory" else value("input" if kind == "other" else kind) for kind in kinds
    )
    (i, a), (j, b) = made("exp", read), made("exp", read)
    inputs = [v for v in (read, written) if v.kind == "input"]
    program = Program(inputs, [i, into("multiply", written, written, 2), j], [a, b])
    assert len(eliminate(program).instructions) == 3


def test_what_is_computed_twice_of_weights_before_their_update_is_computed_once():
    """A view of memory that is written later was taken for another one: a loss beside a gradient derived by hand cost a
    second forward pass."""
    m = memory(np.arange(6.0).reshape(2, 3))
    looks = [made("transpose", m, axes=(1, 0), shape=(3, 2), root=m) for _ in range(3)]
    maps = [made("exp", v, shape=(3, 2)) for _, v in looks]
    (a, _), (b, _), (c, _) = looks
    (i, x), (j, y), (k, z) = maps
    program = eliminate(Program([], [a, i, b, j, into("multiply", m, m, 2), c, k], [x, y, z]))
    assert ops(program) == ["transpose", "exp", "multiply", "transpose", "exp"]
    before, same, after = replayed(program)
    np.testing.assert_array_equal(before, np.exp(np.arange(6.0).reshape(2, 3).T))
    np.testing.assert_array_equal(same, before)
    np.testing.assert_array_equal(after, np.exp(2 * np.arange(6.0).reshape(2, 3).T))


def test_results_written_to_are_not_merged():
    x = value("input")
    (i, a), (j, b) = made("exp", x), made("exp", x)
    program = eliminate(Program([x], [i, j, into("multiply", a, a, 2)], [a, b]))
    assert ops(program) == ["exp", "exp", "multiply"]


def test_copies_of_what_nobody_changes_are_not_made():
    x = value("input")
    first, a = made("exp", x)
    second, b = made("copy", a)
    third, y = made("add", b, 1)
    assert ops(eliminate(Program([x], [first, second, third], [y]))) == ["exp", "add"]
    changed = into("multiply", a, a, 2)
    assert ops(eliminate(Program([x], [first, second, changed, third], [y]))) == ["exp", "copy", "multiply", "add"]
    changed = into("multiply", b, b, 2)
    assert ops(eliminate(Program([x], [first, second, changed, third], [y]))) == ["exp", "copy", "multiply", "add"]


def test_a_gradient_is_no_view_of_an_argument():
    x = value("input")
    look, v = made("transpose", x, axes=(1, 0), shape=(3, 2), root=x)
    keep, g = made("copy", v, shape=(3, 2))
    g.strides = v.strides = (16, 8)
    program = eliminate(Program([x], [look, keep], [], [("leaf", g)]))
    assert ops(program) == ["transpose", "copy"]


def test_products_of_equal_arrays_stay_products_of_two():
    x = value("input")
    (i, a), (j, b) = made("multiply", x, 2), made("multiply", x, 2)
    look, v = made("transpose", b, axes=(1, 0), shape=(3, 2), root=b)
    product, y = made("matmul", v, a, shape=(3, 3))
    program = eliminate(Program([x], [i, j, look, product], [y]))
    assert ops(program) == ["multiply", "multiply", "transpose", "matmul"]
    assert v.root is b
    same, z = made("matmul", v, b, shape=(3, 3))
    assert ops(eliminate(Program([x], [i, j, look, same], [z, a]))) == ["multiply", "transpose", "matmul"]


# ---- constants


def constant(array):
    return Value("constant", array, array=array)


def folds(op, array, *args, **params):
    out = Value("result", array, array=array)
    return Instruction(op, args, params, (out,)), out


def test_constants_are_folded():
    x, c = value("input"), constant(np.arange(6.0).reshape(2, 3))
    first, a = folds("exp", np.exp(c.array), c)
    second, b = folds("transpose", np.exp(c.array).T, a, axes=(1, 0))
    third, y = made("matmul", x, b, shape=(2, 2))
    program = eliminate(Program([x], [first, second, third], [y]))
    assert ops(program) == ["matmul"]
    operand = np.ones((2, 3))
    np.testing.assert_array_equal(replayed(program, operand)[0], operand @ np.exp(c.array).T)


def test_constants_that_are_written_to_are_made_at_every_call():
    x = value("input")
    first, z = folds("fill", np.zeros((2, 3)), 0)
    second, y = folds("add", np.ones((2, 3)), z, 1)
    third, after = folds("add", np.full((2, 3), 7.0), z, 1)
    program = eliminate(Program([x], [first, second, into("add", z, z, x), third], [z, y, after]))
    assert ops(program) == ["fill", "add", "add", "add"]
    replay = Replay(program)
    for k in range(3):
        found = replay(np.full((2, 3), float(k)))
        assert [a[0, 0] for a in found] == [k, 1, k + 1]


# ---- names and literals

NAMES = ["W", "W", "np", "lambda", "grads", "step", "make", "arena0", "scratch1", "kernel1", "slice", "float", "_x",
         "a b", "1x", "é", None, None, "W_2", "x1", "rng", "call", "t1"]  # fmt: skip


def test_names_are_unique_and_do_not_collide():
    values = [Value("memory", np.ones(2), array=np.full(2, k), name=name) for k, name in enumerate(NAMES)]
    x = value("input", (2,), name="x1")
    rows, total = [], x
    for v in values:
        row, total = made("add", total, v, shape=(2,))
        rows.append(row)
    row, total = made("relu", total, shape=(2,))
    program = Program([x], [*rows, row], [total])
    names = naming(program)
    assert len(set(names.values())) == len(names)
    assert names[values[0]] == "W"
    assert names[values[1]] == "W_2"
    assert replayed(program, np.zeros(2))[0].tolist() == [sum(range(len(NAMES)))] * 2


class Colour(enum.IntEnum):
    RED = 3


@pytest.mark.parametrize(
    "written",
    [1, -1, True, 1.5, -0.0, float("inf"), -float("inf"), float("nan"), 1e-300, np.float32(0.1), np.float16(2),
     np.int8(-3), np.bool_(True), np.float64("nan"), (), (1,), (1, (2.0,)), [1, 2], slice(None), slice(1, None, -2),
     ..., None, "ij->i", np.dtype("float32"), np.dtype(bool), np.float32, float, int, bool, Colour.RED],
    ids=repr,
)  # fmt: skip
def test_literals(written):
    read = eval(literal(written), {"np": np})
    if isinstance(written, type):
        assert read == np.dtype(written)
    elif isinstance(written, (np.dtype, enum.Enum)):
        assert read == written
    else:
        assert (type(read), repr(read)) == (type(written), repr(written))


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 0, 3)), np.full((2, 2), 0.1, np.float32), np.array([0.0, -0.0]), np.array([-0.0, 0.0]), np.arange(40),
     np.arange(200, dtype=np.uint8), np.array(2.5), np.array([[1, 2], [3, 4]], np.int8), np.array([True, False]),
     np.full(3, True), np.full(50, np.inf), np.full((1, 1), -0.0, np.float16), np.array([2**63], np.uint64)],
    ids=repr,
)  # fmt: skip
def test_constants_as_text(array):
    read = eval(constant_text(array, "np"), {"np": np})
    assert (read.dtype, read.shape, read.strides, read.tobytes()) == (
        array.dtype, array.shape, array.strides, array.tobytes()
    )  # fmt: skip


@pytest.mark.parametrize(
    "array", [np.arange(50.0), np.array([np.nan, 1]), np.full(3, np.nan), np.ones((2, 3)).T, np.ones((4, 4))[::2]]
)
def test_constants_that_are_given(array):
    assert constant_text(array, "np") is None


# ---- buffers


def check_buffers(program, planned=True):
    """No two values lie in the same bytes while both are needed, by a count of lifetimes of its own."""
    steps = program.instructions
    arena, arenas, inside = assign_buffers(program, steps, planned)
    birth, death = {}, {}
    for k, i in enumerate(steps):
        for v in i.outs:
            birth.setdefault(v.root, k)
        for v in (*i.operands(), *i.outs, *i.writes):
            death[v.root] = k
    for v in program.outputs:
        death[v.root] = len(steps)
    for _, v in program.grads:
        death[v.root] = len(steps)
        if v.root in arena:
            birth[v.root] = -1  # of the call before
    own = [v for v in arena if v.kind == "result" and not v.is_view and v in birth]
    assert set(own) == {v for i in steps for v in i.outs if v.kind == "result" and not v.is_view}
    parts = {}
    for v in own:
        whole, offset = inside.get(v, (v, 0))
        assert offset + v.nbytes <= arenas[arena[v]].size
        parts[v] = arena[v], offset, offset + v.nbytes
        if whole is not v:
            assert arena[whole] == arena[v]
    for v in own:
        for w in own:
            (a, start, end), (b, low, high) = parts[v], parts[w]
            if v is w or a != b or end <= low or high <= start or birth[v] > birth[w]:
                continue
            if inside.get(v, (None,))[0] is w:  # made where it is joined: no later than that is it read once w changes
                changed = any(w is x.root for i in steps for x in i.writes)
                assert not changed or death[v] <= birth[w]
                continue
            if death[v] < birth[w]:
                continue
            i = steps[birth[w]]  # else v dies in the making of w, in its place
            assert death[v] == birth[w], (i.op, v, w)
            assert i.outs == (w,)
            assert (start, end, v.shape, v.strides, v.dtype) == (low, high, w.shape, w.strides, w.dtype)
            assert hasattr(np, i.op) or i.op == "relu"
            assert all(x is v or x.root is not v for x in i.operands())
            assert i.op not in ("matmul", "where", "sum", "concatenate", "take", "copy")
    return sum(arena.size for arena in arenas)


@given(INSTRUCTIONS, st.sampled_from([1, 3]), st.integers(0, 99))
def test_buffers_of_random_programs(drawn, n, seed):
    rng = np.random.default_rng(seed)
    w, held = Tensor(rng.normal(size=(n, 3)), requires_grad=True), Tensor(rng.normal(size=(n, 3)))
    f = run(drawn, w, held, rng)
    with np.errstate(all="ignore"):
        try:
            captured, _ = record(f, (Tensor(rng.normal(size=(n, 3))), rng.normal(size=3), rng.integers(0, n, n)), {})
        except RuntimeError as error:
            if "was changed in place" not in str(error):
                raise
            return
    program = eliminate(captured.program)
    assert check_buffers(program) <= check_buffers(program, planned=False)


def chain(*last):
    """exp(x) + 1, negated, and the values on the way."""
    x = value("input")
    (i, a), (j, b) = made("exp", x), made("add", value("input"), 1)
    j.args = (a, 1)
    k, c = made("negative", b)
    return Program([x], [i, j, k, *last], [c]), (x, a, b, c)


def arenas_of(program, planned=True):
    arena, *_ = assign_buffers(program, program.instructions, planned)
    return arena


def test_elementwise_chains_are_computed_in_place():
    program, (_, a, b, c) = chain()
    arena = arenas_of(program)
    assert arena[a] == arena[b] == arena[c]
    arena = arenas_of(program, planned=False)
    assert len({arena[a], arena[b], arena[c]}) == 3
    program.outputs.append(a)
    arena = arenas_of(program)
    assert arena[a] != arena[b] == arena[c]


def test_a_gradient_has_memory_of_its_own():
    program, (_, a, b, c) = chain()
    program.grads.append(("leaf", b))
    arena = arenas_of(program)
    assert arena[b] not in (arena[a], arena[c])


@pytest.mark.parametrize("how", ["view", "stretched", "dtype", "layout", "written", "matmul", "later"])
def test_what_is_not_computed_in_place(how):
    x = value("input", (3, 3))
    first, a = made("exp", x, shape=(3, 3))
    more, late = [], []
    operands, op = (a, 1.0), "add"
    out = value(shape=(3, 3))
    if how == "view":
        look, v = made("transpose", a, axes=(1, 0), shape=(3, 3), root=a)
        more, operands = [look], (a, v)
    elif how == "stretched":
        first, a = made("exp", x, shape=(1, 3))
        operands = a, x
    elif how == "dtype":
        out, op = value(shape=(3, 3), dtype=bool), "greater"
    elif how == "layout":
        out = Value("result", np.empty((3, 3)).T)
    elif how == "written":
        more = [into("multiply", a, a, 2)]
    elif how == "matmul":
        operands, op = (a, a), "matmul"
    elif how == "later":
        late = [made("exp", a, shape=(3, 3))[0]]
    program = Program([x], [first, *more, Instruction(op, operands, {}, (out,)), *late], [out, *(i.out for i in late)])
    arena = arenas_of(program)
    assert arena[a] != arena[out]
    check_buffers(program)


def test_a_view_keeps_the_memory_alive():
    x = value("input")
    first, a = made("exp", x)
    look, v = made("transpose", a, axes=(1, 0), shape=(3, 2), root=a)
    other, b = made("tanh", x)
    last, y = made("exp", v, shape=(3, 2))
    program = Program([x], [first, look, other, last], [b, y])
    arena = arenas_of(program)
    assert arena[a] != arena[b]
    check_buffers(program)


@pytest.mark.parametrize("change", [None, "part", "whole"])
def test_parts_are_made_where_they_are_joined(change):
    x = value("input", (2,))
    (i, a), (j, b) = made("exp", x, shape=(2,)), made("tanh", x, shape=(2,))
    join, whole = made("concatenate", (a, b), shape=(4,), axis=0)
    late, y = made("add", a, 1, shape=(2,))
    writes = {None: [], "part": [into("multiply", a, a, 2)], "whole": [into("multiply", whole, whole, 2)]}[change]
    program = Program([x], [i, j, join, *writes, late], [whole, y])
    *_, inside = assign_buffers(program, program.instructions, True)
    assert (a in inside, b in inside) == (change is None, True)
    check_buffers(program)
    operand = np.array([0.5, 2.0])
    expected = [np.concatenate([np.exp(operand), np.tanh(operand)]), np.exp(operand) + 1]
    if change == "part":
        expected[1] += np.exp(operand)
    if change == "whole":
        expected[0] *= 2
    for found, right in zip(replayed(program, operand), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-15)


def test_a_part_that_is_joined_twice():
    x = value("input", (2,))
    first, a = made("exp", x, shape=(2,))
    (i, y), (j, z) = (made("concatenate", (a, a), shape=(4,), axis=0) for _ in range(2))
    program = Program([x], [first, i, j], [y, z])
    for found in replayed(program, np.zeros(2)):
        assert found.tolist() == [1] * 4


def test_planning_saves_memory():
    x = value("input", (100,))
    rows, a = [], x
    for op in ("exp", "cumsum") * 5:
        row, a = made(op, a, shape=(100,))
        rows.append(row)
    program = Program([x], rows, [a])
    assert check_buffers(program) <= 2 * 800
    assert check_buffers(program, planned=False) == 8000


# ---- the text, and the table


def step_of(model, opt):
    def step(x, target):
        opt.zero_grad()
        loss = F.mse(model(x), target)
        loss.backward()
        opt.step()
        return loss

    return step


def test_the_text_runs_alone():
    texts, results = [], []
    x, target = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    for alone in (False, True):
        model = nn.MLP((3, 4, 3), rng=1)
        opt = optim.SGD(model.parameters(), 0.1, momentum=0.9)
        compiled = tinygrad_mnist.compile(step_of(model, opt), backend="numpy")
        for _ in range(2):
            compiled(x, target)
        if alone:
            text = compiled.source()
            assert "tinygrad" not in text
            assert re.findall(r"^(?:import|from) .*", text, re.M) == ["import numpy as np"]
            space = {}
            exec(text, space)
            names = {name: v.array for v, name in naming(compiled.program).items() if v.kind == "memory"}
            parameters = re.search(r"def make\((.*)\):", text)[1].split(", ")
            assert parameters[-2:] == ["advance", "call"]
            memory = [names.pop(name) for name in parameters[:-2]]
            step, grads = space["make"](*memory, lambda: (0.1, 0.9, 0.0), lambda *_: None)
            assert not names
            (loss,) = step(x, target)
            results.append([loss.tobytes(), [g.tobytes() for g in grads]])
        else:
            loss = compiled(x, target)._data
            results.append([loss.tobytes(), [p.grad.tobytes() for p in model.parameters()]])
        results[-1].append([p._data.tobytes() for p in model.parameters()])
        texts.append(compiled.source())
    assert results[0][0] == results[1][0]
    assert sorted(results[0][1]) == sorted(results[1][1])
    assert results[0][2] == results[1][2]
    assert "np.matmul(x, W1, out=" in texts[0]
    assert texts[0] == texts[1]


def test_transposes_are_flags_of_the_product():
    w = Tensor(np.ones((3, 2)), requires_grad=True, name="w")

    def f(x):
        w.zero_grad()
        (x @ w).sum().backward()
        return x.T @ (x @ w)

    compiled = tinygrad_mnist.compile(f, backend="numpy")
    for _ in range(3):
        compiled(Tensor(np.ones((4, 3))))
    text = compiled.source()
    assert "x.T" in text
    assert "copy" not in ops(compiled.program)
    assert ops(compiled.program).count("matmul") == 3


def test_the_table_of_a_known_network():
    model = nn.MLP((4, 5, 3), rng=0)
    compiled = tinygrad_mnist.compile(lambda x: model(x).sum(), backend="numpy")
    x = np.ones((8, 4), np.float32)
    for _ in range(3):
        compiled(x)
    program = compiled.program
    assert ops(program) == ["matmul", "add", "relu", "matmul", "add", "sum"]
    assert [i.flops for i in program.instructions] == [2 * 8 * 4 * 5, 8 * 5, 8 * 5, 2 * 8 * 5 * 3, 8 * 3, 8 * 3]
    h, y = 8 * 5, 8 * 3
    elements = [8 * 4 + 4 * 5 + h, h + 5 + h, 2 * h, h + 5 * 3 + y, y + 3 + y, y + 1]
    assert [i.nbytes for i in program.instructions] == [4 * n for n in elements]
    lines = str(program).splitlines()
    assert lines[0].split() == ["result", "instruction", "shape", "dtype", "bytes", "flops"]
    assert lines[1].split() == ["t1", "matmul(x,", "W1)", "8x5", "float32", "368", "320"]
    assert lines[-1].split() == [f"{4 * sum(elements):,}", "688"]
    assert len(lines) == 8


def test_views_move_no_bytes():
    x = value("input")
    look, _ = made("transpose", x, axes=(1, 0), shape=(3, 2), root=x)
    copied, _ = made("transpose", x, axes=(1, 0), shape=(3, 2))
    assert (look.nbytes, look.flops, copied.nbytes) == (0, 0, 96)
