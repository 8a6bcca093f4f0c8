"""What is right, found without any rule and without a checker. Needs mpmath; only the tests of the cases use it.

The functions of the cases run unchanged on object arrays of 60-digit numbers (or have a `twin` that does), so that a
one-sided difference with a relative step of 1e-25 is the derivative to 20 digits and more: the definition itself.

Points of more than MANY elements take the complex step instead, exact to rounding for the functions that are this
large here. NumPy orders complex numbers by their real and then by their imaginary part, so that even at a kink the
steps +ih and -ih give the slopes of the two sides.
"""

import mpmath
import numpy as np

MANY = 200
SAMPLES = 8
"""The elements tried of a large point, where the outputs are not elementwise."""
SAME = 1e-11
"""Slopes of the two sides that agree to this are one slope: they differ by the step times the second derivative."""
DIRECTIONS = 32
"""Random directions of a joint test: tied kinks fail one in four at least."""


def number_type(digits):
    """mpmath's numbers with the methods that NumPy's ufuncs call on the elements of object arrays."""
    context = mpmath.MPContext()
    context.dps = digits
    renamed = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctanh": "atanh"}
    for name in ("exp", "log", "log1p", "sqrt", "sin", "cos", "sinh", "tanh", *renamed):
        function = getattr(context, renamed.get(name, name))
        setattr(context.mpf, name, lambda x, function=function: function(x))

    def refuse(x):
        raise TypeError("this would round a 60-digit number to a float: give the case a twin")

    context.mpf.__floor__ = lambda x: int(context.floor(x))
    context.mpf.__float__ = refuse
    return context.mpf


Number = number_type(60)
STEP = Number(10) ** -25


def is_float(a):
    return a.dtype.kind == "f"


def upcast(arrays):
    """The same point in float64, each array in its memory layout."""
    return [a.astype(np.float64) if is_float(a) else a for a in arrays]


def flat(y):
    """All outputs, one or a tuple, in one array."""
    return np.concatenate([np.ravel(part) for part in y]) if isinstance(y, tuple) else np.ravel(y)


def cotangent(y, rng):
    """2 N(0, 1) in the structure, shapes and dtypes of the outputs y."""
    if isinstance(y, tuple):
        return tuple(cotangent(part, rng) for part in y)
    return np.asarray(2 * rng.normal(size=np.shape(y))).astype(np.asarray(y).dtype)


def mapped(change, *structures):
    """`change` on arrays, or on the arrays of tuples."""
    if isinstance(structures[0], tuple):
        return tuple(change(*parts) for parts in zip(*structures, strict=True))
    return change(*structures)


def copies(arrays):
    """Fresh arrays in the same memory layout; what is read-only stays as it is."""
    return [a.copy(order="K") if a.flags.writeable else a for a in arrays]


def forward(problem, arrays):
    return mapped(np.copy, problem.f(*copies(arrays)))


def backward(problem, g, arrays):
    """The rule's gradients, after a forward pass at the same point, as a caller would do it."""
    forward(problem, arrays)
    return [a if a is None else np.copy(a) for a in problem.vjp(mapped(np.copy, g), *copies(arrays))]


# ---- slopes ---------------------------------------------------------------------------------------------------------


class Slopes:
    """The (left, right) slopes of every output of a problem along a displacement: equal where f is smooth.

    A displacement {input: (index, amount)} moves these elements of that input, by this multiple of the step.
    """

    def __init__(self, problem):
        self.arrays = upcast(problem.arrays)
        self.f = problem.twin or problem.f
        self.large = sum(self.arrays[i].size for i in problem.inputs) > MANY
        to_digits = np.vectorize(lambda v: Number(float(v)), otypes=[object])
        self.points = [a if not is_float(a) else a.astype(complex) if self.large else
                       to_digits(a) if a.size else a.astype(object) for a in self.arrays]
        self.here = None if self.large else self.at({}, 0)

    def along(self, displacement):
        if self.large:
            behind, ahead = (self.at(displacement, s * 1e-30j).imag / (s * 1e-30) for s in (-1, 1))
            return behind, ahead
        moved = [abs(v) for i, (index, _) in displacement.items() for v in np.ravel(self.arrays[i][index]) if v]
        h = STEP * Number(float(min([1.0, *moved])))  # small beside the distance to a kink of even a subnormal number
        left = self.rounded((self.here - self.at(displacement, -h)) / h)
        right = self.rounded((self.at(displacement, h) - self.here) / h)
        same = np.abs(right - left) <= SAME * (1 + np.abs(left))
        middle = (left + right) / 2
        return np.where(same, middle, left), np.where(same, middle, right)

    def at(self, displacement, h):
        """All outputs at the displaced point, in one array."""
        points = [a.copy() for a in self.points]
        for i, (index, amount) in displacement.items():
            points[i][index] += amount * h
        return flat(self.f(*points))

    @staticmethod
    def rounded(values):
        return np.array([mpmath.mpf.__float__(v) for v in values])


