"""Layers: Linear and MLP, their initialisers, dropout. A module's parameters are views of one flat buffer."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Self

from . import arrays, ops
from .arrays import Array
from .core import Tensor
from .leaf import Leaf
from .modes import current, reads
from .numpy_api import gelu, silu

Rng = Any  # np.random.Generator, a seed, or None for fresh entropy
Initialiser = Callable[[Any, tuple[int, int]], Array]  # (generator, (n_in, n_out)) -> float64 array on the host

# ---- initialisers -------------------------------------------------------------------------------------------------


def _uniform(limit: Callable[[int, int], float]) -> Initialiser:
    return lambda rng, shape: rng.uniform(-limit(*shape), limit(*shape), shape)


def _normal(scale: Callable[[int, int], float]) -> Initialiser:
    return lambda rng, shape: scale(*shape) * rng.standard_normal(shape)


INITIALISERS: dict[str, Initialiser] = {
    # Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks
    "glorot_uniform": _uniform(lambda n_in, n_out: math.sqrt(6 / (n_in + n_out))),
    "glorot_normal": _normal(lambda n_in, n_out: math.sqrt(2 / (n_in + n_out))),
    # He, Zhang, Ren and Sun 2015, Delving deep into rectifiers
    "he_uniform": _uniform(lambda n_in, n_out: math.sqrt(6 / n_in)),
    "he_normal": _normal(lambda n_in, n_out: math.sqrt(2 / n_in)),
    "normal": _normal(lambda n_in, n_out: 1.0),
    "zeros": _uniform(lambda n_in, n_out: 0.0),
}
INITIALISERS["xavier_uniform"] = INITIALISERS["glorot_uniform"]
INITIALISERS["xavier_normal"] = INITIALISERS["glorot_normal"]


def initialiser(name: str | Initialiser) -> Initialiser:
    """The initialiser of a name; `"normal(0.01)"` is N(0, 0.01), with that standard deviation."""
    if not isinstance(name, str):
        return name
    if match := re.fullmatch(r"normal\(((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\)", name):
        scale = float(match[1])
        return _normal(lambda n_in, n_out: scale)
    if name not in INITIALISERS:
        raise ValueError(f"init must be one of {', '.join(INITIALISERS)}, 'normal(s)' or a function; got {name!r}")
    return INITIALISERS[name]


# ---- activations and dropout --------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Any], Tensor]] = {
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "leaky_relu": ops.leaky_relu,
    "softplus": ops.softplus,
    "gelu": gelu,
    "silu": silu,
    "linear": lambda x: x,
}


def dropout(x: Any, p: float, rng: Rng) -> Tensor:
    """Each element zero with probability p, else divided by 1 - p, so that the mean stays (Srivastava et al. 2014).

    The mask is drawn on the host by the NumPy generator `rng`: a seed gives the same mask on every backend.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be at least 0 and less than 1, not {p}")
    x = x if isinstance(x, Tensor) else Tensor(x)
    if x.dtype.kind != "f":  # 1 / (1 - p) would become 1
        raise TypeError(f"dropout: x must have a float dtype, not {x.dtype}: use .astype('float32')")
    generator, recorder = arrays.generator(rng), current.get().recorder
    if recorder is not None:
        keep = recorder.random(generator, x.shape, "float32", x.data) >= p
    else:
        keep = generator.random(x.shape, dtype="float32") >= p
    return ops.multiply(x, arrays.from_host(keep / (1 - p), x.data))


# ---- modules ------------------------------------------------------------------------------------------------------


def _inside(value: Any) -> Iterable[tuple[Any, Any]]:
    """(name, item) of what a module, a list, a tuple or a dict holds."""
    if isinstance(value, Module):
        return vars(value).items()
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    return value.items() if isinstance(value, dict) else ()


def _walk(value: Any, name: str = "", found: dict[int, tuple[str, Any]] | None = None) -> Iterable[tuple[str, Any]]:
    """(name, value), and so on for all modules, Tensors and containers inside it. Each once, under its first name:
    modules may share a parameter, and one may know the module that it is in."""
    found = {} if found is None else found
    found[id(value)] = name, value
    for key, item in _inside(value):
        if isinstance(item, _WALKED) and id(item) not in found:
            _walk(item, f"{name}.{key}" if name else str(key), found)
    return found.values()


