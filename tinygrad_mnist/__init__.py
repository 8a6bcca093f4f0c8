"""tinygrad_mnist: write the forward pass in NumPy's own words; every backward pass is derived.

>>> import numpy as np
>>> from tinygrad_mnist import Tensor
>>> W = Tensor(np.ones((2, 3)), requires_grad=True)
>>> loss = np.sum(np.tanh(np.dot(np.ones((4, 2)), W)))
>>> loss.backward()
>>> W.grad.shape
(2, 3)
"""

from typing import Any

from . import functional, losses, nn, numpy_api, ops, optim, serialize, show
from .core import F as _F
from .core import Tensor
from .functional import grad, hessian, hvp, jacobian, jvp, value_and_grad, vjp
from .losses import mse, softmax_cross_entropy
from .modes import detect_anomaly, enable_grad, no_grad
from .nn import dropout
from .ops import leaky_relu, log_softmax, logsumexp, primitive, relu, sigmoid, softmax, softplus, tanh
from .serialize import load, save

__all__ = [
    "Tensor", "compile", "detect_anomaly", "dropout", "enable_grad", "explain", "functional", "grad", "hessian",
    "hvp", "jacobian", "jvp", "leaky_relu", "load", "log_softmax", "logsumexp", "losses", "mse", "nn", "no_grad",
    "numpy_api", "ops", "optim", "primitive", "relu", "save", "serialize", "show", "sigmoid", "softmax",
    "softmax_cross_entropy", "softplus", "tanh", "value_and_grad", "vjp",
]


# What a program that does not use it need not import.
_LATER = {"data": ".data", "compile": ".compiled", "explain": ".explanation", "distributed": ".distributed"}


def __getattr__(name: str) -> Any:
    """Every function on Tensors by NumPy's name: `tinygrad_mnist.where`, `tinygrad_mnist.concatenate`, ..."""
    if name in _LATER:
        import importlib

        module = importlib.import_module(_LATER[name], __name__)
        return getattr(module, name, module)
    if not name.startswith("_") and name in vars(_F):
        return getattr(_F, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *(name for name in vars(_F) if not name.startswith("_"))})