def intervals(problem, g, rng):
    """Per input: the (flat) positions that are judged, and the least and the largest right value of J'g there."""
    slopes, g = Slopes(problem), flat(g).astype(float)
    for k, i in enumerate(problem.inputs):
        shape = problem.arrays[i].shape
        positions = np.arange(problem.arrays[i].size)
        if problem.elementwise:
            left, right = slopes.along({i: (..., 1)})
            yield positions, np.minimum(g * left, g * right), np.maximum(g * left, g * right)
            continue
        if slopes.large:
            positions = np.unique([p for p in (*rng.choice(positions, SAMPLES), position(problem, k)) if p >= 0])
        ends = [interval(g, *slopes.along({i: (np.unravel_index(p, shape), 1)})) for p in positions]
        yield positions, *np.array(ends).reshape(-1, 2).T


def interval(g, left, right):
    return np.sum(np.minimum(g * left, g * right)), np.sum(np.maximum(g * left, g * right))


def position(problem, k):
    """The flat position of the one wrong element, which is of input number `k` of those in `wrt`; -1 if it is not."""
    if problem.where is None or problem.where[0] != k:
        return -1
    return int(np.ravel_multi_index(problem.where[1], problem.arrays[problem.inputs[k]].shape))


# ---- errors ---------------------------------------------------------------------------------------------------------


def errors(gradients, truth, floor=0.0):
    """Per input, the error of every judged element, relative to the right value; NaN is infinitely wrong.

    A right value is taken as `floor` of the largest of its array at least.
    """
    found = []
    for gradient, (positions, low, high) in zip(gradients, truth, strict=True):
        values = np.ravel(gradient)[positions].astype(float)
        off = np.maximum(np.maximum(low - values, values - high), 0)
        off = np.where(np.isfinite(off), off, np.inf)
        size = np.maximum(np.abs(low), np.abs(high))
        size = np.maximum(size, floor * size.max(initial=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(np.where(off == 0, 0.0, off / size))
    return found


def joint_error(problem, g, gradients, rng):
    """The largest relative violation of the subgradient inequality, over random directions.

    Of an output that is convex or concave, g_i f_i has the support function max(g_i R_i, g_i L_i) along d; a right
    gradient a obeys <a, d> <= the sum of these, for every d.
    """
    slopes, g, worst = Slopes(problem), flat(g).astype(float), 0.0
    for _ in range(DIRECTIONS):
        directions = [rng.normal(size=a.shape) for a in gradients]
        displacement = {i: (..., d) for i, d in zip(problem.inputs, directions, strict=True)}
        low, high = interval(g, *slopes.along(displacement))
        along = sum(np.sum(a * d) for a, d in zip(gradients, directions, strict=True))
        worst = max(worst, (along - high) / max(abs(low), abs(high), abs(along)))
    return worst


# ---- structure ------------------------------------------------------------------------------------------------------


def broken(problem, rng):
    """The words of the structural promises that the problem breaks."""
    y = forward(problem, problem.arrays)
    g, other = cotangent(y, rng), cotangent(y, rng)
    found = set()
    if not untouched(problem, g):
        found.add("hygiene")
    gradients, again = (backward(problem, g, problem.arrays) for _ in range(2))
    inputs = [problem.arrays[i] for i in problem.inputs]
    if [getattr(a, "shape", None) for a in gradients] != [a.shape for a in inputs]:
        return found | {"shape"}
    if not all(map(close, [flat(y), *gradients], [flat(forward(problem, problem.arrays)), *again])):
        return found | {"determinism"}
    if not all(np.isfinite(a).all() for a in gradients):
        return found  # a wrong number, whatever it does to sums
    if [a.dtype for a in gradients] != [a.dtype for a in inputs]:
        found.add("dtype")
    arrays = upcast(problem.arrays)

    def linear(combine, *gs):
        """Whether the rule of a combination is the combination of the rules."""
        whole = backward(problem, mapped(combine, *gs), arrays)
        parts = zip(*(backward(problem, one, arrays) for one in gs), strict=True)
        return all(close(a, combine(*b)) for a, b in zip(whole, parts, strict=True))

    g, other = (mapped(lambda part: part.astype(np.float64), one) for one in (g, other))
    if any(np.any(a != 0) for a in backward(problem, mapped(np.zeros_like, g), arrays)):
        found.add("zero")
    g_with_zeros = mapped(lambda part: np.where(rng.random(part.shape) < 0.3, 0.0, part), g)
    if any(np.isnan(a).any() for a in backward(problem, g_with_zeros, arrays)):
        found.add("zero")
    if not (linear(lambda a: -8 * a, g) and linear(lambda a, b: 2.5 * a - 1.5 * b, g, other)):
        found.add("linearity")
    return found


def untouched(problem, g):
    """Whether neither f nor its rule writes to the inputs, or to g."""
    arrays, g_given = copies(problem.arrays), mapped(np.copy, g)
    problem.f(*arrays)
    problem.vjp(g_given, *arrays)
    return all(map(np.array_equal, [*arrays, flat(g_given)], [*problem.arrays, flat(g)]))


def close(a, b):
    """Equal to 1e-7 of the largest, or 16 ulps: noise of some ulps passes, every slip that is planted does not."""
    a, b = np.asarray(a), np.asarray(b)
    part = max(1e-7, 16 * np.finfo(a.dtype).eps)
    size = np.abs(a[np.isfinite(a)]).max(initial=0)
    return a.shape == b.shape and np.allclose(a, b, rtol=0, atol=part * size, equal_nan=True)
