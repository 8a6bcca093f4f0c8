"""Every differentiable function of HIPS autograd, and how to draw points of its domain at several scales.

A point gives `(f, vjp, arrays)` of plain NumPy: f is the function called on arrays, vjp is what `autograd.make_vjp`
says of it. Points are generic: no kink is hit on purpose, except by the functions that are marked `kinked`, whose rules
choose a valid subgradient there. A scale multiplies the point; a function lists those at which it is defined and its
own VJP is accurate.

Left out, because autograd's rule is wrong or is not the derivative (each was verified by hand):

- `cholesky`, `multivariate_normal` and their like read one triangle of a symmetric matrix, and the VJP answers for both
  halves: taken of (A + A')/2, where both agree.
- `diag` of an (n, m) matrix with n != m: a square gradient.
- `where` with a branch that is broadcast, `norm` with keepdims: a gradient of a wrong shape.
- `prod` at a zero, `sinc` at 0, `norm` at 0, `std` of equal numbers: NaN.
- `sinc` at 1e-6, `expm1` below -25: the rule cancels, and 1e-5 of the gradient, or all of it, is lost.
- `stats.chi2.logpdf` and `pdf` with a fractional number of degrees of freedom: 0.
- `stats.dirichlet` in x: the function refuses points off the simplex, so it has no partial derivatives.
- `einsum` with a repeated subscript, `gradient` along fewer than 4 points, `sort` in 2 or more dimensions, `rfft` of
  odd length, `svd` with full matrices: not implemented.
- `scipy.integrate.odeint`: value and gradient are right to the tolerance of an adaptive solver, about 1e-8.
"""

import importlib.util
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import autograd.numpy as anp
import numpy as np
from autograd import make_vjp
from autograd.builtins import tuple as several

WIDE = (1e-6, 1e-3, 1.0, 1e3, 1e6)
SMALL = (1e-6, 1e-3, 1.0)
UNIT = (1.0,)
SHAPES = [(), (1,), (4,), (7,), (3, 4), (2, 1, 3), (2, 3, 2), (3, 3)]
MATRICES = [(2, 3), (3, 3), (4, 2), (1, 5), (4, 4)]
PAIRS = [((), ()), ((4,), (4,)), ((3, 1), (4,)), ((3, 4), ()), ((2, 3, 1), (3, 4)), ((1,), (3, 3)), ((2, 2), (2, 2))]


@dataclass(frozen=True)
class Function:
    name: str
    fn: Callable
    """Of autograd's arrays."""
    draw: Callable[[np.random.Generator, float], Sequence[np.ndarray]]
    """A point at a scale."""
    scales: Sequence[float]
    wrt: tuple[int, ...] | None
    """The inputs that are differentiated; None: all."""
    kinked: bool
    """Points may be kinks."""

    def points(self, seed):
        """A `Point` at each scale, drawn with the seed: every function has its own stream."""
        for k, scale in enumerate(self.scales):
            rng = np.random.default_rng([zlib.crc32(self.name.encode()), seed, k])
            yield Point(self, scale, seed, [np.asarray(a, np.float64) for a in self.draw(rng, scale)])


@dataclass(frozen=True)
class Point:
    function: Function
    scale: float
    seed: int
    arrays: Sequence[np.ndarray]

    @property
    def wrt(self):
        return tuple(range(len(self.arrays))) if self.function.wrt is None else self.function.wrt

    def f(self, *arrays):
        out = self.function.fn(*arrays)
        return tuple(map(np.asarray, out)) if isinstance(out, tuple) else np.asarray(out)

    def vjp(self, g, *arrays):
        return tuple(map(np.asarray, make_vjp(self.function.fn, self.wrt)(*arrays)[0](g)))

    def __str__(self):
        return f"{self.function.name} at scale {self.scale:g}, seed {self.seed}"


FUNCTIONS: dict[str, Function] = {}


def add(name, fn, draw, scales=WIDE, wrt=None, kinked=False):
    assert name not in FUNCTIONS, name
    FUNCTIONS[name] = Function(name, fn, draw, scales, wrt, kinked)


# ---- points: values(rng, shape, scale) -> array; draws(rng, scale) -> arrays ----------------------------------------


def real(rng, shape, scale):
    return scale * rng.normal(size=shape)


