"""What a pickle imports and calls, opcode by opcode, with nothing built and nothing looked up.

Loading (``pickle_machine``) refuses what no checkpoint needs; Python's own unpickler takes more. So this
walks over every opcode that Python knows, with the arguments and stack effects of the standard library's
``pickletools``, and goes on wherever Python might. Where it has to stop, what came before counts.
"""

from __future__ import annotations

import codecs
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ckptkit.base.budget import Budget

PICKLE_ENDINGS = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".pdparams", ".pdopt")
"""Endings of files that may be pickles though they do not begin as one that a pickler wrote."""

_MAX_TEXT = 2000
"""Longer texts are no names; only their place is kept."""
_HEAD = 64
_MAX_HELD = 8
_MAX_USES = 2000
_SHOWN, _DEPTH = 60, 3
_OPCODE_STEPS, _CONTENT_STEPS, _NAME_STEPS = 8, 4, 12

_MARK: Final = object()
_OTHER: Final = object()
"""Any value that can neither be called nor be part of a name."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something imported, or the result of calling it."""

    name: str
    is_result: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes, or a long text, that the pickle holds."""

    start: int
    stop: int
    coding: str = ""  # of a text, whose characters are bytes; "" for bytes


@dataclass(slots=True)
class Use:
    """One name, and what is done with it."""

    name: str
    offset: int  # of the first opcode with it
    ways: dict[str, int] = field(default_factory=dict)  # what is done → offset of the first such opcode
    arguments: str = ""  # of the first call, in short
    holds: bool = True  # whether each call gets bytes that are in `Trace.held`


@dataclass
class Trace:
    """What one pickle does when it is loaded."""

    uses: dict[str, Use] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)  # bytes that may be pickles or archives themselves
    oddities: dict[str, int] = field(default_factory=dict)  # what cannot be told, and where
    stop: int = 0  # where the pickle ends
    fault: tuple[str, int] | None = None  # why it could not be followed to its end, and where
    omitted: int = 0  # names beyond those listed


IMPORTED, CALLED, MADE, CHANGED = "imported", "called", "constructed", "given a state"
ALTERED = "changed itself"


def trace(data: Any, start: int, stop: int, budget: Budget) -> Trace:
    r"""Follow the pickle that begins at ``start``.

    Examples
    --------
    >>> raw = b"cos\nsystem\n(S'id'\ntR."
    >>> found = trace(raw, 0, len(raw), Budget(len(raw), ValueError)).uses["os.system"]
    >>> found.ways, found.arguments
    ({'imported': 0, 'called': 19}, "('id',)")
    """
    tracer = _Tracer(data, start, stop, budget)
    try:
        tracer.run()
    except (ValueError, UnicodeError) as error:
        tracer.found.fault = str(error), tracer.at
        tracer.found.stop = tracer.position
    return tracer.found


class _Tracer:
    def __init__(self, data: Any, start: int, stop: int, budget: Budget) -> None:
        self._data, self._end, self._budget = data, stop, budget
        self.position = self.at = start
        self.found = Trace()
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> None:
        data, budget = self._data, self._budget
        while True:
            self.at = self.position
            if self.at >= self._end:
                raise ValueError("it ends without its STOP opcode")
            code = data[self.at]
            known = _OPCODES.get(code)
            if known is None:
                raise ValueError(f"unknown opcode {code:#04x}")
            budget.steps -= _OPCODE_STEPS
            if budget.steps < 0:
                budget.spend()
            self.position = self.at + 1
            read, act = known
            act(self, read(self))
            if code == _STOP:
                self.found.stop = self.position
                return

    # -- arguments ---------------------------------------------------------------------------------------

    def skip(self, count: int) -> int:
        """Pass over some bytes; returns where they begin."""
        start = self.position
        if count > self._end - start:
            raise ValueError("it ends inside an argument")
        self.position = start + count
        return start

    def number(self, width: int) -> int:
        start = self.skip(width)
        return int.from_bytes(self._data[start : start + width], "little")

    def line(self, coding: str = "", quotes: int = 0) -> bytes:
        """The next line; one that is a text in some coding may hold a pickle."""
        stop = self._data.find(b"\n", self.position, self._end)
        if stop < 0:
            raise ValueError("it ends inside an argument")
        start = self.skip(stop + 1 - self.position)
        self._budget.spend(steps=(stop - start) // 64)
        raw = bytes(self._data[start : min(stop, start + _MAX_TEXT + 1)])
        if coding and len(self.found.held) < _MAX_USES:
            held = Held(start + quotes, stop - quotes, coding)
            if begins_something(decoded(raw[quotes:_HEAD], coding)):
                self.found.held.append(held)
        return raw

    def content(self, width: int, *, is_text: bool) -> Any:
        """A text or bytes after the number of its bytes."""
        self._budget.steps -= _CONTENT_STEPS
        count = self.number(width)
        start = self.skip(count)
        held = Held(start, start + count, "utf-8" * is_text)
        head = self._data[start : min(start + _HEAD, start + count)]
        if len(self.found.held) < _MAX_USES and begins_something(head, is_text=is_text):
            self.found.held.append(held)
        if is_text and count <= _MAX_TEXT:
            self._budget.spend(names=count)
            return self._data[start : start + count].decode("utf-8", "backslashreplace")
        return held

    def short_text(self, width: int) -> Any:
        """A text of Python 2, which may be bytes."""
        before = self.position
        held = self.content(width, is_text=False)
        if held.stop - held.start > _MAX_TEXT:
            return held
        self._budget.spend(names=self.position - before)
        return self._data[held.start : held.stop].decode("utf-8", "backslashreplace")

    # -- the stack ---------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop() if self._stack else _OTHER

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        stack, index = self._stack, len(self._stack) - 1
        while index >= 0 and stack[index] is not _MARK:
            index -= 1
        taken = stack[index + 1 :]
        del stack[max(index, 0) :]
        return taken

    def put(self, key: int) -> None:
        self._memo[key] = self._stack[-1] if self._stack else _OTHER

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, key: int) -> None:
        self.push(self._memo.get(key, _OTHER))

    def plain(self, before: int | None, after: int) -> None:
        """Any opcode of which only the size of the stack matters; ``before`` is None up to a mark."""
        if before is None:
            self.to_mark()
        else:
            for _ in range(before):
                self.pop()
        for _ in range(after):
            self.push(_OTHER)

    def extend(self, values: Sequence[Any]) -> None:
        """Append to the list on top, of which only the first few values are kept."""
        target = self._stack[-1] if self._stack else _OTHER
        if isinstance(target, list):
            target += values[: max(0, _MAX_HELD - len(target))]
        else:
            self._altered(target)

    def set_items(self, _: Any) -> None:
        self._altered(self._stack[-1] if self._stack else _OTHER)

    # -- names and calls ---------------------------------------------------------------------------------

    def name(self, module: Any, attribute: Any) -> None:
        """Note an import."""
        if not isinstance(module, str) or not isinstance(attribute, str):
            self._odd("a name that is computed while it is loaded")
            self.push(Name("(computed)", is_result=True))
            return
        found = Name(f"{module}.{attribute}")
        self._use(found.name, IMPORTED)
        self.push(found)

    def stack_name(self) -> None:
        attribute = self.pop()
        self.name(self.pop(), attribute)

    def lines_name(self, *_: Any) -> None:
        module = self.line()
        self.name(*(raw.decode("utf-8", "backslashreplace") for raw in (module, self.line())))

    def old_instance(self, *_: Any) -> None:
        self.lines_name()
        function = self.pop()
        self.call(function, tuple(self.to_mark()), CALLED)

    def old_object(self, *_: Any) -> None:
        taken = self.to_mark()
        self.call(taken[0] if taken else _OTHER, tuple(taken[1:]), CALLED)

    def call(self, function: Any, arguments: Any, way: str) -> None:
        """Note a call, and push its result."""
        if not isinstance(function, Name):
            self.push(_OTHER)
            return
        self._use(function.name, way, arguments)
        self.push(Name(function.name, is_result=True))

    def reduce(self, way: str) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments, way)

    def construct_with_names(self) -> None:
        self.pop()
        self.reduce(MADE)

    def build(self, *_: Any) -> None:
        self.pop()
        target = self._stack[-1] if self._stack else _OTHER
        if isinstance(target, Name) and target.is_result:
            self._use(target.name, CHANGED)
        else:
            self._altered(target)

    def extension(self, *_: Any) -> None:
        self._odd("a code of Python's extension registry, which can be any name")
        self.push(Name("(extension)", is_result=True))

    def _altered(self, target: Any) -> None:
        if isinstance(target, Name) and not target.is_result:
            self._use(target.name, ALTERED)

    def _odd(self, what: str) -> None:
        self.found.oddities.setdefault(what, self.at)

    def _use(self, name: str, way: str, arguments: Any = _OTHER) -> None:
        use = self.found.uses.get(name)
        if use is None:
            if name.startswith("("):
                return
            self._budget.spend(names=len(name), steps=_NAME_STEPS)
            if len(self.found.uses) >= _MAX_USES:
                self.found.omitted += 1
                return
            use = self.found.uses[name] = Use(name, self.at)
        if way not in use.ways:
            use.ways[way] = self.at
            if way in (CALLED, MADE) and not use.arguments:
                use.arguments = shown(arguments)
        if way == CALLED:
            first = arguments[0] if isinstance(arguments, tuple) and arguments else None
            use.holds &= isinstance(first, Held)


_UNICODE, _STRING = "raw-unicode-escape", "string-escape"


def decoded(raw: bytes, coding: str) -> bytes:
    """The bytes that the characters of a text mean."""
    if coding == _STRING:
        with warnings.catch_warnings(), suppress(ValueError):
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that mean nothing
            return codecs.escape_decode(raw)[0] if b"\\" in raw else raw
        return raw
    return raw.decode(coding, "ignore").encode("latin-1", "ignore") if coding else raw


_OF_TEXT = re.compile("\x80[\x02-\x05]|PK\x03\x04|\\(?c[A-Za-z_][\\w.]*\n".encode())
_OF_BYTES = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04|\x8a\nl\xfc\x9cF\xf9|\x93NUMPY|\(?c[A-Za-z_][\w.]*\n")


def begins_something(head: bytes, *, is_text: bool = False) -> bool:
    """Whether bytes that a pickle holds may be a pickle or an archive; in a text each character is a byte."""
    return (_OF_TEXT if is_text else _OF_BYTES).match(head) is not None


def shown(value: Any, depth: int = _DEPTH) -> str:
    """Arguments in short, as Python writes them."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…")
    if isinstance(value, Name):
        return f"{value.name[:_SHOWN]}{'(…)' * value.is_result}"
    if isinstance(value, Held):
        return f"{value.stop - value.start} {'characters' if value.coding else 'bytes'}"
    if isinstance(value, (tuple, list)) and depth:
        inner = ", ".join(shown(one, depth - 1) for one in value[:_MAX_HELD])
        inner += ", …" * (len(value) > _MAX_HELD) + "," * (isinstance(value, tuple) and len(value) == 1)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    return "…"


