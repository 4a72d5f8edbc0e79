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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from ckptkit.base.budget import LIMITS, Budget
from ckptkit.base.text import counted

PICKLE_ENDINGS = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".pdparams", ".pdopt")
"""Endings of files that may be pickles though they do not begin as one that a pickler wrote."""

_MAX_TEXT = 2000
"""Longer texts are no names; only their place is kept."""
_HEAD = 64
_MAX_HELD = 8
_MAX_USES = 2000
_SHOWN, _DEPTH = 60, 3
_OPCODE_STEPS, _CONTENT_STEPS, _NAME_STEPS = 8, 4, 12
_PICKLE_STEPS, _HELD_NODES = 64, 4
_LOOK_STEPS = 400_000

_MARK: Final = object()
_OTHER: Final = object()
"""Any value that can neither be called nor be part of a name."""

UNPACKS = "torch.storage._load_from_bytes"
"""Loads the bytes that it is given as a pickle, whatever they begin with."""


@dataclass(frozen=True)
class Name:
    """Something imported, or the result of calling it."""

    name: str
    is_result: bool = False

    @cached_property
    def result(self) -> Name:
        """What a call of it gives."""
        return Name(self.name, is_result=True)


@dataclass(slots=True)
class Held:
    """Bytes, or a long text, that the pickle holds."""

    start: int
    stop: int
    coding: str = ""  # of a text, whose characters are bytes; "" for bytes
    is_loaded: bool = False  # as a pickle, whatever they begin with
    is_listed: bool = False  # in `Trace.held`


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


def trace(data: Any, start: int, stop: int, budget: Budget, base: int = 0) -> Trace:
    r"""Follow the pickle that begins at ``start``; places in it are counted from ``base``.

    Examples
    --------
    >>> raw = b"cos\nsystem\n(S'id'\ntR."
    >>> found = trace(raw, 0, len(raw), Budget(len(raw), ValueError)).uses["os.system"]
    >>> found.ways, found.arguments
    ({'imported': 0, 'called': 19}, "('id',)")
    """
    tracer = _Tracer(data, start, stop, budget, base)
    try:
        tracer.run()
    except (ValueError, UnicodeError) as error:
        tracer.found.fault = str(error), tracer.at - base
    tracer.found.stop = tracer.position - base
    return tracer.found


