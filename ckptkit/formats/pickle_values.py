"""What common objects beside the weights say, read off the record of how they would be built.

numpy numbers and arrays, dates, paths, devices: each pickles as a call with plain arguments (their classes'
``__reduce__``), so its text can be told without importing or calling what the file names.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath

from ckptkit.formats.restricted_pickle import Inert

MAX_SHOWN_ELEMENTS = 16
"""Arrays of more elements are told by type and shape."""

_MAX_PARTS = 100
_MAX_PART = 1000
_CODES = {
    f"{kind}{size}": size
    for kind, sizes in {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "b": (1,), "c": (8, 16)}.items()
    for size in sizes
}


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


def _numpy_code(dtype: object) -> str | None:
    """Code and byte order of a pickled numpy dtype of plain numbers, such as ``<f8``."""
    if not isinstance(dtype, Inert) or dtype.name != "numpy.dtype" or not dtype.args:
        return None
    code, state = dtype.args[0], dtype.state
    if not isinstance(code, str) or code not in _CODES:
        return None
    swapped = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    return (">" if swapped else "<") + code


def _numpy_scalar(value: Inert) -> str | None:
    if len(value.args) != 2:
        return None
    code, raw = _numpy_code(value.args[0]), value.args[1]
    if code is None or not isinstance(raw, bytes) or len(raw) != _CODES[code[1:]]:
        return None
    import numpy

    return str(numpy.frombuffer(raw, code)[0])


def _array(dtype: object, shape: object, raw: object, *, fortran: bool) -> str | None:
    sizes = _sizes(shape)
    if sizes is None:
        return None
    import numpy

    code = _numpy_code(dtype)
    if code is None or not isinstance(raw, bytes):
        return f"array {list(sizes)}"
    kind = numpy.dtype(code)
    if len(raw) != math.prod(sizes) * kind.itemsize:
        return None
    if math.prod(sizes) > MAX_SHOWN_ELEMENTS or 0 in sizes:
        return f"array of {kind.name} {list(sizes)}"
    values = numpy.frombuffer(raw, kind).reshape(sizes, order="F" if fortran else "C")
    return str(values.tolist())


def _sizes(shape: object) -> tuple[int, ...] | None:
    if not isinstance(shape, tuple) or len(shape) > MAX_SHOWN_ELEMENTS:
        return None
    sizes = tuple(size for size in shape if isinstance(size, int) and 0 <= size < 1 << 62)
    return sizes if len(sizes) == len(shape) else None


def _array_from_state(value: Inert) -> str | None:
    """``_reconstruct`` makes an empty array; the state is (version, shape, dtype, Fortran order, bytes)."""
    if not isinstance(value.state, tuple) or len(value.state) != 5:
        return None
    _, shape, dtype, fortran, raw = value.state
    return _array(dtype, shape, raw, fortran=fortran is True)


def _array_from_buffer(value: Inert) -> str | None:
    """``_frombuffer(bytes, dtype, shape, order)``: protocol 5."""
    if len(value.args) != 4:
        return None
    raw, dtype, shape, order = value.args
    return _array(dtype, shape, raw, fortran=order == "F")


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
    code = _numpy_code(value)
    if code is None:
        return None
    import numpy

    return f"numpy.{numpy.dtype(code).name}"


_READERS: Mapping[str, Callable[[Inert], str | None]] = {
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _array_from_state for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_from_buffer for core in ("core", "_core")},
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