def positive(rng, shape, scale):
    return scale * rng.uniform(0.5, 2.0, size=shape)


def between(low, high):
    return lambda rng, shape, scale: scale * rng.uniform(low, high, size=shape)


def shifted(rng, shape, scale):
    """Far from zero compared with its spread."""
    return scale * (30 + rng.normal(size=shape))


def some(kind=real, shapes=SHAPES, n=1):
    """n arrays of one shape, which is drawn too."""

    def draw(rng, scale):
        shape = shapes[rng.integers(len(shapes))]
        return [kind(rng, shape, scale) for _ in range(n)]

    return draw


def pair(first=real, second=real, pairs=PAIRS, mixed=False):
    """Two arrays of shapes that go together; `mixed`: the second stays at scale 1."""

    def draw(rng, scale):
        a, b = pairs[rng.integers(len(pairs))]
        if rng.random() < 0.5 and pairs is PAIRS:
            a, b = b, a
        return [first(rng, a, scale), second(rng, b, 1.0 if mixed else scale)]

    return draw


def of(*shapes, kind=real):
    """Arrays of these shapes."""
    return lambda rng, scale: [kind(rng, shape, scale) for shape in shapes]


def regular(rng, shape, scale):
    """Square matrices far from singular."""
    return scale * (rng.normal(size=shape) + 2 * shape[-1] * np.eye(shape[-1]))


def definite(rng, shape, scale):
    a = rng.normal(size=shape)
    return scale * (a @ np.swapaxes(a, -1, -2) + np.eye(shape[-1]))


def spread(rng, shape, scale):
    """Matrices with distinct real eigenvalues and singular values."""
    n, m = shape[-2:]
    base = np.zeros(shape)
    base[..., range(min(n, m)), range(min(n, m))] = 2.0 ** np.arange(min(n, m))
    return scale * (base + 0.1 * rng.normal(size=shape))


def distinct(rng, shape, scale):
    """No two elements are near each other."""
    n = int(np.prod(shape))
    return scale * (rng.permutation(n) - n / 3 + rng.uniform(0, 0.5, n)).reshape(shape)


def steps(rng, shape, scale):
    """Small whole numbers: many ties and zeros."""
    return scale * rng.integers(-2, 3, size=shape)


def symmetric(x):
    return (x + anp.swapaxes(x, -1, -2)) / 2


def parts(z):
    """Real functions of a complex result."""
    return anp.stack([anp.real(z), anp.imag(z)])


# ---- elementwise -----------------------------------------------------------------------------------------------------

for name in ["negative", "absolute", "abs", "fabs", "sin", "cos", "arctan", "arcsinh", "square", "deg2rad", "rad2deg",
             "degrees", "radians", "nan_to_num", "real", "real_if_close", "conj", "conjugate",
             "reciprocal"]:
    add(name, getattr(anp, name), some())
for name in ["log", "log2", "log10", "log1p", "sqrt", "reciprocal"]:
    add(f"{name} of positive numbers", getattr(anp, name), some(positive))
for name in ["exp", "exp2", "sinh", "cosh"]:
    add(name, getattr(anp, name), some(), (*SMALL, 1e2))
add("expm1", anp.expm1, some(between(-20, 20)), SMALL)
add("log1p near -1", anp.log1p, some(between(-1, -0.9)), UNIT)
add("tan", anp.tan, some(), (*SMALL, 1e3))
add("tanh", anp.tanh, some(), (*SMALL, 5.0))
add("arcsin", anp.arcsin, some(between(-1, 1)), SMALL)
add("arccos", anp.arccos, some(between(-1, 1)), SMALL)
add("arctanh", anp.arctanh, some(between(-1, 1)), SMALL)
add("arccosh", anp.arccosh, some(between(1, 10)), (1.0, 1e3, 1e6))
add("sinc", anp.sinc, some(), (1.0, 1e3))
add("clip", lambda x: anp.clip(x, -0.7, 0.9), some())
add("mask", lambda x: anp.where(x > 0, x * x, -x), some())
for k in [2, 3, -1, -2.5, 0.5, 7]:
    add(f"power {k}", lambda x, k=k: x**k, some(real if isinstance(k, int) else positive))