class _Tracer:
    def __init__(self, data: Any, start: int, stop: int, budget: Budget, base: int) -> None:
        self.data, self.end, self.budget, self._base = data, stop, budget, base
        self.position = self.at = start
        self.found = Trace()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._most_values = LIMITS["nodes"].of(stop - start)

    def run(self) -> None:
        data, budget, end = self.data, self.budget, self.end
        budget.spend(steps=_PICKLE_STEPS)
        look = budget.steps - _LOOK_STEPS
        while True:
            self.at = at = self.position
            if at >= end:
                raise ValueError("it ends without its STOP opcode")
            act = _OPCODES[data[at]]
            budget.steps -= _OPCODE_STEPS
            if budget.steps < look:
                self._look()
                look = max(budget.steps - _LOOK_STEPS, 0)
            self.position = at + 1
            act(self)
            if act is _stop:
                return

    def _look(self) -> None:
        """Bound what is kept; this is too slow to be asked for each opcode."""
        self.budget.spend()
        if len(self.stack) + len(self.memo) > self._most_values:
            raise ValueError(f"more than {counted(self._most_values, 'value')} at a time")

    # -- arguments ---------------------------------------------------------------------------------------

    def skip(self, count: int) -> int:
        """Pass over some bytes; returns where they begin."""
        start = self.position
        if count > self.end - start:
            raise ValueError("it ends inside an argument")
        self.position = start + count
        return start

    def number(self, width: int) -> int:
        start = self.skip(width)
        return int.from_bytes(self.data[start : start + width], "little")

    def line(self, coding: str = "", quotes: int = 0) -> bytes:
        """The next line; one that is a text in some coding may hold a pickle."""
        stop = self.data.find(b"\n", self.position, self.end)
        if stop < 0:
            raise ValueError("it ends inside an argument")
        start = self.skip(stop + 1 - self.position)
        self.budget.spend(steps=(stop - start) // 64)
        raw = bytes(self.data[start : min(stop, start + _MAX_TEXT + 1)])
        if coding and begins_something(decoded(raw[quotes:_HEAD], coding)):
            self._hold(Held(start + quotes - self._base, stop - quotes - self._base, coding))
        return raw

    def content(self, width: int, *, is_text: bool) -> Any:
        """A text or bytes after the number of its bytes."""
        budget, data = self.budget, self.data
        budget.steps -= _CONTENT_STEPS
        count = self.number(width)
        start = self.skip(count)
        stop = start + count
        is_short = is_text and count <= _MAX_TEXT
        raw = data[start : stop if is_short else min(start + _HEAD, stop)]
        held = None
        if raw[:1] in _FIRST_BYTES and begins_something(raw, is_text=is_text):
            held = Held(start - self._base, stop - self._base, "utf-8" * is_text)
            self._hold(held)
        if is_short:
            budget.names -= count
            return raw.decode("utf-8", "backslashreplace")
        return held or Held(start - self._base, stop - self._base, "utf-8" * is_text)

    def short_text(self, width: int) -> Any:
        """A text of Python 2, which may be bytes."""
        held = self.content(width, is_text=False)
        count = held.stop - held.start
        if count > _MAX_TEXT:
            return held
        self.budget.names -= count
        start = held.start + self._base
        return self.data[start : start + count].decode("utf-8", "backslashreplace")

    def _hold(self, held: Held) -> None:
        if not held.is_listed:
            held.is_listed = True
            self.budget.spend(nodes=_HELD_NODES)
            self.found.held.append(held)

    # -- the stack ---------------------------------------------------------------------------------------

    def pop(self) -> Any:
        return self.stack.pop() if self.stack else _OTHER

    def top(self) -> Any:
        return self.stack[-1] if self.stack else _OTHER

    def to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        stack, index = self.stack, len(self.stack) - 1
        while index >= 0 and stack[index] is not _MARK:
            index -= 1
        taken = stack[index + 1 :]
        del stack[max(index, 0) :]
        return taken

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1] if self.stack else _OTHER

    def extend(self, values: Sequence[Any]) -> None:
        """Append to the list on top, of which only the first few values are kept."""
        target = self.top()
        if isinstance(target, list):
            target += values[: max(0, _MAX_HELD - len(target))]
        else:
            self._altered(target)

    def change(self, *_: Any) -> None:
        """Note that something is set in what is on top."""
        self._altered(self.top())

    # -- names and calls ---------------------------------------------------------------------------------

    def name(self, module: Any, attribute: Any) -> None:
        """Note an import."""
        if not isinstance(module, str) or not isinstance(attribute, str):
            self.odd("a name that is computed while it is loaded")
            self.stack.append(Name("(computed)", is_result=True))
            return
        found = Name(f"{module}.{attribute}")
        self._use(found.name, IMPORTED)
        self.stack.append(found)

    def lines_name(self) -> None:
        module = self.line()
        self.name(*(raw.decode("utf-8", "backslashreplace") for raw in (module, self.line())))

    def call(self, function: Any, arguments: Any, way: str) -> None:
        """Note a call, and push its result."""
        if not isinstance(function, Name):
            self.stack.append(_OTHER)
            return
        self._use(function.name, way, arguments)
        self.stack.append(function if function.is_result else function.result)

    def build(self) -> None:
        self.pop()
        target = self.top()
        if isinstance(target, Name) and target.is_result:
            self._use(target.name, CHANGED)
        else:
            self._altered(target)

    def _altered(self, target: Any) -> None:
        if isinstance(target, Name) and not target.is_result:
            self._use(target.name, ALTERED)

    def odd(self, what: str) -> None:
        self.found.oddities.setdefault(what, self.at - self._base)

    def _use(self, name: str, way: str, arguments: Any = _OTHER) -> None:
        use = self.found.uses.get(name)
        if use is None:
            if name.startswith("("):
                return
            self.budget.spend(names=len(name), steps=_NAME_STEPS)
            if len(self.found.uses) >= _MAX_USES:
                self.found.omitted += 1
                return
            use = self.found.uses[name] = Use(name, self.at - self._base)
        if way not in use.ways:
            use.ways[way] = self.at - self._base
            if way in (CALLED, MADE) and not use.arguments:
                use.arguments = shown(arguments)
        if way == CALLED:
            first = arguments[0] if isinstance(arguments, tuple) and arguments else None
            use.holds &= isinstance(first, Held)
            if name == UNPACKS and isinstance(first, Held):
                first.is_loaded = True
                self._hold(first)


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
_FIRST_BYTES = frozenset((b"\x80", b"\xc2", b"P", b"\x8a", b"\x93", b"(", b"c"))


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

