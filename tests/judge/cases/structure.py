"""What needs no difference: shape, dtype, 0-d and zero-size, damage to inputs or to g, aliasing, memory layout, wrt."""

import numpy as np

from ..case import Problem, matmul_rule, normal, right, rule, spoil, wrong

# ---- shapes --------------------------------------------------------------------------------------------------------


def affine(x, w, b):
    return x @ w + b


def affine_rule(g, x, w, b):
    return g @ w.T, x.T @ g, g.sum(axis=0)


@right("shape", "0-d in, 0-d out: NumPy hands back np.float64 scalars, whose shape () and dtype are right")
def zero_d(rng):
    return Problem(lambda x: np.sin(x) * x, rule(lambda x: np.cos(x) * x + np.sin(x)), normal(rng, ()))


@right("shape", "a batch of 0 rows: gradients of shape (0, 3), and zeros for the weights")
def zero_size_batch(rng):
    return Problem(affine, affine_rule, [np.zeros((0, 3)), *normal(rng, (3, 2), (2,))])


@right("shape", "an operand with a size-1 axis keeps it, which a sum without keepdims would lose")
def size_one_axis(rng):
    return Problem(
        np.multiply, lambda g, x, c: (g * c, (g * x).sum(axis=1, keepdims=True)), normal(rng, (3, 4), (3, 1))
    )


@right("shape", "five axes, three of them of size 1")
def five_axes(rng):
    return Problem(np.tanh, rule(lambda x: 1 - np.tanh(x) ** 2), normal(rng, (1, 2, 1, 3, 1)))


@right("shape", "a reduction to one number over all axes, kept as (1, 1)")
def reduced_to_one_by_one(rng):
    return Problem(lambda x: np.sum(x * x, keepdims=True), lambda g, x: (2 * g * x,), normal(rng, (2, 3)))


@wrong("shape", "a 0-d input gets a gradient of shape (1,)", reason="shape")
def zero_d_gets_one_element(rng):
    return Problem(np.sin, spoil(rule(np.cos), lambda a: np.reshape(a, 1)), normal(rng, ()))


@wrong("shape", "a batch of 0 rows gets a gradient of shape (0,): no number is wrong, there is none", reason="shape")
def zero_size_flattened(rng):
    return Problem(np.tanh, lambda g, x: (np.zeros(0),), [np.zeros((0, 3))])


@wrong("shape", "a bias added to 4 rows gets the gradient of the 4 rows; an engine that sums it would hide this",
       reason="shape")
def unsummed_bias(rng):
    return Problem(affine, lambda g, x, w, b: (g @ w.T, x.T @ g, g), normal(rng, (4, 3), (3, 2), (2,)))


@wrong("shape", "keepdims left in: (1, 2) for (2,), the same numbers in the same order", reason="shape")
def keepdims_left(rng):
    return Problem(affine, spoil(affine_rule, lambda a: a[None], 2), normal(rng, (4, 3), (3, 2), (2,)))


@wrong("shape", "the gradient of a column comes as a row: equal size, so a comparison of sizes passes", reason="shape")
def column_as_row(rng):
    return Problem(np.sin, spoil(rule(np.cos), np.transpose), normal(rng, (4, 1)))


@wrong("shape", "the gradient of (2, 3) comes flat", reason="shape")
def flattened(rng):
    return Problem(np.exp, spoil(rule(np.exp), np.ravel), normal(rng, (2, 3)))


@wrong("shape", "two inputs, one gradient", reason="shape")
def gradient_missing(rng):
    return Problem(np.multiply, lambda g, x, y: (g * y,), normal(rng, (4,), (4,)))


@wrong("shape", "None for an input that matters", reason="shape")
def gradient_none(rng):
    return Problem(np.multiply, lambda g, x, y: (g * y, None), normal(rng, (4,), (4,)))


# ---- dtypes --------------------------------------------------------------------------------------------------------


@wrong("dtype", "float64 in, the right gradient in float32 out", reason="dtype")
def float32_for_float64(rng):
    return Problem(np.sin, spoil(rule(np.cos), np.float32), normal(rng, (5,)))