add("power", anp.power, pair(positive, real, mixed=True))
add("number to a power", lambda x: 2.5**x, some(), (*SMALL, 1e2))

for name in ["add", "subtract", "multiply", "maximum", "minimum", "fmax", "fmin", "arctan2", "hypot"]:
    add(name, getattr(anp, name), pair())
    add(f"{name}, mixed scales", getattr(anp, name), pair(mixed=True), (1e-3, 1e3))
for name in ["divide", "true_divide"]:
    add(name, getattr(anp, name), pair(real, positive))
    add(f"{name}, mixed scales", getattr(anp, name), pair(real, positive, mixed=True))
add("mod", anp.mod, pair(real, positive))
add("remainder", anp.remainder, pair(positive, positive))
add("logaddexp", anp.logaddexp, pair(), (*SMALL, 1e1))
add("logaddexp2", anp.logaddexp2, pair(), (*SMALL, 1e1))
add("where", lambda x, y: anp.where(x > y, x * y, y - x), some(n=2))

# ---- reductions and scans --------------------------------------------------------------------------------------------

CUBE = [(2, 3, 4), (3, 1, 2), (2, 2, 2)]
AXES = [{"axis": None}, {"axis": 0}, {"axis": -1}, {"axis": (0, 2)}, {"axis": 1, "keepdims": True}]
for name in ["sum", "mean", "var", "std", "max", "min", "amax", "amin", "prod"]:
    for kw in AXES:
        if name == "prod" and isinstance(kw["axis"], tuple):
            continue
        words = ", ".join(f"{k}={v}" for k, v in kw.items())
        add(f"{name}, {words}", lambda x, name=name, kw=kw: getattr(anp, name)(x, **kw), some(real, CUBE[::2]))
for name in ["var", "std"]:
    add(f"{name} of shifted numbers", lambda x, name=name: getattr(anp, name)(x, axis=-1, ddof=1),
        some(shifted, CUBE[::2]))
for axis in [None, 0, 1, 2]:
    add(f"cumsum, axis={axis}", lambda x, axis=axis: anp.cumsum(x, axis=axis), some(real, CUBE))
add("diff", lambda x: anp.diff(x, axis=-1), some(real, CUBE[::2]))
add("diff, n=2", lambda x: anp.diff(x, n=2, axis=0), of((5, 2)))
add("gradient", lambda x: anp.gradient(x, axis=0), of((6, 2)))
add("gradient, both axes", lambda x: anp.stack(anp.gradient(x)), of((5, 6)))
add("sort", anp.sort, some(real, [(6,), (9,)]))
add("partition", lambda x: anp.partition(x, 2), some(real, [(6,), (9,)]))
add("trace", anp.trace, some(real, MATRICES))
add("trace, offset", lambda x: anp.trace(x, offset=1), some(real, MATRICES))

# ---- shapes ----------------------------------------------------------------------------------------------------------

add("reshape", lambda x: anp.reshape(x, (4, 6)), of((2, 3, 4)))
add("reshape, order F", lambda x: anp.reshape(x, (4, 6), order="F"), of((2, 3, 4)))
add("method reshape", lambda x: x.reshape(-1, 2), of((2, 3, 4)))
add("ravel", anp.ravel, some())
add("roll", lambda x: anp.roll(x, 2, axis=1), some(real, CUBE))
add("roll, flat", lambda x: anp.roll(x, -1), some(real, CUBE))
add("expand_dims", lambda x: anp.expand_dims(x, 1), some(real, CUBE))
add("squeeze", anp.squeeze, of((2, 1, 3)))
add("diag of a vector", lambda x: anp.diag(x, 1), of((4,)))
add("diag of a matrix", anp.diag, of((4, 4)))
add("diagonal", lambda x: anp.diagonal(x, 0, -1, -2), of((2, 3, 3)))
add("make_diagonal", lambda x: anp.make_diagonal(x, 0, -1, -2), of((2, 3)))
for name in ["flipud", "fliplr", "rot90", "triu", "tril", "transpose", "atleast_1d", "atleast_2d", "atleast_3d"]:
    add(name, getattr(anp, name), some(real, MATRICES))