_Act = Callable[[_Tracer], None]


def _stop(tracer: _Tracer) -> None:
    """The pickle ends."""


def _unknown(tracer: _Tracer) -> None:
    raise ValueError(f"unknown opcode {tracer.data[tracer.at]:#04x}")


def _text_line(tracer: _Tracer) -> str:
    return tracer.line(_UNICODE).decode("raw-unicode-escape", "backslashreplace")


def _quoted_line(tracer: _Tracer) -> str:
    return decoded(tracer.line(_STRING, 1).strip()[1:-1], _STRING).decode("utf-8", "backslashreplace")


def _index(tracer: _Tracer) -> int:
    """A number in digits, as Python reads one."""
    with suppress(ValueError):
        return int(tracer.line())
    return -1


def _pushing(value: Callable[[_Tracer], Any]) -> _Act:
    return lambda t: t.stack.append(value(t))


def _tuple(count: int) -> _Act:
    def act(tracer: _Tracer) -> None:
        stack = tracer.stack
        if len(stack) < count:
            stack[:0] = [_OTHER] * (count - len(stack))
        taken = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        stack.append(taken)

    return act


def _reduce(way: str) -> _Act:
    def act(tracer: _Tracer) -> None:
        arguments = tracer.pop()
        tracer.call(tracer.pop(), arguments, way)

    return act


def _construct_with_names(tracer: _Tracer) -> None:
    tracer.pop()
    arguments = tracer.pop()
    tracer.call(tracer.pop(), arguments, MADE)


def _stack_name(tracer: _Tracer) -> None:
    attribute = tracer.pop()
    tracer.name(tracer.pop(), attribute)


def _old_instance(tracer: _Tracer) -> None:
    tracer.lines_name()
    function = tracer.pop()
    tracer.call(function, tuple(tracer.to_mark()), CALLED)


def _old_object(tracer: _Tracer) -> None:
    taken = tracer.to_mark()
    tracer.call(taken[0] if taken else _OTHER, tuple(taken[1:]), CALLED)


def _extension(width: int) -> _Act:
    def act(tracer: _Tracer) -> None:
        tracer.skip(width)
        tracer.odd("a code of Python's extension registry, which can be any name")
        tracer.stack.append(Name("(extension)", is_result=True))

    return act


