"""ckptkit and the real library read the same valid file; both must see the same tensors, bit for bit.

``python -m tests.fuzz --differential --count 10000``. The kinds of files are those of `tests.fuzz.valid`:
what a real library wrote, and (``to-…``) what ckptkit wrote. A refusal counts as one where `LIMITS` has its
reason, a tensor left out by name where the reader lists it; everything else that differs is a fault.

``damaged-…`` are the files of `tests.fuzz.target`, whose checksums are right again. Where both sides read
one, no tensor that both have may differ: else a file means one thing here and another there.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import re
import resource
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz import target
from tests.fuzz.seeds import seeds
from tests.fuzz.target import Outcome, measured, place
from tests.fuzz.valid import EXPECTED, MAKERS, Draw, installed

DAMAGED = {
    "damaged-npz": "numpy",
    "damaged-safetensors": "safetensors",
    "damaged-torch-zip": "torch",
    "damaged-torch-legacy": "torch",
    "damaged-keras": "h5py",
    "damaged-tf": "tensorflow",
}
_PACKAGES = {**{format: package for format, (package, _) in MAKERS.items()}, **DAMAGED}
FORMATS = tuple(format for format, package in _PACKAGES.items() if installed(package))

LIMITS: Mapping[str, str] = {
    "chunks with one of HDF5's newer indexes": "only libver='latest' writes them, which Keras never does",
    "packed by filter '(lzf|szip|scaleoffset)'": "filters of h5py and of HDF5 that Keras never uses",
    "is a link to another file: not followed": "a file that is read leads to no other one",
    "is an HDF5 file after a user block": "HDF5 behind something else, as a polyglot is",
    "a virtual dataset, put together from others": "as a link to another file",
    "its data is kept in another file; not followed": "as a link to another file",
    "a message of kind 0x3 that several objects share": "a type with a name, which Keras never writes",
    "holds no state dict, only": "tensors without names, or none at all",
    "two tensors are called": "keys that differ in kind alone, as 1 and '1' do",
    "a storage of QInt8, which cannot be skipped over": "a legacy file: what follows cannot be found",
}
"""Reasons for which a valid file may be refused (regular expressions), and why that is right."""


_UNREADABLE = "not valid: the library cannot read it"


class Value(NamedTuple):
    """A tensor: what its elements are, its shape, and its bytes in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes


Table = Mapping[str, Value]


def _value(array: Any, dtype: str | None = None) -> Value:
    array = np.asarray(array)
    if array.dtype != (little := array.dtype.newbyteorder("<")):
        array = array.astype(little)
    return Value(array.dtype.name if dtype is None else dtype, array.shape, array.tobytes())


# -- what the real libraries read ----------------------------------------------------------------------------


def _by_numpy(path: Path) -> dict[str, Table]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {"": {name: _value(array) for name, array in arrays.items() if array.dtype.kind not in "US"}}


def _by_torch(path: Path, *, weights_only: bool = False) -> dict[str, Table]:
    import torch

    root = torch.load(path, map_location="cpu", weights_only=weights_only)
    return {".".join(way): _of_torch(table) for way, table in _tables(root) if _of_torch(table)}