add("triu, k=1", lambda x: anp.triu(x, 1), some(real, MATRICES))
add("tril, k=-1", lambda x: anp.tril(x, -1), some(real, MATRICES))
add("transpose, axes", lambda x: anp.transpose(x, (2, 0, 1)), some(real, CUBE))
add("swapaxes", lambda x: anp.swapaxes(x, 0, 2), some(real, CUBE))
add("moveaxis", lambda x: anp.moveaxis(x, 0, -1), some(real, CUBE))
add("rollaxis", lambda x: anp.rollaxis(x, 2, 0), some(real, CUBE))
add("repeat", lambda x: anp.repeat(x, 3, axis=1), some(real, CUBE))
add("repeat, flat", lambda x: anp.repeat(x, 2), some(real, CUBE))
add("tile", lambda x: anp.tile(x, (2, 3)), some(real, MATRICES))
add("broadcast_to", lambda x: anp.broadcast_to(x, (2, 3, 4)), of((2, 1, 4)))
add("pad", lambda x: anp.pad(x, ((1, 2), (0, 1)), "constant"), some(real, MATRICES))
add("concatenate", lambda x, y: anp.concatenate([x, y, x], axis=1), of((2, 3), (2, 2)))
add("stack", lambda x, y: anp.stack([x, y], axis=1), some(n=2, shapes=MATRICES))
add("vstack", lambda x, y: anp.vstack([x, y]), some(n=2, shapes=MATRICES))
add("hstack", lambda x, y: anp.hstack([x, y]), some(n=2, shapes=MATRICES))
add("column_stack", lambda x, y: anp.column_stack([x, y]), some(n=2, shapes=[(3,), (5,)]))
add("append", lambda x, y: anp.append(x, y), some(n=2))
add("array of numbers", lambda x: anp.array([[x[0], x[1] * x[2]], [x[2], x[0]]]), of((3,)))
add("select", lambda x: anp.select([x > 0.5, x < -0.5], [x * x, 3 * x], 0.0 * x), of((6,)))
add("split", lambda x: several(anp.split(x, 3, axis=1)), of((2, 6)))
add("array_split", lambda x: several(anp.array_split(x, 3)), of((7, 2)))
add("vsplit", lambda x: several(anp.vsplit(x, 2)), of((4, 2)))
add("hsplit", lambda x: several(anp.hsplit(x, 2)), of((3, 4)))
add("dsplit", lambda x: several(anp.dsplit(x, 2)), of((2, 2, 4)))
add("full", lambda x: anp.full((2, 3), x), of(()))
add("linspace", lambda a, b: anp.linspace(a, b, 7), of((), ()))
add("astype", lambda x: x.astype(np.float64) * 2, some())
for words, index in {"a slice": np.s_[1:], "a step": np.s_[::-2], "a row": np.s_[1], "an axis": np.s_[:, None],
                     "an ellipsis": np.s_[..., 0], "repeated rows": np.array([1, 0, 1, 1]),
                     "pairs": (np.array([0, 1, 0]), np.array([1, 1, 1]))}.items():
    add(f"index by {words}", lambda x, index=index: x[index], of((3, 4)))
add("index by a mask", lambda x: x[np.arange(12).reshape(3, 4) % 5 < 3], of((3, 4)))

# ---- products --------------------------------------------------------------------------------------------------------

PRODUCTS = [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4))]
for name in ["dot", "matmul"]:
    add(name, getattr(anp, name), pair(pairs=PRODUCTS))
    add(f"{name}, mixed scales", getattr(anp, name), pair(pairs=PRODUCTS, mixed=True))
