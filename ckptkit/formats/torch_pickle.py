"""What the names in a PyTorch pickle mean, and descriptions of all other values.

A few names have a meaning here: storages, tensors, arrays, containers. They and their arguments are those of
``torch/_utils.py``, ``torch/storage.py`` and numpy's ``__reduce__``. Nothing here imports torch; a tensor
becomes a `TensorRef`, which says where its bytes are. What else is in a checkpoint (options, metrics, dates)
is described from what the pickle says of it.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, KNOWN, Array, DType, swapped
from ckptkit.base.text import counted, escaped
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.pickle_machine import Blob, GlobalName, Handler, Inert, dictionary_key

_MAX_COUNT = 1 << 62
_MAX_KEY = 255
_MAX_FLAGS = 16

_MAX_EXTRAS = 1000
_MAX_TEXT = 1000
_MAX_ITEMS = 200
_MAX_SEQUENCE = 24
_FIRST_OF_MANY = 8
_LOOK_AHEAD = 20
_MAX_DEPTH = 3
_MAX_PARAGRAPH = 100_000
_MAX_PARAGRAPHS = 1_000_000
"""Characters of all texts of several lines together: many keys may hold the same one."""

_MAX_SHOWN_ELEMENTS = 16
"""Larger arrays are described by type and shape."""

_MAX_PARTS = 100
_MAX_PART = 1000


# -- storages and tensors ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """A run of elements that tensors are views of."""

    key: str  # its name in the file
    dtype: str | None  # name of its element type, known or not; None for untyped bytes
    count: int  # number of elements
    offset: int = 0  # elements to skip in the file's storage (views of storages, in old files)


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A strided view of a storage; offset and strides count elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class UnsupportedTensor:
    """A tensor that is not a strided view of plain numbers."""

    kind: str  # what it is, for people


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor, of whatever kind."""
    return isinstance(value, (TensorRef, UnsupportedTensor))


def whole_number(value: object, what: str) -> int:
    """Return ``value`` if it is an integer from 0 to 2^62; ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_COUNT:
        shown = value if isinstance(value, int) and abs(value) < 1 << 64 else type(value).__name__
        raise ValueError(f"{what} is {shown}")
    return value


def _axis(value: object, what: str) -> tuple[int, ...]:
    if isinstance(value, Inert) and value.name == "torch.Size":
        value = value.args[0] if value.args else ()
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMS:
        raise ValueError(f"expected a list of at most {MAX_DIMS} numbers as tensor {what}")
    return tuple(whole_number(number, f"tensor {what}") for number in value)


TORCH_DTYPES = {d.torch: d for d in KNOWN if d.torch}
"""Element types by torch's name for them."""

_STORAGE_DTYPES = {d.torch_storage: d.name for d in DTYPES.values() if d.torch_storage}
_UNTYPED = frozenset({"UntypedStorage", "_UntypedStorage"})


def storage_dtype(kind: object) -> str | None:
    """Element type of a storage class (None: bytes without type).

    Examples
    --------
    >>> storage_dtype(GlobalName("torch.cuda.HalfStorage"))
    'float16'
    """
    if not isinstance(kind, GlobalName):
        raise ValueError(f"expected a storage type, found {type(kind).__name__}")
    module, _, name = kind.name.rpartition(".")
    if module in ("torch", "torch.cuda", "torch.storage"):
        if name in _UNTYPED:
            return None
        if name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if name.endswith("Storage"):
            return name.removesuffix("Storage")
    raise ValueError(f"unknown storage type {kind.name}")


def _torch_dtype(value: object) -> str:
    if not isinstance(value, GlobalName) or not value.name.startswith("torch."):
        raise ValueError("expected a torch dtype")
    return value.name.removeprefix("torch.")


