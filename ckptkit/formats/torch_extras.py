"""Plain words for what a PyTorch file holds beside its weights: epoch, arguments, metrics.

numpy numbers and arrays, dates, paths, devices: each pickles as a call with plain arguments (their classes'
``__reduce__``), so its text can be told without importing or calling what the file names.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import PurePosixPath, PureWindowsPath

from ckptkit.base.tensors import Array
from ckptkit.base.text import escaped
from ckptkit.formats.pickle_machine import GlobalName, Inert
from ckptkit.formats.torch_pickle import (
    ARRAYS,
    SCALARS,
    PickledArray,
    StorageRef,
    TensorRef,
    UnsupportedTensor,
    numpy_dtype,
    pickled_array,
)

MAX_EXTRAS = 1000
_MAX_TEXT = 1000
_MAX_ITEMS = 200
_MAX_SEQUENCE = 24
_FIRST_OF_MANY = 8
_LOOK_AHEAD = 20
_MAX_DEPTH = 3
_MAX_PARAGRAPH = 100_000
_MAX_PARAGRAPHS = 1_000_000
"""Characters of all texts of several lines together: many keys may hold the same one."""
MAX_SHOWN_ELEMENTS = 16
"""Arrays of more elements are told by type and shape."""

_MAX_PARTS = 100
_MAX_PART = 1000


def describe(value: object, limit: int = _MAX_TEXT) -> str:
    r"""Say on one line what a value is, in at most about ``limit`` characters, fit for a terminal.

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
    r"""Describe everything beside the state dicts; tables and objects with attributes one level deep.

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
        if len(extras) >= MAX_EXTRAS:
            break
        name = describe(key, 80)
        fields = _fields(value)
        if fields is None:
            extras[name] = paragraphs.text(value)
            continue
        if isinstance(value, Inert) and value.name not in _MERE_TABLES:
            extras[name] = describe(GlobalName(value.name), 200)
        looked_at = 0
        for field, content in islice(fields, _MAX_ITEMS):
            if f"{key}.{field}" not in taken:
                extras[f"{name}.{describe(field, 80)}"] = paragraphs.text(content)
            looked_at += 1
        rest = _count(value) - looked_at
        if rest > 0:
            extras[f"{name}.…"] = f"{_values(rest)} more"
    return extras


_MERE_TABLES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})


def _fields(value: object) -> Iterator[tuple[object, object]] | None:
    """What to tell one by one: the values of a table, the attributes of an object built from nothing else."""
    if isinstance(value, dict):
        return iter(value.items()) if value and not _holds_tensors(value) else None
    if not isinstance(value, Inert) or value.args or known_text(value) is not None:
        return None
    tables = attributes(value)
    if any(_holds_tensors(table) for table in tables):
        return None
    pairs = items(value, _MAX_ITEMS)
    if pairs:
        return iter(pairs)  # dictionaries with attribute access pickle their items twice, as state too
    return chain.from_iterable(table.items() for table in tables) if any(tables) else None


def _count(value: object) -> int:
    if isinstance(value, dict):
        return len(value)
    assert isinstance(value, Inert)
    return len(value.content) or sum(map(len, attributes(value)))


def _holds_tensors(table: dict[object, object]) -> bool:
    """Whether tensors are among the first values: such a table is told by its length."""
    return any(_is_tensor(value) for value in islice(table.values(), _LOOK_AHEAD))


def _is_tensor(value: object) -> bool:
    return isinstance(value, (TensorRef, UnsupportedTensor, StorageRef))


def _is_bulky(value: object) -> bool:
    """Tables of tensors, and tables of such tables, as optimizers keep."""
    return isinstance(value, dict) and any(
        _is_tensor(v) or (isinstance(v, dict) and _holds_tensors(v))
        for v in islice(value.values(), _LOOK_AHEAD)
    )


class _Paragraphs:
    """Texts of several lines keep them, until so many characters are used up."""

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
        said = known_text(value) if isinstance(value, Inert) else self._leaf(value)
        if said is None:
            assert isinstance(value, Inert)
            return self._call(value, depth)
        said = escaped(said[: max(self._left, 0) + 1])
        self._left -= len(said)
        return said

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
            if (depth == 0 and value) or _is_bulky(value):
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
        yield "", f"… {_values(len(value))} in all"

    def _call(self, value: Inert, depth: int) -> str:
        name = escaped(value.name[:200])
        self._left -= len(name)
        if depth == 0:
            return f"{name}(…)"
        pairs = items(value, _MAX_ITEMS)
        tables = [] if pairs else attributes(value)
        unnamed: Iterable[object] = value.args
        if not pairs:
            unnamed = chain(unnamed, islice(value.content, _MAX_ITEMS))
            if value.state is not None and not tables:
                unnamed = chain(unnamed, [value.state])
        named = chain(pairs, chain.from_iterable(table.items() for table in tables))
        parts = chain((("", v) for v in unnamed), ((f"{self.text(k, 0)}=", v) for k, v in named))
        return f"{name}({self._joined(parts, depth)})"

    def _joined(self, parts: Iterable[tuple[str, object]], depth: int) -> str:
        said: list[str] = []
        for label, value in parts:
            said.append(label + self.text(value, depth - 1))
            if self._left <= 0:
                said.append("…")
                break
        return ", ".join(said)


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"


# -- objects of well-known classes -------------------------------------------------------------------------


def known_text(value: Inert) -> str | None:
    """Text of an object of a well-known class; None for any other, and for malformed ones.

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


def _number(value: Inert) -> str | None:
    found = pickled_array(value)
    return None if isinstance(found, str) else str(_small(found)[()])


def _array(value: Inert) -> str:
    """An array in text: its elements where they are few."""
    found = pickled_array(value)
    if isinstance(found, str):
        return found.removeprefix("an ")
    few = 0 < math.prod(found.shape) <= MAX_SHOWN_ELEMENTS
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
    found = numpy_dtype(value)
    return None if isinstance(found, str) else f"numpy.{found[0]}"


_READERS: Mapping[str, Callable[[Inert], str | None]] = {
    **dict.fromkeys(SCALARS, _number),
    **dict.fromkeys(ARRAYS, _array),
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
