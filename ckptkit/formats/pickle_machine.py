"""A pickle machine that builds data and nothing else.

Python's own unpickler imports whatever a file names and calls it. This one is a small interpreter of the
opcodes: a global becomes a `GlobalName`, calling one becomes an `Inert` record of the call, and only names in
the caller's table of handlers mean more. Nothing a file names is ever looked up, imported or called, so there
is nothing to sandbox. It never recurses, and its work and memory are bounded by the budget.

The opcodes are those of Python's ``pickletools``, protocols 0 to 5.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.formats.pickle_names import would_run

MAX_PICKLE_BYTES = 64 << 20
"""A checkpoint's pickle has some 400 bytes per tensor; the tensors themselves are outside."""

_MAX_LINE = 4096
_MAX_NAME = 1000
_MAX_KEY_PART = 1000
_CALL_COST, _NAME_COST, _ITEM_COST, _COPY_COST = 9, 4, 3, 4
"""Steps: each pays for about 30 bytes of memory, and for less than a microsecond."""

_LARGE_TEXT, _LARGE_BYTES = 1 << 20, 100_000
"""Longer ones stay in the file: numpy's arrays are such."""

_SMALL_INT = 1 << 60
"""Larger integers can be made to collide in a dictionary; their digits, being text, cannot."""

_MAX_INT_BYTES = 512
_LONG_LINE = 1 << 20
_MAX_MEMO = 1 << 32
"""Larger keys than the opcodes have can be made to collide in a dictionary."""


_MAX_CALLS = 20


@dataclass(eq=False, slots=True)
class Blob:
    """Text or bytes of a pickle that were left in the file."""

    offset: int
    nbytes: int
    text: bool = False  # they are UTF-8 and mean text
    latin1: bool = False  # that text means bytes, one character each: so protocols 0 to 2 write bytes

    def __len__(self) -> int:
        return self.nbytes


@dataclass(frozen=True, slots=True)
class GlobalName:
    """A module attribute that the file names, and no more than its name.

    Examples
    --------
    >>> str(GlobalName("os.system"))
    'os.system'
    """

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False, repr=False, slots=True)
class Inert:
    """A call that the file contains and that is not made."""

    name: str  # dotted name of what was to be called
    args: tuple[object, ...]  # what it was to be called with
    state: object = None  # what ``BUILD`` would have set on the result
    # what would have been appended to it, or (key, value) pairs set in it
    content: Sequence[object] = ()

    def __repr__(self) -> str:
        """The name alone: what it was called with may be deep, endless, or many times the same thing."""
        return f"Inert({self.name!r}, …)"

    def add(self, values: Iterable[object]) -> None:
        """Keep what would have been put into the result, which most have none of."""
        if not isinstance(self.content, list):
            self.content = []
        self.content.extend(values)


Handler = Callable[[tuple[object, ...]], object]
PersistentLoad = Callable[[object], object]
_MARK: Final = object()
_STOP: Final = ord(".")
_FEW: Final = 16
_OF_A_CALL: Final = "(…)"
_LEAVES = (str, bytes, int, float, bool, type(None), GlobalName)


def no_persistent_ids(identifier: object) -> object:
    """Refuse them: most pickles have none."""
    raise ValueError("unexpected persistent id")


def dictionary_key(key: object) -> object:
    """A key that hashes in constant time and without deliberate collisions.

    Examples
    --------
    >>> dictionary_key("w"), dictionary_key((1, "a")), dictionary_key(2**61 - 1)
    ('w', "(1, 'a')", '2305843009213693951')
    """
    if type(key) is str:
        return key
    if isinstance(key, int) and abs(key) >= _SMALL_INT:
        return hex(key) if abs(key) >= 1 << 64 else str(key)
    if isinstance(key, tuple):
        if len(key) > 16 or not all(isinstance(part, _LEAVES) and _is_short(part) for part in key):
            raise ValueError("unexpected dictionary key: a nested or long tuple")
        return str(key)
    if isinstance(key, complex):  # these, too, can be made to collide
        return str(key)
    if isinstance(key, (list, dict)):
        raise ValueError(f"unexpected dictionary key: {type(key).__name__}")
    return key


