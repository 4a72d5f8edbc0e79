"""What the few names with a meaning in a PyTorch pickle mean: storages, tensors, arrays, containers.

The names and their arguments are those of ``torch/_utils.py``, ``torch/storage.py`` and numpy's
``__reduce__``. Nothing here imports torch; a tensor becomes a `TensorRef`, which says where its bytes are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, KNOWN, Array, DType, swapped
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.pickle_machine import Blob, GlobalName, Handler, Inert, dictionary_key

_MAX_COUNT = 1 << 62
_MAX_KEY = 255
_MAX_FLAGS = 16


# -- storages and tensors ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """A run of elements that tensors are views of."""

    key: str  # its name in the file
    # name of its element type; None for untyped bytes; a name outside of `TORCH_DTYPES` when not known
    dtype: str | None
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
        raise ValueError(f"tensor {what} that is not a list of at most {MAX_DIMS} numbers")
    return tuple(whole_number(number, f"tensor {what}") for number in value)


TORCH_DTYPES = {d.torch: d for d in KNOWN if d.torch}
"""Element types by torch's name for them."""

_STORAGE_DTYPES = {d.torch_storage: d.name for d in DTYPES.values() if d.torch_storage}
_UNTYPED = frozenset({"UntypedStorage", "_UntypedStorage"})


def storage_dtype(kind: object) -> str | None:
    """Element type a storage class stands for (None: bytes without type).

    Examples
    --------
    >>> storage_dtype(GlobalName("torch.cuda.HalfStorage"))
    'float16'
    """
    if not isinstance(kind, GlobalName):
        raise ValueError("a storage without type")
    module, _, name = kind.name.rpartition(".")
    if module in ("torch", "torch.cuda", "torch.storage"):
        if name in _UNTYPED:
            return None
        if name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if name.endswith("Storage"):
            return name.removesuffix("Storage")
    raise ValueError(f"{kind.name} as storage type")


def _torch_dtype(value: object) -> str:
    if not isinstance(value, GlobalName) or not value.name.startswith("torch."):
        raise ValueError("a tensor whose dtype is not a torch dtype")
    return value.name.removeprefix("torch.")


def parse_storage(identifier: object) -> StorageRef:
    """Read the persistent id of zip archives and legacy streams.

    ``("storage", class, key, location, count)``, with an optional ``(view key, offset, count)`` behind it.
    """
    if not isinstance(identifier, tuple) or not identifier or identifier[0] not in ("storage", b"storage"):
        raise ValueError("a persistent id that is not a storage")
    if len(identifier) not in (5, 6):
        raise ValueError(f"a storage described by {len(identifier)} values")
    _, kind, key, _, count, *view = identifier
    if not isinstance(key, str):
        key = str(whole_number(key, "a storage key"))
    if len(key) > _MAX_KEY:
        raise ValueError(f"a storage key of {len(key)} characters")
    storage = StorageRef(key, storage_dtype(kind), whole_number(count, "a storage's length"))
    if not view or view[0] is None:
        return storage
    if not isinstance(view[0], tuple) or len(view[0]) != 3:
        raise ValueError("a malformed view of a storage")
    offset = whole_number(view[0][1], "the offset of a storage view")
    length = whole_number(view[0][2], "the length of a storage view")
    if offset + length > storage.count:
        raise ValueError(f"a view of {length} elements at {offset} in a storage of {storage.count}")
    return replace(storage, offset=offset, count=length)


def _tensor(args: tuple[object, ...], dtype: str | None = None) -> object:
    """Build the reference from (storage, offset, size, stride, …)."""
    storage, offset, shape, strides = args[:4]
    if isinstance(storage, UnsupportedTensor):
        return storage
    if not isinstance(storage, StorageRef):
        raise ValueError("a tensor without storage")
    sizes, steps = _axis(shape, "size"), _axis(strides, "stride")
    if len(sizes) != len(steps):
        raise ValueError(f"a tensor of {len(sizes)} axes with {len(steps)} strides")
    element = dtype or storage.dtype or "uint8"
    return TensorRef(storage, element, whole_number(offset, "tensor offset"), sizes, steps)


def _needs(args: tuple[object, ...], least: int, most: int) -> None:
    if not least <= len(args) <= most:
        raise ValueError(f"a tensor rebuilt from {len(args)} values")


def _with_flags(tensor: object, flags: object) -> object:
    """Conjugation and negation are flags beside the data; without them the numbers would be wrong."""
    if isinstance(flags, dict):
        if len(flags) > _MAX_FLAGS:
            raise ValueError(f"a tensor with {len(flags)} flags")
        raised = [str(name) for name, value in flags.items() if value is not False]
        if raised:
            return UnsupportedTensor(f"a lazy view ({', '.join(raised)[:60]})")
    return tensor


def _rebuild_tensor(args: tuple[object, ...]) -> object:
    _needs(args, 4, 4)
    return _tensor(args)


def _rebuild_tensor_v2(args: tuple[object, ...]) -> object:
    _needs(args, 6, 7)
    return _with_flags(_tensor(args), args[6] if len(args) > 6 else None)


def _rebuild_tensor_v3(args: tuple[object, ...]) -> object:
    _needs(args, 7, 8)
    tensor = _tensor(args, dtype=_torch_dtype(args[6]))
    return _with_flags(tensor, args[7] if len(args) > 7 else None)


def _first_argument(args: tuple[object, ...]) -> object:
    """Parameters and buffers wrap their tensor; flags, hooks and attributes do not matter here."""
    if not args:
        raise ValueError("a parameter without tensor")
    return args[0]


_PLAIN_REBUILDS: Mapping[str, Handler] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
}
_PLAIN_TENSORS = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"})


