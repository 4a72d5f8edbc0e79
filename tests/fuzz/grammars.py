"""Ways to damage what has a structure: fields, opcodes and values are changed, the rest stays readable."""

from __future__ import annotations

import ast
import io
import json
import pickletools
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

NUMBERS = (
    0, 1, -1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1,
    2**63,
    2**64 - 1, -(2**31), -(2**63),
)  # fmt: skip

TEXTS = (
    "", "\0", "../x", "/etc/passwd", "x" * 5000, "\x1b[31m", "\u202e\u2066", "\u2028", "\x9b2J",
    "[red]", "=1+1",
    "é", "e\u0301", "1" * 5000, "0x" + "f" * 5000, "1:" * 3000 + "1", "{i}" * 50, "(a+)+$",
    "(" * 3000, "nan", "~",
    "\\", "'",
    '"', "`$(x)`", "a/b", ".", "..", "CON", "-1", "1e999", "__proto__", "<b>&amp;", "|", "\t", "\ud800",
)  # fmt: skip

Mutate = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def _near(source: random.Random, value: int) -> int:
    return source.choice((value + 1, value - 1, value * 2, -value, value + 2**32, *NUMBERS))


def _shuffled(source: random.Random, items: list[Any]) -> None:
    """Drop, double, swap or repeat parts of a list."""
    if not items:
        return
    place, other = source.randrange(len(items)), source.randrange(len(items))
    how = source.randrange(5)
    if how == 0:
        del items[place]
    elif how == 1:
        items.insert(other, items[place])
    elif how == 2:
        items[place], items[other] = items[other], items[place]
    elif how == 3:
        items[place:place] = [items[other]] * source.choice((2, 30, 300))
    else:
        del items[place:]


# -- protocol buffers ----------------------------------------------------------------------------------------


def varint(value: int, extra: int = 0) -> bytes:
    """A number in groups of seven bits; ``extra`` empty groups make it longer than it need be."""
    value %= 2**64
    groups = []
    while True:
        groups.append(value % 128 | 128)
        value //= 128
        if not value:
            break
    groups += [128] * extra
    return bytes([*groups[:-1], groups[-1] & 127])