add("dot of 3 dimensions", anp.dot, pair(pairs=[((2, 2, 3), (3, 2)), ((2, 3), (2, 3, 2)), ((), (2, 3))]))
add("matmul, stacked", anp.matmul, pair(pairs=[((2, 2, 3), (3, 2)), ((4, 1, 2, 3), (2, 3, 2)), ((2, 2, 3), (3,))]))
add("inner", anp.inner, pair(pairs=[((3,), (3,)), ((2, 3), (4, 3)), ((2, 2, 3), (3,))]))
add("outer", anp.outer, pair(pairs=[((3,), (4,)), ((2,), (2,))]))
add("tensordot", lambda a, b: anp.tensordot(a, b, 2), of((2, 3, 2), (3, 2, 2)))
add("tensordot, axes", lambda a, b: anp.tensordot(a, b, axes=([0, 2], [1, 0])), of((2, 3, 4), (4, 2, 3)))
add("kron", anp.kron, pair(pairs=[((2, 3), (2, 2)), ((2, 2), (3, 1))]))
add("cross", anp.cross, of((4, 3), (4, 3)))
for spec, shapes in {"ij,jk->ik": ((2, 3), (3, 4)), "ij,kj->ik": ((2, 3), (4, 3)), "i,j->ji": ((3,), (4,)),
                     "bij,bjk->bik": ((2, 2, 3), (2, 3, 2)), "ij->": ((3, 4),), "ij->j": ((3, 4),),
                     "...ij,...jk->...ik": ((2, 2, 3), (3, 2)),
                     "ij,ij,j->i": ((2, 3), (2, 3), (3,))}.items():
    add(f"einsum {spec}", lambda *a, spec=spec: anp.einsum(spec, *a), of(*shapes))

# ---- numpy.linalg ----------------------------------------------------------------------------------------------------

la = anp.linalg
SQUARE = [(2, 2), (3, 3), (2, 3, 3)]
add("det", la.det, some(real, SQUARE))
add("slogdet", lambda x: la.slogdet(x)[1], some(real, SQUARE))
add("inv", la.inv, some(regular, SQUARE))
add("inv of any matrix", la.inv, some(real, SQUARE))
add("pinv", la.pinv, some(real, [(3, 3), (4, 2), (2, 4)]))
add("solve", la.solve, lambda rng, s: [regular(rng, (3, 3), s), real(rng, ((3, 2), (3, 1))[rng.integers(2)], 1.0)])
add("solve of any matrix", la.solve, of((3, 3), (3, 2)))
for kw in [{}, {"axis": 0}, {"axis": 1}, {"axis": (0, 1)}, {"ord": 3, "axis": 1}, {"ord": 2, "axis": 0},
           {"ord": 1.5, "axis": 0}]:
    add(f"norm{kw or ''}", lambda x, kw=kw: la.norm(x, **kw), some(real, [(3, 4), (2, 2)]))
add("norm, nuclear", lambda x: la.norm(x, "nuc"), some(spread, [(3, 4), (3, 3)]))
add("norm, nuclear of any matrix", lambda x: la.norm(x, "nuc"), some(real, [(3, 4), (3, 3)]))
add("norm of a vector, ord=4", lambda x: la.norm(x, 4), of((6,)))
for triangle in "LU":
    add(f"eigh, {triangle}, values", lambda x, t=triangle: la.eigh(x, t)[0], some(spread, SQUARE))
    add(f"eigh, {triangle}, vectors", lambda x, t=triangle: la.eigh(x, t)[1] ** 2, some(spread, SQUARE))
add("eigh, values of any matrix", lambda x: la.eigh(x)[0], some(real, SQUARE))
add("eigh, both", lambda x: several((la.eigh(x)[0], la.eigh(x)[1] ** 2)), some(spread, SQUARE))
add("eig, values", lambda x: anp.real(la.eig(x)[0]), some(spread, [(2, 2), (3, 3)]))
add("cholesky", lambda x: la.cholesky(symmetric(x)), some(definite, SQUARE))
add("svd, values", lambda x: la.svd(x, compute_uv=False), some(spread, [(3, 3), (2, 4), (4, 2)]))
add("svd, values of any matrix", lambda x: la.svd(x, compute_uv=False), some(real, [(3, 3), (2, 4), (4, 2)]))
add("svd, u", lambda x: la.svd(x, full_matrices=False)[0] ** 2, some(spread, [(3, 3), (2, 4), (4, 2)]))
add("svd, v", lambda x: la.svd(x, full_matrices=False)[2] ** 2, some(spread, [(3, 3), (2, 4), (4, 2)]))

# ---- numpy.fft -------------------------------------------------------------------------------------------------------

for name in ["fft", "ifft", "fft2", "ifft2", "fftn", "ifftn", "rfft", "rfft2", "rfftn"]:
    for norm in [None, "ortho"]:
        words = f"{name}, ortho" if norm else name
        add(words, lambda x, name=name, norm=norm: parts(getattr(anp.fft, name)(x, norm=norm)),
            some(real, [(3, 4), (2, 6)]))
