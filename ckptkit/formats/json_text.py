"""JSON in checkpoints, strictly read: headers of safetensors, and the indexes of shards."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ckptkit.errors import FormatError
from ckptkit.formats.mapped_file import MappedFile

_MAX_NODES = 4_000_000


def utf8(file: MappedFile, start: int, nbytes: int) -> str:
    """Text of a range of a file, in memory once: a header may be 100 MB.

    Raises
    ------
    FormatError
        Not UTF-8.
    """
    try:
        with file.raw(start, nbytes) as part:
            return str(part, "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(file.path, f"bad JSON: {error}") from error
    finally:
        file.release(start, nbytes)


def strict_json(path: Path, text: str, *, surrogates: str = "strict") -> dict[str, Any]:
    """Parse a JSON object; duplicate keys, NaN, and more values than memory should hold are refused.

    ``surrogates`` names the error handler for halves of surrogate pairs.

    Raises
    ------
    FormatError
        With the reason.
    """
    if sum(map(text.count, ",[{")) > _MAX_NODES:
        raise FormatError(path, f"JSON of more than {_MAX_NODES} values")
    if not re.match(r"[ \t\r\n]*\{", text):
        raise FormatError(path, "the JSON is not an object")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {twice!r} occurs twice")
        return table

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed = json.loads(text, object_pairs_hook=unique, parse_constant=refused)
        if r"\u" in text:  # it can spell half a surrogate pair, which no file or terminal takes as text
            json.dumps(parsed, ensure_ascii=False).encode(errors=surrogates)
    except RecursionError as error:
        raise FormatError(path, "JSON nested too deeply") from error
    except ValueError as error:
        raise FormatError(path, f"bad JSON: {error}") from error
    assert isinstance(parsed, dict)
    return parsed


def is_count(value: object) -> bool:
    """Whether a JSON value is an integer that may be a size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
