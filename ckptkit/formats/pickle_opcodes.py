"""The opcodes of pickle, each a small step of a `PickleMachine`.

Source: the opcode table of Python's ``pickletools``, protocols 0 to 5.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptkit.formats.restricted_pickle import Blob, PickleMachine

_MAX_INT_BYTES = 512
_LONG_LINE = 1 << 20
_MAX_MEMO = 1 << 32
"""Larger keys than the opcodes have can be made to collide in a dictionary."""


def _text(raw: bytes | Blob) -> str | bytes | Blob:
    """Python 2 had one type for text and bytes; what is no UTF-8 stays bytes."""
    try:
        return raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        return raw


def _utf8(machine: PickleMachine, width: int) -> None:
    raw = machine.content(machine.uint(width), text=True)
    if not isinstance(raw, bytes):
        machine.push(raw)
    elif raw.isascii():
        machine.push(raw.decode("ascii"))
    else:
        machine.push(_unicode(machine.wide(raw.decode("utf-8", "surrogatepass"))))


def _unicode(text: str) -> str:
    """Escape lone surrogates, which pickle writes and which no file or terminal takes as text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _integer_line(machine: PickleMachine) -> None:
    line = machine.line()
    booleans = {b"00": False, b"01": True}
    machine.push(booleans[line] if line in booleans else int(line.rstrip(b"L") or b"0"))


def _long(machine: PickleMachine, width: int) -> None:
    count = machine.uint(width)
    if count > _MAX_INT_BYTES:
        raise ValueError(f"an integer of {count} bytes")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _quoted(machine: PickleMachine) -> None:
    line = machine.line(_LONG_LINE).strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise ValueError("a string without quotes")
    raw = line[1:-1]
    if b"\\" in raw:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that mean nothing
            raw = codecs.escape_decode(raw)[0]
    machine.push(_text(raw))


def _bytearray(machine: PickleMachine) -> None:
    machine.push(machine.content(machine.uint(8)))


def _tuple_of(machine: PickleMachine, count: int) -> None:
    values = tuple(machine.pop() for _ in range(count))
    machine.push(values[::-1])


def _dict_to_mark(machine: PickleMachine) -> None:
    flat = machine.pop_to_mark()
    built: dict[object, object] = {}
    machine.set_items(built, flat)
    machine.push(built)


def _append(machine: PickleMachine) -> None:
    value = machine.pop()
    machine.extend(machine.top(), [value])


def _extend_to_mark(machine: PickleMachine) -> None:
    values = machine.pop_to_mark()
    machine.extend(machine.top(), values)


def _set_item(machine: PickleMachine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items(machine.top(), [key, value])


def _set_items_to_mark(machine: PickleMachine) -> None:
    flat = machine.pop_to_mark()
    machine.set_items(machine.top(), flat)


def _drop_to_mark(machine: PickleMachine) -> None:
    machine.pop_to_mark()


def _put(machine: PickleMachine, key: int) -> None:
    if not 0 <= key < _MAX_MEMO:
        raise ValueError("a place in the memo that no opcode has")
    machine.memo[key] = machine.top()


def _global_lines(machine: PickleMachine) -> None:
    module, attribute = machine.line(), machine.line()
    machine.push(machine.name(module.decode(), attribute.decode()))


def _stack_global(machine: PickleMachine) -> None:
    attribute, module = machine.pop(), machine.pop()
    machine.push(machine.name(module, attribute))


def _reduce(machine: PickleMachine) -> None:
    args, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, args))


def _new_object_with_names(machine: PickleMachine) -> None:
    names, args, kind = machine.pop(), machine.pop(), machine.pop()
    machine.push(machine.new_object_with_names(kind, args, names))


def _instance(machine: PickleMachine) -> None:
    module, attribute = machine.line().decode(), machine.line().decode()
    machine.push(machine.call(machine.name(module, attribute), tuple(machine.pop_to_mark())))


def _object(machine: PickleMachine) -> None:
    kind, *args = machine.pop_to_mark()
    machine.push(machine.call(kind, tuple(args)))


def _build(machine: PickleMachine) -> None:
    machine.build(machine.pop())


def _persistent(machine: PickleMachine, identifier: object) -> None:
    machine.push(machine.persistent(identifier))


