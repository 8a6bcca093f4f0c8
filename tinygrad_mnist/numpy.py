"""The array library's namespace for code that names it: `import tinygrad_mnist.numpy as cp`, then `cp.dot(W, x)`.

CuPy's own functions do not accept foreign types such as Tensors; the functions here do, and are otherwise those of
the library. NumPy's functions accept Tensors as they are, so code that wrote `np.` needs no change at all.
"""

from __future__ import annotations

from typing import Any

import numpy as _np

from . import arrays as _arrays
from . import numpy_api as _numpy_api  # noqa: F401  (teaches NumPy's functions about Tensors)
from .core import Tensor as _Tensor


def asnumpy(a: Any) -> _np.ndarray[Any, Any]:
    """A copy in host memory, as `cupy.asnumpy`."""
    return a.numpy() if isinstance(a, _Tensor) else _arrays.to_host(a)


def __getattr__(name: str) -> Any:
    return getattr(_np, name)


def __dir__() -> list[str]:
    return sorted({*dir(_np), "asnumpy"})