def _rebuild_from_type(args: tuple[object, ...]) -> object:
    """``torch._tensor._rebuild_from_type_v2(function, class, arguments, state)``.

    Only what rebuilds plain tensors is let through as ``function``: the budget was charged for the outer
    arguments alone.
    """
    if len(args) != 4 or not isinstance(args[0], GlobalName) or not isinstance(args[2], tuple):
        raise ValueError("a malformed tensor of a class of its own")
    rebuild = _PLAIN_REBUILDS.get(args[0].name)
    if not isinstance(args[1], GlobalName) or args[1].name not in _PLAIN_TENSORS or rebuild is None:
        return UnsupportedTensor(f"a tensor of class {args[1]}" if isinstance(args[1], GlobalName) else "odd")
    return rebuild(args[2])


# -- arrays of numpy ---------------------------------------------------------------------------------------


_CLASSES = frozenset({"numpy.ndarray", "numpy.memmap", "numpy.matrix"})
_REBUILT = frozenset(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
_FROM_BUFFER = frozenset(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core"))
SCALARS = frozenset(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core"))
ARRAYS = frozenset({*_REBUILT, *_FROM_BUFFER, "numpy.ma.core._mareconstruct"})
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
    return isinstance(value, Inert) and value.name in ARRAYS


def is_scalar(value: object) -> bool:
    """Whether a value records a number of numpy's."""
    return isinstance(value, Inert) and value.name in SCALARS


def pickled_array(value: Inert) -> PickledArray | str:
    """The array or number that a value records, or what it is where it cannot be read.

    In numpy's ``__reduce__`` ``_reconstruct`` makes an empty array, whose state is (version, shape, dtype,
    Fortran order, bytes); with protocol 5, ``_frombuffer`` gets (bytes, dtype, shape, order).
    """
    if not value.args:
        raise ValueError("an array of no class")
    kind = str(value.args[0])
    shape: object = ()
    if value.name in _REBUILT and isinstance(value.state, tuple) and len(value.state) in (4, 5):
        shape, dtype, fortran, content = value.state[-4:]
    elif value.name in _FROM_BUFFER and len(value.args) == 4:
        content, dtype, shape, order = value.args
        kind, fortran = "numpy.ndarray", order == "F"
    elif value.name in SCALARS and len(value.args) == 2:
        kind, fortran, (dtype, content) = "numpy.ndarray", False, value.args
    else:
        return f"an array of class {kind[:80]}"
    sizes, element = _sizes(shape), numpy_dtype(dtype)
    if sizes is None:
        raise ValueError("an array of malformed shape")
    if kind not in _CLASSES:
        return f"an array of class {kind[:80]}"
    if isinstance(element, str):
        return f"an array of {element} {list(sizes)}"
    if isinstance(content, str):
        content = content.encode()  # Python 2 had one type for both
    if not isinstance(content, (bytes, Blob)) or not _fits(content, math.prod(sizes) * element[0].itemsize):
        raise ValueError("an array of other bytes than its shape says")
    return PickledArray(element[0], sizes, content, fortran is True, element[1])


def _fits(content: bytes | Blob, nbytes: int) -> bool:
    if isinstance(content, Blob) and content.text:
        return content.latin1 and nbytes <= len(content) <= 2 * nbytes
    return len(content) == nbytes


def numpy_dtype(value: object) -> tuple[DType, bool] | str:
    """Element type of a pickled numpy dtype, and whether it is big-endian; or what it is, in words."""
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
        raise ValueError("a dictionary of several arguments")
    if isinstance(source, dict):
        return dict(source)
    if not isinstance(source, (list, tuple)):
        raise ValueError("a dictionary made of something else")
    built: dict[object, object] = {}
    for pair in source:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("a dictionary item that is not a pair")
        built[dictionary_key(pair[0])] = pair[1]
    return built


def _default_dictionary(args: tuple[object, ...]) -> object:
    return _dictionary(args[1:])


def _sequence(args: tuple[object, ...]) -> list[Any]:
    if not args:
        return []
    if len(args) > 1 or not isinstance(args[0], (list, tuple)):
        raise ValueError("a sequence made of something else")
    return list(args[0])


def _encoded(args: tuple[object, ...]) -> object:
    """``_codecs.encode(text, "latin1")`` is how protocol 2 writes bytes."""
    if len(args) != 2 or args[1] not in ("latin1", "latin-1") or not isinstance(args[0], (str, Blob)):
        return Inert("_codecs.encode", args)
    if isinstance(args[0], Blob):
        return replace(args[0], latin1=True)
    return args[0].encode("latin-1")


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
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch.nn.parameter.Parameter": _first_argument,
    "torch.nn.parameter.Buffer": _first_argument,
    "torch.autograd.variable.Variable": _first_argument,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_sparse_tensor": _unsupported("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _unsupported("a sparse tensor"),
    "torch._utils._rebuild_qtensor": _unsupported("a quantized tensor"),
    "torch._utils._rebuild_nested_tensor": _unsupported("a nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _unsupported("a tensor of a wrapper class"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unsupported("a meta tensor without data"),
    "torch._utils._rebuild_device_tensor_from_numpy": _of_another_device,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _of_another_device,
    "torch._utils._rebuild_xla_tensor": _of_another_device,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "builtins.dict": _dictionary,
    "__builtin__.dict": _dictionary,
    "builtins.list": _sequence,
    "__builtin__.list": _sequence,
    "builtins.set": _sequence,
    "__builtin__.set": _sequence,
    "builtins.frozenset": _sequence,
    "__builtin__.frozenset": _sequence,
    "torch.Size": lambda args: tuple(_sequence(args)),
    "_codecs.encode": _encoded,
    "builtins.complex": _complex,
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
}