def _protocol(machine: PickleMachine) -> None:
    version = machine.uint(1)
    if version > 5:
        raise ValueError(f"pickle protocol {version}")


def _frame(machine: PickleMachine) -> None:
    if machine.uint(8) > machine.end - machine.position:
        raise ValueError("a frame longer than the pickle")


def _extension(machine: PickleMachine) -> None:
    raise ValueError("a code of Python's extension registry")


def _foreign_buffer(machine: PickleMachine) -> None:
    raise ValueError("a buffer that is not in the file")


_Operation = Callable[["PickleMachine"], None]

_BY_CODE: dict[bytes, _Operation] = {
    b"I": _integer_line,
    b"L": _integer_line,
    b"J": lambda m: m.push(struct.unpack("<i", m.take(4))[0]),
    b"K": lambda m: m.push(m.uint(1)),
    b"M": lambda m: m.push(m.uint(2)),
    b"\x8a": lambda m: _long(m, 1),
    b"\x8b": lambda m: _long(m, 4),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"S": _quoted,
    b"T": lambda m: m.push(_text(m.content(m.uint(4)))),
    b"U": lambda m: m.push(_text(m.take(m.uint(1)))),
    b"B": lambda m: m.push(m.content(m.uint(4))),
    b"C": lambda m: m.push(m.take(m.uint(1))),
    b"\x8e": lambda m: m.push(m.content(m.uint(8))),
    b"\x96": _bytearray,
    b"V": lambda m: m.push(_unicode(m.wide(m.line(_LONG_LINE).decode("raw-unicode-escape")))),
    b"\x8c": lambda m: _utf8(m, 1),
    b"X": lambda m: _utf8(m, 4),
    b"\x8d": lambda m: _utf8(m, 8),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.pop_to_mark()),
    b"a": _append,
    b"e": _extend_to_mark,
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": lambda m: _tuple_of(m, 1),
    b"\x86": lambda m: _tuple_of(m, 2),
    b"\x87": lambda m: _tuple_of(m, 3),
    b"}": lambda m: m.push({}),
    b"d": _dict_to_mark,
    b"s": _set_item,
    b"u": _set_items_to_mark,
    b"\x8f": lambda m: m.push([]),  # sets are kept as lists: nothing here asks what they contain
    b"\x90": _extend_to_mark,
    b"\x91": lambda m: m.push(m.pop_to_mark()),
    b"0": lambda m: m.drop(),
    b"1": _drop_to_mark,
    b"2": lambda m: m.push(m.top()),
    b"(": lambda m: m.mark(),
    b"g": lambda m: m.push(m.memo[int(m.line())]),
    b"h": lambda m: m.push(m.memo[m.uint(1)]),
    b"j": lambda m: m.push(m.memo[m.uint(4)]),
    b"p": lambda m: _put(m, int(m.line())),
    b"q": lambda m: _put(m, m.uint(1)),
    b"r": lambda m: _put(m, m.uint(4)),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"c": _global_lines,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _reduce,  # NEWOBJ: a class and its arguments
    b"\x92": _new_object_with_names,
    b"i": _instance,
    b"o": _object,
    b"b": _build,
    b"P": lambda m: _persistent(m, m.line().decode()),
    b"Q": lambda m: _persistent(m, m.pop()),
    b"\x80": _protocol,
    b"\x95": _frame,
    b"\x82": _extension,
    b"\x83": _extension,
    b"\x84": _extension,
    b"\x97": _foreign_buffer,
    b"\x98": _foreign_buffer,
}

_STEPS = {
    **dict.fromkeys(b"ILJM\x8a\x8bFG", 2),  # numbers
    **dict.fromkeys(b"STUBC\x8e\x96V\x8cX\x8d", 3),  # texts
    **dict.fromkeys(b"]lt\x85\x86\x87}d\x8f\x91", 3),  # containers
    **dict.fromkeys(b"pqr\x94", 4),  # entries of the memo
}
"""Steps of opcodes that make what takes more than 30 bytes."""

OPERATIONS: dict[int, tuple[_Operation, int]] = {
    code[0]: (operation, _STEPS.get(code[0], 1)) for code, operation in _BY_CODE.items()
}
"""What each opcode does, and how many steps it costs."""