def _is_short(part: object) -> bool:
    return not isinstance(part, (str, bytes)) or len(part) <= _MAX_KEY_PART


class _Memo:
    """Values by number: in a list, as pickles count them, and in a table where one does not count so.

    Examples
    --------
    >>> memo = _Memo()
    >>> memo.add("a"), memo.set(2, "c"), memo.set(1, "b"), memo.set(0, "A"), memo.add("d")
    (None, None, None, None, None)
    >>> [memo.get(number) for number in range(4)]
    ['A', 'b', 'c', 'd']
    """

    __slots__ = ("_counted", "_others")

    def __init__(self) -> None:
        self._counted: list[Any] = []
        self._others: dict[int, Any] = {}

    @property
    def counted(self) -> list[Any] | None:
        """The list, while all are in it."""
        return None if self._others else self._counted

    def add(self, value: Any) -> None:
        """Keep a value under the next number, which is how many there are."""
        if self._others:
            self.set(len(self._counted) + len(self._others), value)
        else:
            self._counted.append(value)

    def set(self, key: int, value: Any) -> None:
        """Keep a value under a number that is not negative."""
        if key < len(self._counted):
            self._counted[key] = value
        elif key > len(self._counted):
            self._others[key] = value
        else:
            self._others.pop(key, None)
            self._counted.append(value)

    def get(self, key: int) -> Any:
        """The value of a number; KeyError where there is none."""
        return self._counted[key] if 0 <= key < len(self._counted) else self._others[key]


# -- the machine --------------------------------------------------------------------------------------------


