"""What the readers share: the error, opening a file, and reading no more of it than its header claims."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 4 << 30
"""No array may claim more bytes than this (4 GiB)."""

CHUNK = 1 << 20


class DataError(ValueError):
    """A data file is not what it should be. The message is one line: the file, what was expected, what was found."""

    def __init__(self, name: object, expected: str, found: object) -> None:
        super().__init__(str(name), expected, str(found))

    def __str__(self) -> str:
        name, expected, found = self.args
        return f"{name}: expected {expected}, found {found}"


class Stream(Protocol):
    """What a plain file, a gzip file and a member of a zip archive have in common."""

    def read(self, size: int, /) -> bytes: ...


class Part(NamedTuple):
    """One array of a data set, and the name by which an error calls it."""

    name: str
    array: NDArray[Any]


def listing(names: Iterable[str]) -> str:
    """Names for an error message: sorted, quoted, and few enough for one line."""
    ordered = sorted(names)
    shown = ", ".join(map(repr, ordered[:6])) or "nothing"
    return shown if len(ordered) <= 6 else f"{shown} and {len(ordered) - 6} more"


def dims(shape: tuple[int, ...]) -> str:
    """A shape as people write it: `60000 x 28 x 28`."""
    return " x ".join(map(str, shape)) or "a single number"


def damage(error: Exception) -> str:
    """What a decoder's error says was found."""
    return f"damage ({str(error) or type(error).__name__})"


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading bytes, or raise DataError."""
    if path.is_dir():
        raise DataError(path, "a file", "a folder")
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise DataError(path, "a regular file", "a device or pipe")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(path, "a readable file", error.strerror or error) from error


def read_items(
    stream: Stream, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"] = "C"
) -> NDArray[Any]:
    """Read an array that is all the rest of `stream`, with its items in row-major (C) or column-major (F) order.

    The buffer grows with the bytes that arrive, never with the claim alone: a header that lies allocates nothing.
    """
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape) < 1 or claimed > MAX_BYTES:
        raise DataError(name, f"1 byte to {MAX_BYTES >> 30} GiB of data", f"a header that claims {dims(shape)} {dtype}")
    expected = f"{claimed} bytes for {dims(shape)} {dtype}"
    content = bytearray()
    while len(content) < claimed and (chunk := stream.read(min(CHUNK, claimed - len(content)))):
        content += chunk
    if len(content) < claimed:
        raise DataError(name, expected, f"only {len(content)}")
    if stream.read(1):  # reaching the end also makes gzip and zip verify their checksums
        raise DataError(name, expected, "more after them")
    return np.ascontiguousarray(np.frombuffer(content, dtype).reshape(shape, order=order))
