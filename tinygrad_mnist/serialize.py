"""Models and arrays in safetensors files: no code is ever loaded from them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import arrays
from .core import Tensor
from .nn import MLP, Module

_CONFIG = "mlp"  # the metadata entry that holds an MLP's configuration


def save(
    path: str | os.PathLike[str], model_or_dict: MLP | Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model, or a dict of names to arrays or Tensors, to a safetensors file; see `write`. Equal content gives
    equal bytes. TypeError for what such a file cannot hold."""
    from safetensors import SafetensorError
    from safetensors.numpy import save as to_bytes

    notes = dict(metadata or {})
    if isinstance(model_or_dict, MLP):
        notes[_CONFIG] = json.dumps(model_or_dict.config())
        state = model_or_dict.state_dict()
    elif isinstance(model_or_dict, Module):
        kind = type(model_or_dict).__name__
        raise TypeError(f"save takes an MLP or a dict, not {kind}: of another module, save its state_dict()")
    elif _CONFIG in notes:
        raise ValueError(f"save: metadata of a dict cannot have the entry {_CONFIG!r}, by which `load` knows an MLP")
    else:
        state = {name: _in_c_order(value) for name, value in model_or_dict.items()}
    try:
        content = to_bytes(state, metadata=notes or None)  # safetensors 0.8 writes a broken file for an empty one
    except SafetensorError as error:
        raise TypeError(f"{path}: a safetensors file cannot hold this: {error}") from None
    write(path, _with_sorted_notes(content))


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file. Whatever interrupts this, `path` is then the old file or the new one, whole. OSError names
    `path`."""
    target = Path(path)
    part = target.parent / f".{os.urandom(8).hex()}.part"  # no other process may write to the same
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error  # writing does not say which file
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _in_c_order(value: Any) -> Any:
    """A copy on the host; safetensors writes memory as it lies, in whatever order."""
    return (value.numpy() if isinstance(value, Tensor) else arrays.to_host(value)).copy(order="C")


def _with_sorted_notes(content: bytes) -> bytes:
    """The same safetensors file with its metadata in order; the library writes them in a random one."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    notes = dict(sorted(header.pop("__metadata__", {}).items()))
    header = {"__metadata__": notes, **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def load(path: str | os.PathLike[str]) -> Any:
    """What `save` wrote: an MLP (in evaluation mode), or a dict of names to NumPy arrays. ValueError for a file that
    is neither."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    notes = metadata(path)
    try:
        state = load_file(path)
    except (TypeError, AttributeError, KeyError, SafetensorError) as error:  # of bfloat16, float8
        raise ValueError(f"{path}: holds arrays that NumPy cannot: {error}") from None
    for name, array in state.items():  # ml_dtypes, which JAX brings along, lends NumPy some dtypes of others
        if array.dtype.kind not in "biufc":
            raise ValueError(f"{path}: holds arrays that NumPy cannot: {name} is {array.dtype}")
    if _CONFIG not in notes:
        return state
    try:
        config = json.loads(notes[_CONFIG])
        _check_sizes(config, state)
        model = MLP(**config, init="zeros", rng=0)
        model.load_state_dict(state)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        reason = f"{error!s:.300}"  # it may quote the configuration, which may be of any length
        raise ValueError(f"{path}: not a model that this version can build: {reason}") from None
    return model.eval()


def _check_sizes(config: Any, state: Mapping[str, Any]) -> None:
    """Raise ValueError where a model's configuration claims other weights than its file holds: a few bytes of text
    could else ask for any amount of memory."""
    if not isinstance(config, dict):
        raise ValueError(f"its configuration is no dict of arguments of MLP: {config!r:.40}")
    for i, shape in enumerate(pairwise(config.get("sizes", ()))):
        name, dtype = f"layers.{i}.weight", config.get("dtype", "float32")
        weight = state.get(name)
        if weight is None or weight.shape != shape or str(weight.dtype) != dtype:
            found = "is missing" if weight is None else f"is {weight.dtype} {weight.shape}"
            raise ValueError(f"its configuration says that {name} is {dtype} {shape}, but it {found}")
    for name, array in state.items():
        if str(array.dtype) != config.get("dtype", "float32"):
            raise ValueError(f"its weights differ in dtype: {name} is {array.dtype}")


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The notes in a safetensors file. Raises ValueError where it is none."""
    from safetensors import SafetensorError, safe_open

    _check_file(Path(path))
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None


def _check_file(path: Path) -> None:
    """Raise OSError where there is no file to read; safetensors says "No such file" whatever the reason."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, not a model file")
    if path.exists() and not path.is_file():  # reading a pipe might never end
        raise OSError(f"{path}: a device or pipe, not a model file")
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path}: a link to what does not exist")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such model file")
    with path.open("rb"):  # or PermissionError
        pass
