"""JSON in checkpoints, strictly read: headers of safetensors, the indexes of shards, our own metadata."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.formats.mapped_file import MappedFile

MAX_TEXT_BYTES = 100_000_000
"""JSON text in memory, where a character beyond ASCII makes all of them take two or four bytes."""

_LARGE_TEXT = 1 << 20
_MAX_VALUE = 1 << 16
_SHOWN = 80
_MEMBER_STEPS, _ODD_VALUE_STEPS = 12, 40
_SPACES = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]*")
_OPEN = re.compile(r"[ \t\r\n]*\{[ \t\r\n]*")
_PLAIN_NAME = re.compile(r'"([^"\\\x00-\x1f]{0,500})"[ \t\r\n]*:[ \t\r\n]*')
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_NEXT = re.compile(r"[ \t\r\n]*([,}])[ \t\r\n]*")
_HALVES = {
    "strict": re.compile("[\ud800-\udfff]"),
    "surrogateescape": re.compile("[\ud800-\udc7f\udd00-\udfff]"),
}
"""Halves of surrogate pairs, which JSON can spell, and which no file or terminal takes as text."""


class JsonError(ValueError):
    """The reason why a text is not taken."""


def utf8(file: MappedFile, start: int, nbytes: int) -> str:
    """Text of a range of a file, in memory once: a header may be 100 MB."""
    try:
        with file.raw(start, nbytes) as part:
            if nbytes > _LARGE_TEXT:
                _refuse_wide(file.path, part)
            return str(part, "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(file.path, f"bad JSON: {error}") from error
    finally:
        file.release(start, nbytes)


def _refuse_wide(path: Path, part: memoryview) -> None:
    if all(bytes(part[at : at + _LARGE_TEXT]).isascii() for at in range(0, len(part), _LARGE_TEXT)):
        return
    width = 4 if re.search(rb"[\xf0-\xff]", part) else 2 if re.search(rb"[\xc4-\xef]", part) else 1
    if width * len(part) > MAX_TEXT_BYTES:
        raise FormatError(path, f"JSON text of {len(part):,} bytes, more than {MAX_TEXT_BYTES // width:,}")


def strict_json(path: Path, text: str, budget: Budget, *, surrogates: str = "strict") -> dict[str, Any]:
    """Parse the JSON object that a file is; see `parse_json`."""
    try:
        return parse_json(text, budget, surrogates=surrogates)
    except JsonError as error:
        raise FormatError(path, str(error)) from error


def parse_json(text: str, budget: Budget, *, surrogates: str = "strict") -> dict[str, Any]:
    """Parse a JSON object; duplicate keys, NaN, and more values than memory should hold are refused.

    ``surrogates`` names the error handler for halves of surrogate pairs.

    Examples
    --------
    >>> parse_json('{"a": 1, "a": 2}', Budget(16, ValueError))
    Traceback (most recent call last):
        ...
    ckptkit.formats.json_text.JsonError: bad JSON: the key 'a' occurs twice
    """
    # at most 190 bytes for an object, 100 for a list, 60 for another value
    budget.spend(nodes=2 * text.count("{") + text.count("[") + text.count(",") // 2)
    if not _OPEN.match(text):
        raise JsonError("the JSON is not an object")
    parsed: dict[str, Any] = _parsed(_DECODER.decode, text)
    if r"\u" in text:
        _refuse_halves(parsed, _HALVES[surrogates])
    return parsed


def parse_metadata(path: Path, text: str | bytes) -> dict[str, str]:
    """The metadata that ckptkit wrote into a file: a JSON object of strings."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "ckptkit's metadata is not valid JSON") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise FormatError(path, "ckptkit's metadata is not a table of texts")
    return found


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except RecursionError as error:
        raise JsonError("JSON nested too deeply") from error
    except ValueError as error:
        endless = "set_int_max_str_digits" in str(error)
        raise JsonError(f"bad JSON: {'a number of too many digits' if endless else error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:_SHOWN]!r} occurs twice")
            seen.add(name)
    return table


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refused)


def _refuse_halves(value: Any, half: re.Pattern[str]) -> None:
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += inner
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
        elif isinstance(inner, str) and (found := half.search(inner)):
            raise JsonError(f"bad JSON: half a character, {found[0]!r}")


class JsonWalk:
    """Walks over a JSON text from its beginning to its end, so that few of its values are in memory at once.

    Examples
    --------
    >>> walk = JsonWalk('{"a": [1, 2], "b": 3}', Budget(21, ValueError))
    >>> {name: walk.value() for name in walk.names()}
    {'a': [1, 2], 'b': 3}
    >>> walk.end()
    """

    def __init__(self, text: str, budget: Budget) -> None:
        end = text.rfind("}") + 1
        padded = text.count(" ", end) == len(text) - end  # three times as fast as taking millions off
        self._text = text[:end] if padded else text.rstrip(_SPACES)
        self._budget = budget
        self._at = 0
        self._escapes = r"\u" in text

    def names(self) -> Iterator[str]:
        """The names of an object; the caller takes the value of each before the next."""
        self._take(_OPEN, "the JSON is not an object")
        if self._text.startswith("}", self._at):
            self._at = self._after_space(self._at + 1)
            return
        while True:
            self._budget.spend(steps=_MEMBER_STEPS)
            if plain := _PLAIN_NAME.match(self._text, self._at):
                self._at = plain.end()
                yield plain[1]
            else:
                name = self.string()
                self._take(_COLON, "bad JSON: a name without ':'")
                yield name
            if self._take(_NEXT, "bad JSON: a value without ',' or '}' after it")[1] == "}":
                return

    def string(self) -> str:
        """Take a text."""
        if not self._text.startswith('"', self._at):
            raise JsonError("bad JSON: a string is expected here")
        found, self._at = _parsed(lambda text: _DECODER.raw_decode(text, self._at), self._text)
        if self._escapes and (half := _HALVES["strict"].search(found)):
            raise JsonError(f"bad JSON: half a character, {half[0]!r}")
        assert isinstance(found, str)
        return found

    def null(self) -> bool:
        """Take a null, if there is one."""
        found = self._text.startswith("null", self._at)
        self._at += 4 * found
        return found

    def value(self) -> Any:
        """Take a value of a few hundred characters, such as an object without others in it."""
        end = self._text.find("}", self._at, self._at + _MAX_VALUE) + 1
        if end and self._text.startswith("{", self._at):
            with contextlib.suppress(JsonError):  # with an object inside, say
                found, used = _parsed(_DECODER.raw_decode, self._text[self._at : end])
                self._at += used
                return found
        self._budget.spend(steps=_ODD_VALUE_STEPS)
        found, used = _parsed(_DECODER.raw_decode, self._text[self._at : self._at + _MAX_VALUE])
        self._at += used
        return found

    def end(self) -> None:
        """Refuse what follows."""
        if self._at != len(self._text):
            raise JsonError(f"bad JSON: data after its end, at character {self._at}")

    def _take(self, pattern: re.Pattern[str], reason: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise JsonError(reason)
        self._at = found.end()
        return found

    def _after_space(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return found.end() if found else at


def is_count(value: object) -> bool:
    """Whether a JSON value is an integer that may be a size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