_ACTS: dict[str, _Act] = {
    "STRING": _pushing(_quoted_line),
    "UNICODE": _pushing(_text_line),
    "SHORT_BINSTRING": _pushing(lambda t: t.short_text(1)),
    "BINSTRING": _pushing(lambda t: t.short_text(4)),
    "SHORT_BINUNICODE": _pushing(lambda t: t.content(1, is_text=True)),
    "BINUNICODE": _pushing(lambda t: t.content(4, is_text=True)),
    "BINUNICODE8": _pushing(lambda t: t.content(8, is_text=True)),
    "SHORT_BINBYTES": _pushing(lambda t: t.content(1, is_text=False)),
    "BINBYTES": _pushing(lambda t: t.content(4, is_text=False)),
    "BINBYTES8": _pushing(lambda t: t.content(8, is_text=False)),
    "BYTEARRAY8": _pushing(lambda t: t.content(8, is_text=False)),
    "PUT": lambda t: t.put(_index(t)),
    "BINPUT": lambda t: t.put(t.number(1)),
    "LONG_BINPUT": lambda t: t.put(t.number(4)),
    "MEMOIZE": lambda t: t.put(len(t.memo)),
    "GET": lambda t: t.stack.append(t.memo.get(_index(t), _OTHER)),
    "BINGET": lambda t: t.stack.append(t.memo.get(t.number(1), _OTHER)),
    "LONG_BINGET": lambda t: t.stack.append(t.memo.get(t.number(4), _OTHER)),
    "MARK": lambda t: t.stack.append(_MARK),
    "DUP": lambda t: t.stack.append(t.top()),
    "EMPTY_TUPLE": lambda t: t.stack.append(()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda t: t.stack.append(tuple(t.to_mark())),
    "EMPTY_LIST": lambda t: t.stack.append([]),
    "LIST": lambda t: t.stack.append(t.to_mark()[:_MAX_HELD]),
    "APPEND": lambda t: t.extend([t.pop()]),
    "APPENDS": lambda t: t.extend(t.to_mark()),
    "ADDITEMS": lambda t: t.extend(t.to_mark()),
    "SETITEM": lambda t: t.change(t.pop(), t.pop()),
    "SETITEMS": lambda t: t.change(t.to_mark()),
    "GLOBAL": _Tracer.lines_name,
    "STACK_GLOBAL": _stack_name,
    "EXT1": _extension(1),
    "EXT2": _extension(2),
    "EXT4": _extension(4),
    "REDUCE": _reduce(CALLED),
    "NEWOBJ": _reduce(MADE),
    "NEWOBJ_EX": _construct_with_names,
    "INST": _old_instance,
    "OBJ": _old_object,
    "BUILD": _Tracer.build,
    "STOP": _stop,
}
"""What an opcode does, where more than the sizes of its argument and of the stack matter."""


def _skipped(opcode: Any) -> Callable[[_Tracer], object]:
    """How the argument of an opcode is passed over, by the number that ``pickletools`` has for its kind."""
    count = 0 if opcode.arg is None else opcode.arg.n
    if count == pickletools.UP_TO_NEWLINE:
        return lambda t: t.line()
    if count in _COUNTED:
        return lambda t: t.content(_COUNTED[count], is_text=False)
    return lambda t: t.skip(count)


_COUNTED = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def _plain(opcode: Any) -> _Act:
    """An opcode of which only the sizes of its argument and of the stack matter."""
    before = [one.name for one in opcode.stack_before]
    to_mark = "mark" in before
    taken = before.index("mark") if to_mark else len(before)  # below the mark they stay
    pushed = [_OTHER] * (len(opcode.stack_after) - taken * to_mark)
    skip = None if opcode.arg is None else _skipped(opcode)

    def act(tracer: _Tracer) -> None:
        if skip is not None:
            skip(tracer)
        if to_mark:
            tracer.to_mark()
        else:
            for _ in range(taken):
                tracer.pop()
        tracer.stack += pushed

    return act


def _constant(tracer: _Tracer) -> None:
    tracer.stack.append(_OTHER)


def _opcodes() -> list[_Act]:
    acts: list[_Act] = [_unknown] * 256
    for opcode in pickletools.opcodes:
        is_constant = opcode.arg is None and not opcode.stack_before and len(opcode.stack_after) == 1
        known = _ACTS.get(opcode.name)
        acts[ord(opcode.code)] = known or (_constant if is_constant else _plain(opcode))
    return acts


_OPCODES = _opcodes()