for name in ["irfft", "irfft2", "irfftn"]:
    add(name, lambda x, name=name: getattr(anp.fft, name)(x + 0.5j * x), some(real, [(3, 4), (2, 5)]))
for name in ["fftshift", "ifftshift"]:
    add(name, getattr(anp.fft, name), some(real, [(3, 4), (5,)]))
add("power spectrum", lambda x: anp.abs(anp.fft.rfft(x)) ** 2, of((3, 8)))

# ---- kinks and ties: the rule chooses a subgradient ------------------------------------------------------------------

add("abs at zeros", anp.abs, some(steps), kinked=True)
add("fabs at zeros", anp.fabs, some(steps), kinked=True)
add("maximum at ties", anp.maximum, pair(steps, steps), kinked=True)
add("minimum at ties", anp.minimum, pair(steps, steps), kinked=True)
add("relu at zeros", lambda x: anp.maximum(x, 0.0), some(steps), kinked=True)
add("relu, a product", lambda x: x * (x > 0), some(real))
add("clip at bounds", lambda x: anp.clip(x, -1.0, 1.0), some(steps), UNIT, kinked=True)
add("max at ties", lambda x: anp.max(x, axis=-1), some(steps, CUBE), kinked=True)
add("min at ties", lambda x: anp.min(x), some(steps, CUBE), kinked=True)
add("sum of distances", lambda x, y: anp.sum(anp.abs(x - y)), some(steps, n=2), kinked=True)

# ---- compositions, as users write them -------------------------------------------------------------------------------


def logsumexp(x):
    top = anp.max(x, axis=-1, keepdims=True)
    return anp.log(anp.sum(anp.exp(x - top), axis=-1)) + top[..., 0]


def softmax(x):
    e = anp.exp(x - anp.max(x, axis=-1, keepdims=True))
    return e / anp.sum(e, axis=-1, keepdims=True)


def layer_norm(x, scale, shift):
    centred = x - anp.mean(x, axis=-1, keepdims=True)
    return centred / anp.sqrt(anp.mean(centred**2, axis=-1, keepdims=True) + 1e-5) * scale + shift


def attention(q, k, v):
    return anp.matmul(softmax(anp.matmul(q, k.T) / 2.0), v)


def mlp(x, w, b, u):
    return anp.mean((anp.dot(anp.tanh(anp.dot(x, w) + b), u) - 1.0) ** 2)


def gated(x, h, w, u):
    z = 1 / (1 + anp.exp(-(anp.dot(x, w) + anp.dot(h, u))))
    return z * h + (1 - z) * anp.tanh(anp.dot(x, w))


def mixture(x, mean, scale):
    d = (x[:, None] - mean) / scale
    return anp.sum(logsumexp(-0.5 * d**2 - anp.log(scale)))


def kernel(x, length):
    d = anp.sum((x[:, None, :] - x[None, :, :]) ** 2, axis=-1)
    return anp.exp(-0.5 * d / length**2)


def gaussian_process(x, y, length):
    chol = la.cholesky(kernel(x, length) + 0.1 * anp.eye(len(x)))
    return 0.5 * anp.sum(la.solve(chol, y) ** 2) + anp.sum(anp.log(anp.diag(chol)))


def rollout(x, steps=8):
    """A pendulum, integrated by leapfrog."""
    angle, speed = x[..., 0], x[..., 1]
    for _ in range(steps):
        speed = speed - 0.05 * anp.sin(angle)
        angle = angle + 0.1 * speed
        speed = speed - 0.05 * anp.sin(angle)
    return anp.stack([angle, speed], axis=-1)