def _read_varint(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128 or shift > 63:
            return value, place


Field = tuple[int, int, Any]


def _fields(raw: bytes) -> list[Field] | None:
    """The fields of a message; None where it is none."""
    found: list[Field] = []
    place = 0
    try:
        while place < len(raw):
            tag, place = _read_varint(raw, place)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                return None
            if kind == 0:
                value, place = _read_varint(raw, place)
                found.append((number, kind, value))
                continue
            if kind == 2:
                size, place = _read_varint(raw, place)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                return None
            if place + size > len(raw):
                return None
            found.append((number, kind, raw[place : place + size]))
            place += size
    except IndexError:
        return None
    return found


def _message(source: random.Random, fields: Sequence[Field]) -> bytes:
    long = source.random() < 0.05
    encoded = b""
    for number, kind, value in fields:
        extra = source.randrange(3) if long else 0
        encoded += varint(number << 3 | kind, extra)
        if kind == 0:
            encoded += varint(value, extra)
        else:
            encoded += (varint(len(value), extra) if kind == 2 else b"") + value
    return encoded


def protobuf(source: random.Random, raw: bytes, foreign: Sequence[bytes]) -> bytes:
    """Change a message at any depth: numbers, kinds of fields, their order; messages inside themselves."""
    fields = _fields(raw)
    if not fields:
        return raw + varint(source.choice(NUMBERS)) if source.random() < 0.3 else bytes(reversed(raw))
    inner = [place for place, (_, kind, value) in enumerate(fields) if kind == 2 and value]
    if inner and source.random() < 0.6:
        place = source.choice(inner)
        number, kind, value = fields[place]
        if _fields(value):
            fields[place] = (number, kind, protobuf(source, value, foreign))
            return _message(source, fields)
    place = source.randrange(len(fields))
    number, kind, value = fields[place]
    how = source.randrange(6)
    if how == 0:
        _shuffled(source, fields)
    elif how == 1:
        fields[place] = (source.choice((1, 2, 3, 4, 5, 6, 7, 15, 16, 2**29 - 1)), kind, value)
    elif how == 2 and kind == 2:
        wrapped = value
        for _ in range(source.choice((1, 3, 200))):
            wrapped = varint(number << 3 | 2) + varint(len(wrapped)) + wrapped
        fields[place] = (number, kind, wrapped)
    elif how == 3 and foreign:
        fields[place] = (number, 2, source.choice(foreign)[:2000])
    elif kind == 0:
        fields[place] = (number, kind, _near(source, value) % 2**64)
    elif kind == 2:
        fields[place] = (number, 0, source.choice(NUMBERS) % 2**64)
    else:
        fields[place] = (number, kind, source.randbytes(len(value)))
    return _message(source, fields)


# -- pickles -------------------------------------------------------------------------------------------------

_GLOBALS = (
    b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n",
    b"cbuiltins\neval\n",
    b"ctorch\nFloatStorage\n", b"cnumpy\ndtype\n", b"ctorch\nSize\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n", b"ctorch\nBFloat16Storage\n",
)  # fmt: skip
_OPCODES = (
    b"0", b"1", b"2", b"N", b"}", b"]", b")", b"(", b"t", b"d", b"l", b"e", b"a", b"s", b"u", b"R",
    b"b", b"o", b"Q",
    b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93",
    b"\x94",
    b"h\x00", b"q\x00", b"j\xff\xff\xff\xff", b"r\xff\xff\xff\xff", b"\x95" + b"\xff" * 8,
    b"I99999999999999999999\n",
    b"L" + b"9" * 5000 + b"L\n", b"\x8b\xff\xff\xff\x7f", b"\x8a\xff" + b"\xff" * 255, b"F1e999\n",
    b"S'\\x'\n",
)  # fmt: skip


def pickle(source: random.Random, raw: bytes, foreign: Sequence[bytes]) -> bytes:
    """Change the opcodes of a pickle: their order, number and arguments, and what is called."""
    opcodes: list[bytes] = []
    try:
        places = [place for _, _, place in pickletools.genops(io.BytesIO(raw)) if place is not None]
    except Exception:
        return raw
    opcodes = [raw[start:stop] for start, stop in zip(places, [*places[1:], len(raw)], strict=True)]
    place = source.randrange(len(opcodes))
    how = source.randrange(6)
    if how == 0:
        _shuffled(source, opcodes)
    elif how == 1:
        opcodes.insert(place, source.choice(_OPCODES))
    elif how == 2:
        opcodes[place] = source.choice(_OPCODES)
    elif how == 3:
        calls = [place for place, one in enumerate(opcodes) if one[:1] == b"c"]
        opcodes[source.choice(calls) if calls else place] = source.choice(_GLOBALS)
    elif how == 4:
        texts = [place for place, one in enumerate(opcodes) if one[:1] == b"X"]
        if texts:
            text = source.choice(TEXTS).encode(errors="surrogatepass")
            opcodes[source.choice(texts)] = b"X" + struct.pack("<I", len(text)) + text
    else:
        numbers = [place for place, one in enumerate(opcodes) if one[:1] in b"KMJ\x8a"]
        if numbers:
            value = _near(source, source.choice((0, 2, 8))).to_bytes(9, "little", signed=True)
            opcodes[source.choice(numbers)] = b"\x8a\x09" + value
    return b"".join(opcodes)


# -- texts ---------------------------------------------------------------------------------------------------


def _changed(source: random.Random, value: Any, root: Any, depth: int = 0) -> Any:
    """A tree of plain values with one place changed."""
    if isinstance(value, (dict, list)) and value and source.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = source.choice(keys)
        if source.random() < 0.8:
            copied = dict(value) if isinstance(value, dict) else list(value)
            copied[key] = _changed(source, value[key], root, depth + 1)
            return copied
        if isinstance(value, dict):
            items = list(value.items())
            name = source.choice((*TEXTS, *map(str, value)))
            items.append((name, value[key]))
            if source.random() < 0.5:
                items = [item for item in items if item[0] != key]
            return dict(items)
        copied = list(value)
        _shuffled(source, copied)
        return copied
    how = source.randrange(7)
    if isinstance(value, int) and not isinstance(value, bool) and how < 4:
        return _near(source, value)
    if how == 0:
        return root if depth else [root]
    if how == 1:
        return source.choice((None, True, False, 1.5, -0.0, float("inf"), float("nan"), 10**400))
    if how == 2:
        return source.choice(([], {}, [[]], {"": {}}, [value] * 3, {"a": value}))
    if how == 3:
        nested = value
        for _ in range(source.choice((5, 30, 1500))):
            nested = [nested]
        return nested
    if how == 4:
        return source.choice(NUMBERS)
    if isinstance(value, str) and how == 5:
        return value + source.choice(TEXTS)
    return source.choice(TEXTS)


def json_tree(source: random.Random, raw: bytes, foreign: Sequence[bytes]) -> bytes:
    """Change one value, name or list of a JSON text; now and then one key is there twice."""
    try:
        value = json.loads(raw)
        text = json.dumps(_changed(source, value, value), ensure_ascii=source.random() < 0.7)
    except (ValueError, RecursionError):
        return raw[: source.randint(0, len(raw))]
    if source.random() < 0.1 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + "," + text[1:]
    return text.encode(errors="surrogatepass")


def yaml_tree(source: random.Random, raw: bytes, foreign: Sequence[bytes]) -> bytes:
    """Change one value of a YAML text, or one line of it."""
    if source.random() < 0.5:
        return lines(source, raw, foreign)
    try:
        value = yaml.safe_load(raw)
        text: str = yaml.safe_dump(_changed(source, value, value), sort_keys=False, allow_unicode=True)
    except (ValueError, OverflowError, TypeError, RecursionError, yaml.YAMLError):
        return lines(source, raw, foreign)
    return text.encode(errors="surrogatepass")


def python_literal(source: random.Random, raw: bytes, foreign: Sequence[bytes]) -> bytes:
    """Change one value of a table as Python writes it, the header of a .npy array."""
    try:
        value = ast.literal_eval(raw.decode())
    except (ValueError, SyntaxError, UnicodeError, RecursionError, MemoryError):
        return lines(source, raw, foreign)
    if isinstance(value, dict) and source.random() < 0.5:
        sizes = [_near(source, 3) for _ in range(source.choice((0, 1, 2, 4, 33, 3000)))]
        descr = source.choice(
            (
                "<f4",
                ">f8",
                "|O",
                "<U4",
                "|V5",
                "<f99",
                [("a", "<f4"), ("a", "|O")],
                "<M8[s]",
                "|S0",
                ("<f4", (3,)),
                [("a", [("b", "<f4")] * 50)],
            )
        )
        value = {
            **value,
            **source.choice(({"shape": tuple(sizes)}, {"descr": descr}, {"fortran_order": "no"})),
        }
        return repr(value).encode()
    try:
        return repr(_changed(source, value, value)).encode(errors="surrogatepass")
    except RecursionError:
        return b"(" * 3000


_YAML = (
    "&a [*a, *a]", "!!python/object/apply:os.system [x]", "!!binary x", "0x" + "f" * 5000,
    "1:" * 2000 + "1", "*b",
    "<<: *a", "2001-99-99", "[" * 500, "{" * 500, "? x", "- - - -", "|2-", "%TAG ! x", "---",
    "!!set {a}", "0b" + "1" * 5000,
    "0o7777777", "1_000", ".inf", "!!float 1:1:1.5", "!!int '9'", "&x 1",
)  # fmt: skip


def lines(source: random.Random, raw: bytes, foreign: Sequence[bytes]) -> bytes:
    """Change the lines of a text: their order, number, indent, or what is behind a colon or a comma."""
    found = raw.split(b"\n")
    place = source.randrange(len(found))
    how = source.randrange(5)
    if how == 0:
        _shuffled(source, found)
    elif how == 1:
        found[place] = b" " * source.choice((1, 2, 50, 3000)) + found[place]
    elif how == 2:
        head, mark, _ = found[place].partition(source.choice((b":", b",", b'"', b" ")))
        found[place] = head + mark + b" " + source.choice((*_YAML, *TEXTS)).encode(errors="surrogatepass")
    elif how == 3:
        cells = found[place].split(b",")
        _shuffled(source, cells)
        found[place] = b",".join(cells)
    else:
        found.insert(place, source.choice((*_YAML, *TEXTS)).encode(errors="surrogatepass"))
    return b"\n".join(found)


# -- records of numbers --------------------------------------------------------------------------------------


def numbers(widths: str) -> Mutate:
    """What changes one or two numbers of a record, whose widths a `struct` format gives (little-endian)."""
    packed = struct.Struct("<" + widths)

    def change(source: random.Random, raw: bytes, foreign: Sequence[bytes]) -> bytes:
        if len(raw) < packed.size:
            return raw
        fields = list(packed.unpack_from(raw))
        places = [place for place, one in enumerate(fields) if isinstance(one, int)]
        for place in source.sample(places, min(len(places), source.choice((1, 1, 2)))):
            width = struct.calcsize("<" + _codes(widths)[place])
            fields[place] = _near(source, fields[place]) % (1 << 8 * width)
        return packed.pack(*fields) + raw[packed.size :]

    return change


def _codes(widths: str) -> list[str]:
    """One code a field: ``4s2H`` is a text and two numbers."""
    codes, count = [], ""
    for letter in widths:
        if letter.isdigit():
            count += letter
            continue
        codes += [f"{count}s"] if letter == "s" else [letter] * int(count or 1)
        count = ""
    return codes


GRAMMARS: Mapping[str, Mutate] = {
    "protobuf": protobuf,
    "pickle": pickle,
    "json": json_tree,
    "yaml": yaml_tree,
    "lines": lines,
    "python": python_literal,
    "zip local": numbers("4s5H3I2H"),
    "zip central": numbers("4s6H3I5H2I"),
    "zip end": numbers("4s4H2IH"),
    "zip64 end": numbers("4sQ2H2I4Q"),
    "zip64 locator": numbers("4sIQI"),
    "zip both": numbers("4H3I"),
}