def _move(value: Any, buffer: Array, start: int, seen: set[int]) -> int:
    """Make the parameters in `value`, in the order of `_walk`, views of `buffer` from `start` on; returns where they
    end."""
    if id(value) in seen:
        return start
    seen.add(id(value))
    if _is_parameter(value):
        value._data = buffer[start : start + value.size].reshape(value.shape)
        return start + value.size
    stop = start
    for _, item in _inside(value):
        stop = _move(item, buffer, stop, seen)
    if isinstance(value, Module):
        value.flat = buffer[start:stop]
    return stop


def _is_parameter(value: Any) -> bool:
    return isinstance(value, Tensor) and type(value._node) is Leaf


class Module:
    """Something with parameters: the Tensors that require a gradient among its attributes, in modules among them, and
    in lists, tuples and dicts of either. `flatten` moves them into one buffer, `flat`, of which they stay views: assign
    values to them, never other memory. The `flat` of a module inside another is its part of the buffer; a parameter
    that modules share lies in the part of the first."""

    flat: Array
    _training = True

    @property
    def training(self) -> bool:
        """True while dropout is active; `train()` and `eval()` switch."""
        reads(self, "_training")
        return self._training

    @training.setter
    def training(self, value: bool) -> None:
        self._training = value

    def __call__(self, x: Any) -> Tensor:
        raise NotImplementedError

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(name, parameter), each parameter once, in a fixed order: that of the attributes."""
        return ((prefix + name, item) for name, item in _walk(self) if _is_parameter(item))

    def parameters(self) -> list[Tensor]:
        """The parameters, leaves of every graph."""
        return [p for _, p in self.named_parameters()]

    def modules(self) -> Iterator[Module]:
        """This module and those inside it, each once."""
        return (item for _, item in _walk(self) if isinstance(item, Module))

    def flatten(self) -> None:
        """Move all parameters, values kept, into one buffer of which they are views. `Linear` and `MLP` end their
        `__init__` with this, and a module of your own should."""
        params = list(self.named_parameters())
        if not params:
            return
        first, one = params[0]
        for name, p in params:
            if p.dtype != one.dtype:
                raise ValueError(
                    f"flatten: one buffer has one dtype, but {first} is {one.dtype} and {name} is {p.dtype}"
                )
        _move(self, arrays.joined([p.data for _, p in params]), 0, set())

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            p.grad = None

    def to(self, device: str) -> Self:
        """Move all Tensors held, values and gradients kept, to "cpu", "gpu" or "gpu:N"; returns self. The parameters
        stay the Tensors that they are. Make optimizers after this: their state lies where the parameters are."""
        if {t.device for _, t in self._state()} == {arrays.canonical(device)}:
            return self
        for _, t in self._state():
            gradient = t.grad if t.requires_grad else None
            t._data = arrays.move(t._data, device)
            if gradient is not None:
                t.grad = arrays.move(gradient, device)
        flattened: set[int] = set()
        for module in self.modules():  # the outer before the inner, whose part of the buffer goes with it
            if "flat" in vars(module) and id(module) not in flattened:
                module.flatten()
                flattened.update(map(id, module.modules()))
        return self

    def train(self, mode: bool = True) -> Module:
        """Switch to training (dropout active); returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch to evaluation (dropout off); returns self."""
        return self.train(False)

    def state_dict(self) -> dict[str, Any]:
        """Copies in host memory, by name, of the parameters, the frozen ones too, and of all other Tensors held."""
        return {name: t.numpy() for name, t in self._state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the Tensors of `state_dict()`; all names and shapes must fit, or nothing is changed."""
        own = dict(self._state())
        if state.keys() != own.keys():
            missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise ValueError(f"load_state_dict: missing {_listing(missing)}, unexpected {_listing(extra)}")
        for name, t in own.items():
            if state[name].shape != t.shape:
                raise ValueError(f"load_state_dict: {name} has shape {state[name].shape}, the parameter {t.shape}")
        for name, t in own.items():
            t.data = state[name]

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """Not what requires a gradient but what lasts: all Tensors but the results of a recorded graph."""
        return ((name, t) for name, t in _walk(self) if isinstance(t, Tensor) and t.is_leaf)

    def __copy__(self) -> Module:
        """As a copy of a Tensor has memory of its own, so have the parameters of a copied module."""
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name == "flat" else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        flat = "flat" in state
        vars(self).update(state)
        if flat:
            del self.flat
            self.flatten()  # copies of the parameters came back as arrays of their own