# -- the opcodes --------------------------------------------------------------------------------------------

_Read = Callable[[_Tracer], Any]
_Act = Callable[[_Tracer, Any], None]
_STOP: Final = ord(".")


def _text_line(tracer: _Tracer) -> str:
    return tracer.line(_UNICODE).decode("raw-unicode-escape", "backslashreplace")


def _quoted_line(tracer: _Tracer) -> str:
    return decoded(tracer.line(_STRING, 1).strip()[1:-1], _STRING).decode("utf-8", "backslashreplace")


def _index(tracer: _Tracer) -> int:
    line = tracer.line().strip()
    return int(line) if line.isdigit() and len(line) < 20 else -1


def _tuple(count: int) -> _Act:
    def act(tracer: _Tracer, _: Any) -> None:
        tracer.push(tuple([tracer.pop() for _ in range(count)][::-1]))

    return act


_READ: dict[int, _Read] = {
    pickletools.UP_TO_NEWLINE: lambda t: t.line(),
    pickletools.TAKEN_FROM_ARGUMENT1: lambda t: t.content(1, is_text=False),
    pickletools.TAKEN_FROM_ARGUMENT4: lambda t: t.content(4, is_text=False),
    pickletools.TAKEN_FROM_ARGUMENT4U: lambda t: t.content(4, is_text=False),
    pickletools.TAKEN_FROM_ARGUMENT8U: lambda t: t.content(8, is_text=False),
}
"""How an argument is passed over, by the number that ``pickletools`` has for its kind."""