class PickleMachine:
    """One pickle inside a longer run of bytes.

    Examples
    --------
    >>> import pickle
    >>> raw = pickle.dumps({"epoch": 3, "f": print})
    >>> PickleMachine(Path("x.pth"), raw, 0, len(raw)).run()
    {'epoch': 3, 'f': GlobalName(name='builtins.print')}
    """

    def __init__(
        self,
        path: Path,
        data: Any,
        start: int,
        end: int,
        *,
        handlers: Mapping[str, Handler] | None = None,
        persistent_load: PersistentLoad = no_persistent_ids,
        budget: Budget | None = None,
        would_run: dict[str, None] | None = None,
    ) -> None:
        self._path = path
        self._data = data
        self.position = start
        self._last = end
        self.end = min(end, start + MAX_PICKLE_BYTES)
        self._handled: dict[int, object] = {}
        self._handlers = handlers or {}
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._memo = _Memo()
        self._globals: dict[str, GlobalName] = {}
        self._budget = budget or Budget(end - start, ValueError)
        self._looked_at: set[str] = set()
        self._would_run = {} if would_run is None else would_run

    def run(self) -> object:
        """Interpret up to the STOP opcode and return the value built."""
        data, budget, stack = self._data, self._budget, self._stack
        while True:
            self._run_plain()
            start = self.position
            try:
                code = data[start] if start < self.end else self.take(1)[0]
                self.position = start + 1
                if code == _STOP:
                    return self.last(1)[0]
                known = _OPERATIONS.get(code)
                if known is None:
                    raise ValueError(_REFUSED.get(code) or f"unexpected opcode {code:#04x}")
                operation, steps, pushes = known
                budget.steps -= steps  # as spend does; this loop is most of the time of opening a file
                if budget.steps < 0:
                    budget.spend()
                value = operation(self)
                if pushes:
                    stack.append(value)
            except (ValueError, IndexError, KeyError, struct.error) as error:
                reason = str(error) if type(error) is ValueError else f"malformed ({error})"
                raise FormatError(self._path, f"bad pickle: {reason}", offset=start) from error

    def _run_plain(self) -> None:
        """Go over opcodes that move values and cannot fail, which are three of four in a long pickle.

        What it does and costs is in `_OPERATIONS` too; it leaves all that is out of the ordinary to `run`.
        """
        data, stack, memo = self._data, self._stack, self._memo.counted
        at, last, steps = self.position, self.end - 1, self._budget.steps
        while at < last and steps >= _DEAREST and memo is not None:
            code = data[at]
            if code == _BINGET and data[at + 1] < len(memo):
                stack.append(memo[data[at + 1]])
                at, steps = at + 2, steps - 1
            elif code == _BININT1:
                stack.append(data[at + 1])
                at, steps = at + 2, steps - 1
            elif code in _CONSTANTS:
                make, cost = _CONSTANTS[code]
                stack.append(make())
                at, steps = at + 1, steps - cost
            elif code in _WIDE and at + 4 < last:
                width, signed, cost = _WIDE[code]
                stack.append(int.from_bytes(data[at + 1 : at + 1 + width], "little", signed=signed))
                at, steps = at + 1 + width, steps - cost
            elif not stack or stack[-1] is _MARK:
                break
            elif code == _MEMOIZE:
                memo.append(stack[-1])
                at, steps = at + 1, steps - 4
            elif code == _TUPLE1:
                stack[-1] = (stack[-1],)
                at, steps = at + 1, steps - 3
            elif code == _TUPLE2 and len(stack) > 1 and stack[-2] is not _MARK:
                value = stack.pop()
                stack[-1] = (stack[-1], value)
                at, steps = at + 1, steps - 3
            else:
                break
        self.position, self._budget.steps = at, steps

    # -- bytes ---------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """Next ``count`` bytes."""
        stop = self.position + count
        if stop > self.end:
            limit = f"it is longer than {MAX_PICKLE_BYTES} bytes"
            raise ValueError(limit if self.end < self._last else "unexpected end")
        taken: bytes = self._data[self.position : stop]
        self.position = stop
        return taken

    def content(self, count: int, *, text: bool = False) -> bytes | Blob:
        """Next ``count`` bytes, which are the content of a text or of bytes; long ones are not read."""
        if count <= (_LARGE_TEXT if text else _LARGE_BYTES):
            self._budget.names -= count
            return self.take(count)
        if count > self._last - self.position:
            raise ValueError("unexpected end")
        found = Blob(self.position, count, text)
        self.position += count
        self.end = min(self._last, self.end + count)
        return found

    def byte(self) -> int:
        """Next byte."""
        at = self.position
        if at >= self.end:
            self.take(1)
        self.position = at + 1
        found: int = self._data[at]
        return found

    def uint(self, width: int) -> int:
        """Next little-endian unsigned integer of ``width`` bytes."""
        return int.from_bytes(self.take(width), "little")

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """Next line of text, without its end."""
        stop = self._data.find(b"\n", self.position, min(self.end, self.position + limit))
        if stop < 0:
            raise ValueError("unterminated line")
        self._budget.names -= stop - self.position
        line: bytes = self.take(stop - self.position)
        self.position += 1
        return line

    def protocol(self) -> None:
        """Refuse versions that do not exist."""
        version = self.uint(1)
        if version > 5:
            raise ValueError(f"unknown protocol {version}")

    def frame(self) -> None:
        """Refuse a frame that the pickle cannot hold."""
        if self.uint(8) > self.end - self.position:
            raise ValueError("a frame reaches beyond the end")

    # -- numbers and texts ---------------------------------------------------------------------------------

    def integer_line(self) -> int:
        """An integer in digits; protocol 1 writes booleans so, too."""
        line = self.line()
        booleans = {b"00": False, b"01": True}
        return booleans[line] if line in booleans else int(line.rstrip(b"L") or b"0")

    def long(self, width: int) -> int:
        """An integer after the number of its bytes."""
        count = self.uint(width)
        if count > _MAX_INT_BYTES:
            raise ValueError(f"an integer of {count} bytes is too long")
        return int.from_bytes(self.take(count), "little", signed=True)

    def quoted(self) -> str | bytes | Blob:
        """A text as Python 2's ``repr`` wrote it."""
        line = self.line(_LONG_LINE).strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise ValueError("expected a quoted string")
        raw = line[1:-1]
        if b"\\" in raw:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that mean nothing
                raw = codecs.escape_decode(raw)[0]
        return _text(raw)

    def utf8(self, width: int) -> str | Blob:
        """A text after the number of its bytes."""
        raw = self.content(self.uint(width), text=True)
        if isinstance(raw, Blob):
            return raw
        return raw.decode("ascii") if raw.isascii() else self.unicode(raw.decode("utf-8", "surrogatepass"))

    def unicode(self, text: str) -> str:
        """Charge characters beyond ASCII, which take up to four bytes each, and escape lone surrogates.

        Pickle writes those, and neither a file nor a terminal takes them as text.
        """
        self._budget.spend(names=4 * len(text))
        return text.encode("utf-8", "backslashreplace").decode()

    # -- stack and memo ------------------------------------------------------------------------------------

    def top(self) -> Any:
        """The value on top of the stack, which stays."""
        if self._stack[-1] is _MARK:
            raise ValueError("expected a value, found a mark")
        return self._stack[-1]

    def last(self, count: int) -> tuple[Any, ...]:
        """Take the last few values."""
        taken = tuple(self._stack[-count:])
        if len(taken) < count:
            raise IndexError("pop from empty list")
        for value in taken:
            if value is _MARK:
                raise ValueError("expected a value, found a mark")
        del self._stack[-count:]
        return taken

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        stack = self._stack
        index = len(stack) - 1
        while index >= 0 and stack[index] is not _MARK:
            index -= 1
        if index < 0:
            raise ValueError("expected a mark on the stack, found none")
        taken = stack[index + 1 :]
        del stack[index:]
        return taken

    def put(self, key: int) -> None:
        """Remember the value on top of the stack."""
        if not 0 <= key < _MAX_MEMO:
            raise ValueError("memo index out of range")
        self._memo.set(key, self.top())

    # -- containers ----------------------------------------------------------------------------------------

    def set_items(self, flat: Sequence[Any], target: Any) -> Any:
        """Put keys and values, alternating in ``flat``, into a dictionary."""
        if len(flat) % 2:
            raise ValueError("expected a value for each key")
        self._pay(_ITEM_COST * len(flat) // 2)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        if isinstance(target, dict):
            for key, value in pairs:
                target[dictionary_key(key)] = value
        elif isinstance(target, Inert):
            target.add(pairs)
        else:
            raise ValueError(f"expected a dictionary, found {type(target).__name__}")
        return target

    def extend(self, values: Iterable[Any]) -> None:
        """Append values to the list on top of the stack."""
        target = self.top()
        if not isinstance(target, (list, Inert)):
            raise ValueError(f"expected a list, found {type(target).__name__}")
        (target.extend if isinstance(target, list) else target.add)(values)

    # -- names and calls -----------------------------------------------------------------------------------

    def name(self, module: object, attribute: object) -> GlobalName:
        """Turn a global into its name."""
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("expected text for the name of a global")
        if len(module) + len(attribute) > _MAX_NAME:
            raise ValueError(f"a global whose name is longer than {_MAX_NAME} characters")
        dotted = f"{module}.{attribute}"
        known = self._globals.get(dotted)
        if known is None:
            self._budget.spend(steps=_NAME_COST, names=len(dotted))
            known = self._globals[dotted] = GlobalName(dotted)
        return known

    def name_lines(self) -> GlobalName:
        """A global whose module and name are lines."""
        return self.name(self.line().decode(), self.line().decode())

    def note(self, name: str, args: tuple[object, ...] = ()) -> None:
        """Keep what a call that is not made here would run: the function, or one that it is given."""
        if name not in self._looked_at:
            self._look_at(name)
        for argument in args:
            if isinstance(argument, GlobalName) and argument.name not in self._looked_at:
                self._look_at(argument.name)

    def _look_at(self, called: str) -> None:
        self._looked_at.add(called)
        running = would_run(called.removesuffix(_OF_A_CALL))
        if running is not None and len(self._would_run) < _MAX_CALLS:
            self._would_run[running] = None

    def call(self, function: object, args: object) -> object:
        """Record a call, or let the handler of that name answer it."""
        if not isinstance(args, tuple):
            raise ValueError(f"expected a tuple of arguments, found {type(args).__name__}")
        self._pay(_CALL_COST)
        if isinstance(function, Inert):  # a call of the result of a call, as getattr tricks make
            self.note(function.name, args)
            return Inert(function.name.removesuffix(_OF_A_CALL) + _OF_A_CALL, args)
        if not isinstance(function, GlobalName):
            raise ValueError(f"expected a function to call, found {type(function).__name__}")
        handler = self._handlers.get(function.name)
        if handler is None:
            self.note(function.name, args)
            return Inert(function.name, args)
        self._pay(sum(map(self._cost, args)))
        return handler(args)

    def _pay(self, steps: int) -> None:
        self._budget.steps -= steps
        if self._budget.steps < 0:
            self._budget.spend()

    def _cost(self, argument: object) -> int:
        """What a handler may have to look through; the file's length pays for each text in it once."""
        if isinstance(argument, (str, bytes, Blob)) and id(argument) not in self._handled:
            self._handled[id(argument)] = argument
            return 0
        if isinstance(argument, (list, dict, tuple)):
            return len(argument) if len(argument) <= _FEW else _COPY_COST * len(argument)
        return len(argument) if isinstance(argument, (str, bytes, Blob)) else 0

    def call_to_mark(self) -> object:
        """Call the first value above the mark with the others."""
        function, *args = self.to_mark()
        return self.call(function, tuple(args))

    def new_object_with_names(self, kind: object, args: object, names: object) -> Inert:
        """Record a construction with keyword arguments."""
        if not isinstance(kind, GlobalName) or not isinstance(args, tuple):
            raise ValueError("expected a class to make an object of, and a tuple of arguments")
        self._budget.spend(steps=_CALL_COST)
        self.note(kind.name, args)
        return Inert(kind.name, args, state=names)

    def build(self, state: object) -> None:
        """Keep the state of an `Inert`; attributes set on containers carry no tensors and are dropped."""
        target = self.top()
        if isinstance(target, Inert):
            target.state = state
            if isinstance(state, tuple):
                self.note(target.name, state)

    def persistent(self, identifier: object) -> object:
        """What a persistent id means."""
        self._budget.spend(steps=_CALL_COST)
        return self._persistent_load(identifier)


# -- the opcodes --------------------------------------------------------------------------------------------


def _text(raw: bytes | Blob) -> str | bytes | Blob:
    """Python 2 had one type for text and bytes; anything but UTF-8 stays bytes."""
    try:
        return raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        return raw


_Operation = Callable[[PickleMachine], object]

_NUMBERS: dict[bytes, _Operation] = {
    b"I": PickleMachine.integer_line,
    b"L": PickleMachine.integer_line,
    b"J": lambda m: struct.unpack("<i", m.take(4))[0],
    b"M": lambda m: m.uint(2),
    b"\x8a": lambda m: m.long(1),
    b"\x8b": lambda m: m.long(4),
    b"F": lambda m: float(m.line()),
    b"G": lambda m: struct.unpack(">d", m.take(8))[0],
}
_TEXTS: dict[bytes, _Operation] = {
    b"S": PickleMachine.quoted,
    b"T": lambda m: _text(m.content(m.uint(4))),
    b"U": lambda m: _text(m.take(m.uint(1))),
    b"B": lambda m: m.content(m.uint(4)),
    b"C": lambda m: m.take(m.uint(1)),
    b"\x8e": lambda m: m.content(m.uint(8)),
    b"\x96": lambda m: m.content(m.uint(8)),
    b"V": lambda m: m.unicode(m.line(_LONG_LINE).decode("raw-unicode-escape")),
    b"\x8c": lambda m: m.utf8(1),
    b"X": lambda m: m.utf8(4),
    b"\x8d": lambda m: m.utf8(8),
}
_CONTAINERS: dict[bytes, _Operation] = {
    b"]": lambda _: [],
    b"l": lambda m: m.to_mark(),
    b"t": lambda m: tuple(m.to_mark()),
    b"\x85": lambda m: m.last(1),
    b"\x86": lambda m: m.last(2),
    b"\x87": lambda m: m.last(3),
    b"}": lambda _: {},
    b"d": lambda m: m.set_items(m.to_mark(), {}),
    b"\x8f": lambda _: [],  # sets are kept as lists: nothing here asks what they contain
    b"\x91": lambda m: m.to_mark(),
}
_OTHER_VALUES: dict[bytes, _Operation] = {
    b"K": PickleMachine.byte,
    b"N": lambda _: None,
    b"\x88": lambda _: True,
    b"\x89": lambda _: False,
    b")": lambda _: (),
    b"(": lambda _: _MARK,
    b"2": PickleMachine.top,
    b"g": lambda m: m._memo.get(int(m.line())),
    b"h": lambda m: m._memo.get(m.byte()),
    b"j": lambda m: m._memo.get(m.uint(4)),
    b"c": PickleMachine.name_lines,
    b"\x93": lambda m: m.name(*m.last(2)),
    b"R": lambda m: m.call(*m.last(2)),
    b"\x81": lambda m: m.call(*m.last(2)),  # NEWOBJ: a class and its arguments
    b"\x92": lambda m: m.new_object_with_names(*m.last(3)),
    b"i": lambda m: m.call(m.name_lines(), tuple(m.to_mark())),
    b"o": PickleMachine.call_to_mark,
    b"P": lambda m: m.persistent(m.line().decode()),
    b"Q": lambda m: m.persistent(*m.last(1)),
}
_PUTS: dict[bytes, _Operation] = {
    b"p": lambda m: m.put(int(m.line())),
    b"q": lambda m: m.put(m.byte()),
    b"r": lambda m: m.put(m.uint(4)),
    b"\x94": lambda m: m._memo.add(m.top()),
}
_CHANGES: dict[bytes, _Operation] = {
    b"a": lambda m: m.extend(m.last(1)),
    b"e": lambda m: m.extend(m.to_mark()),
    b"\x90": lambda m: m.extend(m.to_mark()),
    b"s": lambda m: m.set_items(m.last(2), m.top()),
    b"u": lambda m: m.set_items(m.to_mark(), m.top()),
    b"0": lambda m: m._stack.pop(),  # mark or value
    b"1": lambda m: m.to_mark(),
    b"b": lambda m: m.build(*m.last(1)),
    b"\x80": PickleMachine.protocol,
    b"\x95": PickleMachine.frame,
}
_BINGET, _BININT1, _MEMOIZE, _TUPLE1, _TUPLE2 = b"hK\x94\x85\x86"
_CONSTANTS: dict[int, tuple[Callable[[], Any], int]] = {
    ord("("): (lambda: _MARK, 1),
    ord(")"): (tuple, 1),
    ord("}"): (dict, 3),
}
_WIDE = {ord("M"): (2, False, 2), ord("J"): (4, True, 2)}
_DEAREST = 4
_OPERATIONS = {
    code[0]: (operation, steps, pushes)
    for table, steps, pushes in (
        (_NUMBERS, 2, True),
        (_TEXTS, 3, True),
        (_CONTAINERS, 3, True),
        (_OTHER_VALUES, 1, True),
        (_PUTS, 4, False),
        (_CHANGES, 1, False),
    )
    for code, operation in table.items()
}
"""What each opcode does, the steps it costs, and whether it pushes what it returns.

Steps are more than one where it makes what takes more than 30 bytes.
"""

_REFUSED = {
    **dict.fromkeys(b"\x82\x83\x84", "a code of Python's extension registry"),
    **dict.fromkeys(b"\x97\x98", "a buffer that is not in the file"),
}