def _tables(value: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    if isinstance(value, dict):
        yield way, value
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tables(inner, (*way, str(key)))


def _of_torch(table: Mapping[Any, Any]) -> dict[str, Value]:
    import torch

    tensors = {str(name): _tensor(one) for name, one in table.items() if isinstance(one, torch.Tensor)}
    arrays = {str(name): _value(one) for name, one in table.items() if isinstance(one, np.ndarray)}
    return {**tensors, **arrays} if tensors else {}


def _tensor(tensor: Any) -> Value:
    """A tensor's value; without bytes where it is none of strided numbers."""
    import torch

    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return Value(dtype, shape, b"?")
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return Value(dtype, shape, plain.reshape(-1).view(torch.uint8).numpy().tobytes())


def _by_safetensors(path: Path) -> dict[str, Table]:
    from safetensors import deserialize

    shards = sorted(path.parent.glob("m*.safetensors")) if path.name.endswith(".json") else [path]
    found = [one for shard in shards for one in deserialize(shard.read_bytes())]
    return {
        "": {name: Value(said["dtype"], tuple(said["shape"]), bytes(said["data"])) for name, said in found}
    }


def _by_h5py(path: Path) -> dict[str, Table]:
    import h5py

    file: Any = path
    if path.suffix == ".keras":
        file = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5"))
    found: dict[str, Value] = {}

    def walk(group: Any, prefix: str, depth: int) -> None:
        for name in group:
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                continue
            one = group.get(name)
            if isinstance(one, h5py.Group) and depth:
                walk(one, f"{prefix}{name}/", depth - 1)
            elif isinstance(one, h5py.Dataset) and one.shape is not None and one.dtype.kind in "iufcbV":
                array = np.asarray(one[()])  # a record's bytes are carried as they are in the file
                found[prefix + name] = _value(
                    array.view(f"V{array.itemsize}") if array.dtype.names else array
                )

    with h5py.File(file, "r") as root:
        walk(root, "", 8)
    return {"": found}


def _by_tensorflow(path: Path) -> dict[str, Table]:
    import tensorflow as tf

    prefix = str(path).removesuffix(".index")
    if path.is_dir():
        state = tf.train.get_checkpoint_state(path)  # with the folder it was written in
        prefix = str(path / (Path(state.model_checkpoint_path).name if state else "m"))
    reader = tf.train.load_checkpoint(prefix)
    types = reader.get_variable_to_dtype_map()
    names = [name for name, kind in types.items() if kind not in (tf.string, tf.variant, tf.resource)]
    found = {}
    for name in names:
        array = np.asarray(reader.get_tensor(name))
        found[name] = _value(array, types[name].name)
    return {"": found}


_LIBRARIES: Mapping[str, Callable[[Path], dict[str, Table]]] = {
    "numpy": _by_numpy,
    "torch": _by_torch,
    "safetensors": _by_safetensors,
    "h5py": _by_h5py,
    "keras": _by_h5py,
    "tensorflow": _by_tensorflow,
}
_OF_DAMAGED = {**_LIBRARIES, "torch": functools.partial(_by_torch, weights_only=True)}
"""The same for damaged files, whose pickles may call anything."""


# -- what ckptkit reads --------------------------------------------------------------------------------------


class Read(NamedTuple):
    """Tensors by name, and which names the reader lists as not carried."""

    tensors: dict[str, Value]
    left_out: set[str]


def _by_ckptkit(path: Path, choices: Sequence[str], *, damaged: bool = False) -> dict[str, Read]:
    """Everything in a file, by state dict; ``choices`` are those that may be in it.

    In a ``damaged`` one tensors may be refused.
    """
    from ckptkit.formats.detect import open_reader
    from ckptkit.formats.torch_state_dicts import AmbiguousError

    try:
        with open_reader(path, as_saved=True) as reader:
            first, names = reader.state_dict, reader.state_dicts
            found = {first or "": _all_of(reader, damaged=damaged)}
    except AmbiguousError:
        first, names, found = None, tuple(choices), {}
    for name in names:
        if name != first:
            with open_reader(path, as_saved=True, state_dict=name) as reader:
                found[name] = _all_of(reader, damaged=damaged)
    return found


def _all_of(reader: Any, *, damaged: bool) -> Read:
    from ckptkit.base.errors import FormatError

    tensors = {}
    keys = getattr(reader, "keys", None) if reader.format == "tf" else None
    for name in reader.specs:
        try:
            tensors[keys[name] if keys else name] = _one_of(reader, name)
        except FormatError:
            if not damaged:
                raise
    return Read(tensors, {*reader.left_out, *reader.also})


_UNNAMED = ("npz", "keras")
"""Containers whose opaque types have no name that both sides use."""


def _one_of(reader: Any, name: str) -> Value:
    spec = reader.specs[name]
    reader.check(name)
    raw = reader.raw(name)
    kind = spec.dtype.safetensors if reader.format == "safetensors" else spec.dtype.name
    if spec.dtype.bits is not None:
        return Value(kind, spec.shape, bytes(raw.data))
    array = reader.read(name)
    assert raw is None or bytes(raw.data) == array.tobytes(), f"{name}: raw and read differ"
    return _value(array, kind if reader.format not in _UNNAMED or not spec.dtype.is_opaque else "")


# -- the comparison ------------------------------------------------------------------------------------------


def case(format: str, seed: int, number: int) -> tuple[str, dict[str, bytes], str, int]:
    """Case ``number`` of a campaign, as `tests.fuzz.target.case`: a valid file, by chance."""
    if format in DAMAGED:
        return target.case(format.removeprefix("damaged-"), seed, number)
    draw = Draw(f"{seed}/{format}/{number}")
    with tempfile.TemporaryDirectory(prefix="ckptkit-valid-") as folder:
        opened = MAKERS[format][1](draw, Path(folder))
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    return opened, files, opened, 0


def examine(format: str, files: Mapping[str, bytes], opened: str, folder: Path, how: int) -> Outcome:
    """Read a valid file by both, and compare; the bounds of `tests.fuzz.target` are for ckptkit's part."""
    if format in DAMAGED:
        return _examine_damaged(format, files, opened, folder)
    from ckptkit.base.errors import CkptkitError

    expected = pickle.loads(files[EXPECTED]) if EXPECTED in files else None
    place({name: raw for name, raw in files.items() if name != EXPECTED}, folder)
    path = folder / opened
    if opened == "m.safetensors" and not path.exists():
        path = folder / "m.safetensors.index.json"
    try:
        theirs = _LIBRARIES[MAKERS[format][0]](path)
    except Exception as error:  # what it wrote: its own fault
        return Outcome(f"{_UNREADABLE} ({type(error).__name__})", 0.0, 0)
    found: dict[str, Read] = {}

    def read() -> str:
        try:
            found.update(_by_ckptkit(path, [*theirs]))
        except CkptkitError as error:
            return _judged(error)
        return "equal"

    outcome = measured(read, folder)
    if outcome.kind.startswith("equal"):
        try:
            left = _compare(theirs, found)
            if expected is not None:
                given = {name: Value(*value) for name, value in expected.items()}
                _compare({"": given}, {"": Read(dict(theirs[""]), set())}, types=False)
        except Differs as difference:
            return replace(outcome, kind=f"fault: {difference.kind}", trace=str(difference))
        return replace(outcome, kind="equal, some left out by name") if left else outcome
    return outcome


def _examine_damaged(format: str, files: Mapping[str, bytes], opened: str, folder: Path) -> Outcome:
    """Compare what both sides read of a damaged file; a library that it ends is in a process of its own."""
    from ckptkit.base.errors import CkptkitError

    place(files, folder)
    found: dict[str, Read] = {}

    def read() -> str:
        try:
            found.update(_by_ckptkit(folder / opened, [], damaged=True))
        except CkptkitError:
            return "refused"
        return "read by both, and equal"

    outcome = measured(read, folder)
    if outcome.kind == "refused":
        return outcome
    theirs = _in_a_child(_OF_DAMAGED[DAMAGED[format]], folder / opened)
    if theirs is None:
        return replace(outcome, kind="read by ckptkit, not by the library")
    for name, one in found.items():
        table = theirs.get(name, {})
        for key, mine in one.tensors.items():
            value = table.get(key, mine)
            if value.raw != b"?" and (mine.shape, mine.raw) != (value.shape, value.raw):
                what = f"{name!r}, {key!r}: {mine[:2]} {mine.raw[:40]!r}, {value[:2]} {value.raw[:40]!r}"
                return replace(outcome, kind="fault: wrong values", trace=what)
    return outcome


_SECONDS = 10
"""How long a library may take to read a damaged file."""


def _in_a_child(read: Callable[[Path], dict[str, Table]], path: Path) -> dict[str, Table] | None:
    """What a function reads in a forked process; None where it fails, takes too long or ends the process."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(_SECONDS)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(theirs, "wb") as pipe:
                pickle.dump(read(path), pipe)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        raw = pipe.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(raw) if status == 0 and raw else None


class Differs(Exception):
    """The two do not see the same; the kind in a few words."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def _judged(error: Exception) -> str:
    """A refusal's kind: the reason why it is right, or a fault."""
    text = str(error)
    for reason in LIMITS:
        if re.search(reason, text):
            return f"refused: {reason}"
    return f"fault: refused for an unknown reason: {text[text.rfind('/') :][:150]}"


def _compare(theirs: Mapping[str, Table], ours: Mapping[str, Read], *, types: bool = True) -> int:
    """Raise `Differs`, or return how many tensors are left out by name."""
    left = 0
    for name in [*theirs, *ours]:
        if name not in ours:
            if "optimizer" not in name:
                raise Differs("a state dict is lost", repr(name))
            continue
        table, read = theirs.get(name, {}), ours[name]
        for extra in read.tensors.keys() - table.keys():
            raise Differs("made up", f"{name!r}: {extra!r}")
        for key, value in table.items():
            mine = read.tensors.get(key)
            if mine is None and key not in read.left_out:
                raise Differs("lost", f"{name!r}: {key!r} {value[:2]}")
            left += mine is None
            if mine is None:
                continue
            if mine.shape != value.shape or (types and mine.dtype not in ("", value.dtype)):
                raise Differs("another type or shape", f"{key!r}: {mine[:2]} instead of {value[:2]}")
            if mine.raw != value.raw:
                raise Differs("wrong values", f"{key!r} {value[:2]}: {mine.raw[:40]!r}, {value.raw[:40]!r}")
    return left


def warm_up(formats: Sequence[str], seed: int, folder: Path) -> None:
    """Have both sides import what they need, so that no case pays for it."""
    for format in formats:
        if format in DAMAGED:  # here, of a good file, that no child need import it
            good = seeds(format.removeprefix("damaged-"))[0]
            place(good.files, folder)
            with contextlib.suppress(Exception):
                _OF_DAMAGED[DAMAGED[format]](folder / good.opened)
        for number in range(-3, 0):
            _, files, opened, how = case(format, seed, number)
            examine(format, files, opened, folder, how)