@wrong("dtype", "the adjoint of a filter by FFT without its `.real`: complex, with imaginary parts of rounding size",
       reason="dtype")
def complex_for_real(rng):
    x, kernel = normal(rng, (6,), (6,))
    spectrum = np.fft.fft(kernel)
    circulant = np.stack([np.roll(kernel, k) for k in range(6)], axis=1)
    return Problem(
        lambda x: np.fft.ifft(np.fft.fft(x) * spectrum).real,
        lambda g, x: (np.fft.ifft(np.fft.fft(g) * spectrum.conj()),),
        [x],
        twin=lambda x: circulant @ x,
    )


@right("dtype", "the same filter with its `.real`")
def real_for_real(rng):
    p = complex_for_real(rng)
    return Problem(p.f, spoil(p.vjp, np.real), p.arrays, twin=p.twin)


# ---- hygiene -------------------------------------------------------------------------------------------------------


def in_place_scale(g, x):
    g *= np.exp(x)
    return (g,)


def in_place_relu(g, x):
    np.maximum(x, 0, out=x)
    return (g * (x > 0),)


def zeroes_g(g, x):
    gradient = g * np.cos(x)
    g[...] = 0
    return (gradient,)


def shifts_its_input(x):
    x -= 1
    return np.exp(x)


def one_buffer_for_two(g, x, y):
    gx = np.multiply(g, y)
    gy = np.multiply(g, x, out=gx)
    return gx, gy


@right("hygiene", "f returns its input and the rule returns g, the same objects: right, if the checker copies")
def identity(rng):
    return Problem(lambda x: x, lambda g, x: (g,), normal(rng, (5,)))


@right("hygiene", "f returns a view of its input, the rule a view of g")
def view(rng):
    return Problem(np.transpose, lambda g, x: (g.T,), normal(rng, (3, 2)))


@right("hygiene", "x + y returns one g for both: nobody wrote to it, and both numbers are right")
def same_object_twice(rng):
    return Problem(np.add, lambda g, x, y: (g, g), normal(rng, (4,), (4,)))


@right("hygiene", "the output is a read-only broadcast of the input, four rows over the same memory")
def read_only_output(rng):
    return Problem(lambda x: np.broadcast_to(x, (4, 3)), lambda g, x: (g.sum(axis=0),), normal(rng, (3,)))


@right("hygiene", "the gradient of a mean is one number broadcast: read-only, stride 0")
def read_only_gradient(rng):
    return Problem(np.mean, lambda g, x: (np.broadcast_to(g / x.size, x.shape),), normal(rng, (3, 4)))


@right("hygiene", "f writes into one array and returns that every time: f(x+h) and f(x-h) are the same object")
def output_buffer_reused(rng):
    buffer = np.empty(5)
    return Problem(lambda x: np.sin(x, out=buffer), rule(np.cos), normal(rng, (5,)), twin=np.sin)


@right("hygiene", "both passes work in place, in copies of their own")
def in_place_in_copies(rng):
    return Problem(lambda x: shifts_its_input(x.copy()), lambda g, x: in_place_scale(g.copy(), x - 1),
                   normal(rng, (5,)))


@wrong("hygiene", "the right gradient, computed in the caller's g", reason="hygiene")
def gradient_in_g(rng):
    return Problem(np.exp, in_place_scale, normal(rng, (5,)))


@wrong("hygiene", "the right gradient, but the backward pass overwrites the input that others may still need",
       reason="hygiene")
def input_overwritten(rng):
    x = normal(rng, (5,))[0]
    return Problem(lambda x: np.maximum(x, 0), in_place_relu, [np.append(x, -1.0)])


@wrong("hygiene", "the right gradient, and then the caller's g is zeroed", reason="hygiene")
def g_zeroed(rng):
    return Problem(np.sin, zeroes_g, normal(rng, (5,)))


