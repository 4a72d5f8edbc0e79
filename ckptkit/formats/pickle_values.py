"""What common objects beside the weights say, read off the record of how they would be built.

numpy numbers and arrays, dates, paths, devices: each pickles as a call with plain arguments (their classes'
``__reduce__``), so its text can be told without importing or calling what the file names.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, Array, DType, swapped
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile
from ckptkit.formats.restricted_pickle import Blob, Inert

MAX_SHOWN_ELEMENTS = 16
"""Arrays of more elements are told by type and shape."""

_MAX_PARTS = 100
_MAX_PART = 1000


def known_text(value: Inert) -> str | None:
    """Text of an object of a well-known class; None for any other, and for malformed ones.

    Parameters
    ----------
    value : Inert
        The record of its construction.

    Examples
    --------
    >>> known_text(Inert("torch.device", ("cuda", 0)))
    'cuda:0'
    >>> known_text(Inert("datetime.timedelta", (1, 3600, 0)))
    '1 day, 1:00:00'
    >>> known_text(Inert("os.system", ("ls",)))
    """
    read = _READERS.get(value.name)
    try:
        return None if read is None else read(value)
    except (ValueError, OverflowError):  # numbers that no date, duration or array can have
        return None


@dataclass(frozen=True)
class PickledArray:
    """A numpy array or scalar inside a pickle.

    Parameters
    ----------
    dtype : DType
    shape : tuple of int
    content : bytes or Blob
        Its elements.
    fortran : bool
        Whether the first axis changes fastest.
    big_endian : bool
        Whether each element's bytes run the other way.
    """

    dtype: DType
    shape: tuple[int, ...]
    content: bytes | Blob
    fortran: bool = False
    big_endian: bool = False

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
        """Read-only array: a view of the file where its bytes are in the file as they are.

        Raises
        ------
        FormatError
            Text that stands for other bytes than an array of that shape has.
        """
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


_CLASSES = frozenset({"numpy.ndarray", "numpy.memmap", "numpy.matrix"})
_REBUILT = frozenset(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
_FROM_BUFFER = frozenset(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core"))
_SCALARS = frozenset(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core"))
_ARRAYS = frozenset({*_REBUILT, *_FROM_BUFFER, "numpy.ma.core._mareconstruct"})
_SIZES = {"float": (2, 4, 8), "int": (1, 2, 4, 8), "uint": (1, 2, 4, 8), "complex": (8, 16)}
_CODES = {f"{kind[0]}{size}": f"{kind}{8 * size}" for kind, sizes in _SIZES.items() for size in sizes}
"""numpy's letters for element types; a boolean is ``b1``."""


def is_array(value: object) -> bool:
    """Whether a value records a numpy array, of whatever elements."""
    return isinstance(value, Inert) and value.name in _ARRAYS


def is_scalar(value: object) -> bool:
    """Whether a value records a number of numpy's."""
    return isinstance(value, Inert) and value.name in _SCALARS


def pickled_array(value: Inert) -> PickledArray | str:
    """The array or number that a value records, or what it is where it cannot be read.

    In numpy's ``__reduce__`` ``_reconstruct`` makes an empty array, whose state is (version, shape, dtype,
    Fortran order, bytes); with protocol 5, ``_frombuffer`` gets (bytes, dtype, shape, order).

    Raises
    ------
    ValueError
        It is no such record.
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
    elif value.name in _SCALARS and len(value.args) == 2:
        kind, fortran, (dtype, content) = "numpy.ndarray", False, value.args
    else:
        return f"an array of class {kind[:80]}"
    sizes, element = _sizes(shape), _dtype_of(dtype)
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


def _dtype_of(value: object) -> tuple[DType, bool] | str:
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


def _number(value: Inert) -> str | None:
    found = pickled_array(value)
    return None if isinstance(found, str) else str(_values(found)[()])


def _array(value: Inert) -> str:
    """An array in text: its elements where they are few."""
    found = pickled_array(value)
    if isinstance(found, str):
        return found.removeprefix("an ")
    few = 0 < math.prod(found.shape) <= MAX_SHOWN_ELEMENTS
    return str(_values(found).tolist()) if few else f"array of {found.dtype} {list(found.shape)}"


def _values(array: PickledArray) -> Array:
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
    found = _dtype_of(value)
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
        f"{module}.{prefix}PosixPath": _path(PurePosixPath)
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
    },
    **{
        f"{module}.{prefix}WindowsPath": _path(PureWindowsPath)
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
    },
}


def attributes(value: Inert) -> list[dict[object, object]]:
    """What ``BUILD`` would have set on an object: one table, or two for classes with slots.

    Examples
    --------
    >>> attributes(Inert("argparse.Namespace", (), {"lr": 0.1}))
    [{'lr': 0.1}]
    >>> attributes(Inert("a.Slotted", (), (None, {"x": 1})))
    [{'x': 1}]
    >>> attributes(Inert("numpy.random.mtrand.RandomState", (), (624, 3)))
    []
    """
    state = value.state
    if (
        isinstance(state, tuple)
        and len(state) == 2
        and all(part is None or isinstance(part, dict) for part in state)
    ):
        return [part for part in state if isinstance(part, dict)]
    return [state] if isinstance(state, dict) else []


def items(value: Inert, most: int) -> list[tuple[object, object]]:
    """At most ``most`` of what would have been set in a dictionary of a class of its own.

    Examples
    --------
    >>> items(Inert("mmcv.utils.config.ConfigDict", (), content=[("type", "MogaNet")]), 10)
    [('type', 'MogaNet')]
    >>> items(Inert("collections.deque", (), content=[1, 2]), 10)
    []
    """
    first = value.content[:most]
    pairs = [pair for pair in first if isinstance(pair, tuple) and len(pair) == 2]
    return pairs if len(pairs) == len(first) else []
