"""Fifteen generic ways to get any VJP wrong, and whether anybody could notice at a given point.

A mutant is a rule: `spoil(point, kind, rng)` gives `vjp(g, *arrays)`, which is the right one but for one mistake. What
it picks (an element, a pair, an input) it picks once, from the gradient of one fixed cotangent, so that a mutant of the
gradient stays linear in g: none is given away by a mere test of linearity.

**What counts.** A mutant that makes no difference is no mistake: an element whose gradient is 0 doubled, two equal ones
swapped, a column transposed, the mean of one number. So mutant and rule are compared on four Gaussian cotangents, and
where each element of every gradient agrees to 1e-9 relative (the accuracy that a right rule may be asked for), the
mutant is equivalent at this point. Nor can a difference be seen that the function itself rounds away: an element
counts only if moving it by its own size (that of a typical element of its array, if it is far smaller) changes <g, f>
by more than `VISIBLE` roundings of what f returns, as far as it depends on that element. This excludes, for instance, a
gradient of 1e-17 of a saturated output that is 1, and is stated of f alone: no checker that calls f has a say in it.
Mutants of g are recognized without calling f, by linearity, and always count if they differ.
"""

import numpy as np

VISIBLE = 100.0


def one(factor):
    def change(gradients, pick):
        gradients[pick.input][pick.element] *= factor

    return change


def all_of(factor):
    def change(gradients, pick):
        for a in gradients:
            a *= factor

    return change


def lose_smallest(gradients, pick):
    gradients[pick.input][pick.smallest] = 0.0


def swap(gradients, pick):
    a = gradients[pick.input]
    a[pick.element], a[pick.other] = a[pick.other], a[pick.element]


def roll(gradients, pick):
    a = gradients[pick.input]
    a[...] = np.roll(a.ravel(), 1).reshape(a.shape)


def transpose(gradients, pick):
    a = gradients[pick.input]
    a[...] = a.T.reshape(a.shape)


def drop_last(gradients, pick):
    gradients[-1][...] = 0.0


OF_GRADIENT = {
    "one element x 1.001": one(1.001),
    "one element x 2": one(2.0),
    "one element negated": one(-1.0),
    "all x (1 + 1e-3)": all_of(1 + 1e-3),
    "all x (1 + 1e-5)": all_of(1 + 1e-5),
    "all negated": all_of(-1.0),
    "smallest lost": lose_smallest,
    "two swapped": swap,
    "rolled": roll,
    "transposed": transpose,
    "last input dropped": drop_last,
}
OF_UPSTREAM = {
    "|g|": np.abs,
    "clip(g)": lambda g: np.clip(g, -1.0, 1.0),
    "mean(g)": lambda g: np.full(g.shape, np.mean(g)),
    "g^3": lambda g: g**3,
}
KINDS = [*OF_GRADIENT, *OF_UPSTREAM]


class Pick:
    """What a mutant of the gradient changes: chosen among the elements that are not 0."""

    def __init__(self, point, rng):
        gradients = point.vjp(upstream(point, rng), *point.arrays)
        places = [k for k, a in enumerate(gradients) if np.any(a)] or [0]
        self.input = places[rng.integers(len(places))]
        a = gradients[self.input]
        found = [tuple(i) for i in np.argwhere(a)] or list(np.ndindex(a.shape))
        self.element = found[rng.integers(len(found))]
        others = [i for i in found if a[i] != a[self.element]] or found
        self.other = others[rng.integers(len(others))]
        self.smallest = min(found, key=lambda i: abs(a[i]))


def upstream(point, rng):
    """2 N(0, 1), built like the output."""
    out = point.f(*point.arrays)
    if isinstance(out, tuple):
        return tuple(2.0 * rng.normal(size=y.shape) for y in out)
    return 2.0 * rng.normal(size=out.shape)


def spoil(point, kind, rng):
    if kind in OF_UPSTREAM:
        change = OF_UPSTREAM[kind]

        def vjp(g, *arrays):
            return point.vjp(tuple(map(change, g)) if isinstance(g, tuple) else np.asarray(change(g)), *arrays)

    else:
        pick = Pick(point, rng)

        def vjp(g, *arrays):
            gradients = tuple(np.array(a) for a in point.vjp(g, *arrays))
            OF_GRADIENT[kind](gradients, pick)
            return gradients

    return vjp


def counts(point, kind, vjp, rng):
    """Whether the mutant is a mistake that shows at this point."""
    for _ in range(4):
        g = upstream(point, rng)
        right, wrong = point.vjp(g, *point.arrays), vjp(g, *point.arrays)
        for k, i in enumerate(point.wrt):
            differs = np.abs(wrong[k] - right[k]) > 1e-9 * np.maximum(np.abs(right[k]), np.abs(wrong[k]))
            if kind in OF_UPSTREAM and differs.any():
                return True
            error = np.where(differs, wrong[k] - right[k], 0.0)
            if differs.any() and shows(point, g, i, error):
                return True
    return False


def shows(point, g, i, error):
    """Whether the element of input i with the largest effect has one that f does not round away."""
    x = point.arrays[i]
    size = np.maximum(np.abs(x), 1e-3 * np.max(np.abs(x))) if x.any() else np.ones(x.shape)
    at = np.unravel_index(np.argmax(np.abs(error) * size), x.shape)
    moved = [a.copy() for a in point.arrays]
    moved[i][at] += 1e-3 * size[at]
    here, there = point.f(*point.arrays), point.f(*moved)
    if not isinstance(g, tuple):
        g, here, there = (g,), (here,), (there,)
    moves = [y != z for y, z in zip(here, there, strict=True)]
    if not any(m.any() for m in moves):  # f does not depend on the element, or hides that it does
        moves = [np.ones(y.shape, bool) for y in here]
    terms = sum(float(np.sum(np.abs(w * y)[m])) for w, y, m in zip(g, here, moves, strict=True))
    return abs(error[at]) * size[at] > VISIBLE * 2.0**-53 * terms
