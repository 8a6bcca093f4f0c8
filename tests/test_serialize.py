"""Files: what is saved comes back bit for bit, and a file is never half written."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tinygrad_mnist import Tensor, load, nn, save, serialize

RNG = np.random.default_rng(0)
ARRAYS = {
    "float16": RNG.normal(size=(2, 3)).astype("float16"),
    "float32": np.array([np.nan, np.inf, -0.0, 1e-45], "float32"),
    "float64": RNG.normal(size=5),
    "int64": np.array([-1, 2**62]),
    "uint8": np.arange(256, dtype="uint8"),
    "bool": np.array([True, False]),
    "0-d": np.array(1.5),
    "empty": np.zeros((0, 3), "float32"),
    "transposed": RNG.normal(size=(3, 4)).T,
    "fortran": np.asfortranarray(RNG.normal(size=(2, 3, 4))),
    "strided": RNG.normal(size=(4, 6))[::2, ::-3],
    "broadcast": np.broadcast_to(np.float32(2), (2, 3)),
    "a name with spaces, é, 数": np.ones(1),
}


def assert_same(a, b):
    assert type(b) is np.ndarray
    assert (b.dtype, b.shape) == (a.dtype, a.shape)
    assert b.tobytes() == a.tobytes()  # both in C order


def only_files(folder, *names):
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


# ---- dicts --------------------------------------------------------------------------------------------------------


def test_arrays_come_back_bit_for_bit(backend, tmp_path):
    path = tmp_path / "arrays.safetensors"
    save(path, {name: backend.array(a) for name, a in ARRAYS.items()})
    found = load(path)
    assert found.keys() == ARRAYS.keys()
    for name, a in ARRAYS.items():
        assert_same(a, found[name])
    only_files(tmp_path, "arrays.safetensors")


@pytest.mark.parametrize("order", ["C", "F"])
def test_tensors_are_saved_as_their_values(backend, tmp_path, order):
    values = np.array(RNG.normal(size=(3, 4)), order=order)
    leaf = Tensor(backend.array(values), requires_grad=True)
    save(tmp_path / "a", {"leaf": leaf, "view": leaf.T, "result": leaf * 2})
    found = load(str(tmp_path / "a"))
    assert_same(values, found["leaf"])
    assert_same(values.T, found["view"])
    assert_same(values * 2, found["result"])


def test_other_byte_orders_keep_their_values(tmp_path):
    a = np.array([1.5, -2.0], ">f4")
    save(tmp_path / "a", {"a": a, "b": a.byteswap().view("<f4")})
    found = load(tmp_path / "a")
    assert_same(a.astype("=f4"), found["a"])
    assert_same(a.astype("=f4"), found["b"])


def test_nothing_comes_back_as_nothing(tmp_path):
    save(tmp_path / "a", {})
    assert load(tmp_path / "a") == {}
    assert serialize.metadata(tmp_path / "a") == {}


def test_metadata(tmp_path):
    notes = {f"note {i}": 'line\nline, é, "quoted", 数' * i for i in range(20)}
    save(tmp_path / "a", {"a": np.ones(2)}, metadata=notes)
    assert serialize.metadata(tmp_path / "a") == notes
    save(tmp_path / "b", {"a": np.ones(2)}, metadata=dict(reversed(notes.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()  # equal content, equal bytes


# ---- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_models_come_back_whole(backend, tmp_path, dtype):
    """From wherever they are to the host."""
    model = nn.MLP((6, 5, 4, 3), ["tanh", "gelu"], bias=dtype != "float16", dropout=0.5, rng=0, dtype=dtype)
    model.to(backend.device)
    save(tmp_path / "m.safetensors", model, metadata={"preprocess": "none"})
    found = load(tmp_path / "m.safetensors")
    assert type(found) is nn.MLP
    assert found.config() == model.config()
    assert found.flat.dtype == dtype
    assert found.flat.tobytes() == model.flat.tobytes()
    assert not found.training
    assert [p.requires_grad for p in found.parameters()] == [True] * len(model.parameters())
    x = RNG.normal(size=(2, 6)).astype(dtype)
    assert found.to(backend.device)(backend.array(x)).data.tobytes() == model.eval()(backend.array(x)).data.tobytes()
    assert serialize.metadata(tmp_path / "m.safetensors")["preprocess"] == "none"


def test_a_model_file_opens_with_safetensors_alone(tmp_path):
    from safetensors.numpy import load_file

    model = nn.MLP((3, 2, 2), rng=0)
    save(tmp_path / "m", model)
    found = load_file(tmp_path / "m")
    assert found.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert_same(value, found[name])


def test_a_model_with_frozen_parameters_is_saved_whole(backend, tmp_path):
    model = nn.MLP((3, 4, 2), rng=0).to(backend.device)
    for p in model.layers[0].parameters():
        p.requires_grad = False
    save(tmp_path / "m", model)
    found = load(tmp_path / "m")
    assert len(found.parameters()) == 4  # that they were frozen is not in the file
    for p, q in zip(model.state_dict().values(), found.state_dict().values(), strict=True):
        assert_same(p, q)


def test_saving_a_loaded_model_gives_the_same_file(backend, tmp_path):
    save(tmp_path / "a", nn.MLP((3, 4, 2), rng=0), metadata={"b": "2", "a": "1"})
    save(tmp_path / "b", load(tmp_path / "a").to(backend.device), metadata=serialize.metadata(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---- whole or not at all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, step, error):
    path = tmp_path / "a.safetensors"
    save(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def fail(*_args):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)) as caught:
        save(path, {"a": np.ones(1000)})
    if isinstance(error, OSError):
        assert str(caught.value) == f"[Errno {errno.ENOSPC}] No space left on device: {str(path)!r}"
    assert path.read_bytes() == before
    only_files(tmp_path, path.name)


def test_a_write_that_never_happens_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "no" / "a"))):
        save(tmp_path / "no" / "a", {"a": np.ones(1)})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "folder"))):
        save(tmp_path / "folder", {"a": np.ones(1)})
    only_files(tmp_path, "folder")


def test_what_an_interrupted_write_left_behind_is_no_trouble(tmp_path):
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"half a fi")
    save(tmp_path / "a", {"a": np.ones(1)})
    assert load(tmp_path / "a")["a"] == 1


def test_two_writers_of_one_file_do_not_share_what_they_write(tmp_path, monkeypatch):
    fsync, found = os.fsync, []

    def second_writer(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        found.extend(path.name for path in tmp_path.iterdir())
        serialize.write(tmp_path / "a", b"second")

    monkeypatch.setattr(os, "fsync", second_writer)
    serialize.write(tmp_path / "a", b"first")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert len(found) == 1
    only_files(tmp_path, "a")


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (nn.Linear(2, 2, rng=0), TypeError, r"^save takes an MLP or a dict, not Linear: .* save its state_dict\(\)$"),
        ({"a": np.ones(2, complex)}, TypeError, r"a: a safetensors file cannot hold this: .*complex128"),
        ({"a": np.array(["x"])}, TypeError, r"a: a safetensors file cannot hold this: .*str"),
    ],
)
def test_what_cannot_be_saved(tmp_path, bad, kind, message):
    with pytest.raises(kind, match=message):
        save(tmp_path / "a", bad)
    only_files(tmp_path)


def test_a_dict_cannot_pass_for_a_model(tmp_path):
    with pytest.raises(ValueError, match="cannot have the entry 'mlp'"):
        save(tmp_path / "a", {}, metadata={"mlp": "{}"})


# ---- files that are not what they should be -----------------------------------------------------------------------


def damaged(content):
    size = int.from_bytes(content[:8], "little")
    return {
        "empty": b"",
        "short": content[:5],
        "cut header": content[: 8 + size // 2],
        "cut data": content[:-1],
        "appended": content + b"x",
        "text": b"model = 'weights'\n" * 10,
        "pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00.",
        "huge header": (2**62).to_bytes(8, "little") + content[8:],
        "no json": content[:8] + b"?" * size + content[8 + size :],
    }


@pytest.mark.parametrize("damage", damaged(bytes(64)))
def test_not_a_safetensors_file(tmp_path, damage):
    path = tmp_path / "m.safetensors"
    save(path, nn.MLP((3, 2), rng=0))
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: not a safetensors file: "):
        load(path)


MISSING = {
    "missing": "no such model file",
    "folder": "a folder, not a model file",
    "pipe": "a device or pipe, not a model file",
    "link": "a link to what does not exist",
}


@pytest.mark.skipif(os.name == "nt", reason="no pipes, no links")
@pytest.mark.parametrize("what", MISSING)
def test_missing_file(tmp_path, what):
    path = tmp_path / "m.safetensors"
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("nowhere")}
    make.get(what, lambda: None)()
    for reader in load, serialize.metadata:
        with pytest.raises(OSError, match=f"^{re.escape(f'{path}: {MISSING[what]}')}$"):
            reader(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(path, {})

    def refuse(self, *_args, **_options):  # chmod does not stop the superuser
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=re.escape(str(path))):
        load(path)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2"])
def test_arrays_of_a_dtype_that_numpy_does_not_have(tmp_path, dtype):
    path, size = tmp_path / "m.safetensors", 2 if dtype == "BF16" else 1
    header = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8 * size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8 * size))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: holds arrays that NumPy cannot: "):
        load(path)


def test_a_model_file_with_other_arrays_than_the_model_is_one_short_line(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    model = nn.MLP((3, 2), rng=0)
    note = {"mlp": json.dumps(model.config())}
    state = model.state_dict()
    save_file(state | {f"more {i}": np.zeros(1, "float32") for i in range(1000)}, path, metadata=note)
    with pytest.raises(ValueError, match="unexpected .* and 994 more$"):
        load(path)
    save_file(state | {"layers.0.bias": np.zeros(2, "complex64")}, path, metadata=note)
    with pytest.raises(ValueError, match=r"its weights differ in dtype: layers.0.bias is complex64$"):
        load(path)
    save_file(state, path, metadata={"mlp": json.dumps({**model.config(), "activation": ["x"] * 10**5})})
    with pytest.raises(ValueError, match="activation must be one of") as caught:
        load(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "Expecting property name"),
        ("[1, 2]", r"its configuration is no dict of arguments of MLP: \[1, 2\]"),
        ("{}", "sizes"),
        ('{"sizes": 3}', "not iterable"),
        ("[" * 10**5, "maximum recursion depth"),
        (json.dumps({"sizes": [3, 2], "dropout": 10**400}), "dropout must be"),
        (json.dumps({"sizes": [3, 2], "attention": True}), "attention"),
        (json.dumps({"sizes": [3]}), "sizes must name"),
        (json.dumps({"sizes": [3, 4]}), r"layers.0.weight is float32 \(3, 4\), but it is float32 \(3, 2\)$"),
        # what would ask for far more memory than there is
        (json.dumps({"sizes": [10**6, 10**6, 10]}), r"is float32 \(1000000, 1000000\), but it is float32 \(3, 2\)$"),
        (json.dumps({"sizes": [3, 2, 10**9]}), r"layers.1.weight is float32 \(2, 1000000000\), but it is missing$"),
        (json.dumps({"sizes": [3, 2], "dtype": "S1000000000"}), r"layers.0.weight is S1000000000 \(3, 2\), but it is"),
    ],
)
def test_a_model_that_this_version_cannot_build(tmp_path, config, message):
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    save_file(nn.MLP((3, 2), rng=0).state_dict(), path, metadata={"mlp": config})
    start = re.escape(f"{path}: not a model that this version can build: ")
    with pytest.raises(ValueError, match=f"^{start}.*{message}"):
        load(path)
