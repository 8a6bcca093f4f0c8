"""What happens to the pixels before a network sees them, as a record that a model file keeps.

Training and inference apply the same record, so that they cannot disagree.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True)
class Preprocess:
    """Turns uint8 images into network input: `(pixel * scale - mean) / std`, one row for each image if `flatten`."""

    scale: float = 1 / 255
    mean: float = 0.0
    std: float = 1.0
    flatten: bool = True

    def __post_init__(self) -> None:
        for name in ("scale", "mean", "std"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not abs(value) <= sys.float_info.max:  # JSON has integers that no float can hold, and NaN
                raise ValueError(f"preprocess: {name} must be a finite number, got {reprlib.repr(value)}")
        if self.scale == 0 or self.std <= 0:
            raise ValueError(f"preprocess: scale must not be 0, std must be positive; got {self.scale} and {self.std}")
        if not isinstance(self.flatten, bool):
            raise ValueError(f"preprocess: flatten must be true or false, got {reprlib.repr(self.flatten)}")

    def __call__(self, images: NDArray[np.uint8], dtype: DTypeLike = "float32") -> NDArray[Any]:
        """A fresh `(n, h * w)` array of `dtype`, or `(n, h, w)` without `flatten`, of uint8 images `(n, h, w)`."""
        if images.ndim != 3 or images.dtype != np.uint8:
            raise ValueError(f"preprocess: images must be uint8 (n, h, w), got {images.dtype} {images.shape}")
        # Converting first and computing in place is faster than a product that converts.
        pixels: NDArray[Any] = images.astype(dtype)
        pixels *= self.scale / self.std
        if self.mean:
            pixels -= self.mean / self.std
        n, h, w = images.shape
        return pixels.reshape(n, h * w) if self.flatten else pixels

    def describe(self) -> str:
        """What is done, in one sentence."""
        steps = [f"divided by {1 / self.scale:.6g}"]
        if self.mean:
            steps.append(f"less the mean {self.mean:.6g}")
        if self.std != 1:
            steps.append(f"divided by the standard deviation {self.std:.6g}")
        if self.flatten:
            steps.append("flattened to one row for each image")
        return f"Pixels (0 to 255) are {', then '.join(steps)}."

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`; a missing or unknown key is a ValueError, for a guess would change the input."""
        expected = [field.name for field in fields(cls)]
        if not isinstance(record, Mapping):
            raise ValueError(f"preprocess: expected a record of {', '.join(expected)}, got {reprlib.repr(record)}")
        if set(record) != set(expected):
            found = f"{', '.join(map(str, record)) or 'none'!s:.200}"
            raise ValueError(f"preprocess: expected the keys {', '.join(expected)}, found {found}")
        return cls(**record)