_WALKED = (Module, Tensor, list, tuple, dict)


def _listing(names: list[str]) -> str:
    """Names for an error message: few enough for one line."""
    return str(names) if len(names) <= 6 else f"{names[:6]} and {len(names) - 6} more"


class Linear(Module):
    """`x @ W + b` with `weight` of shape (n_in, n_out) and `bias` of shape (n_out,), zero at the start."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        bias: bool = True,
        init: str | Initialiser = "glorot_uniform",
        rng: Rng = None,
        dtype: Any = "float32",
    ) -> None:
        values = initialiser(init)(arrays.generator(rng), (n_in, n_out))
        self.weight = Tensor(values.astype(dtype), requires_grad=True, name="weight")
        self.bias = Tensor([0.0] * n_out, dtype=dtype, requires_grad=True, name="bias") if bias else None
        self.flatten()

    def __call__(self, x: Any) -> Tensor:
        reads(self, "weight", "bias")
        y = ops.matmul(x, self.weight)
        return y if self.bias is None else ops.add(y, self.bias)


class MLP(Module):
    """A multilayer perceptron: `Linear` layers with an activation (and dropout) after each but the last.

    `sizes`: units from input to output, such as (784, 128, 64, 10); maps (n, sizes[0]) to logits (n, sizes[-1]).
    `activation`: a name in `ACTIVATIONS`, or one for each hidden layer. `init`: a name in `INITIALISERS`, "normal(s)"
    or a function. `dropout`: the probability of dropping a hidden unit while training. `rng`: a NumPy generator or a
    seed, for the weights and the dropout masks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Sequence[str] = "relu",
        *,
        bias: bool = True,
        init: str | Initialiser = "glorot_uniform",
        dropout: float = 0.0,
        rng: Rng = None,
        dtype: Any = "float32",
    ) -> None:
        if len(sizes) < 2 or any(n < 1 for n in sizes):
            raise ValueError(f"MLP: sizes must name input and output at least, each 1 or more; got {tuple(sizes)}")
        names = [activation] * (len(sizes) - 2) if isinstance(activation, str) else list(activation)
        if len(names) != len(sizes) - 2 or any(name not in ACTIVATIONS for name in names):
            raise ValueError(
                f"MLP: activation must be one of {', '.join(ACTIVATIONS)}, or a list of one for each of the "
                f"{len(sizes) - 2} hidden layers; got {activation!r}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"MLP: dropout must be at least 0 and less than 1, not {dropout}")
        self.sizes = tuple(map(int, sizes))
        self.activation = names
        self.dropout = dropout
        self.rng = arrays.generator(rng)
        self.layers = [
            Linear(n_in, n_out, bias=bias, init=init, rng=self.rng, dtype=dtype) for n_in, n_out in pairwise(sizes)
        ]
        for i, layer in enumerate(self.layers, 1):
            layer.weight.name = f"W{i}"
            if layer.bias is not None:
                layer.bias.name = f"b{i}"
        self.flatten()

    def __call__(self, x: Any) -> Tensor:
        reads(self, "layers", "activation", "dropout", "rng")
        *hidden, last = self.layers
        for layer, name in zip(hidden, self.activation, strict=True):
            x = ACTIVATIONS[name](layer(x))
            if self.dropout and self.training:
                x = dropout(x, self.dropout, self.rng)
        return last(x)

    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this architecture: `MLP(**config)`."""
        first = self.layers[0]
        return {
            "sizes": list(self.sizes),
            "activation": self.activation,
            "bias": first.bias is not None,
            "dropout": self.dropout,
            "dtype": str(first.weight.dtype),
        }