add("logsumexp by hand", logsumexp, some(real, MATRICES), (*SMALL, 10.0))
add("softmax", softmax, some(real, MATRICES), (*SMALL, 5.0))
add("softmax of shifted numbers", softmax, some(shifted, MATRICES), (1.0, 3.0))
add("cross entropy", lambda x: -anp.mean(anp.log(softmax(x))[:, 1]), some(real, MATRICES[:3]), (*SMALL, 5.0))
add("layer_norm", layer_norm, of((3, 5), (5,), (5,)))
add("attention", attention, of((3, 4), (5, 4), (5, 2)), (1e-3, 1.0))
add("mlp", mlp, of((5, 3), (3, 4), (4,), (4, 2)), (1e-3, 1.0))
add("gated", gated, of((2, 3), (2, 4), (3, 4), (4, 4)), (1e-3, 1.0))
add("mixture", mixture, lambda rng, s: [*of((4,), (3,))(rng, s), positive(rng, (3,), s)])
add("kernel", kernel, lambda rng, s: [real(rng, (4, 2), s), positive(rng, (), s)])
add("gaussian_process", gaussian_process, lambda rng, s: [*of((4, 2), (4,))(rng, 1.0), positive(rng, (), 1.0)], UNIT)
add("rollout", rollout, some(real, [(2,), (3, 2)]))
add("rosenbrock", lambda x: anp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), of((5,)))
add("gelu", lambda x: 0.5 * x * (1 + anp.tanh(0.7978845608 * (x + 0.044715 * x**3))), some(), SMALL)
add("softplus", lambda x: anp.logaddexp(x, 0.0), some(), (*SMALL, 5.0))
add("huber", lambda x: anp.where(anp.abs(x) < 1, 0.5 * x * x, anp.abs(x) - 0.5), some())
add("distances", lambda x, y: anp.sqrt(anp.sum((x[:, None] - y[None]) ** 2, axis=-1)), of((3, 2), (4, 2)))
add("cosine", lambda x, y: anp.dot(x, y) / la.norm(x) / la.norm(y), of((5,), (5,)))
add("quadratic form", lambda x, a: anp.dot(x, anp.dot(a, x)), of((4,), (4, 4)))
add("log likelihood of a normal", lambda x, m, s: anp.sum(-0.5 * ((x - m) / s) ** 2 - anp.log(s)),
    lambda rng, s: [*of((6,), ())(rng, s), positive(rng, (), s)])
add("polynomial", lambda x: ((2.0 * x - 3.0) * x + 0.5) * x - 7.0, some())
add("wave", lambda x: anp.sin(30 * x) * anp.exp(-(x**2)), some(), SMALL)

# ---- scipy -----------------------------------------------------------------------------------------------------------