def parse_storage(identifier: object) -> StorageRef:
    """Read the persistent id of zip archives and legacy streams.

    ``("storage", class, key, location, count)``, with an optional ``(view key, offset, count)`` behind it.
    """
    if not isinstance(identifier, tuple) or not identifier or identifier[0] not in ("storage", b"storage"):
        raise ValueError("expected a storage as persistent id")
    if len(identifier) not in (5, 6):
        raise ValueError(f"expected 5 or 6 values for a storage, found {len(identifier)}")
    _, kind, key, _, count, *view = identifier
    if not isinstance(key, str):
        key = str(whole_number(key, "a storage key"))
    if len(key) > _MAX_KEY:
        raise ValueError(f"a storage key of {counted(len(key), 'character')}")
    storage = StorageRef(key, storage_dtype(kind), whole_number(count, "a storage's length"))
    if not view or view[0] is None:
        return storage
    if not isinstance(view[0], tuple) or len(view[0]) != 3:
        raise ValueError("a malformed view of a storage")
    offset = whole_number(view[0][1], "the offset of a storage view")
    length = whole_number(view[0][2], "the length of a storage view")
    if offset + length > storage.count:
        raise ValueError(
            f"a view of {counted(length, 'element')} at {offset} in a storage of {storage.count}"
        )
    return replace(storage, offset=offset, count=length)


def _rebuilds(least: int, most: int, *, has_dtype: bool = False) -> Handler:
    """The handler of a function (storage, offset, size, stride, requires_grad, hooks, dtype, flags).

    Conjugation and negation are flags beside the data; without them the numbers would be wrong.
    """

    def rebuild(args: tuple[object, ...]) -> object:
        if not least <= len(args) <= most:
            raise ValueError(f"a tensor rebuilt from {counted(len(args), 'value')}")
        tensor = _tensor(args, _torch_dtype(args[6]) if has_dtype else None)
        flags = args[6 + has_dtype] if len(args) > 6 + has_dtype else None
        if not isinstance(flags, dict):
            return tensor
        if len(flags) > _MAX_FLAGS:
            raise ValueError(f"a tensor with {counted(len(flags), 'flag')}")
        raised = [str(name) for name, value in flags.items() if value is not False]
        return UnsupportedTensor(f"a lazy view ({', '.join(raised)[:60]})") if raised else tensor

    return rebuild


def _tensor(args: tuple[object, ...], dtype: str | None) -> object:
    storage, offset, shape, strides = args[:4]
    if isinstance(storage, UnsupportedTensor):
        return storage
    if not isinstance(storage, StorageRef):
        raise ValueError("expected a storage for a tensor")
    sizes, steps = _axis(shape, "size"), _axis(strides, "stride")
    if len(sizes) != len(steps):
        raise ValueError(f"a tensor of {counted(len(sizes), 'axis')} with {counted(len(steps), 'stride')}")
    element = dtype or storage.dtype or "uint8"
    return TensorRef(storage, element, whole_number(offset, "tensor offset"), sizes, steps)


def _first_argument(args: tuple[object, ...]) -> object:
    """Parameters and buffers wrap their tensor; flags, hooks and attributes do not matter here."""
    if not args:
        raise ValueError("expected a tensor for a parameter")
    return args[0]


_PLAIN_REBUILDS: Mapping[str, Handler] = {
    "torch._utils._rebuild_tensor": _rebuilds(4, 4),
    "torch._utils._rebuild_tensor_v2": _rebuilds(6, 7),
    "torch._utils._rebuild_tensor_v3": _rebuilds(7, 8, has_dtype=True),
}
_PLAIN_TENSORS = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"})


def _rebuild_from_type(args: tuple[object, ...]) -> object:
    """``torch._tensor._rebuild_from_type_v2(function, class, arguments, state)``.

    Only what rebuilds plain tensors is let through as ``function``: the budget was charged for the outer
    arguments alone.
    """
    if len(args) != 4 or not isinstance(args[0], GlobalName) or not isinstance(args[2], tuple):
        raise ValueError("malformed tensor subclass")
    rebuild = _PLAIN_REBUILDS.get(args[0].name)
    if not isinstance(args[1], GlobalName) or args[1].name not in _PLAIN_TENSORS or rebuild is None:
        return UnsupportedTensor(f"a tensor of class {args[1]}" if isinstance(args[1], GlobalName) else "odd")
    return rebuild(args[2])


# -- arrays of numpy ---------------------------------------------------------------------------------------