_OWN_READ: dict[str, _Read] = {
    "STRING": _quoted_line,
    "UNICODE": _text_line,
    **dict.fromkeys(("PUT", "GET"), _index),
    **dict.fromkeys(("BINPUT", "BINGET"), lambda t: t.number(1)),
    **dict.fromkeys(("LONG_BINPUT", "LONG_BINGET"), lambda t: t.number(4)),
    **dict.fromkeys(("GLOBAL", "INST"), lambda _: None),
    "SHORT_BINSTRING": lambda t: t.short_text(1),
    "BINSTRING": lambda t: t.short_text(4),
    "SHORT_BINUNICODE": lambda t: t.content(1, is_text=True),
    "BINUNICODE": lambda t: t.content(4, is_text=True),
    "BINUNICODE8": lambda t: t.content(8, is_text=True),
}

_ACT: dict[str, _Act] = {
    **dict.fromkeys(
        (
            "STRING",
            "UNICODE",
            "SHORT_BINSTRING",
            "BINSTRING",
            "SHORT_BINUNICODE",
            "BINUNICODE",
            "BINUNICODE8",
        ),
        lambda t, value: t.push(value),
    ),
    **dict.fromkeys(
        ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), lambda t, value: t.push(value)
    ),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda t, key: t.put(key)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda t, key: t.get(key)),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Tracer.extension),
    "MEMOIZE": lambda t, _: t.memoize(),
    "MARK": lambda t, _: t.push(_MARK),
    "DUP": lambda t, _: t.push(t._stack[-1] if t._stack else _OTHER),
    "EMPTY_TUPLE": _tuple(0),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda t, _: t.push(tuple(t.to_mark())),
    "EMPTY_LIST": lambda t, _: t.push([]),
    "LIST": lambda t, _: t.push(t.to_mark()[:_MAX_HELD]),
    "APPEND": lambda t, _: t.extend([t.pop()]),
    "APPENDS": lambda t, _: t.extend(t.to_mark()),
    "ADDITEMS": lambda t, _: t.extend(t.to_mark()),
    "SETITEM": lambda t, _: t.set_items((t.pop(), t.pop())),
    "SETITEMS": lambda t, _: t.set_items(t.to_mark()),
    "GLOBAL": _Tracer.lines_name,
    "STACK_GLOBAL": lambda t, _: t.stack_name(),
    "REDUCE": lambda t, _: t.reduce(CALLED),
    "NEWOBJ": lambda t, _: t.reduce(MADE),
    "NEWOBJ_EX": lambda t, _: t.construct_with_names(),
    "INST": _Tracer.old_instance,
    "OBJ": _Tracer.old_object,
    "BUILD": _Tracer.build,
    "PROTO": lambda t, version: None,
    "FRAME": lambda t, _: None,
}
"""What an opcode does, where more than the size of the stack matters."""


def _plain(opcode: Any) -> _Act:
    before = [one.name for one in opcode.stack_before]
    taken = None if "mark" in before else len(before)
    below = before.index("mark") if taken is None else 0
    after = len(opcode.stack_after) - (below if taken is None else 0)
    return lambda t, _: t.plain(taken, after)


def _fixed(count: int) -> _Read:
    return lambda t: t.skip(count)


def _opcodes() -> Iterator[tuple[int, tuple[_Read, _Act]]]:
    for opcode in pickletools.opcodes:
        count = 0 if opcode.arg is None else opcode.arg.n
        read = _OWN_READ.get(opcode.name) or _READ.get(count) or _fixed(count)
        yield ord(opcode.code), (read, _ACT.get(opcode.name) or _plain(opcode))


_OPCODES = dict(_opcodes())