if importlib.util.find_spec("scipy"):
    import autograd.scipy.linalg as sla
    import autograd.scipy.signal as signal
    import autograd.scipy.special as sp
    import autograd.scipy.stats as stats

    TENS = (1e-3, 1.0, 10.0)
    add("beta", sp.beta, pair(positive, positive), (1.0, 10.0))
    add("betaln", sp.betaln, pair(positive, positive), (1e-3, 1.0, 10.0, 1e3))
    add("betainc", sp.betainc, lambda rng, s: [*some(positive, n=2)(rng, s), rng.uniform(0.1, 0.9)], UNIT, wrt=(2,))
    for name in ["psi", "digamma", "gammaln"]:
        add(name, getattr(sp, name), some(positive), WIDE)
    for name in ["gamma", "rgamma"]:
        add(name, getattr(sp, name), some(positive), TENS)
    for n in [0, 1, 2]:
        add(f"polygamma, n={n}", lambda x, n=n: sp.polygamma(n, x), some(positive), TENS)
    add("multigammaln", lambda x: sp.multigammaln(x, 3), some(between(2, 10)), (1.0, 1e3))
    for name in ["gammainc", "gammaincc"]:
        add(name, getattr(sp, name), some(positive, n=2), (1.0, 3.0), wrt=(1,))
    for name in ["j0", "j1"]:
        add(name, getattr(sp, name), some(), (1e-3, 1.0, 30.0))
    for name in ["y0", "y1"]:
        add(name, getattr(sp, name), some(positive), (1e-3, 1.0, 30.0))
    for name in ["jn", "yn"]:
        add(name, lambda x, name=name: getattr(sp, name)(2, x), some(positive), (1.0, 30.0))
    for name in ["i0", "i1"]:
        add(name, getattr(sp, name), some(), (1e-3, 1.0, 30.0))
    for name in ["iv", "ive"]:
        add(name, lambda x, name=name: getattr(sp, name)(1.5, x), some(positive), (1e-3, 1.0, 30.0))
    for name in ["erf", "erfc"]:
        add(name, getattr(sp, name), some(), SMALL)
    add("erfinv", sp.erfinv, some(between(-1, 1)), SMALL)
    add("erfcinv", sp.erfcinv, some(between(0, 2)), UNIT)
    add("logit", sp.logit, some(between(0, 1)), SMALL)
    add("expit", sp.expit, some(), (*SMALL, 10.0))
    add("logsumexp", lambda x: sp.logsumexp(x, axis=1), some(real, MATRICES), (*SMALL, 10.0))
    add("logsumexp, weighted", lambda x: sp.logsumexp(x, b=2.0, axis=0, keepdims=True), some(real, MATRICES), SMALL)

    def around(rng, s):
        x, m = some(n=2)(rng, s)
        return [x, m, positive(rng, (), s)]

    for name in ["pdf", "cdf", "sf", "logpdf", "logcdf", "logsf"]:
        add(f"norm.{name}", getattr(stats.norm, name), around)
    for name in ["pdf", "logpdf"]:
        add(f"t.{name}", getattr(stats.t, name),
            lambda rng, s: [real(rng, (4,), s), positive(rng, (), 4.0), real(rng, (), s), positive(rng, (4,), s)])
        add(f"beta.{name}", getattr(stats.beta, name),
            lambda rng, s: [rng.uniform(0.1, 0.9, 5), positive(rng, (), 2.0), positive(rng, (5,), 2.0)], UNIT)
        add(f"gamma.{name}", getattr(stats.gamma, name), of((4,), (4,), kind=positive), (1.0, 5.0))
        add(f"chi2.{name}", lambda x, name=name: getattr(stats.chi2, name)(x, 5.0), of((4,), kind=positive),
            (1e-3, 1.0, 10.0))
        add(f"dirichlet.{name}", lambda a, name=name: getattr(stats.dirichlet, name)(np.array([0.2, 0.5, 0.3]), a),
            of((3,), kind=positive), (1.0, 5.0))
        add(f"multivariate_normal.{name}",
            lambda x, m, c, name=name: getattr(stats.multivariate_normal, name)(x, m, symmetric(c)),
            lambda rng, s: [*of((3,), (3,))(rng, s), definite(rng, (3, 3), s * s)], (1e-3, 1.0, 1e3))
    for name in ["cdf", "logcdf"]:
        add(f"t.{name}", getattr(stats.t, name), lambda rng, s: [real(rng, (4,), 1.0), positive(rng, (), 4.0)], UNIT,
            wrt=(0,))
    add("beta.cdf", stats.beta.cdf, lambda rng, s: [rng.uniform(0.1, 0.9, 5), *of((), (), kind=positive)(rng, 2.0)],
        UNIT, wrt=(0,))
    add("gamma.cdf", stats.gamma.cdf, of((4,), (4,), kind=positive), UNIT, wrt=(0,))
    add("chi2.cdf", lambda x: stats.chi2.cdf(x, 4.0), of((4,), kind=positive), (1e-3, 1.0, 5.0))
    for name in ["pmf", "logpmf", "cdf"]:
        add(f"poisson.{name}", lambda m, name=name: getattr(stats.poisson, name)(np.arange(5.0), m),
            of((5,), kind=positive), (1.0, 3.0))
    add("multivariate_normal.entropy", lambda c: stats.multivariate_normal.entropy(np.zeros(3), symmetric(c)),
        of((3, 3), kind=definite), (1.0, 1e3))

    add("sqrtm", sla.sqrtm, of((3, 3), kind=definite))
    for kw in [{"lower": True}, {"lower": False}, {"lower": True, "trans": "T"}]:
        add(f"solve_triangular{kw}", lambda a, b, kw=kw: sla.solve_triangular(a, b, **kw),
            lambda rng, s: [regular(rng, (3, 3), s), real(rng, (3, 2), 1.0)])
    add("solve_sylvester", sla.solve_sylvester,
        lambda rng, s: [definite(rng, (3, 3), s), definite(rng, (2, 2), s), real(rng, (3, 2), s)])
    add("solve_banded", lambda a, b: sla.solve_banded((1, 1), a, b),
        lambda rng, s: [np.array([[0.0], [5.0 * s], [0.0]]) + real(rng, (3, 5), s), real(rng, (5,), 1.0)])
    for mode in ["full", "valid", "same"]:
        add(f"convolve, {mode}", lambda a, b, mode=mode: signal.convolve(a, b, mode=mode), of((5, 6), (2, 3)))