@wrong("hygiene", "the forward pass shifts its input in place", reason="hygiene")
def input_shifted_by_forward(rng):
    return Problem(shifts_its_input, rule(lambda x: np.exp(x - 1)), normal(rng, (5,)), twin=lambda x: np.exp(x - 1))


@wrong("hygiene", "both gradients live in one buffer: the second overwrites the first")
def shared_buffer(rng):
    x, y = normal(rng, (4,), (4,))
    return Problem(np.multiply, one_buffer_for_two, [x, y + np.sign(y) * 5])


# ---- memory layout -------------------------------------------------------------------------------------------------


def cube_rule_in_memory_order(g, x):
    return ((g.ravel() * 3 * x.ravel(order="K") ** 2).reshape(x.shape),)


@right("layout", "a transposed, a reversed and a broadcast (read-only, stride 0) input: one element at a time is moved")
def strided_inputs(rng):
    a, b, c = normal(rng, (4, 3), (4,), (4,))
    return Problem(
        lambda a, b, c: a * b + np.sin(c),
        lambda g, a, b, c: (g * b, (g * a).sum(axis=0), g * np.cos(c)),
        [a.T, b[::-1], np.broadcast_to(c, (3, 4))],
    )


@right("layout", "x ** 3 in C order, the twin of the next case")
def memory_order_on_c(rng):
    return Problem(lambda x: x**3, cube_rule_in_memory_order, normal(rng, (3, 4)))


@right("layout", "the gradient is a reversed view in Fortran's order")
def strided_gradient(rng):
    return Problem(lambda x: np.sin(x)[::-1], lambda g, x: (np.asfortranarray(g)[::-1] * np.cos(x),),
                   normal(rng, (3, 2)))


@wrong("layout", "the rule reads x in memory order: right for C order, wrong for the transposed view that is given")
def memory_order_on_transposed(rng):
    return Problem(lambda x: x**3, cube_rule_in_memory_order, [normal(rng, (4, 3))[0].T])


@wrong("layout", "labels are a read-only column of a table, and the rule reads their memory without the stride")
def labels_read_without_stride(rng):
    first = rng.permutation(5)
    labels = np.stack([first, np.roll(first, 1)], axis=1)[:, 0]
    labels.flags.writeable = False

    def vjp(g, x, labels):
        read = np.lib.stride_tricks.as_strided(labels, labels.shape, (labels.itemsize,))
        gradient = np.zeros_like(x)
        np.add.at(gradient, read, g)
        return (gradient * np.cos(x),)

    return Problem(lambda x, labels: np.sin(x)[labels], vjp, [*normal(rng, (5,)), labels])


# ---- which inputs --------------------------------------------------------------------------------------------------


@right("wrt", "only the second input is asked for: one gradient, of that input")
def only_the_second(rng):
    return Problem(np.matmul, lambda g, a, b: (matmul_rule(g, a, b)[1],), normal(rng, (2, 3), (3, 2)), wrt=(1,))


@right("wrt", "the gradients are asked for in the order (2, 0)")
def in_another_order(rng):
    return Problem(
        lambda x, y, z: (x + np.sin(z)) * y,
        lambda g, x, y, z: (g * y * np.cos(z), g * y),
        normal(rng, (4,), (4,), (4,)),
        wrt=(2, 0),
    )


@wrong("wrt", "the second input is asked for, the first one's gradient is given: same shape")
def gradient_of_the_other(rng):
    return Problem(np.matmul, lambda g, a, b: (matmul_rule(g, a, b)[0],), normal(rng, (3, 3), (3, 3)), wrt=(1,))


@right("wrt", "f does not use its second input: zeros")
def unused_input(rng):
    return Problem(lambda x, y: np.sin(x), lambda g, x, y: (g * np.cos(x), np.zeros_like(y)), normal(rng, (4,), (4,)))


@wrong("wrt", "f does not use its second input, but g is passed on to it")
def unused_input_gets_g(rng):
    return Problem(lambda x, y: np.sin(x), lambda g, x, y: (g * np.cos(x), g), normal(rng, (4,), (4,)))