_CLASSES = frozenset({"numpy.ndarray", "numpy.memmap", "numpy.matrix"})
_REBUILT = frozenset(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
_FROM_BUFFER = frozenset(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core"))
_SCALARS = frozenset(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core"))
_ARRAYS = frozenset({*_REBUILT, *_FROM_BUFFER, "numpy.ma.core._mareconstruct"})
_SIZES = {"float": (2, 4, 8), "int": (1, 2, 4, 8), "uint": (1, 2, 4, 8), "complex": (8, 16)}
_CODES = {f"{kind[0]}{size}": f"{kind}{8 * size}" for kind, sizes in _SIZES.items() for size in sizes}
"""numpy's letters for element types; a boolean is ``b1``."""


@dataclass(frozen=True)
class PickledArray:
    """A numpy array or scalar inside a pickle."""

    dtype: DType
    shape: tuple[int, ...]
    content: bytes | Blob  # its elements
    fortran: bool = False  # whether the first axis changes fastest
    big_endian: bool = False  # whether each element's bytes run the other way

    def plain(self, file: MappedFile) -> memoryview | None:
        """Its bytes, where they are those of the tensor in C order."""
        turned = self.fortran and sum(size != 1 for size in self.shape) > 1
        if turned or (self.big_endian and self.dtype.itemsize > 1):
            return None
        if isinstance(self.content, bytes):
            return memoryview(self.content)
        return None if self.content.text else file.raw(self.content.offset, self.content.nbytes)

    def release(self, file: MappedFile) -> None:
        """Give back its memory pages."""
        if isinstance(self.content, Blob):
            file.release(self.content.offset, self.content.nbytes)

    def read(self, file: MappedFile) -> Array:
        """Read-only array: a view of the file where its bytes are in the file as they are."""
        import numpy

        shape = self.shape[::-1] if self.fortran else self.shape
        if 0 in shape or (isinstance(self.content, Blob) and not self.content.text):
            array = file.view(self.content.offset if isinstance(self.content, Blob) else 0, self.dtype, shape)
        else:
            array = numpy.frombuffer(self._decoded(file), self.dtype.numpy).reshape(shape)
        if self.big_endian:
            array = swapped(array, self.dtype)
        return array.T if self.fortran else array

    def _decoded(self, file: MappedFile) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        raw = file.data[self.content.offset : self.content.offset + self.content.nbytes]
        try:
            found = raw.decode().encode("latin-1")
        except UnicodeError as error:
            reason = f"the text of an array is damaged ({error})"
            raise FormatError(file.path, reason, offset=self.content.offset) from error
        if len(found) != math.prod(self.shape) * self.dtype.itemsize:
            raise FormatError(
                file.path,
                f"{len(found)} bytes for an array of {self.dtype} {list(self.shape)}",
                offset=self.content.offset,
            )
        return found


def is_array(value: object) -> bool:
    """Whether a value records a numpy array, of whatever elements."""
    return isinstance(value, Inert) and value.name in _ARRAYS


def array_or_number(value: object) -> PickledArray | str | None:
    """The array or number of numpy that a value records, or why it cannot be read; None for other values."""
    if not isinstance(value, Inert) or value.name not in _SCALARS | _ARRAYS:
        return None
    try:
        return pickled_array(value)
    except ValueError as error:
        return str(error)


def pickled_array(value: Inert) -> PickledArray | str:
    """The array or number that a value records, or what it is where it cannot be read.

    In numpy's ``__reduce__`` ``_reconstruct`` makes an empty array, whose state is (version, shape, dtype,
    Fortran order, bytes); with protocol 5, ``_frombuffer`` gets (bytes, dtype, shape, order).
    """
    if not value.args:
        raise ValueError("expected a class for an array")
    kind = str(value.args[0])
    shape: object = ()
    if value.name in _REBUILT and isinstance(value.state, tuple) and len(value.state) in (4, 5):
        shape, dtype, fortran, content = value.state[-4:]
    elif value.name in _FROM_BUFFER and len(value.args) == 4:
        content, dtype, shape, order = value.args
        kind, fortran = "numpy.ndarray", order == "F"
    elif value.name in _SCALARS and len(value.args) == 2:
        kind, fortran, (dtype, content) = "numpy.ndarray", False, value.args
    else:
        return f"an array of class {kind[:80]}"
    sizes, element = _sizes(shape), _numpy_dtype(dtype)
    if sizes is None:
        raise ValueError("malformed shape of an array")
    if kind not in _CLASSES:
        return f"an array of class {kind[:80]}"
    if isinstance(element, str):
        return f"an array of {element} {list(sizes)}"
    if isinstance(content, str):
        content = content.encode()  # Python 2 had one type for both
    if not isinstance(content, (bytes, Blob)) or not _fits(content, math.prod(sizes) * element[0].itemsize):
        raise ValueError("the bytes of an array do not fit its shape")
    return PickledArray(element[0], sizes, content, fortran is True, element[1])


def _fits(content: bytes | Blob, nbytes: int) -> bool:
    if isinstance(content, Blob) and content.text:
        return content.latin1 and nbytes <= len(content) <= 2 * nbytes
    return len(content) == nbytes


def _numpy_dtype(value: object) -> tuple[DType, bool] | str:
    """Element type of a pickled numpy dtype, and whether it is big-endian; or a description of it."""
    if not isinstance(value, Inert) or value.name != "numpy.dtype" or not value.args:
        return "unknown elements"
    code, state = value.args[0], value.state
    name = (
        {**_CODES, "b1": "bool"}.get(code) if isinstance(code, str) else str(code).removeprefix("ml_dtypes.")
    )
    if name is None or name not in DTYPES:
        return {"O": "Python objects", "U": "texts", "S": "texts"}.get(str(code)[:1], str(code)[:80])
    return DTYPES[name], isinstance(state, tuple) and len(state) > 1 and state[1] == ">"


def _sizes(shape: object) -> tuple[int, ...] | None:
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
        return None
    sizes = tuple(size for size in shape if isinstance(size, int) and 0 <= size < 1 << 62)
    return sizes if len(sizes) == len(shape) else None


# -- plain values, and the table of all names --------------------------------------------------------------


def _dictionary(args: tuple[object, ...]) -> object:
    if not args:
        return {}
    source = args[0]
    if len(args) > 1:
        raise ValueError("expected one argument for a dictionary")
    if isinstance(source, dict):
        return dict(source)
    if not isinstance(source, (list, tuple)):
        raise ValueError("expected pairs for a dictionary")
    built: dict[object, object] = {}
    for pair in source:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("expected a pair as dictionary item")
        built[dictionary_key(pair[0])] = pair[1]
    return built


def _sequence(args: tuple[object, ...]) -> list[Any]:
    if not args:
        return []
    if len(args) > 1 or not isinstance(args[0], (list, tuple)):
        raise ValueError("expected values for a sequence")
    return list(args[0])


def _encoded(args: tuple[object, ...]) -> object:
    """``_codecs.encode(text, "latin1")`` is how protocol 2 writes bytes."""
    if len(args) != 2 or args[1] not in ("latin1", "latin-1") or not isinstance(args[0], (str, Blob)):
        return Inert("_codecs.encode", args)
    if isinstance(args[0], Blob):
        return replace(args[0], latin1=True)
    return args[0].encode("latin-1")


def _tuple(args: tuple[object, ...]) -> object:
    """A tuple of a name and an array is how Paddle pickles a tensor."""
    found = tuple(_sequence(args))
    return found[1] if len(found) == 2 and isinstance(found[0], str) and is_array(found[1]) else found


def _complex(args: tuple[object, ...]) -> object:
    if len(args) == 2:
        real, imaginary = args
        if isinstance(real, float) and isinstance(imaginary, float):
            return complex(real, imaginary)
    return Inert("builtins.complex", args)


def _bytes(args: tuple[object, ...]) -> object:
    """Protocols 0 to 2 write empty bytes as a call without arguments."""
    return Inert("builtins.bytes", args) if args else b""


def _of_another_device(args: tuple[object, ...]) -> object:
    """(tensor of the CPU or numpy array, dtype, device, …): what a TPU's and others' tensors are saved as."""
    if len(args) >= 2:
        held, dtype = args[0], _torch_dtype(args[1])
        found = pickled_array(held) if isinstance(held, Inert) and is_array(held) else held
        if isinstance(found, (TensorRef, PickledArray)) and str(found.dtype) == dtype:
            return held
    return UnsupportedTensor("a tensor of a special device")


def _unsupported(kind: str) -> Handler:
    return lambda _args: UnsupportedTensor(kind)


TORCH_HANDLERS: Mapping[str, Handler] = {
    **_PLAIN_REBUILDS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    **dict.fromkeys(
        (
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_parameter_with_state",
            "torch.nn.parameter.Parameter",
            "torch.nn.parameter.Buffer",
            "torch.autograd.variable.Variable",
        ),
        _first_argument,
    ),
    "torch._utils._rebuild_sparse_tensor": _unsupported("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _unsupported("a sparse tensor"),
    "torch._utils._rebuild_qtensor": _unsupported("a quantized tensor"),
    "torch._utils._rebuild_nested_tensor": _unsupported("a nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _unsupported("a tensor of a wrapper class"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unsupported("a meta tensor without data"),
    "torch._utils._rebuild_device_tensor_from_numpy": _of_another_device,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _of_another_device,
    "torch._utils._rebuild_xla_tensor": _of_another_device,
    "torch.Size": lambda args: tuple(_sequence(args)),
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": lambda args: _dictionary(args[1:]),
    "_codecs.encode": _encoded,
    "builtins.complex": _complex,
    **dict.fromkeys(("builtins.tuple", "__builtin__.tuple"), _tuple),
    **{
        f"{builtins}.{name}": handler
        for builtins in ("builtins", "__builtin__")
        for name, handler in {
            "dict": _dictionary,
            "list": _sequence,
            "set": _sequence,
            "frozenset": _sequence,
            "bytes": _bytes,
        }.items()
    },
}


# -- values in words ---------------------------------------------------------------------------------------


def describe(value: object, limit: int = _MAX_TEXT) -> str:
    r"""Describe a value on one line of at most about ``limit`` characters, fit for a terminal.

    Examples
    --------
    >>> describe({"lr": 0.001, "betas": (0.9, 0.999)})
    '{lr: 0.001, betas: (0.9, 0.999)}'
    >>> describe("a\x1b[31m")
    'a\\x1b[31m'
    """
    text = _Describer(limit + 1).text(value, _MAX_DEPTH)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe_extras(root: object, state_dicts: Iterable[str]) -> dict[str, str]:
    r"""Describe everything besides the state dicts; tables and objects with attributes one level deep.

    Each text is one line, but for texts that are several lines in the file itself, such as a training
    configuration: those keep their lines (``\n``), and everything else in them that a terminal would obey is
    escaped.

    Examples
    --------
    >>> describe_extras({"args": Inert("argparse.Namespace", (), {"lr": 0.1}), "epoch": 3}, [])
    {'args.lr': '0.1', 'epoch': '3'}
    """
    taken = set(state_dicts)
    if "" in taken or not isinstance(root, dict):
        return {}
    extras: dict[str, str] = {}
    paragraphs = _Paragraphs()
    for key, value in root.items():
        if key in taken:
            continue
        if len(extras) >= _MAX_EXTRAS:
            break
        name = describe(key, 80)
        count, fields = _fields(value)
        if not fields:
            extras[name] = paragraphs.text(value)
            continue
        if isinstance(value, Inert) and value.name not in _MERE_TABLES:
            extras[name] = describe(GlobalName(value.name), 200)
        for field, content in fields:
            if f"{key}.{field}" not in taken:
                extras[f"{name}.{describe(field, 80)}"] = paragraphs.text(content)
        if count > len(fields):
            extras[f"{name}.…"] = f"{_values(count - len(fields))} more"
    return extras


_MERE_TABLES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})


def _fields(value: object) -> tuple[int, list[tuple[object, object]]]:
    """What to list one by one, and how many there are in total.

    They are the values of a table, or the attributes of an object built from nothing else.
    """
    if isinstance(value, dict):
        return (0, []) if _holds_tensors(value) else (len(value), list(islice(value.items(), _MAX_ITEMS)))
    if not isinstance(value, Inert) or value.args or _known_text(value) is not None:
        return 0, []
    tables = _attributes(value)
    if any(map(_holds_tensors, tables)):
        return 0, []
    if pairs := _items(value):  # dictionaries with attribute access pickle their items twice, as state too
        return len(value.content), pairs
    return sum(map(len, tables)), list(islice(chain.from_iterable(map(dict.items, tables)), _MAX_ITEMS))


def _items(value: Inert) -> list[tuple[object, object]]:
    """The first items set in a dictionary subclass."""
    first = value.content[:_MAX_ITEMS]
    pairs = [pair for pair in first if isinstance(pair, tuple) and len(pair) == 2]
    return pairs if len(pairs) == len(first) else []


def _attributes(value: Inert) -> list[dict[object, object]]:
    """What ``BUILD`` would have set on an object: one table, or two for classes with slots."""
    state = value.state if isinstance(value.state, tuple) else (value.state, None)
    if len(state) != 2 or not all(part is None or isinstance(part, dict) for part in state):
        return []
    return [part for part in state if isinstance(part, dict)]


def _holds_tensors(table: dict[object, object], depth: int = 0) -> bool:
    """Whether tensors are among the first values, or so far deeper: such a table is not listed."""
    return any(
        is_tensor(value)
        or isinstance(value, StorageRef)
        or (depth > 0 and isinstance(value, dict) and _holds_tensors(value, depth - 1))
        for value in islice(table.values(), _LOOK_AHEAD)
    )


class _Paragraphs:
    """Texts of several lines keep them, until their characters are used up."""

    def __init__(self) -> None:
        self._left = _MAX_PARAGRAPHS

    def text(self, value: object) -> str:
        if not isinstance(value, str) or "\n" not in value[:_MAX_PARAGRAPH] or self._left <= 0:
            return describe(value)
        cut = value[:_MAX_PARAGRAPH]
        self._left -= len(cut)
        lines = [escaped(line.removesuffix("\r").expandtabs(4)) for line in cut.strip("\n").split("\n")]
        return "\n".join(lines) + ("…" if len(cut) < len(value) else "")


class _Describer:
    """Walks over a value, no deeper than some levels and until a number of characters is used up.

    Values may refer to each other many times over, so the budget is what ends the walk.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget

    def text(self, value: object, depth: int) -> str:
        if self._left <= 0:
            return "…"
        self._left -= 1
        if isinstance(value, (dict, list, tuple)):
            return self._container(value, depth)
        text = _known_text(value) if isinstance(value, Inert) else self._leaf(value)
        if text is None:
            assert isinstance(value, Inert)
            return self._call(value, depth)
        text = escaped(text[: max(self._left, 0) + 1])
        self._left -= len(text)
        return text

    def _leaf(self, value: object) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, (bool, int, float, complex, type(None))):
            return f"{value:#x}" if isinstance(value, int) and abs(value) >= 1 << 64 else str(value)
        if isinstance(value, bytes):
            return f"{len(value)} bytes"
        if isinstance(value, TensorRef):
            return f"tensor of {value.dtype} {list(value.shape)}"
        if isinstance(value, UnsupportedTensor):
            return value.kind
        if isinstance(value, GlobalName):
            return value.name
        return type(value).__name__

    def _container(self, value: dict[object, object] | list[object] | tuple[object, ...], depth: int) -> str:
        if isinstance(value, dict):
            if (depth == 0 and value) or _holds_tensors(value, 1):
                return f"table of {_values(len(value))}"
            return "{" + self._joined(((f"{self.text(k, 0)}: ", v) for k, v in value.items()), depth) + "}"
        if depth == 0 and value:
            return f"list of {_values(len(value))}"
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return opening + self._joined(self._elements(value), depth) + closing

    def _elements(self, value: list[object] | tuple[object, ...]) -> Iterator[tuple[str, object]]:
        """All of a short list; the first few of a long one and how many there are."""
        if len(value) <= _MAX_SEQUENCE:
            yield from (("", v) for v in value)
            return
        yield from (("", v) for v in value[:_FIRST_OF_MANY])
        yield "", f"… {_values(len(value))} in total"

    def _call(self, value: Inert, depth: int) -> str:
        name = escaped(value.name[:200])
        self._left -= len(name)
        if depth == 0:
            return f"{name}(…)"
        named: Iterable[tuple[object, object]] = _items(value)
        unnamed: Iterable[object] = value.args
        if not named:
            tables = _attributes(value)
            named = chain.from_iterable(map(dict.items, tables))
            state = () if tables or value.state is None else (value.state,)
            unnamed = chain(unnamed, islice(value.content, _MAX_ITEMS), state)
        parts = chain((("", v) for v in unnamed), ((f"{self.text(k, 0)}=", v) for k, v in named))
        return f"{name}({self._joined(parts, depth)})"

    def _joined(self, parts: Iterable[tuple[str, object]], depth: int) -> str:
        texts: list[str] = []
        for label, value in parts:
            texts.append(label + self.text(value, depth - 1))
            if self._left <= 0:
                texts.append("…")
                break
        return ", ".join(texts)


def _values(count: int) -> str:
    return counted(count, "value")


# -- objects of well-known classes -------------------------------------------------------------------------


def _known_text(value: Inert) -> str | None:
    """Text of an object of a well-known class; None for any other, and for malformed ones."""
    read = _READERS.get(value.name)
    try:
        return None if read is None else read(value)
    except (ValueError, OverflowError):  # numbers that no date, duration or array can have
        return None


def _number(value: Inert) -> str | None:
    found = pickled_array(value)
    return None if isinstance(found, str) else str(_small(found)[()])


def _array(value: Inert) -> str:
    """An array in text: its elements where they are few."""
    found = pickled_array(value)
    if isinstance(found, str):
        return found.removeprefix("an ")
    few = 0 < math.prod(found.shape) <= _MAX_SHOWN_ELEMENTS
    return str(_small(found).tolist()) if few else f"array of {found.dtype} {list(found.shape)}"


def _small(array: PickledArray) -> Array:
    """The elements of a small array, which are not left in the file."""
    import numpy

    if not isinstance(array.content, bytes):
        raise ValueError("a small array of many bytes")
    kind = array.dtype.numpy.newbyteorder(">") if array.big_endian else array.dtype.numpy
    return numpy.frombuffer(array.content, kind).reshape(array.shape, order="F" if array.fortran else "C")


def _moment(value: Inert) -> str | None:
    """Ten bytes: year (2), month, day, hour, minute, second, microsecond (3); then perhaps a zone."""
    raw = value.args[0] if value.args else None
    if not isinstance(raw, bytes) or len(raw) != 10:
        return None
    year, month = int.from_bytes(raw[:2], "big"), raw[2] & 0x7F  # the top bit tells repeated hours apart
    day, hour, minute, second = raw[3:7]
    moment = datetime.datetime(year, month, day, hour, minute, second, int.from_bytes(raw[7:], "big"))
    return str(moment) + (_zone(value.args[1]) if len(value.args) > 1 else "")


def _zone(zone: object) -> str:
    offset = zone.args[0] if isinstance(zone, Inert) and zone.args else None
    if isinstance(offset, Inert) and offset.name == "datetime.timedelta":
        numbers = _integers(offset.args, 3)
        if numbers is not None:
            minutes = (numbers[0] * 86400 + numbers[1]) // 60
            return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    return " (in a time zone of its own)"


def _day(value: Inert) -> str | None:
    raw = value.args[0] if value.args else None
    if not isinstance(raw, bytes) or len(raw) != 4:
        return None
    return str(datetime.date(int.from_bytes(raw[:2], "big"), raw[2], raw[3]))


def _duration(value: Inert) -> str | None:
    numbers = _integers(value.args, 3)
    return None if numbers is None else str(datetime.timedelta(*numbers))


def _integers(values: Sequence[object], count: int) -> list[int] | None:
    numbers = [number for number in values if isinstance(number, int) and abs(number) < 1 << 62]
    return numbers if len(numbers) == len(values) == count else None


def _path(pure: type[PurePosixPath] | type[PureWindowsPath]) -> Callable[[Inert], str | None]:
    def text(value: Inert) -> str | None:
        parts = [part for part in value.args if isinstance(part, str) and len(part) <= _MAX_PART]
        return str(pure(*parts)) if len(parts) == len(value.args) <= _MAX_PARTS else None

    return text


def _device(value: Inert) -> str | None:
    if not 1 <= len(value.args) <= 2 or not isinstance(value.args[0], str) or len(value.args[0]) > 100:
        return None
    return ":".join(str(part) for part in value.args if isinstance(part, (str, int)))


def _dtype(value: Inert) -> str | None:
    found = _numpy_dtype(value)
    return None if isinstance(found, str) else f"numpy.{found[0]}"


_READERS: Mapping[str, Callable[[Inert], str | None]] = {
    **dict.fromkeys(_SCALARS, _number),
    **dict.fromkeys(_ARRAYS, _array),
    "numpy.dtype": _dtype,
    "datetime.datetime": _moment,
    "datetime.date": _day,
    "datetime.timedelta": _duration,
    "torch.device": _device,
    **{
        f"{module}.{prefix}{kind}Path": _path(pure)
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
        for kind, pure in (("Posix", PurePosixPath), ("Windows", PureWindowsPath))
    },
}

UNDERSTOOD = frozenset({*TORCH_HANDLERS, *_READERS})
"""Names that this module interprets itself, without a call."""
